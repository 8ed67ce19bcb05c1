"""Whether muP holds, on small widths; and what the check would say if it did not."""

import dataclasses
import json

import numpy as np
import pytest
from tiny import BOS, GPT2, LLAMA, L, V, tiny_config

from llm_jax.config.schema import ConfigError
from llm_jax.lab import coord_check
from llm_jax.lab.coord_check import LIMIT, CoordCheck, check
from llm_jax.lab.transfer import Transfer, sweep
from llm_jax.lab.widths import MUP, STANDARD, slope, widened
from llm_jax.report import coord_check as coord_check_page
from llm_jax.report import transfer as transfer_page


def tokens(n):
    """Rows whose small tokens are frequent, as in text."""
    rng = np.random.default_rng(0)
    return rng.integers(2, V, (2, n, 16, L + 1)).min(0).astype(np.int32)


# --- Another width ---------------------------------------------------------------------


def test_everything_grows_in_proportion():
    config = tiny_config(**LLAMA, pattern=({'d_ff': 48}, {}), model__moe__d_ff=16, model__mla__kv_rank=12)
    model = widened(config, 128, base=64, parametrisation=MUP).model
    assert (model.d_model, model.n_heads, model.kv_heads, model.head_size) == (128, 16, 8, 8)
    assert (model.ff_size, model.moe.d_ff, model.mla.kv_rank, model.mla.d_rope) == (384, 64, 48, 16)
    assert (model.mup.base_width, model.mup.base_head) == (64, 0)
    assert [model.layer(i).ff_size for i in range(2)] == [192, 384]
    model = widened(config, 128, base=64, parametrisation=MUP, grow='d_head').model
    assert (model.n_heads, model.kv_heads, model.head_size, model.mla.d_rope) == (4, 2, 32, 64)
    assert (model.mup.base_width, model.mup.base_head) == (64, 16)
    assert widened(config, 64, base=64, parametrisation=STANDARD).model.mup.base_width == 0


def test_multi_query_attention_keeps_its_one_head():
    model = widened(tiny_config(attention='mqa'), 64, base=32, parametrisation=MUP).model
    assert (model.n_heads, model.kv_heads) == (8, 1)


def test_a_width_that_does_not_come_out_even():
    with pytest.raises(ConfigError, match=r'width 40 is 5/4 of model.d_model = 32.*model.n_kv_heads = 2'):
        widened(tiny_config(**LLAMA), 40, base=32, parametrisation=MUP)


def test_slope():
    widths = [32, 64, 128]
    assert slope(widths, 3 * np.array(widths) ** 1.5) == pytest.approx(1.5)
    assert np.isnan(slope(widths, np.array([1.0, 0.0, 1.0]))) and np.isnan(slope(widths, np.array([1.0, np.inf, 1.0])))


# --- Coordinate check ------------------------------------------------------------------


@pytest.fixture(scope='module')
def checked():
    # Of two widths each, so that a doubling shows; the slopes over more are in docs/mup.md.
    config = tiny_config(
        **GPT2, d_model=32, n_heads=2, n_layers=1, init_std=0.1, optimizer__learning_rate=0.01, optimizer__name='adamw'
    )
    return check(config, tokens(7), vocab_size=V, bos_id=BOS, widths=[128, 32], seeds=2)


def test_mup_is_flat_and_the_standard_parametrisation_is_not(checked):
    assert checked.widths == [32, 128]
    assert checked.passed and all(abs(value) < LIMIT for value in checked.slopes(MUP).values())
    standard = checked.slopes(STANDARD)
    assert standard['layer 0 attention logits'] > 2 * LIMIT
    assert standard['logits'] > 2 * LIMIT
    np.testing.assert_array_equal(checked.change[MUP][0], checked.change[STANDARD][0])  # at the base width


