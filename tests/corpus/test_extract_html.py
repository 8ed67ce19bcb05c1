import dataclasses
import io
import itertools
import json
import re

import numpy as np
import pytest
from resiliparse.extract.html2text import extract_plain_text
import trafilatura
import zstandard

from llm_jax.config.schema import ConfigError
from llm_jax.corpus.document import Document, Dropped, Raw
from llm_jax.corpus.extract import EXTRACTORS, Extract, blocks, network
from llm_jax.corpus.extract.facts import facts, spdx
from llm_jax.corpus.extract.html import METHODS
from tests import awkward

_PROSE = [
    'The harbour was silent when the first boats came in, and nobody on the quay said a word about the storm.',
    'By noon, the nets had been hung out to dry, and the children were counting the fish in the baskets.',
    'It was, as the old men said, the best catch of the year, although two of the boats had lost their masts.',
    'Later in the week a letter arrived from the capital, which promised help and asked for a list of what was lost.',
]
_PAGE = f"""<!DOCTYPE html><html lang="en-GB"><head><title>The catch &amp; the storm</title>
<meta property="og:type" content="article"><script>var hidden = "no text";</script><style>p {{}}</style></head>
<body><nav class="menu"><ul><li><a href="/">Home</a></li><li><a href="/shop">Shop</a></li></ul></nav>
<main><article class="post-content"><h1>The catch &amp; the storm</h1>
<p>{_PROSE[0]}</p><p>{_PROSE[1]}</p><h2>What was lost</h2>
<ul><li>two masts of the larger boats, both of them new</li><li>a net of forty metres, mended twice</li></ul>
<table><tr><th>Boat</th><th>Fish</th></tr><tr><td>Marie, built in 1931</td><td>412 kg of herring</td></tr></table>
<p>{_PROSE[2]}</p><pre><code>def weigh(fish):
    return sum(fish)</code></pre><p>{_PROSE[3]}</p></article></main>
<footer class="site-footer"><p>© 2024 Harbour News. All rights reserved.</p><a href="/privacy">Privacy policy</a>
<a rel="license" href="https://creativecommons.org/licenses/by-sa/4.0/">CC</a></footer></body></html>"""


def raw(content: bytes | str, **changes) -> Raw:
    return Raw(**({'id': 's/1', 'source': 's', 'where': 'https://a.org/news/storm', 'content': content,
                   'kind': 'html'} | changes))  # fmt: skip


def extractor(method='main', **options):
    return EXTRACTORS['html'](Extract(html=method, **options))


def test_main_text_in_lines():
    document = extractor()(raw(_PAGE))
    lines = document.text.split('\n')
    assert [line for line in lines if line in _PROSE] == _PROSE
    assert 'What was lost' in lines
    assert '- two masts of the larger boats, both of them new' in lines
    assert 'Marie, built in 1931 | 412 kg of herring' in lines
    assert 'def weigh(fish):\n    return sum(fish)' in document.text
    for absent in ('Home', 'Shop', 'Privacy', 'rights reserved', 'hidden'):
        assert absent not in document.text


@pytest.mark.parametrize('method', METHODS)
def test_every_method_finds_prose_and_facts(method):
    document = extractor(method)(raw(_PAGE.encode()))
    assert all(line in document.text for line in _PROSE)
    assert (document.title, document.language, document.licence) == ('The catch & the storm', 'en', 'CC-BY-SA-4.0')
    assert (document.id, document.kind, document.where) == ('s/1', 'html', 'https://a.org/news/storm')


def test_what_the_record_states_counts():
    document = extractor()(raw(_PAGE, language='nl', title='Storm', licence='ODC-BY'))
    assert (document.title, document.language) == ('Storm', 'nl')
    assert document.licence == 'CC-BY-SA-4.0'  # of this page, not of the whole crawl
    page = _PAGE.replace('rel="license"', '').replace('creativecommons', 'elsewhere')
    assert extractor()(raw(page, licence='ODC-BY')).licence == 'ODC-BY'


def test_encodings():
    page = (
        '<html><body><article><p>' + 'Zoë aß früh, und später trank sie Kaffee. ' * 20 + '</p></article></body></html>'
    )
    for encoding in ('utf-8', 'windows-1252', 'utf-16'):
        text = extractor()(raw(page.encode(encoding))).text
        assert text.startswith('Zoë aß früh, und später')


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        ('', 'extract.empty'),
        (b'\0\0', 'extract.empty'),
        (' \n ', 'extract.empty'),
        ('{"a": 1}', 'extract.not_html'),
        ('%PDF-1.4 1 < 2', 'extract.not_html'),
        ('<html><head><script>render()</script></head><body><div id="root"></div></body></html>', 'extract.empty'),
        ('<html></html>', 'extract.empty'),
        ('<p>' + 'x ' * 600 + '</p>', 'extract.too_large'),
        ('<p>' + '<b>x</b>' * 60 + '</p>', 'extract.too_large'),
    ],
)
def test_what_is_no_text(method, content, reason):
    result = extractor(method, max_page=1000, max_tags=100)(raw(content))
    assert isinstance(result, Dropped) and result.reason == reason


