import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import GPT2, LLAMA, V, on_mesh, place_params, random_params, tiny_config, tiny_model

from llm_jax.config.schema import ConfigError
from llm_jax.generate.blocks import decode_block
from llm_jax.generate.engine import bucket, generate, stream
from llm_jax.generate.settings import Sampler
from llm_jax.generate.slots import BLOCK, prefill_chunk

GREEDY = Sampler(0)
PROMPTS = [[1, 5, 9], [1], [1, 7, 7, 7, 30, 31, 32, 33, 34, 2, 3], [40, 41]]
N = 40  # past two blocks of tokens


@functools.cache
def trained(family='llama', **overrides):
    config = tiny_config(**{'gpt2': GPT2, 'llama': LLAMA}[family], data__seq_len=64, **overrides)
    model = tiny_model(config)
    return model, random_params(model)


@functools.cache
def forward(model):
    return jax.jit(model.apply)


def naive(model, params, prompt, n, vocab_size=V):
    """Greedy, with a full forward pass over everything for each token."""
    tokens = np.zeros(64, np.int32)
    tokens[: len(prompt)] = prompt
    for i in range(len(prompt), len(prompt) + n):
        tokens[i] = np.argmax(forward(model)({'params': params}, tokens[None])[0, i - 1, :vocab_size])
    return tokens[len(prompt) : len(prompt) + n].tolist()


@pytest.fixture(scope='module')
def expected():
    return [naive(*trained(), prompt, N) for prompt in PROMPTS]


def test_greedy_equals_a_loop_of_full_forward_passes(expected):
    assert len({token for row in expected for token in row}) > 10  # no fixed point, which would prove little
    assert generate(*trained(), PROMPTS, max_new_tokens=N, sampler=GREEDY) == expected


@pytest.mark.parametrize('change', [{'family': 'gpt2'}, {'scan': False}], ids=str)
def test_greedy_of_other_models(change):
    model, params = trained(**change)
    new = generate(model, params, PROMPTS[:2], max_new_tokens=20, sampler=GREEDY)
    assert new == [naive(model, params, prompt, 20) for prompt in PROMPTS[:2]]


def test_up_to_the_longest_context(expected):
    model, params = trained()
    prompt = (PROMPTS[0] + expected[0])[:32]
    new = generate(model, params, [prompt], max_new_tokens=32, sampler=GREEDY)
    assert new[0][:11] == expected[0][29:]
    assert len(new[0]) == 32
    assert new[0] == naive(model, params, prompt, 32)


def test_stop_ids_end_a_row_and_are_left_out(expected):
    stop = [expected[0][20], expected[2][0]]
    ends = [min([row.index(token) for token in stop if token in row], default=N) for row in expected]
    assert ends[2] == 0
    assert 0 < ends[0] < N
    new = generate(*trained(), PROMPTS, max_new_tokens=N, sampler=GREEDY, stop_ids=stop)
    assert new == [row[:end] for row, end in zip(expected, ends, strict=True)]


def test_stream_gives_the_same_in_blocks_and_stops_early(expected):
    blocks = list(stream(*trained(), PROMPTS, max_new_tokens=N, sampler=GREEDY))
    assert [len(block[0]) for block in blocks] == [1, BLOCK, BLOCK, N - 1 - 2 * BLOCK]
    assert [sum((block[i] for block in blocks), []) for i in range(4)] == expected
    first_tokens = {row[0] for row in expected}
    assert list(stream(*trained(), PROMPTS, max_new_tokens=N, sampler=GREEDY, stop_ids=first_tokens)) == []
    assert [len(block[0]) for block in stream(*trained(), PROMPTS, max_new_tokens=1)] == [1]


def test_a_row_depends_on_seed_index_and_prompt_alone():
    draw = lambda prompts, seed=5: generate(*trained(), prompts, max_new_tokens=20, seed=seed)
    together = draw(PROMPTS)
    assert draw(PROMPTS) == together
    assert draw(PROMPTS[:1]) == together[:1]
    # Other neighbours, and a longer one, which changes the shapes.
    assert draw([[2], PROMPTS[1], [3] * 40, PROMPTS[3], [9]])[1::2] == together[1::2]
    assert all(a != b for a, b in zip(draw(PROMPTS, seed=6), together, strict=True))
    same = draw([PROMPTS[0]] * 3)
    assert same[0] == together[0]
    assert len(set(map(tuple, same))) == 3


