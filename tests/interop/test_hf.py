"""Hugging Face directories: what is read to where, what is written, and what is refused."""

import importlib.util
import json
import pathlib

from chats import byte_tokenizer
from etils import epath
from families import CASES, write_weights
import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny import on_mesh, tiny_config, tiny_model

import llm_jax
from llm_jax import config as config_lib
from llm_jax import runs
from llm_jax.config import cli
from llm_jax.config.schema import ConfigError
from llm_jax.generate import engine
from llm_jax.interop import convert, files, hf, tensors
from llm_jax.nn.transformer import Transformer, init_params
from llm_jax.ops.quantised import dequantise_params
from llm_jax.train.loop import train

LLAMA = CASES['llama.grouped_llama3_rope']


def directory(path, values=LLAMA, **changes):
    """A Hugging Face directory with drawn weights; `changes` are of config.json, after the weights are made."""
    path.mkdir(exist_ok=True)
    write_weights(path, values, {})
    family, config = hf.read_config(path)
    wanted = tensors.tensors(config.model, family)
    write_weights(path, values, {tensor.name: tensor.shape for tensor in wanted})
    if changes:
        said = json.loads((path / 'config.json').read_text()) | changes
        (path / 'config.json').write_text(json.dumps({k: v for k, v in said.items() if v is not ...}))
    return path


def edit(path, change):
    """Rewrites the weights: `change` gets the dict of tensors."""
    weights = load_file(path / 'model.safetensors')
    change(weights)
    save_file(weights, path / 'model.safetensors')
    return path


# --- In --------------------------------------------------------------------------------


def test_load_takes_a_directory_without_tokenizer(tmp_path):
    loaded = llm_jax.load(directory(tmp_path / 'hf'))
    assert loaded.tokenizer is None
    assert loaded.model.config.max_seq_len == 64
    logits = loaded.model.apply({'params': loaded.params}, np.arange(8)[None])
    assert logits.shape == (1, 8, LLAMA['vocab_size'])
    assert len(engine.generate(loaded.model, loaded.params, [[1, 2]], max_new_tokens=3)[0]) == 3


def test_load_at_another_context(tmp_path):
    path = directory(tmp_path / 'hf')
    loaded = llm_jax.load(path, max_seq_len=256)
    assert loaded.model.config.max_seq_len == 256
    assert loaded.model.config.rope.original_len == 16
    tokens = np.arange(8)[None]
    short = llm_jax.load(path)
    np.testing.assert_array_equal(
        loaded.model.apply({'params': loaded.params}, tokens), short.model.apply({'params': short.params}, tokens)
    )
    with pytest.raises(ConfigError, match='learned 48 positions'):
        llm_jax.load(directory(tmp_path / 'gpt2', CASES['gpt2.tied']), max_seq_len=256)


@pytest.mark.parametrize('sizes', [pytest.param((1, 8, 1), marks=pytest.mark.slow), (2, 2, 2)])
@pytest.mark.parametrize('case', ['gpt2.tied', 'llama.grouped_llama3_rope', 'deepseek_v3.grouped_yarn', 'gpt_oss.yarn'])
def test_onto_a_mesh(tmp_path, case, sizes):
    """Arrays lie as fresh ones do, hold the same numbers, and give the same logits."""
    values = dict(CASES[case])
    values |= {'vocab_size': 64} | ({'n_head': 4} if case.startswith('gpt2') else {'num_hidden_layers': 2})
    if case.startswith('deepseek'):
        values |= {'q_lora_rank': 16, 'kv_lora_rank': 8}  # over fsdp 8
    path = directory(tmp_path / 'hf', values)
    family, config = hf.read_config(path)
    alone = hf.load_params(path, family, config.model)
    with on_mesh(sizes):
        mesh = jax.sharding.get_mesh()
        params = hf.load_params(path, family, config.model, mesh)
        fresh = jax.jit(lambda key: init_params(Transformer(config.model), key))(jax.random.key(0))
        jax.tree.map(lambda a, b: np.testing.assert_equal(a.sharding.spec, b.sharding.spec), params, fresh)
    jax.tree.map(np.testing.assert_array_equal, params, alone)


