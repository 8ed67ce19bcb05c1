"""The chat page in a headless browser, against answers that a script gives."""

import json
import os
import re
import shutil
import time

import pytest

from llm_jax.serve.assets import PAGE
from llm_jax.serve.limits import Limits

playwright = pytest.importorskip('playwright.sync_api')
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='there is no chromium; on Debian, apt install chromium')

LONG = ''.join(f'Line {i} of a long answer.\n\n' for i in range(60))
RICH = """# Tides

A **bold**, an *old* and a ~~gone~~ word, `code`, and 🙂.

```python
def height(x): return x  # a long line of code, which is wider than a phone is, and so it scrolls within its box
```

1. one
   - two
   - three

| place | range |
|:--|--:|
| Fundy | 11.7 |

> quoted https://example.org/a_b_c_d
"""
ANSWERS = {
    'long': LONG,
    'rich': RICH,
    'word': 'x' * 300,
    'evil': '<script>window.hacked = 1</script> <img src=x onerror="hacked=1"> [a](javascript:alert(1)) '
    '![b](https://evil.test/pixel.png) [c](data:text/html,x) <https://good.test/> [d](//evil.test/) '
    '<a href="https://evil.test" onclick="hacked=1">e</a>\n\n<iframe src="https://evil.test"></iframe>\n\n'
    '```html\n<script>window.hacked = 1</script>\n```',
    'empty': '',
}


@pytest.fixture(scope='module')
def scripted(make_live, make_scripted):
    counts = {}

    def answer(said):
        counts[said] = counts.get(said, 0) + 1
        return ANSWERS.get(said, f'You said {said}. ({counts[said]})')

    engine = make_scripted(answer, context=4096, per_step=8)
    with make_live(Limits(slots=4, queue=0), engine=engine) as live:
        yield live


@pytest.fixture(scope='module')
def browser():
    # Chromium's own sandbox does not start for root.
    arguments = ['--no-sandbox'] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser, scripted):
    """Opens the page; at the end, nothing may have gone wrong in it, or been asked of another origin."""
    contexts, wrong, asked = [], [], []

    def open_one(*, width=1100, height=700, scheme='light', allowed=()):
        context = browser.new_context(viewport={'width': width, 'height': height}, color_scheme=scheme)
        context.set_default_timeout(10_000)
        contexts.append(context)
        page = context.new_page()
        is_allowed = lambda text: any(one in text for one in allowed)
        page.on(
            'console',
            lambda line: line.type in ('error', 'warning') and not is_allowed(line.text) and wrong.append(line.text),
        )
        page.on('pageerror', lambda error: wrong.append(str(error)))
        page.on('request', lambda request: asked.append(request.url))
        page.goto(scripted.url)
        playwright.expect(page.locator('#model')).to_have_text('tiny')
        return page

    yield open_one
    for context in contexts:
        context.close()
    scripted.server.engine.seconds = 0
    scripted.wait_until_idle()
    assert not wrong
    assert not [url for url in asked if not url.startswith((scripted.url, 'blob:'))]


def say(page, text):
    page.fill('#prompt', text)
    page.press('#prompt', 'Enter')


def wait(page):
    playwright.expect(page.locator('body')).not_to_have_class(re.compile('running'))


def answers(page):
    return page.locator('.assistant .body').all_inner_texts()


def questions(page):
    return page.locator('.user .body').all_inner_texts()


def test_the_page_is_small_and_asks_nobody_else():
    files = list(PAGE.iterdir())
    assert sum(file.stat().st_size for file in files) <= 60_000
    for file in files:
        assert not re.search(r'(src|href|url)\s*[=(]\s*["\']?(https?:)?//', file.read_text()), file.name
        assert 'innerHTML' not in file.read_text(), file.name


def test_an_answer_appears_in_steps_and_stops(open_page, scripted):
    scripted.server.engine.seconds = 0.02
    page = open_page()
    say(page, 'long')
    body, lengths = page.locator('.assistant .body'), set()
    end = time.monotonic() + 20
    while len(lengths) < 4:
        lengths.add(len(body.inner_text()))
        assert time.monotonic() < end, lengths
        page.wait_for_timeout(30)
    assert page.locator('#log').get_attribute('aria-busy') == 'true'
    page.click('#send')
    wait(page)
    stopped = answers(page)[0]
    assert 0 < len(stopped) < len(LONG)
    assert page.locator('.note').inner_text() == 'stopped'
    assert page.locator('#status').inner_text() == 'Stopped'
    scripted.wait_until_idle()
    say(page, 'hi')
    page.wait_for_selector('.message.waiting', state='detached')
    page.keyboard.press('Escape')
    wait(page)
    page.reload()
    page.locator('#conversations .open').click()
    assert answers(page)[0] == stopped