def test_names_are_in_order_of_the_computation(checked):
    parts = ['attention logits', 'attention', 'feed-forward', 'residual']
    assert checked.names == ['embedding', *(f'layer 0 {part}' for part in parts), 'logits']
    assert checked.size[MUP].shape == (2, 2, 7, 6) and checked.change[MUP].shape == (2, 2, 6, 6)


def test_attention_logits_are_those_of_the_model():
    """Against a softmax of their own: the output of a layer is the weights times the values."""
    config = coord_check.unstacked(tiny_config(**LLAMA, n_layers=1))
    import jax
    from tiny import tiny_model

    from llm_jax.nn.transformer import init_params

    model = tiny_model(config)
    params = init_params(model, jax.random.key(0))
    batch = tokens(1)[0]
    seen = coord_check.activations(model, params, batch, bos_id=BOS)
    scores = np.asarray(seen['layer 0 attention logits'], np.float64)
    mask = np.tril(np.ones((L, L), bool))
    scores /= np.sqrt(mask.size / mask.sum())
    weights = np.where(mask, np.exp(scores), 0)
    weights /= weights.sum(-1, keepdims=True)
    block = params['first_0']
    x = np.asarray(seen['embedding'], np.float64)
    x /= np.sqrt((x**2).mean(-1, keepdims=True) + config.model.norm_eps)
    v = np.repeat(np.einsum('bld,dgk->blgk', x, block['attention']['v']['kernel']), 2, axis=2)
    y = np.einsum('bhls,bshk,hkd->bld', weights, v, block['attention']['out']['kernel'])
    np.testing.assert_allclose(seen['layer 0 attention'], y, rtol=1e-4, atol=1e-7)


def result(exponent, grow='heads', name='layer 0 attention logits', *, widths=(32, 64, 128), seeds=2):
    change = np.array(widths, float)[:, None, None, None] ** exponent * np.ones((1, seeds, 1, 1))
    return CoordCheck(list(widths), grow, [name], {MUP: change, STANDARD: change}, {MUP: change, STANDARD: change})


def test_verdict():
    assert result(0.2).passed and result(-0.2).passed
    assert not result(0.3).passed and not result(-0.3).passed and not result(np.nan).passed
    assert result(-0.5, 'd_head').passed and not result(0.3, 'd_head').passed
    assert not result(-0.5, 'd_head', 'logits').passed


@pytest.mark.parametrize(
    ('exponent', 'shape', 'said'),
    [
        (0.1, {}, 'muP holds: '),
        (0.4, {}, 'muP does not hold: '),
        (0.1, {'widths': (32, 64)}, 'muP seems to hold: '),
        (0.4, {'seeds': 1}, 'muP seems not to hold: '),
        (np.nan, {}, 'the change of layer 0 attention logits in the first 1 steps is 0 or not finite'),
    ],
)
def test_a_verdict_from_two_widths_or_one_seed_is_a_hint(exponent, shape, said):
    made = result(exponent, **shape)
    assert said in made.sentence
    assert ('That is a hint, from' in made.sentence) == bool(shape) == (not made.is_firm)


def test_the_steepest_is_one_that_counts():
    change = np.array([32.0, 64.0, 128.0])[:, None, None, None] ** np.array([-0.5, 0.1]) * np.ones((1, 2, 1, 1))
    names = ['layer 0 attention logits', 'logits']
    made = CoordCheck([32, 64, 128], 'd_head', names, {MUP: change, STANDARD: change}, {})
    assert made.passed and 'under it is logits, as the width to the power of +0.10' in made.sentence


def test_one_width_is_no_study():
    with pytest.raises(ConfigError, match='give two different ones'):
        check(tiny_config(**LLAMA), tokens(2), vocab_size=V, bos_id=BOS, widths=[32, 32], seeds=1)


