from llm_jax.config.printable import visible


def test_what_a_terminal_would_obey_is_shown():
    assert visible('a\x1b[31m\x00\tb\nc\r') == 'a\\x1b[31m\\x00\tb\nc\\r'
    assert visible('\x9b2J') == '\\x9b2J'


def test_what_reorders_the_text_around_it_is_shown():
    """Boucher and Anderson 2021, arXiv:2111.00169."""
    assert visible('a\u202eb\u2066c') == 'a\\u202eb\\u2066c'
    assert visible('naïve 中文 🙂 שלום') == 'naïve 中文 🙂 שלום'