def test_edit_regenerate_and_conversations(open_page):
    page = open_page()
    bodies = []
    page.on('request', lambda request: request.post_data and bodies.append(json.loads(request.post_data)))
    for text in ('one', 'two', 'three'):
        say(page, text)
        wait(page)
    assert [message['content'] for message in bodies[-1]['messages']][::2] == ['one', 'two', 'three']
    page.locator('.again:visible').click()
    wait(page)
    assert answers(page)[2] == 'You said three. (2)'
    assert bodies[-1]['messages'] == bodies[-2]['messages']
    page.locator('.user').nth(1).hover()
    page.locator('.edit').nth(1).click()
    page.locator('.editor textarea').fill('TWO\nlines')
    page.keyboard.press('Enter')
    wait(page)
    assert questions(page) == ['one', 'TWO\nlines']
    assert [message['content'] for message in bodies[-1]['messages']] == ['one', answers(page)[0], 'TWO\nlines']

    page.click('#settings')
    page.fill('[name=system]', 'Be <b>brief</b>.')
    page.fill('[name=max_tokens]', '5')
    page.fill('[name=seed]', '7')
    page.click('#settings_form [type=submit]')
    page.fill('#prompt', 'not sent yet')
    page.click('#new')
    assert answers(page) == [] and page.input_value('#prompt') == ''
    say(page, 'four')
    wait(page)
    assert {name: bodies[-1][name] for name in ('max_tokens', 'seed', 'temperature')} == {
        'max_tokens': 5, 'seed': 7, 'temperature': 0.8,
    }  # fmt: skip
    assert [message['role'] for message in bodies[-1]['messages']] == ['user']  # the system message is the other's
    assert answers(page) == ['You s']
    assert 'limit of tokens' in page.locator('.note').inner_text()

    page.reload()
    titles = page.locator('#conversations .open')
    assert titles.all_inner_texts() == ['four', 'one']
    titles.nth(1).click()
    assert page.input_value('#prompt') == 'not sent yet'
    assert questions(page) == ['one', 'TWO\nlines']
    say(page, 'five')
    wait(page)
    assert bodies[-1]['messages'][0] == {'role': 'system', 'content': 'Be <b>brief</b>.'}
    page.get_by_role('button', name='Delete “one”').click()
    assert titles.all_inner_texts() == ['four']
    page.get_by_role('button', name='Undo').click()
    assert titles.all_inner_texts() == ['one', 'four']
    page.get_by_role('button', name='Delete “one”').click()
    page.reload()
    assert titles.all_inner_texts() == ['four']


def test_text_never_becomes_markup(open_page):
    page = open_page()
    for said in ('evil', '<img src=x onerror="hacked=1"><script>hacked=1</script>'):
        say(page, said)
        wait(page)
    assert page.evaluate('typeof window.hacked') == 'undefined'
    inside = page.locator('#log, #conversations')
    for tag in ('script', 'img', 'iframe', '[onclick]', '[onerror]'):
        assert inside.locator(tag).count() == 0
    links = page.locator('#log a')
    assert links.evaluate_all('all => all.map(one => one.href)') == [
        'https://evil.test/pixel.png', 'https://good.test/',
        # A tag is text, and the address in it is one.
        'https://evil.test/', 'https://evil.test/',
    ]  # fmt: skip
    assert set(links.evaluate_all('all => all.map(one => one.rel + one.target)')) == {
        'noopener noreferrer nofollow_blank'
    }
    shown = answers(page)[0]
    for text in ('<script>window.hacked = 1</script> <img src=x', '[a](javascript:alert(1))', '[c](data:text/html,x)',
                 '[d](//evil.test/)', '<iframe src="'):  # fmt: skip
        assert text in shown
    assert questions(page)[1].startswith('<img src=x')
    assert page.locator('#conversations').inner_text() == 'evil'


