"""Fixtures of advantages, policies and values."""

import re

from fixture_files import names, number, read
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.align import advantages, kl, policy, rewards


def test_advantages(close):
    case = read('advantages')
    first, second, expect = close.array(case['rewards']), close.array(case['rewards_second']), case['expect']
    # TRL's factor of n − 1 is of float32.
    close(advantages.grpo(first), expect['grpo'], from_float32=True)
    close(advantages.grpo(first, eps=0.0, ddof=0), expect['grpo_population_std_eps_0'])
    close(advantages.dr_grpo(first), expect['dr_grpo'])
    close(advantages.rloo(first), expect['rloo'])
    close(advantages.grpo_batch_std(first), expect['batch_std'], from_float32=True)
    flat = advantages.flat_groups(first)
    np.testing.assert_array_equal(flat, expect['groups_without_signal'])
    close(jnp.mean(flat.astype(first.dtype)), expect['share_without_signal'])
    two = expect['two_rewards_weights_1_0_5']
    close(advantages.grpo(first + 0.5 * second), two['sum_then_normalise'], from_float32=True)
    gdpo = advantages.gdpo(jnp.stack([first, second]), close.array([1.0, 0.5]))
    close(gdpo, two['normalise_then_sum_gdpo'], from_float32=True)
    for name, wanted in expect['pass_at_k'].items():
        n, c, k = (int(number(f'{letter}=', name)) for letter in 'nck')
        assert abs(rewards.pass_at_k(n, c, k) - wanted) < 1e-9
    (name,) = (name for name in expect if name.startswith('dapo_overlong_penalty'))
    limit, cache = int(number('max', name)), int(number('cache', name))
    lengths = jnp.asarray([int(length) for length in expect[name]])
    close(rewards.overlong_penalty(lengths, max_length=limit, cache=cache), list(expect[name].values()))


def policy_options(name, length):
    """Arguments of `policy_loss` for a case, by its name; the KL term is k3 in TRL."""
    found = re.search(r'eps ([\d.e-]+)(?:/([\d.e-]+))?', name)
    low, high = (float(found.group(1)), float(found.group(2) or found.group(1))) if found else (0.2, 0.2)
    if name.startswith('dapo') and not found:
        high = 0.28
    options = {'clip_low': low, 'clip_high': high, 'normalise': 'sequence', 'kl_kind': 'k3'}
    options['kl_coef'] = number('kl ', name, 0.0)
    options['kl_by_ratio'] = 'weighted by the ratio' in name
    options['dual_clip'] = number('delta ', name, 0.0)
    if name.startswith(('token mean', 'dapo', 'cispo', 'reinforce')):
        options['normalise'] = 'tokens'
    if name.startswith('dr_grpo'):
        options |= {'normalise': 'constant', 'length': length}
    if name.startswith('gspo'):
        options['ratio_of'] = 'sequence'
    if name.startswith('rloo'):
        options['ratio_of'] = 'product'
    if name.startswith('cispo'):
        options |= {'surrogate': 'cispo', 'cap': number('eps_high ', name)}
    if name.startswith(('sapo', 'reinforce')):
        options['surrogate'] = name.split(',')[0]
    return options


@pytest.mark.parametrize('name', [n for n in names('grpo', 'expect', 'cases') if not n.startswith('truncated')])
def test_policy(close, name):
    case = read('grpo')
    wanted = case['expect']['cases'][name]
    log_probs, old, reference = (close.array(case[key]) for key in ('logps', 'old_logps', 'reference_logps'))
    mask = close.array(case['completion_mask'])
    assert jnp.sum(mask) == case['expect']['n_tokens']
    if 'tool tokens masked' in name:
        mask = mask * close.array(case['tool_mask'])
    if 'cut off' in name:
        mask = mask.at[jnp.asarray([int(row) for row in re.findall(r'\d+', name.split('rows')[1])])].set(0)
    length = int(number('T=', case['source'], log_probs.shape[1]))
    advantage, options = close.array(case['advantages']), policy_options(name, length)

    def loss(log_probs):
        before = log_probs if 'on policy' in name else old
        args = (log_probs, before, advantage, mask)
        (total, n), metrics = policy.policy_loss(*args, reference_BL=reference, **options)
        return total / n, metrics

    (value, metrics), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(log_probs)
    # The temperatures of SAPO are of float32 in TRL.
    close(value, wanted['loss'], from_float32=name.startswith('sapo'), terms=advantage)
    close.grad(grad, wanted['grad'], from_float32=name.startswith('sapo'))
    for key, ours in {'clip_ratio/low_mean': 'clipped_low', 'clip_ratio/high_mean': 'clipped_high',
                      'cispo_clip_ratio': 'clipped_high'}.items():  # fmt: skip
        if key in wanted:
            close(metrics[ours] / metrics['ratios'], wanted[key], from_float32=True)
    if 'kl' in wanted:
        close(metrics['kl'] / metrics['tokens'], wanted['kl'], from_float32=True)


