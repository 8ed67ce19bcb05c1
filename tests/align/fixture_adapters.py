"""Fixtures of adapters, of quantised matrices, and of PEFT's files."""

import dataclasses
import json

from fixture_files import names, number, read
from fixture_traps import trap
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny import random_params, tiny_config, tiny_model

from llm_jax.adapt import lora
from llm_jax.config.schema import Adapter, ConfigError
from llm_jax.init import describe
from llm_jax.interop import hf, peft
from llm_jax.models import llama
from llm_jax.nn.einsum import Einsum
from llm_jax.nn.embed import Embed
from llm_jax.ops import adapter as adapter_ops
from llm_jax.ops import blockwise


def layers_of(close, case, name):
    """(function of (adapter, embedding's adapter) -> y, the two adapters or None, config, ) of a case, by its name."""
    W, E, A, B = (close.array(case[key]) for key in ('W', 'E', 'A', 'B'))
    rank = len(A)
    alpha = number('alpha=', name, 2.0 * rank)
    adapter = Adapter(kind='dora' if name == 'dora' else 'lora', rank=rank, alpha=alpha, rslora='rslora' in name)
    model = tiny_config(d_model=W.shape[1], n_heads=1, d_head=2, dtype='float32', tie_embeddings=False).model
    config = dataclasses.replace(model, adapter=adapter, dtype=close.dtype.name)
    linear = {'a': A.T, 'b': B.T}
    if name == 'dora':
        linear['magnitude'] = jnp.linalg.norm(W, axis=1)
    table = {'a': close.array(case['embedding_A']).T, 'b': close.array(case['embedding_B']).T}
    adapters = (linear, table if 'embedding' in name else None)
    einsum = Einsum('BLD,DF->BLF', W.T.shape, ('d_model', 'd_ff'), config)
    embed = Embed(config, len(E))
    ids = jnp.asarray(case['ids'])

    def run(linear, table):
        beside = lambda adapter: {} if adapter is None else {'lora': adapter}
        x = embed.apply({'params': {'embedding': E, **beside(table)}}, ids)
        return einsum.apply({'params': {'kernel': W.T, **beside(linear)}}, x)

    return run, adapters, config, W, E


@pytest.mark.parametrize('name', names('lora', 'expect', 'cases'))
def test_lora(close, name):
    case, wanted = read('lora'), read('lora')['expect']['cases'][name]
    run, (linear, table), config, W, E = layers_of(close, case, name)
    close(run(None, None), case['expect']['base'], 1e-6, terms=W)
    y = run(linear, table)
    close(y, wanted['y'])
    loss = lambda linear, table: jnp.sum(jnp.square(run(linear, table)))
    grads = jax.grad(loss, argnums=(0, 1) if table else 0)(linear, table)
    of_linear, of_table = grads if table else (grads, None)
    for key, grad in wanted['grads'].items():
        got = of_table if key.startswith('emb') else of_linear
        if 'magnitude' in key:
            close.grad(got['magnitude'], grad)
        else:
            close.grad(got['a' if '_A' in key else 'b'].T, grad)
    merged = adapter_ops.merge(W.T, linear, describe(config, W.T.shape, ('d_model', 'd_ff'), 1), config)
    close(merged.T, wanted['merged_lin'])
    merged_table = E
    if table:
        merged_table = adapter_ops.merge(
            E, table, describe(config, E.shape, ('vocab', 'd_model'), 1, lookup=True), config
        )
        close(merged_table, wanted['merged_emb'])
    close(merged_table[jnp.asarray(case['ids'])] @ merged, wanted['y_merged'])


def test_lora_at_start(close):
    """B is 0: the output is that of the base; the gradient of A is 0, that of B is not."""
    case = read('lora')
    run, (linear, _), _, W, _ = layers_of(close, case, 'r=2 alpha=4')
    fresh = linear | {'b': jnp.zeros_like(linear['b'])}
    np.testing.assert_array_equal(run(fresh, None), run(None, None))
    grad = jax.grad(lambda linear: jnp.sum(jnp.square(run(linear, None))))(fresh)
    assert not np.any(grad['a']) and np.any(grad['b'])