MARKDOWN = {
    'a **b *c* d** e': '<p>a <strong>b <em>c</em> d</strong> e</p>',
    '***both*** x*y*z snake_case 5 * 3 * 2': '<p><strong><em>both</em></strong> x<em>y</em>z snake_case 5 * 3 * 2</p>',
    '__init__ and __two words__': '<p>__init__ and <strong>two words</strong></p>',
    'a\nb': '<p>a<br>b</p>',
    '`` a`b `` and ` open': '<p><code>a`b</code> and ` open</p>',
    r'\*no\* \\': '<p>*no* \\</p>',
    '# T #\n## `c`\n#no': '<h3>T</h3><h4><code>c</code></h4><p>#no</p>',
    '- a\n- b\n  - c\n\n    d\n- e': '<ul><li>a</li><li>b<ul><li>c<p>d</p></li></ul></li><li>e</li></ul>',
    '3. a\n4. b\n\nc': '<ol start="3"><li>a</li><li>b</li></ol><p>c</p>',
    '> a\n> > b': '<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>',
    'a\n***\nb': '<p>a</p><hr><p>b</p>',
    'a | b\n--|:-:\n1 | `x\\|y`': '<table><thead><tr><th class="left">a</th><th class="center">b</th></tr></thead>'
    '<tbody><tr><td class="left">1</td><td class="center"><code>x|y</code></td></tr></tbody></table>',
    '&lt; <b>': '<p>&amp;lt; &lt;b&gt;</p>',
    '*open **and': '<p>*open **and</p>',
}  # fmt: skip
# What takes quadratic time where it is read carelessly.
HARD = [
    '*a ' * 20_000, '[' * 20_000, '`a``b' * 10_000, '> ' * 10_000, '_a**' * 10_000, '- ' * 10_000, '|' * 20_000,
    'http://' * 9_000, '<' * 50_000, '\\' * 50_000, '**a' * 10_000, '~~~\n' * 9_000,
]  # fmt: skip
_SHOW = """async (text) => {
  const { showMarkdown } = await import('/markdown.js');
  const box = document.createElement('div');
  showMarkdown(box, text);
  box.querySelectorAll('.table').forEach((one) => one.replaceWith(...one.childNodes));
  return box.innerHTML;
}"""
_STREAM = """async (text) => {
  const { showMarkdown } = await import('/markdown.js');
  const [grown, whole] = [document.createElement('div'), document.createElement('div')];
  for (let i = 0; i <= text.length; i += 3) showMarkdown(grown, text.slice(0, i));
  showMarkdown(grown, text);
  showMarkdown(whole, text);
  return [grown.innerHTML, whole.innerHTML];
}"""


def test_markdown(open_page):
    page = open_page()
    assert {text: page.evaluate(_SHOW, text) for text in MARKDOWN} == MARKDOWN
    fence = page.evaluate(_SHOW, '```py\na < b\n\n    c')  # not yet closed
    assert '<code>a &lt; b\n\n    c</code>' in fence
    for text in (RICH, LONG, ANSWERS['evil'], *MARKDOWN):
        grown, whole = page.evaluate(_STREAM, text)
        assert grown == whole
    for hard in HARD:
        started = time.monotonic()
        page.evaluate(_SHOW, hard)
        assert time.monotonic() - started < 3, hard[:8]


def test_answers_as_plain_text(open_page):
    page = open_page()
    say(page, 'rich')
    wait(page)
    assert page.locator('.assistant h3').inner_text() == 'Tides'
    for is_plain in (True, False):
        page.click('#settings')
        page.set_checked('[name=plain]', is_plain)
        page.click('#settings_form [type=submit]')
        assert (page.locator('.assistant .body').first.text_content() == RICH) == is_plain
        if is_plain:
            say(page, 'rich')
            wait(page)
            assert page.locator('.assistant .body').last.text_content() == RICH
            page.reload()
            page.locator('#conversations .open').click()
            assert page.locator('.assistant .body').last.text_content() == RICH
    assert page.locator('.assistant h3').count() == 2


def test_a_phone(open_page):
    page = open_page(width=360, height=640)
    widths = 'Math.max(document.documentElement.scrollWidth, document.getElementById("scroll").scrollWidth)'
    for said in ('rich', 'word', 'w' * 200):
        say(page, said)
        wait(page)
        assert page.evaluate(widths) <= 360
    code = page.locator('.code pre').first  # it scrolls within itself
    assert code.evaluate('one => { one.scrollLeft = 50; return one.scrollLeft; }') == 50
    page.locator('.user .edit').last.click()
    assert page.evaluate(widths) <= 360
    page.keyboard.press('Escape')
    for opener, box in (('#settings', '#settings_dialog'), ('#export', '#export_dialog')):
        page.click(opener)
        found = page.locator(box).bounding_box()
        assert found['x'] >= 0 and found['x'] + found['width'] <= 360
        assert page.evaluate(widths) <= 360
        page.keyboard.press('Escape')
    page.click('#menu')
    page.get_by_role('button', name='New chat').click()
    playwright.expect(page.locator('#sidebar')).to_be_hidden()
    assert answers(page) == []


