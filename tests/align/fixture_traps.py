"""Common mistakes: the right value, and that the wrong one is told apart."""

import json
import math

from fixture_files import FIXTURES, log_probs_of, mean_of, names, read
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.align import advantages, kl, policy, preference, rewards, scores, targets
from llm_jax.train.losses import token_log_probs

TRAPS = {}


def trap(function):
    """Registers the check of a trap: `(close, given, right, wrong)`."""
    TRAPS[function.__name__] = function
    return function


# Where the other traps are met.
ELSEWHERE = {
    'T04': 'chat/ encodes contents',
    'T05': 'chat/ encodes marks',
    'T07': 'chat/ renders one BOS',
    'T21': 'a sampler with top-p is none of the trainer',
    'T24': 'rollouts keep their ids',
}


@pytest.mark.parametrize('name', names('traps'))
def test_trap(close, name):
    case = read('traps')[name]
    if name in ELSEWHERE:
        pytest.skip(f'{case["title"]}: {ELSEWHERE[name]}')
    TRAPS[name](close, case['given'], case['right'], case['wrong'])


def differs(got, wrong, by=1e-3):
    assert abs(float(got) - wrong) > by * max(abs(wrong), 1)


def one_log_prob(close, logits, token, **options):
    logits = close.array(logits)[None, None]
    return token_log_probs(lambda params, x: x, (), logits, jnp.array([[token]]), chunk=1, **options)[0, 0]


@trap
def T01(close, given, right, wrong):
    logits, tokens = close.array(given['logits'])[None], jnp.asarray(given['tokens'])[None]
    log_probs = log_probs_of(logits, tokens)
    close(log_probs[0], right['logps'])
    close(jnp.sum(log_probs), right['sum'])
    no_shift = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1)
    close(jnp.sum(no_shift), wrong['no_shift_sum'])


@trap
def T02(close, given, right, wrong):
    """The token that ends the turn is a target like the others; the first token here is the prompt's last."""
    n = len(given['logps'])
    weights = targets.target_weights(jnp.ones((1, n + 1)))
    log_probs = close.array(given['logps'])[None]
    close(mean_of(targets.token_nll)(log_probs, weights), right['loss'])
    close(mean_of(targets.token_nll)(log_probs, weights.at[:, -1].set(0)), wrong['without_end'])


@trap
def T03(close, given, right, wrong):
    ids = jnp.asarray(given['ids'])[None]
    answer = jnp.ones_like(ids).at[:, 0].set(0)  # the first token is the prompt
    weights = targets.target_weights(answer, length_B=jnp.asarray([given['length']]))
    np.testing.assert_array_equal(weights[0], right['target_of_token'][1:])
    by_id = targets.target_weights(answer * (ids != given['pad_id']))
    np.testing.assert_array_equal(by_id[0], wrong['by_id'][1:])


@trap
def T06(close, given, right, wrong):
    segments = jnp.asarray(read('packing')['segments'])
    weights = targets.target_weights(jnp.ones_like(segments), segments)[0]
    ends = np.flatnonzero(np.diff(segments[0]))
    np.testing.assert_array_equal(weights[ends], right['weight_at_boundary'])
    np.testing.assert_array_equal(targets.target_weights(jnp.ones_like(segments))[0, ends], wrong['weight_at_boundary'])
    starts = [i + 1 for i in ends if segments[0, i + 1] > 0]
    restarts = not np.any(targets.segment_positions(segments)[0, np.array(starts)])
    assert restarts == right['positions_restart']


@trap
def T08(close, given, right, wrong):
    sums, counts = close.array(given['nll_sums']), close.array(given['targets'])
    close(jnp.sum(sums) / jnp.sum(counts), right['loss'])
    close(jnp.mean(sums / counts), wrong['mean_of_means'])
    # The same from rows of log-probabilities, one micro-batch each.
    parts = []
    for total, n in zip(given['nll_sums'], given['targets'], strict=True):
        parts.append(targets.token_nll(jnp.full((1, n), -total / n), jnp.ones((1, n))))
    close(sum(part[0] for part in parts) / sum(part[1] for part in parts), right['loss'])


def one_pair(close, given):
    lengths = given.get('lengths', [1, 1])
    chosen, rejected = (close.array([x]) for x in given['policy'])
    references = (close.array([x]) for x in given['reference'])
    return preference.Pairs(chosen, rejected, *references, *(close.array([x]) for x in lengths))


@trap
def T09(close, given, right, wrong):
    logits = [-3.0, -7.0]
    pairs = one_pair(close, {'policy': logits, 'reference': logits})
    close(preference.dpo(pairs, beta=given['beta'])[0], right['loss'])
    metrics = preference.pair_metrics(pairs, beta=given['beta'])
    for name, wanted in {'rewards_chosen': 'rewards', 'rewards_rejected': 'rewards', 'margin': 'margin',
                         'accuracy': 'accuracy'}.items():  # fmt: skip
        assert metrics[name] == right[wanted]


