"""Fixtures of supervised losses, scores, preferences and distillation."""

from fixture_files import after_word, log_probs_of, mean_of, names, number, read, value_and_grad
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.align import distill, kl, preference, scores, targets

# --- Supervised ----------------------------------------------------------------------------


def test_sft(close):
    case = read('sft')
    logits, tokens = close.array(case['logits']), jnp.asarray(case['tokens'])
    weights = targets.target_weights(jnp.asarray(case['assistant_mask']) * jnp.asarray(case['attention_mask']))
    expect = case['expect']

    def loss(logits):
        log_probs = log_probs_of(logits, tokens)
        return mean_of(targets.token_nll)(log_probs, weights), log_probs

    (value, log_probs), grad = jax.value_and_grad(loss, has_aux=True)(logits)
    close(log_probs, expect['token_logps'])
    close(value, expect['loss_token_mean'])
    close.grad(grad, expect['grad_logits'])
    total, n = targets.token_nll(log_probs, weights)
    close(total, expect['loss_sum'])
    assert n == expect['n_targets']
    sums = targets.row_sums(log_probs, weights)
    close(sums, expect['sequence_logps_sum'])
    close(sums / targets.row_lengths(weights), expect['sequence_logps_mean'])
    (name,) = (key for key in expect if key.startswith('sequence_logps_sum_temperature_'))
    cool = log_probs_of(logits, tokens, temperature=after_word(name))
    close(targets.row_sums(cool, weights), expect[name])
    close(mean_of(targets.dynamic_nll)(log_probs, weights), expect['dft_loss'])
    # DFT's probability is a constant: its gradient is a weighted one of the log-probabilities.
    grad = jax.grad(lambda x: targets.dynamic_nll(x, weights)[0])(log_probs)
    close.grad(grad, np.asarray(-jnp.exp(log_probs) * weights))
    for name, wrong in expect.items():
        if name.startswith('wrong_'):
            assert abs(wrong - float(value)) > 1e-3


def test_sft_does_not_depend_on_its_micro_batches(close):
    """Sums of one row at a time, divided once; the mean of means is another number."""
    case = read('sft')
    logits, tokens = close.array(case['logits']), jnp.asarray(case['tokens'])
    weights = targets.target_weights(jnp.asarray(case['assistant_mask']))
    log_probs = log_probs_of(logits, tokens)
    parts = [targets.token_nll(log_probs[i : i + 1], weights[i : i + 1]) for i in range(len(tokens))]
    total, n = (sum(values) for values in zip(*parts, strict=True))
    close(total / n, case['expect']['loss_token_mean'])
    close(np.mean([total / n for total, n in parts]), case['expect']['wrong_mean_of_row_means'])


def test_packing(close):
    case = read('packing')
    logits, tokens, segments = close.array(case['logits']), jnp.asarray(case['tokens']), jnp.asarray(case['segments'])
    expect = case['expect']
    is_real = np.asarray(segments) > 0
    positions = np.asarray(targets.segment_positions(segments))
    np.testing.assert_array_equal(positions[is_real], np.asarray(expect['positions'])[is_real])
    log_probs = log_probs_of(logits, tokens)
    assistant = targets.target_weights(jnp.asarray(case['assistant_mask']), segments)
    np.testing.assert_array_equal(assistant, expect['target_weights'])
    close(mean_of(targets.token_nll)(log_probs, assistant), expect['loss_assistant'])
    assert jnp.sum(assistant) == expect['n']
    full = targets.target_weights(jnp.ones_like(tokens), segments)
    np.testing.assert_array_equal(full, expect['target_weights_full_text'])
    close(mean_of(targets.token_nll)(log_probs, full), expect['loss_full_text'])


# --- Scores --------------------------------------------------------------------------------


def test_pooling(close):
    case = read('pooling')
    features, mask = close.array(case['features']), jnp.asarray(case['attention_mask'])
    expect = case['expect']
    np.testing.assert_array_equal(scores.last_indices(mask), expect['last_index'])
    last = scores.last_features(features, mask)
    close(last @ close.array(case['weight']), expect['reward'])
    logits = last @ close.array(case['class_weight'])
    close(logits, expect['class_logits'])
    labels = jnp.asarray(case['labels'])
    close(mean_of(scores.class_nll)(logits, labels), expect['class_loss'])
    grad = jax.grad(lambda x: mean_of(scores.class_nll)(x, labels))(logits)
    close.grad(grad, np.asarray((jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[1])) / len(labels)))
    wrong = features[:, -1] @ close.array(case['weight'])
    close(wrong, expect['wrong_last_position'])
    assert not np.allclose(wrong, expect['reward'])


