import jax
import pytest
import talker
from talker import CONTEXT

from llm_jax.config.schema import ConfigError
from llm_jax.generate.engine import generate
from llm_jax.generate.prefix import PAGE
from llm_jax.generate.respond import Responder
from llm_jax.generate.settings import Sampler

TOKENIZER = talker.tokenizer()
PROMPT = [TOKENIZER.bos_id, *TOKENIZER.encode('Wie spät ist es?')]


def make(**options):
    return Responder(*talker.model(), TOKENIZER, **({'stop_ids': [], 'max_new_tokens': 20} | options))


@pytest.fixture(scope='module')
def warm():
    one = make()
    one.warm_up()
    return one, dict(one.settings)


@pytest.fixture
def responder(warm):
    """Its programs are there, and its settings are those of `make`."""
    one, settings = warm
    for name, value in settings.items():
        one.change(name, str(value))
    return one


def answer(responder, prompt=PROMPT):
    return ''.join(responder.answer(prompt))


def expected(**options):
    (row,) = generate(*talker.model(), [PROMPT], max_new_tokens=20, **options)
    return TOKENIZER.decode(row, continues=True)


def test_no_answer_compiles(responder):
    """First of all tests, so that no other answer has compiled for it."""
    compiled = []
    listen = lambda name, *args, **kwargs: compiled.append(name) if 'backend_compile' in name else None
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for n, (name, value) in zip(range(1, 200, 23), [*responder.settings.items()], strict=False):
            responder.change(name, str(value))
            responder.change('temperature', str(n / 100))
            answer(responder, (PROMPT * 20)[:n])
        stopped = responder.answer(PROMPT)
        stopped.stop()
        list(stopped)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled


def test_text_is_that_of_the_engine_whatever_its_pieces(responder):
    responder.change('seed', '3')
    one = responder.answer(PROMPT)
    pieces = list(one)
    assert ''.join(pieces) == expected(seed=3)
    assert len(pieces) > 2 and one.n_tokens == 20 and one.is_cut and one.n_prompt == len(PROMPT)
    assert one.first_seconds > 0 and one.speed > 0


def test_answers_are_drawn_by_their_number(responder):
    responder.change('seed', '5')
    first = [answer(responder) for _ in range(3)]
    assert len(set(first)) == 3
    responder.change('seed', '5')
    assert [answer(responder) for _ in range(3)] == first
    other = make(seed=5)  # no matter what was said before the seed was set
    assert [answer(other) for _ in range(3)] == first


def test_a_second_turn_prefills_only_what_is_new(responder):
    responder.change('temperature', '0')
    long = (PROMPT[::-1] * 9)[:130]
    first = responder.answer(long)
    text = ''.join(first)
    history = [*long, *TOKENIZER.encode(text)]
    second = responder.answer([*history, *PROMPT])
    list(second)
    # All whole pages of what has been through the model before.
    assert second.n_reused == 2 * PAGE and first.n_reused == 0
    third = responder.answer([*history, *PROMPT, *PROMPT, *PROMPT])
    list(third)
    assert third.n_reused == (len(history) + len(PROMPT)) // PAGE * PAGE


def test_stopping_keeps_the_text_so_far(responder):
    responder.change('max_new_tokens', 'none')
    one, text = responder.answer(PROMPT), ''
    for piece in one:
        text += piece
        if text:
            one.stop()
    assert 1 <= one.n_tokens < CONTEXT - len(PROMPT) - 40 and not one.is_cut
    responder.change('max_new_tokens', '20')
    responder.change('seed', '3')
    assert answer(responder) == expected(seed=3)


def test_stop_strings_and_ids_end_an_answer(responder):
    greedy = {'sampler': Sampler(0)}
    whole = expected(**greedy)
    stop = whole[8:10]
    assert answer(make(stops=[stop], **greedy)) == whole.partition(stop)[0]
    (row,) = generate(*talker.model(), [PROMPT], max_new_tokens=20, **greedy)
    one = make(stop_ids=[row[6]], **greedy).answer(PROMPT)
    list(one)
    assert one.n_tokens == row.index(row[6]) and not one.is_cut
    with pytest.raises(ConfigError, match='would end every text'):
        make(stops=[''])


def test_settings_are_checked_as_the_sampler_does(responder):
    before = dict(responder.settings)
    for name, text, problem in (
        ('temperature', '-1', r'temperature = -1\.0 must be 0 \(greedy\) or a positive number'),
        ('temperature', 'hot', "temperature = 'hot' must be a number"),
        ('temperature', 'nan', 'temperature = nan'),
        ('top_k', '2.5', "top_k = '2.5' must be an integer"),
        ('top_k', '4294967296', 'top_k = 4294967296 must be .* below 2'),
        ('top_p', '0', 'top_p = 0.0 must be above 0'),
        ('max_new_tokens', '0', 'max_new_tokens = 0 must be at least 1'),
        ('seed', '-1', 'seed = -1 must be from 0'),
        ('seed', 'none', "seed = 'none' must be an integer"),
        ('temprature', '1', "temprature is no setting; did you mean 'temperature'"),
        ('logit_bias', '1', 'logit_bias is no setting'),
    ):
        with pytest.raises(ConfigError, match=problem):
            responder.change(name, text)
    assert responder.settings == before


def test_a_prompt_without_room_is_refused_and_the_next_is_answered(responder):
    responder.change('seed', '3')
    with pytest.raises(ConfigError, match=f'the prompt has {CONTEXT} tokens, which is past the context'):
        responder.answer((PROMPT * 20)[:CONTEXT])
    one = responder.answer((PROMPT * 20)[: CONTEXT - 5])
    list(one)
    assert one.n_tokens == 5 and one.is_cut  # what there is room for
    responder.change('seed', '3')
    assert answer(responder) == expected(seed=3)


def test_how_much_of_the_context_an_answer_is_left(responder):
    assert responder.reserve == 20
    assert make(max_new_tokens=None).reserve == make(max_new_tokens=200).reserve == 64
    assert make(context=3).reserve == 1
