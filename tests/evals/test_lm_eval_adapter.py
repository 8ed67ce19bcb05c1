"""The adapter, asked as lm-eval asks, by a stand-in of its two modules."""

import dataclasses
import importlib
import sys
import types

import jax
import pytest

from llm_jax import config as config_lib
from llm_jax import runs, tokenizer
from llm_jax.config import schema
from llm_jax.evals.generate import GREEDY, Ask, Generator
from llm_jax.evals.run import Evaluation
from llm_jax.evals.sources import Sources
from llm_jax.evals.tasks import Item, Task
from llm_jax.nn.transformer import build, init_params

ADAPTER = 'llm_jax.evals.lm_eval_adapter'


@dataclasses.dataclass
class Instance:
    args: tuple


@pytest.fixture
def loaded(monkeypatch) -> runs.Loaded:
    tok = tokenizer.train(schema.Tokenizer(vocab_size=280), ['The cat sat on the mat.\n'] * 5, seed=0)
    config = config_lib.default()
    config.name, config.data.seq_len = 'tiny', 64
    config.model.d_model, config.model.n_layers, config.model.n_heads = 16, 1, 2
    config.model.init_std, config.model.dtype = 0.5, 'float32'
    config = config_lib.validate(config)
    model = build(config.model, vocab_size=tok.vocab_size, seq_len=64)
    loaded = runs.Loaded(model, init_params(model, jax.random.key(0)), tok, config, 1)
    monkeypatch.setattr(runs, 'load', lambda path, step: loaded)
    return loaded


@pytest.fixture
def adapter(monkeypatch):
    """The module, with a stand-in of lm_eval."""
    api = {name: types.ModuleType(f'lm_eval.api.{name}') for name in ('model', 'registry')}
    api['model'].LM = type('LM', (), {'__init__': lambda self: None})
    known = {}
    api['registry'].register_model = lambda name: lambda made: known.setdefault(name, made)
    for name, module in (('lm_eval', types.ModuleType('lm_eval')), ('lm_eval.api', types.ModuleType('lm_eval.api'))):
        monkeypatch.setitem(sys.modules, name, module)
    for name, module in api.items():
        monkeypatch.setitem(sys.modules, f'lm_eval.api.{name}', module)
    monkeypatch.delitem(sys.modules, ADAPTER, raising=False)
    module = importlib.import_module(ADAPTER)
    assert known['llm_jax'] is module.Model
    yield module
    sys.modules.pop(ADAPTER, None)


def test_answers_are_those_of_our_own_tasks(adapter, loaded, tmp_path):
    model = adapter.Model('runs/x')
    pairs = [('The cat', ' sat'), ('The cat', ' on'), ('', 'mat'), ('on the ', 'mat.')]
    found = model.loglikelihood([Instance(pair) for pair in pairs])
    evaluation = Evaluation(loaded, Sources([]))
    task = Task('own', [], lambda d: d, ('acc',), '', None)
    rows = evaluation._score_items(task, [Item([pair], pair[1]) for pair in pairs], 0)
    for (value, is_greedy), row in zip(found, rows, strict=True):
        assert value == pytest.approx(row['requests'][0]['loglikelihood'], abs=1e-5)
        assert is_greedy == row['requests'][0]['is_greedy']
    texts = ['The cat sat.', 'on the mat ' * 40]
    assert model.loglikelihood_rolling([Instance((text,)) for text in texts]) == evaluation.roll(texts)


def test_texts_obey_the_settings_of_their_request(adapter, loaded):
    model = adapter.Model('runs/x')
    greedy = {'until': ['zzz'], 'max_gen_toks': 10, 'do_sample': False, 'temperature': 0.0}
    whole, other = model.generate_until([Instance(('The cat', greedy)), Instance(('on', greedy | {'max_gen_toks': 3}))])
    stop = whole[2:4]
    settings = greedy | {'until': stop}
    assert model.generate_until([Instance(('The cat', settings))]) == [whole[: whole.index(stop)]]
    short = {'max_new_tokens': 3, 'stops': [], 'n_samples': 1, 'sampler': GREEDY, 'seed': 0}
    assert [other] == Generator(loaded, bos=True).complete([Ask('on', 1, 'b')], **short)[0].samples
    drawn = Instance(('The cat', {'until': [], 'do_sample': True, 'temperature': 5.0}))
    assert model.generate_until([drawn]) == model.generate_until([drawn]) != [whole]


def test_without_lm_eval_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'lm_eval', None)
    monkeypatch.delitem(sys.modules, ADAPTER, raising=False)
    with pytest.raises(ImportError, match='pip install "lm-eval'):
        importlib.import_module(ADAPTER)