@trap
def T10(close, given, right, wrong):
    pairs = one_pair(close, given)
    close(preference.dpo(pairs, beta=given['beta'])[0], right['loss'])
    close(preference.dpo_mean(pairs, beta=given['beta'])[0], wrong['averaged'])


@trap
def T11(close, given, right, wrong):
    pairs = one_pair(close, given)
    close(preference.ipo(pairs, beta=given['beta'], average='mean')[0], right['averaged'])
    close(preference.ipo(pairs, beta=given['beta'], average='sum')[0], right['summed'])


@trap
def T12(close, given, right, wrong):
    uniform = jax.nn.log_softmax(close.array(given['logits_of_padding']))[0]
    row = jnp.concatenate([close.array(given['logps']), jnp.full(given['pads'], uniform)])[None]
    weights = targets.target_weights(jnp.ones((1, row.shape[1] + 1)), length_B=jnp.asarray([len(given['logps']) + 1]))
    close(targets.row_sums(row, weights)[0], right['sum'])
    close(jnp.sum(row), wrong['with_pads'])
    for bad in (jnp.nan, -jnp.inf):
        broken = jnp.where(weights > 0, row, bad)
        close(targets.row_sums(broken, weights)[0], right['sum'])
        grad = jax.grad(lambda x: targets.row_sums(x, weights)[0])(broken)
        np.testing.assert_array_equal(grad, weights)
        assert not np.isfinite(jnp.sum(broken * weights))


@trap
def T13(close, given, right, wrong):
    x = close.array(given['mean_logp'])
    close(preference.log1mexp(x), right['log1mexp'])
    naive = jnp.log(1 - jnp.exp(jnp.float32(given['mean_logp'])))
    np.testing.assert_allclose(naive, wrong['float32_naive'], rtol=1e-6)
    at_one = jax.value_and_grad(preference.log_odds)(close.array(0.0))
    assert np.all(np.isfinite(at_one))


@trap
def T14(close, given, right, wrong):
    pair = close.array(given['kl_policy']), close.array(given['kl_reference'])
    assert preference.kto_reference_point(*pair) == right['z0']
    close(jnp.mean(pair[0] - pair[1]), wrong['z0'], terms=pair[0])
    for policy_B in (pair[0], pair[0] + 5):
        grad = jax.grad(lambda x: preference.kto_reference_point(x, pair[1]))(policy_B)
        assert np.all(np.asarray(grad) == right['gradient_through_z0'])
    # Nor through the loss, to whatever z0 is made of.
    through = lambda z: jnp.sum(preference.kto(pair[0], jnp.ones(1), z, beta=0.1))
    assert jax.grad(through)(jnp.asarray(0.3)) == right['gradient_through_z0']


@trap
def T15(close, given, right, wrong):
    flat = close.array(given['rewards'])[None]
    for function in advantages.GROUP_ADVANTAGES.values():
        np.testing.assert_array_equal(function(flat)[0], right['advantages'])
    np.testing.assert_array_equal(advantages.grpo(flat, eps=0.0)[0], right['advantages'])
    assert advantages.flat_groups(flat)[0]
    # A mean that is rounded makes no difference of it.
    assert not np.any(advantages.grpo(jnp.full((1, 7), 0.1)))


@trap
def T16(close, given, right, wrong):
    group = close.array(given['rewards'])[None]
    close(jnp.max(advantages.grpo(group)), right['advantage_of_1'])
    close((group[0, 0] - jnp.mean(group)) / advantages.grpo(group, eps=0.0)[0, 0], right['std'])
    close(jnp.max(advantages.grpo(group, ddof=0)), wrong['population'])


@trap
def T17(close, given, right, wrong):
    lengths, advantage = jnp.asarray(given['lengths']), close.array(given['advantages'])
    mask = (jnp.arange(given['max_length']) < lengths[:, None]).astype(close.dtype)
    log_probs = jnp.full(mask.shape, -0.5, close.dtype)
    how = {'grpo': 'sequence', 'token_mean': 'tokens', 'dr_grpo': 'constant'}
    for name, normalise in how.items():
        (total, n), _ = policy.policy_loss(
            log_probs, log_probs, advantage, mask, normalise=normalise, length=given['max_length']
        )
        close(total / n, right[name])


@trap
def T18(close, given, right, wrong):
    def loss(log_prob):
        args = (log_prob[None, None], log_prob[None, None], close.array([given['advantage']]), jnp.ones((1, 1)))
        return policy.policy_loss(*args)[0][0]

    value, grad = jax.value_and_grad(loss)(close.array(given['logp']))
    close(value, right['loss'])
    close(grad, right['gradient'])
    differs(grad, wrong['stop_gradient_on_both'])


@trap
def T19(close, given, right, wrong):
    case = read('kl')
    policy_logits, expect = close.array(case['policy_logits']), case['expect']
    log_ref, probs = jax.nn.log_softmax(close.array(case['reference_logits'])), jax.nn.softmax(policy_logits)

    def grad(kind):
        log_p = jax.nn.log_softmax
        return jax.grad(lambda x: jnp.sum(probs * kl.estimate_kl(kind, log_p(x), log_ref)))(policy_logits)

    close.grad(grad('k2'), expect['grad_exact'])
    close.grad(grad('k3'), expect['grad_forward_kl'])
    np.testing.assert_allclose(grad('k1'), right['k1_gradient'], atol=1e-6)
    assert np.abs(grad('k3') - np.asarray(expect['grad_exact'])).max() > 1e-2


