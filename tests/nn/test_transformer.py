import re

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from tiny import GPT2, LLAMA, L, V, random_params, tiny_config, tiny_model

from llm_jax.config.schema import ConfigError
from llm_jax.generate import decode
from llm_jax.nn.block import dropout
from llm_jax.nn.transformer import Transformer, build, init_params

OTHERS = {
    'sinusoidal, mqa, geglu, parallel': {
        'position': 'sinusoidal', 'attention': 'mqa', 'feed_forward': 'geglu', 'residual': 'parallel',
        'norm': 'layernorm', 'tie_embeddings': False,
    },
    'no position, relu2, wide heads': {
        'position': 'none', 'feed_forward': 'relu2', 'd_head': 12, 'norm_bias': True,
    },
}  # fmt: skip


def rows(seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, V, (2, L))
    segments = np.array([[0] * 5 + [1] + [2] * 10, [0] * 9 + [1] * 7])
    positions = np.concatenate([np.arange(n) for n in (5, 1, 10, 9, 7)]).reshape(2, L)
    return tokens, positions, segments


@pytest.mark.parametrize('name', ['gpt2', 'llama', *OTHERS])
def test_forward_pass_equals_numpy(name):
    config = tiny_config(**({'gpt2': GPT2, 'llama': LLAMA} | OTHERS)[name])
    model = tiny_model(config)
    params = random_params(model)
    tokens, positions, segments = rows()
    logits = jax.jit(model.apply)({'params': params}, tokens, positions, segments)
    assert logits.dtype == jnp.float32
    assert logits.shape == (2, L, V)
    for row in range(2):
        exact = reference.transformer(params, model.config, tokens[row], positions[row], segments[row])
        np.testing.assert_allclose(logits[row], exact, rtol=1e-4, atol=1e-4)


def test_defaults_are_one_document_from_position_0():
    model = tiny_model(tiny_config(**GPT2))
    params = random_params(model)
    tokens = rows()[0]
    plain = jax.jit(model.apply)({'params': params}, tokens)
    exact = reference.transformer(params, model.config, tokens[0])
    np.testing.assert_allclose(plain[0], exact, rtol=1e-4, atol=1e-4)


def test_lists_are_tokens_as_arrays_are_and_other_shapes_are_told():
    model = tiny_model(tiny_config(**LLAMA, n_layers=1))
    params = random_params(model)
    tokens, positions, segments = ([[5, 6, 7]], [[0, 1, 0]], [[0, 0, 1]])
    of_lists = model.apply({'params': params}, tokens, positions, segments)
    of_arrays = model.apply({'params': params}, *map(np.asarray, (tokens, positions, segments)))
    np.testing.assert_array_equal(of_lists, of_arrays)
    for wrong, shape in (([5, 6, 7], r'int32\[3\]'), ([[5.0, 6.0]], r'float32\[1, 2\]')):
        with pytest.raises(ValueError, match=rf'tokens are {shape}; they must be int\[B, L\]: one text is \[ids\]'):
            model.apply({'params': params}, wrong)


def test_bfloat16_is_close_and_gives_float32_logits():
    model = tiny_model(tiny_config(**LLAMA, dtype='bfloat16'))
    params = random_params(model, scale=0.1)
    tokens = rows()[0]
    logits = jax.jit(model.apply)({'params': params}, tokens)
    assert logits.dtype == jnp.float32
    exact = reference.transformer(params, model.config, tokens[0])
    assert np.abs(logits[0] - exact).max() < 0.05 * np.abs(exact).max()


def test_parameters_of_the_two_families():
    def names(**kw):
        shapes = jax.eval_shape(lambda: init_params(tiny_model(tiny_config(**kw)), jax.random.key(0)))
        leaves = jax.tree_util.tree_leaves_with_path(shapes)
        return {jax.tree_util.keystr(p, simple=True, separator='/'): leaf.shape for p, leaf in leaves}

    norm = lambda path, *lead: {f'{path}/scale': (*lead, 32), f'{path}/bias': (*lead, 32)}
    heads = lambda part, n: {f'layers/attention/{part}/kernel': (2, 32, n, 8)}
    assert names(**GPT2) == {
        'embed/embedding': (V, 32), 'position/table/embedding': (L, 32),
        **heads('q', 4), **heads('k', 4), **heads('v', 4), 'layers/attention/out/kernel': (2, 4, 8, 32),
        **{f'layers/attention/{part}/bias': (2, 4, 8) for part in 'qkv'}, 'layers/attention/out/bias': (2, 32),
        'layers/feed_forward/up/kernel': (2, 32, 128), 'layers/feed_forward/up/bias': (2, 128),
        'layers/feed_forward/down/kernel': (2, 128, 32), 'layers/feed_forward/down/bias': (2, 32),
        **norm('layers/attention_norm', 2), **norm('layers/feed_forward_norm', 2), **norm('final_norm'),
    }  # fmt: skip
    assert names(**LLAMA) == {
        'embed/embedding': (V, 32), 'unembed/kernel': (32, V),
        **heads('q', 4), **heads('k', 2), **heads('v', 2), 'layers/attention/out/kernel': (2, 4, 8, 32),
        'layers/feed_forward/up/kernel': (2, 32, 96), 'layers/feed_forward/gate/kernel': (2, 32, 96),
        'layers/feed_forward/down/kernel': (2, 96, 32),
        'layers/attention_norm/scale': (2, 32), 'layers/feed_forward_norm/scale': (2, 32),
        'final_norm/scale': (32,),
    }  # fmt: skip


# --- Dropout ---------------------------------------------------------------------------