@pytest.mark.parametrize(
    'name', [n for n in names('reward', 'expect') if n not in ('accuracy', 'accuracy_of_ties', 'note')]
)
def test_reward(close, name):
    case = read('reward')
    chosen, rejected = close.array(case['chosen']), close.array(case['rejected'])
    margin = close.array(case['margin']) if name in ('with_margin', 'both') else 0.0
    (centred,) = (key for key in case['expect'] if key.startswith('centered_'))
    assert name in ('plain', 'with_margin', centred, 'both')
    centre = after_word(centred) if name in (centred, 'both') else 0.0
    loss = lambda chosen, rejected: mean_of(scores.bradley_terry)(chosen, rejected, margin, centre=centre)
    value, grads = value_and_grad(loss, chosen, rejected)
    close(value, case['expect'][name]['loss'])
    close.grad(np.concatenate(grads), case['expect'][name]['grad'])
    close(mean_of(scores.pair_accuracy)(chosen, rejected), case['expect']['accuracy'])
    assert scores.pair_accuracy(chosen, chosen)[0] == 0


# --- Preferences ---------------------------------------------------------------------------


def preference_rows(close, case):
    policy_BL, reference_BL = close.array(case['policy_logps']), close.array(case['reference_logps'])
    return policy_BL, reference_BL, targets.target_weights(jnp.asarray(case['completion_mask'])).astype(close.dtype)


def pair_loss(name):
    """(function of pairs, weight of the SFT term, β of the metrics) of a case, by its name."""
    beta, smoothing = number('beta=', name, number(r'beta\(lambda\)=', name)), number('smoothing=', name, 0.0)
    kind = name.split()[0]
    smoothed = {'beta': beta, 'smoothing': smoothing}
    if kind == 'ipo':
        average = 'sum' if 'summed' in name else 'mean'
        return lambda pairs: preference.ipo(pairs, beta=beta, average=average), 0.0
    if kind == 'simpo':
        return lambda pairs: preference.simpo(pairs, gamma=number('gamma=', name), **smoothed), 0.0
    if kind in ('hinge', 'apo_zero', 'apo_down', 'orpo'):
        sft = 1.0 if kind == 'orpo' else 0.0
        return lambda pairs: preference.PAIR_LOSSES[kind](pairs, beta=beta), sft
    ours = {'sigmoid': 'dpo', 'cdpo': 'dpo', 'sigmoid_norm': 'dpo_mean'}.get(kind, kind)
    sft = number(r'\+ ', name, 0.0)
    return lambda pairs: preference.PAIR_LOSSES[ours](pairs, **smoothed), sft


def test_pairs(close):
    case = read('dpo')
    log_probs, reference, weights = preference_rows(close, case)
    expect, pairs = case['expect'], preference.make_pairs(log_probs, reference, weights)
    close(np.concatenate([pairs.chosen, pairs.rejected]), expect['sequence_logps'])
    close(np.concatenate([pairs.reference_chosen, pairs.reference_rejected]), expect['reference_sequence_logps'])
    np.testing.assert_array_equal(np.concatenate([pairs.chosen_length, pairs.rejected_length]), expect['lengths'])
    close(pairs.delta, expect['delta'], terms=expect['sequence_logps'])


@pytest.mark.parametrize('name', names('dpo', 'expect', 'losses'))
def test_preference(close, name):
    case = read('dpo')
    log_probs, reference, weights = preference_rows(close, case)
    wanted, (loss_of, sft) = case['expect']['losses'][name], pair_loss(name)
    n = len(log_probs) // 2

    def loss(log_probs):
        pairs = preference.make_pairs(log_probs, reference, weights)
        losses = loss_of(pairs)
        total, normaliser = preference.sum_pairs(losses)
        term = preference.sft_term(log_probs[:n], weights[:n], n / jnp.sum(weights[:n]))
        return (total + sft * term) / normaliser, (pairs, losses, term / normaliser)

    (value, (pairs, losses, nll)), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(log_probs)
    # The smoothing of EXO is of float32 in TRL.
    close(value, wanted['loss'], from_float32=name.startswith('exo'))
    if 'losses' in wanted:
        close(losses, wanted['losses'])
    if 'grad_token' in wanted:
        close.grad(grad, wanted['grad_token'])
    else:
        # The gradient in a sum of log-probabilities is that in each of them.
        by_sequence = wanted.get('grad_sequence', wanted.get('grad'))
        scale = 1.0
        if name.startswith('simpo'):  # in the mean log-probability
            scale = np.concatenate([pairs.chosen_length, pairs.rejected_length])
        by_token = np.asarray(by_sequence)[:, None] / np.reshape(scale, (-1, 1)) * np.asarray(weights)
        close.grad(grad, by_token, from_float32=name.startswith('exo'))
    if name.startswith('orpo'):
        close(nll, wanted['nll_chosen'])
        close(np.mean(losses), wanted['odds_term'])
        odds = preference.log_odds(pairs.mean_chosen) - preference.log_odds(pairs.mean_rejected)
        close(np.mean(odds), wanted['mean_log_odds'])
    beta = number('beta=', name)
    if 'accuracy' in wanted:
        metrics = preference.pair_metrics(pairs, beta=beta)
        for key in ('rewards_chosen', 'rewards_rejected', 'accuracy', 'margin'):
            close(metrics[key] / n, wanted[key], terms=beta * pairs.chosen)
    elif 'rewards_chosen' in wanted:
        average = name.startswith('simpo')
        chosen, rejected = (pairs.mean_chosen, pairs.mean_rejected) if average else (pairs.chosen, pairs.rejected)
        close(beta * np.mean(chosen), wanted['rewards_chosen'])
        close(beta * np.mean(rejected), wanted['rewards_rejected'])


