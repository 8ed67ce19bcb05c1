"""How much of each source a mixture takes."""

import pytest

from llm_jax.config.schema import ConfigError
from llm_jax.corpus import mixing

HAVE = {'a': 1000.0, 'b': 3000.0, 'c': 0.0}


def test_amounts():
    assert mixing.amounts({}, HAVE) == HAVE
    assert mixing.amounts({'a': 3, 'b': 1, 'c': 0}, HAVE) == {'a': 3000.0, 'b': 1000.0, 'c': 0.0}
    assert mixing.amounts({'a': '2.5 epochs', 'b': '1e3 tokens', 'c': '0 epochs'}, HAVE) == {
        'a': 2500.0, 'b': 1000.0, 'c': 0.0
    }  # fmt: skip
    # In bytes, where a token is 4 of them.
    assert mixing.amounts({'a': '1 epoch', 'b': '100 tokens', 'c': '0 tokens'}, HAVE, 4.0)['b'] == 400.0


def test_a_source_with_nothing_cannot_be_used():
    with pytest.raises(ConfigError, match=r'mixture\.c = 1, but nothing of this source is left'):
        mixing.amounts({'a': 1, 'b': 1, 'c': 1}, HAVE)