def test_dropout_only_where_a_key_is_given():
    params = random_params(tiny_model(tiny_config(**GPT2)))
    tokens = rows()[0]
    models = {rate: tiny_model(tiny_config(**GPT2, dropout=rate)) for rate in (0.0, 0.3)}
    plain, off = (jax.jit(models[rate].apply)({'params': params}, tokens) for rate in (0.0, 0.3))
    np.testing.assert_array_equal(off, plain)
    train = jax.jit(lambda key: models[0.3].apply({'params': params}, tokens, rngs={'dropout': key}))
    one, again, two = (train(jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - off).max() > 0.1
    assert np.abs(one - two).max() > 0.1


def test_dropout_differs_between_layers_and_has_its_rate():
    """A block that adds its mask to a stream of zeros: each layer's mask can be read off."""
    config = tiny_config(dropout=0.2, residual=MaskBlock, position='none', n_layers=3, norm=Identity)
    model = tiny_model(config)
    params = {'embed': {'embedding': np.zeros((V, 32), np.float32)}}
    tokens = np.zeros((16, L), int)
    apply = lambda key: model.apply({'params': params}, tokens, rngs={'dropout': key}, method='features')
    total = jax.jit(apply)(jax.random.key(0))
    masks = np.stack([np.round(np.asarray(total) * 0.8) // 10**layer % 10 for layer in range(3)])  # base-10 digits
    assert set(np.unique(masks)) == {0, 1}
    n = masks[0].size
    for mask in masks:
        assert abs(np.mean(mask == 0) - 0.2) < 4 * np.sqrt(0.16 / n)
    assert abs(np.mean(masks[0] * masks[1]) - 0.64) < 0.02  # independent
    assert abs(np.mean(masks[1] * masks[2]) - 0.64) < 0.02


class Identity(nn.Module):
    config: object

    def __call__(self, x_BLD):
        return x_BLD


class MaskBlock(nn.Module):
    config: object

    def __call__(self, x_BLD, tokens, cache):
        # Layer n must write digit n; it knows n from the largest digit written so far.
        digit = 10.0 ** jnp.ceil(jnp.log10(jnp.max(jnp.round(x_BLD * 0.8)) + 1))
        return x_BLD + dropout(self, jnp.ones_like(x_BLD) * digit), cache


# --- Parts -----------------------------------------------------------------------------


class Squared(nn.Module):
    """A user's feed-forward: twice its input."""

    config: object

    def __call__(self, x_BLD):
        return 2 * x_BLD


@pytest.mark.parametrize('part', [Squared, f'{__name__}:Squared', f'{__file__}:Squared'])
def test_a_callable_is_a_part(part):
    config = tiny_config(feed_forward=part, n_layers=1, norm=Identity, position='none')
    model = tiny_model(config)
    params = random_params(model)
    assert set(params['layers']) == {'attention'}
    params['layers']['attention']['out']['kernel'] *= 0  # so that x + 0, then + 2x
    tokens = rows()[0]
    features = jax.jit(lambda p: model.apply({'params': p}, tokens, method='features'))(params)
    np.testing.assert_allclose(features, 3 * params['embed']['embedding'][tokens], rtol=1e-6)


def test_a_function_is_an_initialiser():
    init = lambda config, weight: jax.nn.initializers.constant(2.0 if weight.writes_residual else 1.0)
    params = jax.jit(lambda key: init_params(tiny_model(tiny_config(init=init)), key))(jax.random.key(0))
    assert np.all(params['layers']['attention']['out']['kernel'] == 2)
    assert np.all(params['layers']['attention']['q']['kernel'] == 1)


@pytest.mark.parametrize(
    ('field', 'wrong', 'near'),
    [
        ('position', 'rop', 'rope'), ('norm', 'rmsnrm', 'rmsnorm'), ('attention', 'mhaa', 'mha'),
        ('feed_forward', 'swigl', 'swiglu'), ('residual', 'paralel', 'parallel'), ('init', 'gpt', 'gpt2'),
    ],
)  # fmt: skip
def test_an_unknown_part_is_named_with_its_nearest(field, wrong, near):
    message = f"model.{field} = '{wrong}' is not a known part; did you mean '{near}'? Known: "
    with pytest.raises(ConfigError, match=re.escape(message)):
        model = tiny_model(tiny_config(**{field: wrong}))
        jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


def test_an_unknown_remat_policy_is_named():
    with pytest.raises(ConfigError, match=r"model.remat = 'ful'.*did you mean 'full'"):
        jax.eval_shape(lambda: init_params(tiny_model(tiny_config(remat='ful')), jax.random.key(0)))


# --- What data decides -----------------------------------------------------------------


def test_build_fills_in_what_data_decides():
    config = tiny_config(vocab_size=0).model
    model = build(config, vocab_size=100, seq_len=24)
    assert isinstance(model, Transformer)
    assert (model.config.vocab_size, model.config.max_seq_len) == (100, 24)
    set_by_hand = build(tiny_config(vocab_size=128, max_seq_len=32).model, vocab_size=100, seq_len=24)
    assert (set_by_hand.config.vocab_size, set_by_hand.config.max_seq_len) == (128, 32)


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused():
    with pytest.raises(ConfigError, match="model.vocab_size = 64 is smaller than the tokenizer's 100; set it to 0"):
        build(tiny_config().model, vocab_size=100, seq_len=16)


def test_cache_holds_key_value_heads_only():
    (cache, _) = decode.empty_caches(tiny_config(**LLAMA, dtype='bfloat16').model, 3, 20)
    assert cache.k.shape == cache.v.shape == (3, 2, 20, 8)  # heads before slots
    assert cache.k.dtype == jnp.bfloat16


def test_latent_attention_caches_latents_alone():
    config = tiny_config(attention='mla', model__mla__kv_rank=12, model__mla__d_rope=4).model
    assert decode.empty_caches(config, 3, 20)[0].shape == (3, 1, 20, 16)