def test_samples_follow_the_models_distribution():
    model, params = trained()
    n = 2000
    drawn = generate(model, params, [PROMPTS[0]] * n, max_new_tokens=1, sampler=Sampler(2.0))
    logits = model.apply({'params': params}, jnp.array([PROMPTS[0]]))[0, -1]
    probs = np.asarray(jax.nn.softmax(logits / 2.0), np.float64)
    counts = np.bincount([row[0] for row in drawn], minlength=V)
    likely = n * probs > 5
    chi_square = (np.square(counts - n * probs)[likely] / (n * probs)[likely]).sum()
    assert chi_square < likely.sum() + 5 * np.sqrt(2 * likely.sum())


def test_only_the_tokenizers_tokens_are_drawn():
    model, params = trained()
    drawn = generate(model, params, PROMPTS, max_new_tokens=N, sampler=Sampler(3.0), vocab_size=9)
    assert {token for row in drawn for token in row} == set(range(9))
    greedy = generate(model, params, PROMPTS[:1], max_new_tokens=20, sampler=GREEDY, vocab_size=9)
    assert greedy[0] == naive(model, params, PROMPTS[0], 20, vocab_size=9)


@pytest.mark.parametrize(
    'sizes', [(1, 8, 1), pytest.param((1, 4, 2), marks=pytest.mark.slow)], ids=str
)  # others: contract 14
def test_same_on_every_mesh(expected, sizes):
    model, params = trained()
    drawn = generate(model, params, PROMPTS, max_new_tokens=20, sampler=Sampler(1.0, 30, 0.9))
    with on_mesh(sizes):
        params = place_params(model, params)
        # Four rows on eight devices: the rest of the batch is filled up.
        assert generate(model, params, PROMPTS, max_new_tokens=N, sampler=GREEDY) == expected
        assert generate(model, params, PROMPTS, max_new_tokens=20, sampler=Sampler(1.0, 30, 0.9)) == drawn


def test_bfloat16_and_float32_begin_alike():
    model, params = trained(dtype='bfloat16')
    new = generate(model, params, PROMPTS, max_new_tokens=20, sampler=GREEDY)
    assert new[0][:1] == naive(model, params, PROMPTS[0], 1)
    assert [len(row) for row in new] == [20] * 4


def test_prompts_and_seeds_do_not_recompile():
    run = lambda prompts, seed, n: generate(*trained(), prompts, max_new_tokens=n, seed=seed, stop_ids=[2])
    run([[5], [6]], 0, 20)
    before = [f._cache_size() for f in (prefill_chunk, decode_block)]
    run([[5, 7, 8, 9], [1] * 8], 1, 17)
    run([[4] * 20, [60]], 2**31, 2)
    assert [f._cache_size() for f in (prefill_chunk, decode_block)] == before


def test_buckets_waste_at_most_a_quarter():
    for n in range(1, 3000):
        assert n <= bucket(n, 10**6) <= max(32, 1.25 * n)
        assert bucket(n, 3000) <= 3000
    assert len({bucket(n, 10**6) for n in range(1, 4097)}) == 29


@pytest.mark.parametrize(
    'prompts, options, message',
    [
        ([[1], []], {}, 'prompt 1: the prompt has no tokens'),
        ([[1, 64]], {}, 'prompt 0: the prompt has token 64, but the model knows 0 to 63'),
        ([[-1]], {}, 'prompt 0: the prompt has token -1'),
        (
            [[1] * 50],
            {'max_new_tokens': 15},
            'has 50 tokens, and with max_new_tokens = 15 that is 65, past the context of 64',
        ),
        ([[1]], {'max_new_tokens': 0}, 'max_new_tokens = 0'),
        ([[1]], {'vocab_size': 65}, "vocab_size = 65 must be between 1 and the model's 64"),
    ],
)
def test_mistakes(prompts, options, message):
    with pytest.raises(ConfigError, match=message):
        stream(*trained(), prompts, **{'max_new_tokens': 10, **options})


def test_no_prompts():
    assert generate(*trained(), [], max_new_tokens=3) == []