@pytest.mark.parametrize('method', METHODS)
def test_no_page_raises(method):
    extract = extractor(method)
    text = ' '.join(_PROSE)
    odd = [
        '<div>' * 50_000 + text, '<div>' * 3000 + text + '</div>' * 3000, '<b>' * 20_000 + text,
        '<ul><li>' * 5000 + text, '<table><tr><td>' * 2000 + text, '<p' * 1000, '<!-- ' + text, '<![CDATA[ ' + text,
        '<html' + ' a=b' * 5000 + '>', f'<p>{text}\0{text}</p>', f'<p>{text}\ud800</p>',
        '<frameset><frame src=x></frameset>', '<?xml version="1.0"?><a/>', '<a>' * 5000, '</p>' * 5000 + '<p>x',
        f'<pre>{text}\n\n\n  {text}', '<p>\u2028\u200b\x0b\x1c</p>', '<td>' + text, '<br>' * 9999 + text,
        f'<body><noscript><p>{text}</p></noscript>', f'<select><option>{text}</select>',
    ]  # fmt: skip
    for page in odd + [f'<p>{text}</p>' for text in awkward.cases(100)] + awkward.cases(100):
        assert isinstance(extract(raw(page)), Document | Dropped)


@pytest.mark.parametrize('method', METHODS)
def test_deep_pages(method):
    extract, text = extractor(method), f'<p>{_PROSE[0]}</p>' * 9
    for tags in (['div'], ['b'], ['ul', 'li'], ['span', 'br']):
        opening, closing = ''.join(f'<{t}>' for t in tags), ''.join(f'</{t}>' for t in reversed(tags))
        for page in (opening * 30_000 + text, opening * 3000 + text + closing * 3000):
            result = extract(raw(page))
            assert result.reason == 'extract.too_large' and 'deep' in result.detail
    assert _PROSE[0] in extractor('visible')(raw('<div>' * 1900 + text)).text
    assert _PROSE[0] in extractor('visible')(raw('<br>' * 5000 + text)).text  # many tags, but flat
    assert _PROSE[0] in blocks.blocks(blocks.parse('<div>' * 1900 + text)).texts[-1]


def test_libraries_are_as_they_are():
    for page in (_PAGE, _PAGE.replace('main', 'div')):
        assert extractor('trafilatura')(raw(page)).text == trafilatura.extract(page)
        assert extractor('trafilatura_fast')(raw(page)).text == trafilatura.extract(page, fast=True)
        assert extractor('resiliparse')(raw(page)).text == extract_plain_text(page, main_content=True)
        assert extractor('visible')(raw(page)).text == extract_plain_text(page)


def shouted(page: str, url: str) -> str:
    return url + re.sub('<[^>]*>', '', page).upper()


def test_own_method():
    for method in (shouted, f'{__name__}:shouted'):
        assert extractor(method)(raw('<p>hello</p>')).text == 'https://a.org/news/stormHELLO'
    with pytest.raises(ConfigError, match='trafilatura'):
        extractor('trafilatur')


def test_facts():
    assert facts('<title>\n A&nbsp;b\n c</title>').title == 'A b c'
    assert facts("<html class=a xml:lang='pt-BR'>").language == 'pt'
    assert facts('<html lang="english">').language == ''
    assert facts('<html data-lang="xx" lang=de>').language == 'de'
    assert facts('<p>nothing').licence == ''
    by, sa = (f'<a href="http://creativecommons.org/licenses/{kind}">x</a>' for kind in ('by/3.0/', 'by-sa/4.0'))
    assert facts(by * 3).licence == 'CC-BY-3.0'
    assert facts(by + sa).licence == ''  # which of them is the page's, nobody knows
    assert facts(by + sa.replace('<a', '<a rel="nofollow license"')).licence == 'CC-BY-SA-4.0'
    assert facts('<link rel=license href="https://a.org/terms">').licence == 'https://a.org/terms'
    assert spdx('https://creativecommons.org/publicdomain/zero/1.0/deed.en') == 'CC0-1.0'
    assert spdx('https://creativecommons.org/publicdomain/mark/1.0/') == 'CC-PDM-1.0'
    page = '<meta content="product" property="og:type"><script type="application/ld+json">{"@type": "Product"}</script>'
    assert (facts(page).og_type, facts(page).schemas) == ('product', {'Product'})


