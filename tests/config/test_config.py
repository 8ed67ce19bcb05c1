import dataclasses
import json
import re

import pytest

from llm_jax import config as config_lib
from llm_jax.config.parts import resolve_part
from llm_jax.config.schema import Config, ConfigError
from llm_jax.nn.norms import RMSNorm

DEFAULT = config_lib.validate(config_lib.default())


def overridden(**overrides):
    config = config_lib.default()
    config_lib.apply_overrides(config, {name.replace('__', '.'): text for name, text in overrides.items()})
    return config_lib.validate(config)


@pytest.fixture
def experiment(tmp_path):
    """Writes an experiment file with this body of get_config, and loads it."""

    def write(body, name='mine'):
        path = tmp_path / f'{name}.py'
        path.write_text(
            'from llm_jax.config import default\n'
            'from llm_jax.nn.norms import RMSNorm\n\n'
            'class MyNorm(RMSNorm):\n    pass\n\n'
            f'def get_config():\n    config = default()\n    {body}\n    return config\n'
        )
        return config_lib.load_experiment(path)

    return write


# --- Defaults --------------------------------------------------------------------------


def test_defaults_are_those_of_the_schema():
    rules = DEFAULT.model.rules
    assert dataclasses.replace(DEFAULT, model=dataclasses.replace(DEFAULT.model, rules=())) == Config()
    assert dict(rules) == DEFAULT.mesh.rules


def test_every_field_has_a_meaning():
    rows = config_lib.describe(DEFAULT)
    assert all(meaning for _, _, meaning in rows)
    names = [name for name, _, _ in rows]
    assert {'name', 'model.d_model', 'data.tokenizer.kind', 'mesh.rules'} <= set(names)
    assert 'model.rules' not in names  # filled from mesh.rules


def test_one_default_is_not_shared_with_the_next():
    config_lib.default().data.sources['x'] = 'text:x'
    assert 'x' not in config_lib.default().data.sources


# --- Overrides -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'text', 'value'),
    [
        ('model__n_layers', '4', 4), ('model__n_layers', '4.0', 4), ('model__rope__theta', '500000', 500_000.0),
        ('optimizer__learning_rate', '1e-3', 1e-3), ('model__norm', 'layernorm', 'layernorm'),
        ('model__tie_embeddings', 'false', False), ('model__tie_embeddings', 'True', True),
        ('train__duration', '5 %', '5 %'), ('train__duration', '300', 300),
        ('train__sample_prompts', "['a', 'b']", ('a', 'b')), ('data__tokenizer__vocab_size', '512', 512),
        ('data__sources', 'text:/books/*.txt', {'text': 'text:/books/*.txt'}),
        ('data__sources', "{'a': 'text:b'}", {'a': 'text:b'}),
        ('data__sources__books', 'text:b', {'stdlib': 'stdlib', 'books': 'text:b'}),
    ],
)  # fmt: skip
def test_override(name, text, value):
    config = overridden(**{name: text})
    for part in name.split('__')[: 3 if 'tokenizer' in name or 'rope' in name else 2]:
        config = getattr(config, part)
    assert config == value
    assert type(config) is type(value)