def test_by_keyboard_alone(open_page, scripted):
    page = open_page()
    focused = lambda: page.evaluate('document.activeElement.getAttribute("aria-label") || document.activeElement.id')
    assert focused() == 'prompt'
    page.keyboard.type('first')
    page.keyboard.press('Shift+Enter')
    page.keyboard.type('second')
    page.keyboard.press('Enter')
    wait(page)
    assert questions(page) == ['first\nsecond']
    assert focused() == 'prompt'
    seen = []
    for _ in range(12):
        page.keyboard.press('Shift+Tab')
        seen.append(focused())
        has_ring = 'getComputedStyle(document.activeElement).outlineStyle != "none"'
        assert page.evaluate(has_ring) or seen[-1] == '', seen
        if seen[-1] == 'Edit and ask again from here':
            break
    assert 'Answer again' in seen
    page.keyboard.press('Enter')
    page.keyboard.type('!')
    page.keyboard.press('Enter')
    wait(page)
    assert questions(page) == ['first\nsecond!']
    scripted.server.engine.seconds = 0.02
    page.keyboard.type('long')
    page.keyboard.press('Enter')
    playwright.expect(page.locator('.assistant').last).to_contain_text('Line')
    page.keyboard.press('Escape')
    wait(page)
    assert page.locator('.note').last.inner_text() == 'stopped'
    for _ in range(20):
        page.keyboard.press('Shift+Tab')
        if focused() == 'Settings':
            break
    page.keyboard.press('Enter')
    playwright.expect(page.locator('[name=system]')).to_be_focused()
    page.keyboard.press('Escape')
    assert focused() == 'Settings'


_CONTRAST = """() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => .2126 * linear(r / 255) + .7152 * linear(g / 255) + .0722 * linear(b / 255);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = parse(getComputedStyle(node).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  for (let text = walker.nextNode(); text; text = walker.nextNode()) {
    const node = text.parentElement;
    if (!text.data.trim() || !node.checkVisibility({ visibilityProperty: true })) continue;
    const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
    found.push([text.data.trim().slice(0, 30), (a + .05) / (b + .05)]);
  }
  return found;
}"""


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_contrast(open_page, scheme):
    page = open_page(scheme=scheme)
    say(page, 'rich')
    wait(page)
    paper = page.evaluate('getComputedStyle(document.body).backgroundColor')
    assert (sum(map(int, re.findall(r'\d+', paper))) < 3 * 64) == (scheme == 'dark')
    say(page, 'empty')  # a failure
    wait(page)
    found = page.evaluate(_CONTRAST)
    page.click('#settings')
    found += page.evaluate(_CONTRAST)
    assert len(found) > 25
    assert not [(text, ratio) for text, ratio in found if ratio < 4.5]