def test_lora_on_a_tied_head(close):
    """The right logits of an adapter on the head alone are those of an untied model; a tied one is refused."""
    case = read('lora_tied')
    E, A, B, h = (close.array(case[key]) for key in ('E', 'A', 'B', 'h'))
    expect, ids = case['expect'], jnp.asarray(case['ids'])
    fields = {'d_model': E.shape[1], 'n_heads': 1, 'vocab_size': len(E), 'n_layers': 1}
    adapter = Adapter(kind='lora', rank=len(A), alpha=case['scale'] * len(A), targets='unembed/kernel|embed/embedding')
    tied = tiny_config(**fields, tie_embeddings=True).model
    tied = dataclasses.replace(tied, dtype=close.dtype.name, adapter=adapter, max_seq_len=8)
    model = lora.Transformer(tied)
    with pytest.raises(ConfigError, match='model.tie_embeddings = True.*untie'):
        lora.find_targets(model)
    untied, params = lora.untie(model, {'embed': {'embedding': E}})
    head = lambda params: untied.apply({'params': params}, h[None], method='head')[0]
    close(head(params), expect['logits_base'], from_float32=True)  # logits are float32
    params['unembed']['lora'] = {'a': A.T, 'b': B.T}
    close(head(params), expect['logits_adapter_on_head_only'], from_float32=True)
    weight = describe(untied.config, E.T.shape, ('d_model', 'vocab'), 1)
    merged = adapter_ops.merge(E.T, params['unembed']['lora'], weight, untied.config)
    close(h @ merged, expect['logits_adapter_on_head_only'])
    close(params['embed']['embedding'][ids], expect['embedding_base'])
    close(merged.T[ids], expect['embedding_after_wrong_merge'])
    assert not np.allclose(merged.T[ids], expect['embedding_base'])


@trap
def T28(close, given, right, wrong):
    assert Adapter(rank=given['r'], alpha=given['alpha']).scale == right['lora']
    assert Adapter(rank=given['r'], alpha=given['alpha'], rslora=True).scale == right['rslora']


@trap
def T29(close, given, right, wrong):
    """Refused, whichever name of the matrix is given; an untied model has both."""
    assert 'refuse' in right['action']
    for targets in ('unembed/kernel', 'embed/embedding', '.*'):
        config = tiny_config(tie_embeddings=True, model__adapter__targets=targets)
        with pytest.raises(ConfigError, match=r'model.adapter.targets = .*model.tie_embeddings = True'):
            lora.find_targets(tiny_model(config))
        found = lora.find_targets(tiny_model(tiny_config(tie_embeddings=False, model__adapter__targets=targets)))
        assert found


def test_nf4(close):
    case = read('nf4')
    expect, blocks = case['expect'], close.array(case['blocks'])
    size = blocks.shape[1]
    close(blockwise.nf4_levels(), case['levels'])
    made = blockwise.quantise(blocks, 'nf4', axis=1, block=size)
    close(made['absmax'][:, 0], expect['absmax'])
    codes = jnp.stack([made['codes'] & 15, made['codes'] >> 4], -1).reshape(blocks.shape)
    np.testing.assert_array_equal(codes, expect['codes'])
    back = blockwise.Blockwise(made, blocks.shape, ('experts', 'scores')).astype(close.dtype)
    close(back, expect['dequantised'])
    close(jnp.mean(jnp.abs(back - blocks)), expect['mean_abs_error'])
    plain = 'bits_per_parameter_without_double_quantisation'
    assert blockwise.bits_per_weight('nf4', size, double=False) == expect[plain]
    assert blockwise.bits_per_weight('nf4', size, double=True) == expect['with_double_quantisation']


