"""Cuts between context and continuation, windows and truncation."""

import pytest

from llm_jax import tokenizer
from llm_jax.config.schema import ConfigError
from llm_jax.evals import encode, metrics


class Pairs:
    """A tokenizer whose tokens are pairs of characters: a token can span the boundary."""

    bos_id = 1

    def encode(self, text: str) -> list[int]:
        return [1000 * ord(text[i]) + ord(text[i + 1 : i + 2] or '\0') for i in range(0, len(text), 2)]


def encode_pair(context: str, continuation: str, *, bos: bool = True, max_seq_len: int = 100) -> encode.Encoded:
    return encode.encode_pair(Pairs(), context, continuation, bos=bos, max_seq_len=max_seq_len)


def test_a_space_at_the_end_of_the_context_moves_to_the_continuation():
    assert encode_pair('ab ', 'cd', bos=False) == encode_pair('ab', ' cd', bos=False)


def test_an_empty_context_is_bos_whether_or_not_texts_begin_with_it():
    for bos in (False, True):
        assert encode_pair('', 'ab', bos=bos).windows == (((1, *Pairs().encode('ab')), 1),)


def test_bos_comes_before_a_context_only_where_texts_begin_with_it():
    assert encode_pair('ab', 'cd').context == (1, *Pairs().encode('ab'))
    assert encode_pair('ab', 'cd', bos=False).context == tuple(Pairs().encode('ab'))


def test_a_token_over_the_boundary_leaves_the_continuation_alone_and_is_told():
    one = encode_pair('a', 'b')
    assert one.spans_boundary
    assert one.continuation == tuple(Pairs().encode('b'))


def test_what_is_too_long_is_cut_on_the_left_to_one_more_than_is_read():
    one = encode_pair('abababab', 'cd', max_seq_len=3)
    assert one.is_truncated
    assert one.windows == ((tuple(Pairs().encode('abababcd')), 1),)
    assert not encode_pair('abab', 'cd', max_seq_len=3).is_truncated


def test_a_continuation_longer_than_the_context_is_read_in_windows():
    one = encode_pair('ab', 'cdefghij', max_seq_len=3)
    ab, cd, ef, gh, ij = Pairs().encode('abcdefghij')
    assert one.windows == (((ab, cd, ef, gh), 3), ((cd, ef, gh, ij), 1))
    assert one.is_truncated and one.continuation == (cd, ef, gh, ij)


def test_every_token_of_a_long_text_is_scored_once():
    for length in range(1, 12):
        windows = encode.rolling_windows(range(10, 10 + length), first=1, max_seq_len=4)
        scored = [token for ids, count in windows for token in ids[-count:]]
        assert scored == list(range(10, 10 + length))
        assert all(count < len(ids) <= 5 for ids, count in windows)


def test_normalised_accuracies_divide_by_characters_bytes_and_tokens():
    found = metrics.choice_metrics([-4.0, -3.6], ['abcd', 'ééé'], 1, [4, 1])
    assert found == {'acc': 1.0, 'acc_norm': 0.0, 'acc_bytes': 1.0, 'acc_per_token': 0.0}


def test_standard_error_mass_and_interval():
    assert metrics.standard_error([1, 0, 0, 1]) == pytest.approx(0.288675, abs=1e-6)
    assert metrics.mass_on([-1, -2, -3], [1, 0, 1]) == pytest.approx(0.755272, abs=1e-6)
    low, high = metrics.wilson_interval([1, 1, 1, 1, 1, 0, 0, 0, 0, 0])
    assert (low, high) == (pytest.approx(0.23659, abs=1e-4), pytest.approx(0.76341, abs=1e-4))


@pytest.mark.parametrize('from_end', [False, True])
def test_prompts_are_cut_where_their_tokens_differ(from_end):
    requests = [('abcd', 'efgh'), ('abcd', 'xxgh')] if not from_end else [('abcd', 'efgh'), ('xy', 'efgh')]
    found = encode.encode_alike(Pairs(), requests, from_end=from_end, max_seq_len=100)
    assert [one.continuation for one in found] == [
        tuple(Pairs().encode(text)) for text in (('efgh', 'efgh') if from_end else ('efgh', 'xxgh'))
    ]
    assert all(one.context[0] == 1 and one.context + one.continuation == one.windows[0][0] for one in found)


def test_a_single_prompt_is_cut_after_its_stripped_context_and_kept_to_what_is_read():
    [one] = encode.encode_alike(Pairs(), [('abcd ', 'efg')], from_end=False, max_seq_len=100)
    assert one.context == (1, *Pairs().encode('abcd')) and one.continuation == tuple(Pairs().encode(' efg'))
    [cut] = encode.encode_alike(Pairs(), [('abcd ', 'efg')], from_end=False, max_seq_len=3)
    assert cut.is_truncated and cut.windows == ((tuple(Pairs().encode('cd efg')), 2),)
    with pytest.raises(ConfigError, match='has 2 tokens of its own; it needs from 1 to 1'):
        encode.encode_alike(Pairs(), [('abcd ', 'efg')], from_end=False, max_seq_len=2)


def test_cuts_with_the_tokenizer_of_gpt2_whose_texts_do_not_begin_with_bos(shared_data):
    gpt2 = tokenizer.load(shared_data / 'tokenizer' / 'gpt2_encoder.json')
    assert not gpt2.adds_bos
    cut = lambda context, continuation: encode.encode_pair(gpt2, context, continuation, bos=False, max_seq_len=100)
    one = cut('Answer: ', 'A')
    assert (one.context, one.continuation) == ((33706, 25), (317,))  # the space moves
    two = cut('hello wor', 'ld')  # one token, 'world', spans the boundary
    assert two.spans_boundary and two.continuation == tuple(gpt2.encode('ld'))
    three = cut('', ' Who')
    assert (three.context, three.continuation) == ((50256,), (5338,))
    long = encode.encode_pair(gpt2, 'word ' * 50, 'end', bos=False, max_seq_len=8)
    assert long.is_truncated and len(long.windows[0][0]) == 9 and 50256 not in long.windows[0][0]