@pytest.mark.parametrize('name', [n for n in names('grpo', 'expect', 'cases') if n.startswith('truncated')])
def test_truncated_weights(close, name):
    case = read('grpo')
    args = (close.array(case[key]) for key in ('logps', 'old_logps', 'completion_mask'))
    weights = policy.truncated_weights(*args, cap=number('cap ', name))
    close(weights, case['expect']['cases'][name]['weights'])


@pytest.mark.parametrize('name', names('gae', 'expect'))
def test_gae(close, name):
    case, wanted = read('gae'), read('gae')['expect'][name]
    values, score, mask = (close.array(case[key]) for key in ('values', 'score', 'mask'))
    log_probs = close.array(case['old_logps']), close.array(case['reference_logps'])
    made = advantages.token_rewards(score, *log_probs, mask, kl_coef=case['kl_coef'], kind=name[:2])
    if 'rewards' in wanted:
        close(made, wanted['rewards'])
    bootstrap = jnp.zeros_like(score)
    if cut := re.search(r'row (\d+) cut off', name):
        bootstrap = bootstrap.at[int(cut.group(1))].set(number('bootstrap value ', name))
    options = {'gamma': number('gamma=', name), 'lam': number('lambda=', name)}
    estimates, returns = advantages.gae(made, values, mask, bootstrap_B=bootstrap, **options)
    close(estimates, wanted['advantages'])
    close(returns, wanted['returns'])
    if 'whitened' in wanted:
        close(advantages.whiten(estimates, mask), wanted['whitened'])
    # What stands on padding changes nothing.
    noise = jnp.where(mask > 0, values, 7.0)
    close(advantages.gae(made, noise, mask, bootstrap_B=bootstrap, **options)[0], wanted['advantages'])


@pytest.mark.parametrize('name', names('ppo', 'expect'))
def test_ppo(close, name):
    case, wanted = read('ppo'), read('ppo')['expect'][name]
    keys = ('logps', 'old_logps', 'old_values', 'value_predictions', 'advantages', 'returns', 'mask')
    log_probs, old, old_values, values, advantage, returns, mask = (close.array(case[key]) for key in keys)
    clip, value_clip, weight = (number(key, name) for key in ('(?<!value )clip ', 'value clip ', 'value coefficient '))

    def loss(log_probs, values):
        args = (log_probs, old, advantage, mask)
        (total, n), metrics = policy.policy_loss(*args, clip_low=clip, clip_high=clip)
        value_total, value_n = policy.value_loss(values, old_values, returns, mask, clip=value_clip)
        parts = total / n, value_total / value_n
        return parts[0] + weight * parts[1], (parts, metrics)

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, (parts, metrics)), (grad_log_probs, grad_values) = run(log_probs, values)
    close(value, wanted['loss'])
    close(parts[0], wanted['policy_loss'], terms=advantage)
    close(parts[1], wanted['value_loss'])
    close.grad(grad_log_probs, wanted['grad_logps'])
    close.grad(grad_values, wanted['grad_values'])
    clipped = (metrics['clipped_low'] + metrics['clipped_high']) / metrics['ratios']
    close(clipped, wanted['active_clip_fraction'])
    plain = policy.value_loss(values, old_values, returns, mask)
    close(plain[0] / plain[1], wanted['unclipped_value_loss'])
    # k3 of the samples of the old policy: log r is log π − log π_old.
    k3 = kl.estimate_kl('k3', old, log_probs)
    close(jnp.sum(k3 * mask) / jnp.sum(mask), wanted['approx_kl_k3'], 1e-5)