def test_page(tmp_path, checked):
    path = coord_check_page.write(
        tmp_path / '<x>', checked.numbers, sentence=checked.sentence, command='./tools/run coord_check <x>'
    )
    text = path.read_text()
    assert text.count('<svg') == 6 and '&lt;x&gt;' in text and '<x>' not in text
    numbers = json.loads((tmp_path / '<x>' / 'coord_check.json').read_text())
    assert numbers['slopes'][MUP] == checked.slopes(MUP) and numbers['passed'] and not numbers['is_firm']
    assert len(coord_check_page.tabulate(checked.numbers).rows) == len(checked.names)


# --- Transfer --------------------------------------------------------------------------


def test_best_rate_and_its_drift():
    rates = [2.0**k for k in range(-8, -2)]
    parabola = lambda best: (np.log2(rates) - best) ** 2
    losses = np.stack([parabola(-4.0), parabola(-4.75), parabola(-6.0)])
    end = np.stack([parabola(-9), parabola(-9), parabola(-9)])
    got = Transfer([32, 64, 128], rates, {STANDARD: losses, MUP: end})
    np.testing.assert_allclose(np.log2(got.best(STANDARD)), [-4, -4.75, -6], atol=1e-6)
    assert got.drift(STANDARD) == pytest.approx(-1.0)
    assert got.beyond(STANDARD) == [0, 0, 0]
    assert got.best(MUP) == [2.0**-8] * 3
    losses[0, 5] = np.inf  # beside the best of them, a parabola has nothing to go through
    losses[0, 4] = -1
    assert got.best(STANDARD)[0] == rates[4]


def test_a_best_rate_at_an_end_of_the_range_does_not_count():
    rates = [2.0**k for k in range(-8, -2)]
    parabola = lambda best: (np.log2(rates) - best) ** 2
    past = np.stack([parabola(-4.0), parabola(-5.0), parabola(-9.0)])  # the widest model's best is not among the rates
    failed = np.stack([parabola(-2.0), np.full(6, np.inf), parabola(-5.0)])
    got = Transfer([32, 64, 128], rates, {STANDARD: past, MUP: failed})
    assert got.beyond(STANDARD) == [0, 0, -1]
    assert got.drift(STANDARD) == pytest.approx(-1.0)  # as 32 and 64 have it
    assert got.beyond(MUP)[0] == 1 and np.isnan(got.best(MUP)[1]) and np.isnan(got.drift(MUP))
    assert (
        'multiplied by 0.50 (standard).' in got.sentence
        and 'How the best rate of muP depends on the width is unknown' in got.sentence
    )
    assert got.sentence.endswith('a better rate may be past it: standard 128, muP 32, muP 64.')
    cells = [row[-1] for row in transfer_page.tabulate(got.numbers).rows]
    assert cells == ['2^-4.00', '2^-5.00', '≤ 2^-8.00', '≥ 2^-3.00', 'all diverged', '2^-5.00']


def test_sweep(tmp_path):
    """One compiled step for all rates, a rate of 0 that leaves the initial loss, and the same model at the base."""
    config = tiny_config(**LLAMA, n_layers=1, train__duration=4, train__batch_size=16)
    config = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, warmup=1))
    batches = tokens(6)
    got = sweep(config, batches[:4], batches[4:], vocab_size=V, bos_id=BOS, widths=[32, 16], rates=[0.03, 1e-9])
    assert got.widths == [16, 32] and got.rates == [1e-9, 0.03]
    np.testing.assert_array_equal(got.loss[STANDARD][0], got.loss[MUP][0])
    assert not np.array_equal(got.loss[STANDARD][1], got.loss[MUP][1])
    for losses in got.loss.values():
        assert np.all(losses[:, 1] < losses[:, 0] - 0.05)
        np.testing.assert_allclose(losses[:, 0], np.log(V), atol=0.05)
    text = transfer_page.write(tmp_path, got.numbers, sentence=got.sentence, command='x').read_text()
    assert text.count('<svg') == 2 and len(transfer_page.tabulate(got.numbers).rows) == 4