def test_only_what_a_device_holds_is_read(tmp_path):
    """Eight devices together read each number about once, and never a whole stack."""
    path = directory(tmp_path / 'hf', {**LLAMA, 'vocab_size': 64})
    family, config = hf.read_config(path)
    reader, asked = files.Reader(path), []
    wanted = tensors.tensors(config.model, family)

    def fetch(name, index):
        piece = reader.fetch(name, index)
        asked.append(piece.size)
        return piece

    with on_mesh((1, 8, 1)):
        tensors.load(config.model, wanted, fetch, jax.sharding.get_mesh())
    matrices = sum(np.prod(t.shape) for t in wanted if len(t.shape) > 1)
    vectors = sum(np.prod(t.shape) for t in wanted if len(t.shape) == 1)
    assert sum(asked) <= matrices + 8 * vectors
    assert max(asked) <= max(np.prod(t.shape) for t in wanted) // 8


def test_shards_with_an_index_and_half_precision(tmp_path):
    path = directory(tmp_path / 'hf')
    weights = load_file(path / 'model.safetensors')
    (path / 'model.safetensors').unlink()
    halves = {
        name: np.asarray(w, np.float16 if i % 2 else ml_dtypes.bfloat16) for i, (name, w) in enumerate(weights.items())
    }
    names = sorted(halves)
    shards = {'model-00001-of-00002.safetensors': names[::2], 'model-00002-of-00002.safetensors': names[1::2]}
    for file, held in shards.items():
        save_file({name: halves[name] for name in held}, path / file)
    where = {name: file for file, held in shards.items() for name in held}
    (path / files.INDEX).write_text(json.dumps({'metadata': {}, 'weight_map': where}))
    loaded = llm_jax.load(path)
    name = 'model.layers.1.mlp.up_proj.weight'
    np.testing.assert_array_equal(
        loaded.params['layers']['feed_forward']['up']['kernel'][1].T, halves[name].astype(np.float32)
    )
    (path / names[0]).with_name('model-00002-of-00002.safetensors').unlink()
    with pytest.raises(ConfigError, match='00002-of-00002.safetensors cannot be read'):
        llm_jax.load(path)


def test_a_bare_model_with_buffers(tmp_path):
    """GPT-2 as it was first published: no prefix, and masks among the tensors."""
    path = directory(tmp_path / 'hf', CASES['gpt2.tied'])
    before = llm_jax.load(path).params

    def strip(weights):
        for name in list(weights):
            weights[name.removeprefix('transformer.')] = weights.pop(name)
        weights['h.0.attn.bias'] = np.ones((1, 1, 48, 48), np.float32)

    jax.tree.map(np.testing.assert_array_equal, llm_jax.load(edit(path, strip)).params, before)


def test_a_tied_head_may_be_there_twice(tmp_path):
    path = directory(tmp_path / 'hf', CASES['qwen2.tied'])
    edit(path, lambda w: w.update({'lm_head.weight': w['model.embed_tokens.weight'].copy()}))
    assert 'unembed' not in llm_jax.load(path).params
    edit(path, lambda w: w.update({'lm_head.weight': w['lm_head.weight'] + 1}))
    with pytest.raises(ConfigError, match="tie_word_embeddings, but 'lm_head.weight' is not"):
        llm_jax.load(path)


def test_the_newer_form_of_rope(tmp_path):
    """rope_parameters say what rope_theta and rope_scaling said; nested ones are of each kind of layer."""
    old, _ = (hf.read_config(directory(tmp_path / 'old'))[1].model, None)
    scaling = LLAMA['rope_scaling'] | {'rope_theta': LLAMA['rope_theta']}
    new = directory(tmp_path / 'new', rope_theta=..., rope_scaling=..., rope_parameters=scaling)
    assert hf.read_config(new)[1].model == old
    gemma = CASES['gemma3.scaled']
    old = hf.read_config(directory(tmp_path / 'gemma_old', gemma))[1].model
    nested = {
        'full_attention': {'rope_type': 'linear', 'factor': 4.0, 'rope_theta': 4000.0},
        'sliding_attention': {'rope_type': 'default', 'rope_theta': 300.0},
    }
    without = {'rope_theta': ..., 'rope_scaling': ..., 'rope_local_base_freq': ..., 'rope_parameters': nested}
    new = hf.read_config(directory(tmp_path / 'gemma_new', gemma, **without))[1].model
    assert all(new.layer(i).rope.theta == old.layer(i).rope.theta for i in range(7))
    assert [new.layer(i).rope.scaling for i in range(7)] == ['none'] * 5 + ['linear', 'none']


