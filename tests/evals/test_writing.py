"""Generated texts: of an item alone and among others, in several samples, cut at stop strings, resumed, and graded."""

import gzip
import json

import jax
import pytest

from llm_jax import config as config_lib
from llm_jax import tokenizer
from llm_jax.config import schema
from llm_jax.config.schema import ConfigError
from llm_jax.evals.generate import DRAWN, GREEDY, Ask, Generator
from llm_jax.evals.run import Evaluation, Options
from llm_jax.evals.sources import Sources
from llm_jax.evals.tasks import Generation, Grade, Prompt, Task, grade_each
from llm_jax.generate import engine
from llm_jax.nn.transformer import build, init_params
from llm_jax.runs import Loaded


@pytest.fixture(scope='module')
def loaded() -> Loaded:
    tok = tokenizer.train(schema.Tokenizer(vocab_size=280), ['The cat sat on the mat.\n'] * 5, seed=0)
    config = config_lib.default()
    config.name, config.data.seq_len = 'tiny', 64
    config.model.d_model, config.model.n_layers, config.model.n_heads = 16, 2, 2
    config.model.init_std, config.model.dtype = 0.5, 'float32'
    config = config_lib.validate(config)
    model = build(config.model, vocab_size=tok.vocab_size, seq_len=64)
    return Loaded(model, init_params(model, jax.random.key(0)), tok, config, 1)


@pytest.fixture(scope='module')
def generator(loaded: Loaded) -> Generator:
    return Generator(loaded, bos=True)


HOW = {'stops': [], 'max_new_tokens': 12, 'n_samples': 1, 'sampler': GREEDY, 'seed': 0}
ASKS = [Ask('The cat', 0, 'a'), Ask('on', 1, 'b'), Ask('', 2, 'c')]


def test_greedy_texts_are_those_of_the_engine_up_to_the_first_stop(loaded, generator):
    tok = loaded.tokenizer
    ends = [tok.bos_id, *tok.eos_ids]
    prompts = [[tok.bos_id, *tok.encode(ask.text)] for ask in ASKS]
    wanted = engine.generate(
        loaded.model,
        loaded.params,
        prompts,
        max_new_tokens=12,
        sampler=GREEDY,
        stop_ids=ends,
        vocab_size=tok.vocab_size,
    )
    whole = [tok.decode(ids, continues=True) for ids in wanted]
    found = generator.complete(ASKS, **HOW)
    assert [one.samples for one in found] == [[text] for text in whole]
    stop = whole[0][3:5]
    cut = generator.complete(ASKS[:1], **HOW | {'stops': [stop]})[0]
    assert cut.samples == [whole[0][: whole[0].index(stop)]] and cut.finishes == ['stop']


def test_a_drawn_text_depends_on_its_item_its_sample_and_the_seed_alone(generator):
    drawn = HOW | {'sampler': DRAWN, 'n_samples': 3}
    together = generator.complete(ASKS, **drawn)
    assert generator.complete(ASKS[1:2], **drawn) == together[1:2]
    assert len(set(together[0].samples)) == 3
    assert generator.complete(ASKS[:1], **drawn | {'n_samples': 1})[0].samples == together[0].samples[:1]
    assert generator.complete(ASKS[:1], **drawn | {'seed': 1})[0].samples != together[0].samples


def test_prompts_too_long_are_cut_on_the_left_and_leave_room_for_a_text(loaded, generator):
    text = 'The cat sat on the mat. ' * 30
    [one] = generator.complete([Ask(text, 0, 'a')], **HOW | {'max_new_tokens': 1000})
    assert one.is_truncated and generator.room(1000) == 32
    tok = loaded.tokenizer
    [wanted] = engine.generate(
        loaded.model, loaded.params, [tok.encode(text)[-32:]], max_new_tokens=32, sampler=GREEDY,
        stop_ids=[tok.bos_id, *tok.eos_ids], vocab_size=tok.vocab_size,
    )  # fmt: skip
    assert one.samples == [tok.decode(wanted, continues=True)]


def make_task(seen: list[str], fail_after: int = 10**6) -> Task:
    def grade(document, text):
        seen.append(text)
        if len(seen) > fail_after:
            raise KeyboardInterrupt
        return Grade({'long': float(len(text) > 20)}, len(text) // 10, 'a note')

    generation = Generation([], 8, grade_each(grade), passing='long', votes=True)
    return Task('own', ['own.jsonl'], lambda d: Prompt(d['q'], d['n']), ('long',), 'q', None, generation=generation)


def test_a_task_of_texts_leaves_its_generations_and_resumes_in_the_middle(loaded, tmp_path, monkeypatch):
    (tmp_path / 'own.jsonl').write_text('\n'.join(json.dumps({'q': 'on ' * i, 'n': i}) for i in range(6)))
    monkeypatch.setattr('llm_jax.evals.run._BLOCK', 4)
    evaluation = Evaluation(loaded, Sources([tmp_path]), Options(samples=2, seed=3))
    whole = evaluation.run(make_task([]), tmp_path / 'whole')
    with pytest.raises(KeyboardInterrupt):
        evaluation.run(make_task([], fail_after=6), tmp_path / 'killed')
    seen: list[str] = []
    assert evaluation.run(make_task(seen), tmp_path / 'killed') == whole
    assert len(seen) == 8  # of 12: the first block of two items was done
    files = [tmp_path / one / 'own' / 'items.jsonl.gz' for one in ('whole', 'killed')]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert (whole['samples'], whole['temperature'], whole['top_p'], whole['max_new_tokens']) == (2, 0.8, 0.95, 8)
    assert whole['main'] == ['long', 'pass@2', 'maj@2'] and whole['seeds'] == {'fewshot': 1234, 'samples': 3}
    rows = [json.loads(line) for line in gzip.decompress(files[0].read_bytes()).decode().splitlines()]
    assert [row['id'] for row in rows] == list(range(6)) and [row['gold'] for row in rows] == list(range(6))
    assert all(len(row['generations']) == 2 and row['grades'][0]['note'] == 'a note' for row in rows)


def test_logits_that_are_no_numbers_name_the_item(loaded):
    broken = jax.tree.map(lambda leaf: leaf * float('nan'), loaded.params)
    bad = Generator(Loaded(loaded.model, broken, loaded.tokenizer, loaded.config, 1), bos=True)
    with pytest.raises(ConfigError, match='gsm8k, item 4: the logits are not finite'):
        bad.complete([Ask('The', 4, 'gsm8k, item 4')], **HOW)