@trap
def T20(close, given, right, wrong):
    cool = one_log_prob(close, given['logits'], given['token'], temperature=given['temperature'])
    close(cool, right['logp'], terms=given['logits'])
    mask = jnp.ones((1, 1))
    sampled = close.array([[right['logp']]])
    close(policy.importance_ratio(cool[None, None], sampled, mask)[0, 0], right['ratio_to_sampler'])
    at_1 = one_log_prob(close, given['logits'], given['token'])
    close(at_1, wrong['logp_at_1'], terms=given['logits'])
    close(policy.importance_ratio(at_1[None, None], sampled, mask)[0, 0], wrong['ratio'])


@trap
def T22(close, given, right, wrong):
    real = one_log_prob(close, given['logits'], given['token'], vocab_size=given['vocab_size'])
    close(real, right['logp'])
    close(one_log_prob(close, given['logits'], given['token']), wrong['logp'])


@trap
def T23(close, given, right, wrong):
    """A row that was cut off is left out of the loss; its reward still counts in the advantages of its group."""
    advantage = advantages.dr_grpo(close.array(given['rewards'])[None])[0]
    finished = jnp.asarray([end == 'end' for end in given['ends']])
    log_probs = jnp.full((2, 3), -0.5, close.dtype)

    def loss(log_probs):
        mask = jnp.ones_like(log_probs) * finished[:, None]
        return mean_of(lambda x: policy.policy_loss(x, x, advantage, mask)[0])(log_probs)

    grad = np.asarray(jax.grad(loss)(log_probs))
    assert np.all(grad[0] != 0) and not np.any(grad[1])
    close(advantage, [0.5, -0.5])


@trap
def T25(close, given, right, wrong):
    exact = one_log_prob(close, given['logits'], given['token'])
    # The file has what float32 gives.
    close(exact, right['logp'], from_float32=True, terms=given['logits'])
    coarse = jnp.asarray(jnp.asarray(given['logits'], jnp.bfloat16), close.dtype)
    rounded = one_log_prob(close, coarse, given['token'])
    close(rounded, wrong['logp_bf16_logits'], from_float32=True, terms=given['logits'])
    close(jnp.exp(rounded - exact), wrong['ratio'], from_float32=True, terms=given['logits'])


@trap
def T26(close, given, right, wrong):
    mask = jnp.asarray([[token != 'pad' for token in given['response']]])
    nothing = jnp.zeros(mask.shape, close.dtype)
    made = advantages.token_rewards(close.array([given['score']]), nothing, nothing, mask, kl_coef=0.05)
    np.testing.assert_array_equal(np.flatnonzero(made[0]), [right['index']])
    assert right['index'] != wrong['index']


@trap
def T27(close, given, right, wrong):
    """0 after an answer that ended, its value where it was cut off; what stands on padding is neither."""
    score, value, mask = close.array([[0.0, 1.0, 0.0]]), close.array([[0.2, 0.5, 9.0]]), jnp.asarray([[1, 1, 0]])
    options = {'gamma': 1.0, 'lam': 0.0}
    close(advantages.gae(score, value, mask, **options)[0], [[0.3, 0.5, 0]])
    close(advantages.gae(score, value, mask, bootstrap_B=close.array([0.3]), **options)[0], [[0.3, 0.8, 0]])


@trap
def T30(close, given, right, wrong):
    mask = jnp.asarray(read('pooling')['attention_mask'])
    np.testing.assert_array_equal(scores.last_indices(mask), right['last_index'])
    assert np.any(np.asarray(right['last_index']) != mask.shape[1] + wrong['index'])


@trap
def T31(close, given, right, wrong):
    n, c, k = (given[key] for key in 'nck')
    assert math.isclose(rewards.pass_at_k(n, c, k), right['value'], rel_tol=1e-9)
    assert math.isclose(1 - (1 - c / n) ** k, wrong['naive'], rel_tol=1e-9)


@trap
def T32(close, given, right, wrong):
    assert [rewards.same_number(*pair) for pair in given['pairs']] == right['equal']


@trap
def T33(close, given, right, wrong):
    case = json.loads((FIXTURES / 'traps.json').read_text())['T10']['given']

    def loss(chosen, rejected):
        pairs = one_pair(close, case).replace(chosen=chosen[None], rejected=rejected[None])
        return preference.dpo(pairs, beta=case['beta'])[0]

    chosen, rejected = jax.grad(loss, argnums=(0, 1))(*close.array(case['policy']))
    close.grad(chosen, given['d_loss_d_logp_chosen'])
    close.grad(-chosen, right['weights_of_nll']['chosen'])
    close.grad(-rejected, right['weights_of_nll']['rejected'])