# --- Refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'model_type': 'bert'}, "model_type 'bert' is not supported"),
        ({'hidden_act': 'tanh'}, "hidden_act = 'tanh' is not supported; known: silu"),
        ({'rope_scaling': {'rope_type': 'spiral'}}, "rope type 'spiral' is not supported; known: default, linear"),
        ({'rope_scaling': {'rope_type': 'linear', 'factor': 2.0, 'twist': 1}}, "'twist' of rope type 'linear'"),
        ({'mlp_bias': True}, 'mlp_bias without attention_bias'),
        ({'embedding_multiplier': 3.0}, 'embedding_multiplier = 3.0, which could change the numbers'),
        ({'rms_norm_eps': None}, "config.json has no 'rms_norm_eps'"),
        ({'quantization_config': {'quant_method': 'fp8'}}, r'quantised weights \(fp8\) cannot be read'),
        ({'num_hidden_layers': 4}, 'the checkpoint lacks .*layers.3.*and 6 more'),
        ({'num_hidden_layers': 2}, 'has no place for, .*layers.2.*and 6 more'),
        ({'intermediate_size': 41}, r"'model.layers.0.mlp.gate_proj.weight' has shape \[40, 24\]; .* \[41, 24\]"),
        ({'attention_bias': True}, "lacks 'model.layers.0.self_attn.k_proj.bias'"),
        ({'tie_word_embeddings': True}, 'tie_word_embeddings, but'),
    ],
)
def test_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        llm_jax.load(directory(tmp_path / 'hf', **changes))


def test_refused_weights(tmp_path):
    path = directory(tmp_path / 'hf')
    edit(path, lambda w: w.update({'model.norm.weight': w['model.norm.weight'].astype(np.int8)}))
    with pytest.raises(ConfigError, match="'model.norm.weight' of .* is I8; only F32, BF16, F16"):
        llm_jax.load(path)
    (path / 'model.safetensors').write_bytes(b'\xff' * 100)
    with pytest.raises(ConfigError, match='cannot be read as safetensors'):
        llm_jax.load(path)
    (path / 'model.safetensors').rename(path / 'pytorch_model.bin')
    with pytest.raises(ConfigError, match=r'no \*.safetensors; pytorch_model.bin cannot be read'):
        llm_jax.load(path)
    (path / 'config.json').write_text('{"model_type": ')
    with pytest.raises(ConfigError, match='is not valid JSON'):
        llm_jax.load(path)


# --- Out -------------------------------------------------------------------------------


def test_bfloat16_shards(tmp_path):
    loaded = llm_jax.load(directory(tmp_path / 'hf'))
    hf.save(loaded.model.config, loaded.params, tmp_path / 'out', dtype='bfloat16', max_bytes=4000)
    index = json.loads((tmp_path / 'out' / files.INDEX).read_text())
    names = sorted(path.name for path in (tmp_path / 'out').glob('*.safetensors'))
    assert sorted(set(index['weight_map'].values())) == names
    assert names[-1] == f'model-{len(names):05}-of-{len(names):05}.safetensors'
    assert index['metadata']['total_size'] == 2 * sum(x.size for x in jax.tree.leaves(loaded.params))
    assert json.loads((tmp_path / 'out' / 'config.json').read_text())['torch_dtype'] == 'bfloat16'
    again = llm_jax.load(tmp_path / 'out').params
    rounded = jax.tree.map(lambda x: np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float32), loaded.params)
    jax.tree.map(np.testing.assert_array_equal, again, rounded)


def test_what_no_family_can_say(tmp_path):
    config = tiny_config(norm='rmsnorm', feed_forward='relu2', residual='parallel')
    with pytest.raises(ConfigError, match='no family can say what this model is; the nearest'):
        hf.save(tiny_model(config).config, {}, tmp_path / 'out')
    config = tiny_config(feed_forward='swiglu', norm='rmsnorm', residual_scale=0.5)
    with pytest.raises(ConfigError, match='a llama config.json cannot say model.residual_scale = 0.5'):
        hf.save(tiny_model(config).config, {}, tmp_path / 'out', family='llama')
    with pytest.raises(ConfigError, match="family 'gpt3' has no checkpoints"):
        hf.save(tiny_model(config).config, {}, tmp_path / 'out', family='gpt3')
    with pytest.raises(ConfigError, match='is not empty'):
        hf.save(tiny_model(config).config, {}, directory(tmp_path / 'hf'))


# --- Run directories and the tool -------------------------------------------------------


def tool(*argv):
    file = pathlib.Path(__file__).resolve().parents[2] / 'tools' / 'convert.py'
    spec = importlib.util.spec_from_file_location('convert_tool', file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cli.run(module.main, list(argv))


def test_convert_there_and_back(tmp_path, capsys):
    path = directory(tmp_path / 'hf', CASES['gemma3.scaled'])
    tool('--from', f'hf:{path}', '--to', str(tmp_path / 'run'))
    assert 'without a tokenizer' in capsys.readouterr().out
    loaded = llm_jax.load(tmp_path / 'run')
    assert loaded.model.config == llm_jax.load(path).model.config
    jax.tree.map(np.testing.assert_array_equal, loaded.params, llm_jax.load(path).params)
    tool('--from', str(tmp_path / 'run'), '--to', f'hf:{tmp_path / "again"}')
    assert 'as gemma3' in capsys.readouterr().out
    before, after = (load_file(p / 'model.safetensors') for p in (path, tmp_path / 'again'))
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, name)