def test_rules_reach_the_model_hashable():
    config = overridden(mesh__rules__vocab="['fsdp', 'tensor']")
    assert dict(config.model.rules)['vocab'] == ('fsdp', 'tensor')
    hash(config.model)


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        ({'model__n_layer': '3'}, "there is no field 'model.n_layer' in the config; did you mean 'n_layers'?"),
        ({'modle__n_layers': '3'}, "there is no field 'modle' in the config; did you mean 'model'?"),
        ({'zzz': '3'}, "there is no field 'zzz' in the config. config has: chat, checkpoint, data, init_from, mesh"),
        ({'model__n_layers__x': '3'}, "'model.n_layers.x' in the config: model.n_layers is a value, not a section"),
        ({'model': 'three'}, "model = 'three' is a section; set its fields"),
        ({'model__n_layers': 'three'}, "model.n_layers = 'three' is str; it must be int"),
        ({'model__n_layers': '3.5'}, 'model.n_layers = 3.5 is float; it must be int'),
        ({'model__n_layers': 'true'}, 'model.n_layers = True is bool; it must be int'),
        ({'model__tie_embeddings': '1'}, 'model.tie_embeddings = 1 is int; it must be bool'),
        ({'model__norm': '3'}, 'model.norm = 3 is int; it must be str or a callable'),
        ({'train__sample_prompts': 'a'}, "train.sample_prompts = 'a' is str; it must be tuple"),
        ({'optimizer__clip': 'none'}, "optimizer.clip = 'none' is str; it must be float"),
        ({'mesh__rules__bad': 'None'}, "mesh.rules = ['bad']: it needs exactly the axes"),
        ({'model__n_heads': '3'}, 'model.n_heads = 3: it must divide model.d_model = 256, or set model.d_head'),
        ({'model__attention': 'gqa', 'model__n_kv_heads': '3'},
         'model.n_kv_heads = 3: it must divide model.n_heads = 4'),
        ({'model__n_kv_heads': '2'}, "model.n_kv_heads = 2: 'mha' has 4; set it to 0, or attention = \"gqa\""),
        ({'model__attention': 'mqa', 'model__n_kv_heads': '2'}, "model.n_kv_heads = 2: 'mqa' has 1"),
        ({'model__d_head': '5'}, 'model.d_head = 5: rope needs an even rotated width, not 5'),
        ({'model__d_model': '33', 'model__n_heads': '3', 'model__position': 'sinusoidal'},
         'model.d_model = 33: sinusoidal needs an even width'),
        ({'model__dtype': 'float16'}, "model.dtype = 'float16': use float32 or bfloat16"),
        ({'model__max_seq_len': '100'}, 'model.max_seq_len = 100: it must be 0 or at least data.seq_len = 256'),
        ({'train__grad_accumulation': '3'}, 'train.grad_accumulation = 3: it must divide train.batch_size = 16'),
        ({'train__batch_size': '0'}, 'train.batch_size = 0: it must be at least 1'),
        ({'model__d_ff': '-3'}, 'model.d_ff = -3: it must be at least 0'),
        ({'optimizer__learning_rate': '-1'}, 'optimizer.learning_rate = -1.0: it must be at least 0'),
        ({'model__norm_at': 'pree'}, "model.norm_at = 'pree': use pre, post, output or sandwich; did you mean 'pre'?"),
        ({'model__bias': '1'}, 'model.bias = 1: use False, True, qkv or attention'),
        ({'model__pattern': "({'window': -1},)"}, 'model.pattern[0].window = -1: it must be at least 0'),
        ({'model__pattern': "({'qk_norm': 'heads'},)"}, "model.pattern[0].qk_norm = 'heads': use none, head or whole"),
        ({'model__pattern': "({'d_model': 64},)"}, 'model.pattern[0] sets d_model, which all layers share'),
        ({'model__dropout': '1.0'}, 'model.dropout = 1.0: it must be at least 0 and below 1'),
        ({'mesh__data': '-1'}, 'axes are at least 1, and at most one of them is -1'),
        ({'mesh__tensor': '0'}, "'tensor': 0, 'context': 1, 'expert': 1, 'stage': 1}: axes are at least 1"),
        ({'data__mixture': "{'x': 1.0}"}, "data.mixture = {'x': 1.0}: it needs the names ['stdlib']"),
        ({'seed': '-1'}, 'seed = -1: it must be at least 0 and below'),
        ({'seed': '99999999999999999999'}, 'seed = 99999999999999999999: it must be at least 0 and below'),
        ({'data__sources': '{}'}, 'data.sources = {}: name at least one source of text'),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_value_and_the_fix(overrides, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        overridden(**overrides)


# --- Experiment files ------------------------------------------------------------------


def test_experiment(experiment):
    config = experiment('config.model.n_layers = 3')
    assert (config.name, config.model.n_layers) == ('mine', 3)
    assert experiment('config.name = "other"', name='second').name == 'other'


@pytest.mark.parametrize(
    ('body', 'message'),
    [
        ('config.model.n_layer = 3', "there is no field 'n_layer' in the config. Did you mean 'model.n_layers'?"),
        ('config.modle.n_layers = 3', "there is no field 'modle' in the config. Did you mean 'model'?"),
        ('config.model.n_layers = config.model.n_layer', "no field 'n_layer' in the config. Did you mean"),
        ('None.x', "get_config() failed: AttributeError: 'NoneType' object has no attribute 'x'"),
        ('{}["q"]', "get_config() failed: KeyError: 'q'"),
    ],
)
def test_a_mistake_in_an_experiment(experiment, body, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        experiment(body)
    assert 'mine.py' in str(error.value)


def test_a_missing_file_is_named_with_its_nearest(experiment, tmp_path):
    experiment('pass', name='shakespeare')
    message = f'there is no file {tmp_path}/shakespear.py. Did you mean {tmp_path}/shakespeare.py?'
    with pytest.raises(ConfigError, match=re.escape(message)):
        config_lib.load_experiment(tmp_path / 'shakespear.py')


def test_a_missing_file_is_found_one_directory_down(tmp_path, monkeypatch):
    below = tmp_path / 'experiments' / 'pretrain'
    below.mkdir(parents=True)
    (below / 'gpt2_124m.py').touch()
    (tmp_path / 'experiments' / 'gpt2_12m.py').touch()
    monkeypatch.chdir(tmp_path)
    for given in ('experiments/gpt2_124m.py', 'gpt2_124m.py', 'experiments/lab/gpt2_124m.py', 'gpt2_124M.py'):
        message = f'there is no file {given}. Did you mean experiments/pretrain/gpt2_124m.py?'
        with pytest.raises(ConfigError, match=re.escape(message)):
            config_lib.load_experiment(given)
    with pytest.raises(ConfigError, match=r'there is no file shakespeare\.py\.$'):
        config_lib.load_experiment('shakespeare.py')


def test_a_file_without_get_config(tmp_path):
    (tmp_path / 'empty.py').write_text('')
    with pytest.raises(ConfigError, match='empty.py defines no get_config'):
        config_lib.load_experiment(tmp_path / 'empty.py')


# --- Parts -----------------------------------------------------------------------------


def test_a_class_of_the_experiment_is_found_again_from_the_stored_config(experiment):
    config = config_lib.validate(experiment('config.model.norm = MyNorm'))
    stored = json.loads(json.dumps(config_lib.to_dict(config)))
    assert stored['model']['norm'].endswith('mine.py:MyNorm')
    part = resolve_part('model.norm', config_lib.from_dict(stored).model.norm, {})
    assert part.__name__ == 'MyNorm'
    assert issubclass(part, RMSNorm)


def test_a_library_class_is_stored_by_its_module():
    config = config_lib.default()
    config.model.norm = RMSNorm
    stored = config_lib.to_dict(config_lib.validate(config))
    assert stored['model']['norm'] == 'llm_jax.nn.norms:RMSNorm'
    assert resolve_part('model.norm', stored['model']['norm'], {}) is RMSNorm
    assert ('model.norm', RMSNorm) in [row[:2] for row in config_lib.describe(config_lib.validate(config))]


def test_what_cannot_be_found_again_is_refused_when_stored(experiment):
    config = config_lib.validate(experiment('config.model.norm = lambda config: None'))
    with pytest.raises(ConfigError, match=r'model.norm is <function .*has no importable name. Give it a name'):
        config_lib.to_dict(config)


@pytest.mark.parametrize(
    ('value', 'message'),
    [
        ('rms', "model.norm = 'rms' is not a known part; did you mean 'rmsnorm'? Known: rmsnorm;"),
        ('no.such.module:Norm', "model.norm = 'no.such.module:Norm' cannot be imported: No module named 'no'"),
        ('llm_jax.nn.norms:Nrm', "model.norm = 'llm_jax.nn.norms:Nrm' cannot be imported: module"),
        ('nofile.py:Norm', "model.norm = 'nofile.py:Norm' cannot be imported: there is no file nofile.py"),
    ],
)
def test_a_part_that_is_not_there(value, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        resolve_part('model.norm', value, {'rmsnorm': RMSNorm})


# --- Options of parts of one's own -----------------------------------------------------

RULES = """

def mine(config, weights, *, beta3=0.5):
    return beta3

def half(progress, span, power=1.0):
    return 0.5
"""


def test_options_reach_the_config_and_come_back(experiment, tmp_path):
    config = experiment('config.optimizer.name, config.model.norm = "llm_jax.train.optimizers:adamw", MyNorm')
    (tmp_path / 'rules.py').write_text(RULES)
    overrides = {
        'optimizer.name': f'{tmp_path}/rules.py:mine', 'optimizer.options.beta3': '0.9',
        'schedule.name': f'{tmp_path}/rules.py:half', 'schedule.options.power': '2',
        'model.options.norm.eps': '1e-3', 'model.pattern': "({'options.norm': {'eps': 1e-2}}, {})",
    }  # fmt: skip
    config_lib.apply_overrides(config, overrides)
    built = config_lib.validate(config)
    assert (built.optimizer.options, built.schedule.options) == ({'beta3': 0.9}, {'power': 2})
    assert [built.model.layer(i).options.norm for i in range(2)] == [{'eps': 1e-2}, {'eps': 1e-3}]
    assert isinstance(hash(built.model), int)
    assert config_lib.from_dict(json.loads(json.dumps(config_lib.to_dict(built)))) == built


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        ({'optimizer__options__beta3': '0.9'},
         'optimizer.options.beta3 = 0.9: adamw has no such option; it takes none'),
        ({'schedule__options__power': '2'}, 'schedule.options.power = 2: cosine has no such option; it takes none'),
        ({'model__options__norm__epz': '1'},
         "model.options.norm.epz = 1: RMSNorm has no such option; did you mean 'eps'?; it takes eps"),
        ({'model__options__nrom__eps': '1'}, "'model.options.nrom' in the config; did you mean 'norm'?"),
    ],
)  # fmt: skip
def test_an_option_that_a_part_does_not_take(overrides, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        overridden(**overrides)


# --- Stored configs --------------------------------------------------------------------


def test_round_trip():
    config = overridden(
        data__sources="{'a': 'text:a', 'b': 'jsonl:b'}", data__mixture="{'a': 1, 'b': 2.5}",
        train__duration='5 epochs',
        mesh__rules__batch='data', optimizer__decay_mask="((r'.*', True),)", name='run',
    )  # fmt: skip
    assert config_lib.from_dict(json.loads(json.dumps(config_lib.to_dict(config)))) == config
    assert config_lib.from_dict(config_lib.to_dict(DEFAULT)) == DEFAULT


def test_a_stored_config_with_an_unknown_field_is_refused():
    with pytest.raises(ConfigError, match="there is no field 'model.n_layer' in the config; did you"):
        config_lib.from_dict({'model': {'n_layer': 3}})


# --- Durations -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('duration', 'expected'),
    [
        (300, 300), (0, 0), ('300 steps', 300), ('1 step', 1), ('1e3 steps', 1000), (' 12 Steps ', 12),
        ('2e6 tokens', 500), ('1.5 epochs', 150), ('0.5 epoch', 50), ('5 %', 10), ('12.5%', 25),
        ('0 steps', 0), ('1 token', 1), ('0.001 %', 1),  # something is never rounded to nothing
    ],
)  # fmt: skip
def test_duration(duration, expected):
    got = config_lib.steps(duration, 'train.duration', tokens_per_step=4000, steps_per_epoch=100.0, total=200)
    assert (got, type(got)) == (expected, int)


@pytest.mark.parametrize(
    'duration', ['', '300', '5 minutes', 'steps', '-5 steps', -5, '1.2.3 steps', '. steps', '5 % x']
)
def test_not_a_duration(duration):
    message = f'train.duration = {duration!r} is not a duration; write a number of steps, '
    with pytest.raises(ConfigError, match=re.escape(message)):
        config_lib.steps(duration, 'train.duration', tokens_per_step=4, steps_per_epoch=1.0, total=200)


def test_a_percentage_of_nothing():
    with pytest.raises(ConfigError, match="train.duration = '5 %': a percentage needs a total; write steps"):
        config_lib.steps('5 %', 'train.duration', tokens_per_step=4, steps_per_epoch=1.0)


def test_an_experiment_that_is_no_python_file(tmp_path):
    (tmp_path / 'FILE').write_text('{}')
    with pytest.raises(ConfigError, match=r'FILE is no Python file: its name must end in \.py'):
        config_lib.load_experiment(tmp_path / 'FILE')