@pytest.mark.parametrize('name', names('kto', 'expect'))
def test_kto(close, name):
    case, wanted = read('kto'), read('kto')['expect'][name]
    log_probs, reference, weights = preference_rows(close, read('dpo'))
    labels = jnp.asarray(case['labels'])
    pair = [close.array(case[f'kl_{who}_sequence_logps']) for who in ('policy', 'reference')]
    if 'negative' in name:
        pair = pair[::-1]
    z0 = jnp.zeros(()) if 'unpaired' in name else preference.kto_reference_point(*pair)
    close(z0, wanted['kl'])
    options = {
        'beta': number('beta=', name),
        'desirable_weight': number(r'(?<!un)desirable_weight=', name, 1.0),
        'undesirable_weight': number('undesirable_weight=', name, 1.0),
    }

    def loss(log_probs):
        ratio = targets.row_sums(log_probs, weights) - targets.row_sums(reference, weights)
        return mean_of(preference.sum_pairs)(preference.kto(ratio, labels, z0, **options))

    value, (grad,) = value_and_grad(loss, log_probs)
    close(value, wanted['loss'])
    close.grad(grad, np.asarray(wanted['grad_sequence'])[:, None] * np.asarray(weights))


# --- Distributions -------------------------------------------------------------------------


def test_kl(close):
    case = read('kl')
    policy_logits, reference_logits = close.array(case['policy_logits']), close.array(case['reference_logits'])
    expect, log_ref = case['expect'], jax.nn.log_softmax(reference_logits)
    probs = jax.nn.softmax(policy_logits)

    def exact(logits):
        return distill.divergences(logits, reference_logits, beta=1.0)

    close(exact(policy_logits), expect['exact_reverse_kl'])
    close.grad(jax.grad(exact)(policy_logits), expect['grad_exact'])
    forward = lambda logits: distill.divergences(logits, reference_logits, beta=0.0)
    close.grad(jax.grad(forward)(policy_logits), expect['grad_forward_kl'])
    for kind in ('k1', 'k2', 'k3'):
        estimates = kl.estimate_kl(kind, jax.nn.log_softmax(policy_logits), log_ref)
        close(estimates, expect[kind])
        close(jnp.sum(probs * estimates), expect[f'mean_{kind}'])
        # Samples come from the policy and are constants: so are their probabilities.
        as_loss = lambda logits, kind=kind: jnp.sum(probs * kl.estimate_kl(kind, jax.nn.log_softmax(logits), log_ref))
        close.grad(jax.grad(as_loss)(policy_logits), expect[f'expected_grad_of_{kind}_as_loss'])


@pytest.mark.parametrize('name', names('distill', 'expect', 'cases'))
@pytest.mark.parametrize('chunk', [1, 4])
def test_distill(close, name, chunk):
    case = read('distill')
    student, teacher = close.array(case['student_logits']), close.array(case['teacher_logits'])
    weights = jnp.asarray(case['labels']) != -100
    wanted, identity = case['expect']['cases'][name], lambda params, x: x
    options = {'beta': number('beta=', name), 'temperature': number('temperature=', name)}
    if student.shape[1] % chunk:
        pytest.skip(f'{chunk} does not divide the length {student.shape[1]}')

    def loss(student):
        args = (identity, (), student, identity, (), teacher, weights)
        return mean_of(distill.sum_divergence)(*args, chunk=chunk, **options)

    value, (grad,) = value_and_grad(loss, student)
    close(value, wanted['loss'])
    close.grad(np.linalg.norm(grad), wanted['grad_norm'])


def test_distill_limits(close):
    case = read('distill')
    student, teacher = close.array(case['student_logits']), close.array(case['teacher_logits'])
    weights = jnp.asarray(case['labels']) != -100
    mean = lambda **options: jnp.sum(distill.divergences(student, teacher, **options) * weights) / jnp.sum(weights)
    close(mean(beta=0.0), case['expect']['forward_kl'])
    close(mean(beta=1.0), case['expect']['reverse_kl'])
    close(4 * mean(beta=0.0, temperature=2.0), case['expect']['hinton_T2'])