@pytest.mark.parametrize('kind', ['int8', 'int4'])
def test_convert_quantises_and_writes_floats_back(tmp_path, kind):
    path = directory(tmp_path / 'hf', CASES['gemma3.scaled'])
    tool('--from', f'hf:{path}', '--to', str(tmp_path / 'narrow'), '--quantize', kind)
    tool('--from', str(tmp_path / 'narrow'), '--to', f'hf:{tmp_path / "again"}')
    narrow, again = llm_jax.load(tmp_path / 'narrow'), llm_jax.load(tmp_path / 'again')
    jax.tree.map(np.testing.assert_array_equal, dequantise_params(narrow.params), again.params)


def test_a_chat_template_goes_along(tmp_path):
    path = directory(tmp_path / 'hf', {**LLAMA, 'vocab_size': 320})
    tok = byte_tokenizer(['<s>', '<|im_end|>'], bos_token='<s>', eos_token='<|im_end|>')
    tok = tok.with_chat_templates({'default': '{{ messages }}', 'tool_use': '{{ tools }}'})
    tok.save(path)
    convert.from_hf(path, tmp_path / 'run')
    convert.to_hf(tmp_path / 'run', tmp_path / 'again')
    for place in (tmp_path / 'run', tmp_path / 'again'):
        found = llm_jax.load(place).tokenizer
        assert (found.chat_templates, found.special, found.token_roles) == (
            tok.chat_templates,
            tok.special,
            tok.token_roles,
        )


def test_convert_says_what_is_wrong(tmp_path, capsys):
    for arguments, message in (
        (('hf:a', 'hf:b'), 'one of them has to be a run directory'),
        (('hf:a', str(tmp_path / 'run')), "there is no directory 'a', and models of the Hub are called"),
        ((str(tmp_path / 'no_run'), f'hf:{tmp_path / "b"}'), 'is not a run directory'),
    ):
        with pytest.raises(SystemExit):
            tool('--from', arguments[0], '--to', arguments[1])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool('--from', str(tmp_path / 'run'), '--to', 'hf:b', '--quantize', 'int8')
    assert '--quantize int8 --to hf:b: only a run directory holds quantised weights' in capsys.readouterr().err
    path = directory(tmp_path / 'hf')
    convert.from_hf(path, tmp_path / 'run')
    with pytest.raises(ConfigError, match='is not empty; convert to a new directory'):
        convert.from_hf(path, tmp_path / 'run')


def test_a_converted_run_is_what_others_start_from(tmp_path):
    """init_from takes the parameters; with a learning rate of 0 they stay what they are."""
    convert.from_hf(directory(tmp_path / 'hf', {**LLAMA, 'vocab_size': 320}), tmp_path / 'run', max_seq_len=32)
    source = runs.read_config(epath.Path(tmp_path / 'run'))
    assert (source.model.max_seq_len, source.data.seq_len) == (32, 32)
    words = ['the', 'cat', 'sat', 'on', 'mats', 'while', 'dogs', 'were', 'running', 'along', 'rivers']
    rng = np.random.default_rng(0)
    text = [json.dumps({'text': ' '.join(rng.choice(words, 30))}) for _ in range(200)]
    (tmp_path / 'corpus.jsonl').write_text('\n'.join(text))
    config = config_lib.default()
    config.model.update(hf.read_fields(tmp_path / 'hf')[1] | {'max_seq_len': 32})
    config.init_from = str(tmp_path / 'run')
    config.data.sources = f'jsonl:{tmp_path}/corpus.jsonl'
    config.data.update({'seq_len': 32, 'cache_dir': str(tmp_path / 'cache')})
    config.data.tokenizer.vocab_size = 300
    config.train.update({'duration': 1, 'batch_size': 8, 'sample_tokens': 4, 'sample_prompts': ('the',)})
    config.optimizer.learning_rate = 0.0
    train(config_lib.validate(config), tmp_path / 'tuned')
    tuned = llm_jax.load(tmp_path / 'tuned')
    jax.tree.map(np.testing.assert_array_equal, tuned.params, llm_jax.load(tmp_path / 'run').params)