def llama_of(case):
    """The config.json of the base that the file is of; its four heads are not in it."""
    shapes = case['layer_0_tensors']
    side = lambda name, part: next(s for key, s in shapes.items() if f'{name}.lora_{part}' in key)
    hidden, ffn = side('q_proj', 'A')[1], side('gate_proj', 'B')[0]
    n_layers = case['n_tensors'] // len(shapes)
    n_kv = side('k_proj', 'B')[0] * 4 // side('q_proj', 'B')[0]
    return {
        'model_type': 'llama', 'vocab_size': case['other_targets']['tied, targets lm_head'][LM_HEAD_B][0],
        'hidden_size': hidden, 'intermediate_size': ffn, 'num_hidden_layers': n_layers, 'num_attention_heads': 4,
        'num_key_value_heads': n_kv, 'max_position_embeddings': 16, 'rms_norm_eps': 1e-5,
    }  # fmt: skip


LM_HEAD_B = 'base_model.model.lm_head.lora_B.weight'


def adapted(values, said, **targets):
    fields = hf.to_config(llama.from_hf(values | targets), 'llama').model
    adapter = Adapter(kind='lora', rank=said['r'], alpha=said['lora_alpha'], targets='.*')
    model = lora.Transformer(dataclasses.replace(fields, adapter=adapter))
    return model, random_params(model)


def test_peft_format(tmp_path):
    """The names, shapes and numbers that PEFT writes for a Llama, and what it writes read back."""
    case = read('peft_format')
    said = case['adapter_config']
    values = llama_of(case)
    model, params = adapted(values, said)
    targets = {'layers': 'layers/.*', 'outside': '(embed|unembed)/.*'}
    for name, pattern in targets.items():
        config = dataclasses.replace(model.config, adapter=dataclasses.replace(model.config.adapter, targets=pattern))
        model = lora.Transformer(config)
        draw = np.random.default_rng(0)
        adapters = lora.init_adapters(model, params, jax.random.key(0))
        adapters = jax.tree.map(lambda x, draw=draw: draw.standard_normal(x.shape).astype(np.float32), adapters)
        peft.save(model, lora.attach(params, adapters), tmp_path / name, family='llama')
        assert sorted(file.name for file in (tmp_path / name).iterdir()) == sorted(case['files'])
        with safe_open(tmp_path / name / peft.WEIGHTS, framework='numpy') as file:
            assert file.metadata()['format'] == case['metadata_format']
        tensors = load_file(tmp_path / name / peft.WEIGHTS)
        shapes = {key: list(value.shape) for key, value in tensors.items()}
        if name == 'layers':
            assert {key: shape for key, shape in shapes.items() if '.layers.0.' in key} == case['layer_0_tensors']
            assert len(shapes) == case['n_tensors']
            written = json.loads((tmp_path / name / peft.CONFIG).read_text())
            for key, value in written.items():
                if key in said:  # lists in any order
                    assert value == said[key] or sorted(value) == sorted(said[key]), key
        else:
            assert shapes == case['other_targets']['untied, targets lm_head+embed_tokens']
        again, back = peft.load(tmp_path / name, model, params)
        jax.tree.map(np.testing.assert_array_equal, back, adapters)
        assert again.config.adapter.scale == said['lora_alpha'] / said['r']


def test_peft_files_that_are_refused(tmp_path):
    """Tied matrices, and a head that was saved as a whole."""
    case = read('peft_format')
    said, values = case['adapter_config'], llama_of(case)
    for name, shapes in case['other_targets'].items():
        model, params = adapted(values, said, tie_word_embeddings=name.startswith('tied'))
        (tmp_path / name).mkdir()
        tensors = {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}
        save_file(tensors, tmp_path / name / peft.WEIGHTS, metadata={'format': 'pt'})
        config = said | ({'modules_to_save': ['lm_head']} if 'modules_to_save' in name else {})
        (tmp_path / name / peft.CONFIG).write_text(json.dumps(config))
        if name == 'untied, targets lm_head+embed_tokens':
            peft.load(tmp_path / name, model, params)
            continue
        wanted = 'modules_to_save = ' if 'modules_to_save' in name else 'model.tie_embeddings = True'
        with pytest.raises(ConfigError, match=wanted):
            peft.load(tmp_path / name, model, params)