def test_export(open_page, tmp_path):
    page = open_page()
    page.click('#settings')
    page.fill('[name=system]', 'Be brief.')
    page.fill('[name=key]', 'secret')
    page.click('#settings_form [type=submit]')
    say(page, 'rich')
    wait(page)
    texts = {}
    for kind in ('JSON', 'Markdown'):
        page.click('#export')
        with page.expect_download() as download:
            page.get_by_role('button', name=kind).click()
        assert download.value.suggested_filename == {'JSON': 'rich.json', 'Markdown': 'rich.md'}[kind]
        download.value.save_as(tmp_path / kind)
        texts[kind] = (tmp_path / kind).read_text()
    assert json.loads(texts['JSON'])['messages'] == [
        {'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'rich'},
        {'role': 'assistant', 'content': RICH},
    ]  # fmt: skip
    assert texts['Markdown'] == f'# rich\n\n## System\n\nBe brief.\n\n## You\n\nrich\n\n## tiny\n\n{RICH}'
    assert 'secret' not in ''.join(texts.values()) + page.evaluate('JSON.stringify(localStorage)')


def test_a_refusal_is_one_line_and_nothing_is_lost(open_page, scripted):
    page = open_page(allowed=['status of 503', 'status of 400', 'ERR_INTERNET_DISCONNECTED'])
    gate, failure = scripted.server.gate, page.locator('.failure')
    say(page, 'kept')
    wait(page)
    gate.rows += 4  # every slot, of a server without a queue
    try:
        page.locator('.again:visible').click()
        playwright.expect(failure).to_contain_text('busy')
        assert answers(page) == ['You said kept. (1)']
        page.locator('.user').hover()
        page.locator('.edit').click()
        page.locator('.editor textarea').fill('changed')
        page.keyboard.press('Enter')
        playwright.expect(page.locator('.editor textarea')).to_have_value('changed')
        assert answers(page) == ['You said kept. (1)']
        page.keyboard.press('Escape')
        say(page, 'next')
        wait(page)
        assert failure.count() == 1
        assert questions(page) == ['kept', 'next']
    finally:
        gate.rows -= 4
    page.fill('#prompt', 'a draft')
    page.get_by_role('button', name='Try again').click()
    wait(page)
    assert answers(page) == ['You said kept. (1)', 'You said next. (1)']
    assert failure.count() == 0
    assert page.input_value('#prompt') == 'a draft'
    say(page, 'z' * 5000)
    playwright.expect(failure).to_contain_text('past the context of 4096')
    page.context.set_offline(True)
    page.get_by_role('button', name='Try again').click()
    playwright.expect(failure).to_contain_text('does not answer')
    assert questions(page)[-1] == 'z' * 5000
    assert failure.locator('span').count() == 1


def event(**choice):
    return f'data: {json.dumps({"choices": [{"delta": {}, "finish_reason": None} | choice]})}\n\n'


@pytest.mark.parametrize(
    ('rest', 'message'),
    [
        ('data: {"error": {"message": "the answer took longer than 600 s"}}\n\n', 'the answer took longer'),
        ('', 'The connection ended before the answer did.'),
    ],
)
def test_an_answer_that_breaks_off_stays(open_page, rest, message):
    page = open_page()
    body = event(delta={'content': 'Half an'}) + event(delta={'content': ' answer'}) + rest
    page.route('**/v1/chat/completions', lambda route: route.fulfill(content_type='text/event-stream', body=body))
    say(page, 'hi')
    playwright.expect(page.locator('.failure')).to_contain_text(message)
    assert answers(page) == ['Half an answer']
    assert page.locator('.note').inner_text() == 'broken off'
    page.unroute('**/v1/chat/completions')
    page.get_by_role('button', name='Try again').click()
    wait(page)
    assert answers(page)[0].startswith('You said hi.')
    assert page.locator('.failure').count() == 0


def test_two_tabs_and_a_full_browser(open_page):
    page = open_page()
    other = page.context.new_page()
    other.goto(page.url)
    say(page, 'from the first')
    wait(page)
    say(other, 'from the second')
    wait(other)
    playwright.expect(page.locator('#conversations .open')).to_have_text(['from the second', 'from the first'])
    other.locator('#conversations .open').last.click()
    assert questions(other) == ['from the first']
    page.evaluate('localStorage.setItem("other", "x".repeat(5 * 2 ** 20 - 2000))')
    say(page, 'y' * 3000)
    wait(page)
    playwright.expect(page.locator('.failure')).to_contain_text('no room left')
    assert answers(page)[1].startswith('You said yyy')
    page.evaluate('localStorage.setItem("llm_jax.conversation.bad", "{")')
    page.reload()
    assert page.locator('#conversations .open').count() == 2


def test_a_key_is_asked_for(browser, make_live, make_scripted):
    with make_live(Limits(slots=4), api_key='right', engine=make_scripted(lambda said: 'Yes.')) as live:
        page = browser.new_page()
        page.goto(live.url)
        page.get_by_role('button', name='Enter the key').click()
        page.fill('[name=key]', 'right')
        page.keyboard.press('Enter')
        playwright.expect(page.locator('#model')).to_have_text('tiny')
        say(page, 'hi')
        wait(page)
        assert answers(page) == ['Yes.']
        page.close()


def test_only_the_end_is_followed(open_page, scripted):
    scripted.server.engine.seconds = 0.01
    page = open_page(height=400)
    say(page, 'long')
    playwright.expect(page.locator('.assistant')).to_contain_text('Line 15 ')
    gap = 'scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight'
    read = lambda what: page.evaluate(f'() => {{ const scroll = document.getElementById("scroll"); return {what}; }}')
    assert read(gap) < 40
    page.mouse.move(600, 200)
    page.mouse.wheel(0, -150)
    page.wait_for_timeout(100)
    place = read('scroll.scrollTop')
    scripted.server.engine.seconds = 0
    wait(page)
    assert read('scroll.scrollTop') == place
    page.click('#newest')
    assert read(gap) < 2
    playwright.expect(page.locator('#newest')).to_be_hidden()