def test_blocks_and_nodes():
    page = blocks.blocks(blocks.parse('<body><p>a <b>b</b><br>c<br><br>d</p><ul><li><a>e</a></li></ul>f</body>'))
    assert page.texts == ['a b\nc', 'd', 'e', 'f']
    assert page.n_linked.tolist() == [0, 0, 1, 0] and page.n_bold.tolist() == [1, 0, 0, 0]
    assert [blocks.TAGS[page.tag[node]] for node in page.node] == ['p', 'p', 'li', 'other']
    # A node is the interval of the blocks that have it among their ancestors.
    for node in range(len(page.parent)):
        within = []
        for i, at in enumerate(page.node.tolist()):
            while at not in (node, 0):
                at = page.parent[at]
            if at == node:
                within.append(i)
        assert within == list(range(page.start[node], page.stop[node])) or not within


def test_arithmetic_of_the_network_is_exact():
    net = network.load()
    rng = np.random.default_rng(0)
    features = rng.normal(net.mean, 2 / net.scale, (50, len(net.names))).astype(np.float32)
    order = rng.permutation(len(net.names))
    (weights, biases), *rest = net.layers
    other = dataclasses.replace(
        net, mean=net.mean[order], scale=net.scale[order], layers=[(weights[order], biases), *rest]
    )
    expected = net.probabilities(features)
    np.testing.assert_array_equal(other.probabilities(features[:, order]), expected)
    np.testing.assert_array_equal(np.concatenate([net.probabilities(row[None]) for row in features]), expected)
    assert 0 <= expected.min() < 0.5 < expected.max() <= 1
    np.testing.assert_array_equal(network.loads(network.dumps(net)).probabilities(features), expected)


def test_chosen_blocks_have_the_largest_expected_f1():
    rng = np.random.default_rng(1)
    for _ in range(200):
        n = rng.integers(1, 9)
        p, words = rng.integers(0, 1025, n) / 1024, rng.integers(0, 30, n).astype(float)
        mask = network.chosen(p, words)
        score = lambda m, p=p, words=words: 2 * (p * words)[m].sum() / max(words[m].sum() + (p * words).sum(), 1)
        best = max(score(np.array(m, bool)) for m in itertools.product((0, 1), repeat=int(n)))
        assert score(mask) == pytest.approx(best, abs=1e-2)


def test_features_are_those_the_network_was_fitted_to():
    from llm_jax.corpus.extract.features import features

    page = blocks.blocks(blocks.parse(_PAGE))
    names, values = features(page, 'https://a.org', facts(_PAGE))
    assert tuple(names) == network.load().names
    assert values.shape == (len(page.texts), len(names)) and np.isfinite(values).all()


def word_f1(text: str, truth: str) -> float:
    from collections import Counter

    found, true = (Counter(re.findall(r'\w+', t.lower())) for t in (text, truth))
    return 2 * (found & true).total() / max(found.total() + true.total(), 1)


def test_real_pages(shared_data):
    """Pages the network was not fitted to: what Firefox's reader shows of them."""
    import tarfile

    files = {}
    with (shared_data / 'web' / 'readability_test_pages.tar.zst').open('rb') as file:
        reader = zstandard.ZstdDecompressor(max_window_size=1 << 28).stream_reader(file)
        with tarfile.open(fileobj=reader, mode='r|') as tar:
            for member in tar:
                if member.isfile():
                    files[member.name] = tar.extractfile(member).read()
    names = sorted(name for name in files if name.endswith('/source.html'))[::4]
    extract, scores, again = extractor(), [], extractor()
    for name in names:
        result = extract(raw(files[name], where=''))
        assert result == again(raw(files[name], where=''))
        truth = re.sub('<[^>]+>', ' ', files[name.replace('source', 'expected')].decode())
        scores.append(word_f1(result.text if isinstance(result, Document) else '', truth))
    assert len(scores) > 30 and np.mean(scores) > 0.8


def test_benchmark_pages(shared_data):
    """Pages of every kind; the network has seen them, so this only shows that nothing broke."""
    with (shared_data / 'web' / 'wcxb_dev.jsonl.zst').open('rb') as file:
        reader = zstandard.ZstdDecompressor(max_window_size=1 << 28).stream_reader(file)
        pages = [json.loads(line) for line in itertools.islice(io.TextIOWrapper(reader, 'utf-8'), 0, None, 12)]
    extract = extractor()
    scores = []
    for page in pages:
        result = extract(raw(page['html'], where=page['url'] or ''))
        if page['main_content']:
            scores.append(word_f1(result.text if isinstance(result, Document) else '', page['main_content']))
    assert len(scores) > 100 and np.mean(scores) > 0.87
