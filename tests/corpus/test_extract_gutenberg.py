import json
import re
import tarfile

import pytest
import zstandard

from llm_jax.corpus.document import Document, Dropped, Raw
from llm_jax.corpus.extract import EXTRACTORS, Extract
from llm_jax.corpus.extract.gutenberg import book
from llm_jax.corpus.extract.wrap import unwrap

_LICENCE = (
    'This eBook is for the use of anyone anywhere.\nProject Gutenberg-tm and the Project Gutenberg Literary Archive\n'
)
_BODY = '\n\n'.join(f'CHAPTER {i}\n\nThe {i}. day began as all days had begun, and yet not so.' for i in range(1, 30))
_SMALL_PRINT = (
    '***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***\nWhy is this "Small Print!" statement here?\n\n'
    + 'You can receive a refund from the Project.\n\n' * 30
    + '*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n'
)


def extract(text: str | bytes, **options) -> Document | Dropped:
    return EXTRACTORS['gutenberg'](Extract(**options))(Raw('g/1', 'g', '1.txt', text, 'gutenberg'))


@pytest.mark.parametrize(
    ('header', 'footer'),
    [
        ('*** START OF THIS PROJECT GUTENBERG EBOOK A BOOK ***', '*** END OF THIS PROJECT GUTENBERG EBOOK A BOOK ***'),
        ('***START OF THE PROJECT GUTENBERG EBOOK A BOOK***', '***END OF THE PROJECT GUTENBERG EBOOK A BOOK***'),
        ('*** START OF THE PROJECT GUTENBERG EBOOK A\nBOOK OF DAYS ***', '*** END OF THE PROJECT GUTENBERG EBOOK A'),
        (_SMALL_PRINT, "End of Project Gutenberg's Etext of A Book, by B"),
        (_SMALL_PRINT, 'End of the Project Gutenberg Edition of A Book'),
        (_SMALL_PRINT, ''),
        ('*** START OF THE PROJECT GUTENBERG ETEXT OF A ***', 'The Project Gutenberg Etext of A\n' + _SMALL_PRINT),
        ('*** START OF THE PROJECT GUTENBERG EBOOK A BOOK ***', ''),
        ('', ''),
    ],
)  # fmt: skip
def test_headers_and_footers(header, footer):
    text = (_LICENCE if header else '') + f'{header}\n\n\n{_BODY}\n\n\n{footer}\n\n' + (_LICENCE * 9 if footer else '')
    for variant in (text, text.replace('\n', '\r\n'), ('\ufeff' + text).encode()):
        document = extract(variant)
        assert document.text == _BODY


def test_credits_notes_and_illustrations():
    text = (
        '*** START OF THIS PROJECT GUTENBERG EBOOK A ***\n\n\nProduced by A. Volunteer and the Online\n'
        'Distributed Proofreading Team at http://www.pgdp.net\n\n\n'
        "[Transcriber's Note: a [nested] note\n\nof two parts.]\n\n"
        f'[Illustration: The quay\n\n(p. 3)]\n\nA TALE\n\nby B. Author\n\n{_BODY}'
        '\n\n"I saw it" [Illustration] he said.\n\n\n'
        'TRANSCRIBER’S NOTES\n\nPage 3: "teh" changed to "the".\n\n*** END OF THIS PROJECT GUTENBERG EBOOK A ***\n'
    )
    assert extract(text).text == f'A TALE\n\nby B. Author\n\n{_BODY}\n\n"I saw it" he said.'
    # 'Produced by' within the book is the book's.
    inside = 'A sound was\n\nProduced by the wind.\n\n'
    assert inside.strip() in book(f'{_BODY}\n\n{inside}{_BODY}')


def test_what_is_no_book():
    listing = '\n'.join(f'-rw-rw-r--  1 1005  100  {i}438 Feb  4  2001 {i:02}tom10.txt' for i in range(40))
    assert extract(listing).reason == 'extract.listing'
    assert extract(f'{_BODY}\n\n{_LICENCE * 9}\n\n{_BODY}').reason == 'extract.licence_left'
    assert extract(_LICENCE).reason == 'extract.empty'
    assert extract(' \n').reason == 'extract.empty'


def test_unwrapped_prose_and_kept_verse():
    prose = (
        'The harbour was silent when the first boats came in, and nobody on\n'
        'the quay said a word about the storm that had taken two of them, the\n'
        'larger ones--the masts had gone at once, as the old men had fore-\n'
        'told--with all of their nets.'
    )
    verse = (
        'Tyger Tyger, burning bright,\nIn the forests of the night;\n'
        'What immortal hand or eye,\nCould frame thy fearful symmetry?'
    )
    indented = '  And wherefore should these idle tears\n  So long in sorrow fall?'
    table = 'Boat      Catch\nMarie     412\nAnna      218'
    contents = 'I. The Harbour\nII. The Storm\nIII. The Letter'
    heading = 'CHAPTER I\nIn which the boats come in'
    one_line = prose.replace('fore-\n', 'fore-').replace('\n', ' ')
    parts = [heading, prose, verse, prose, indented, table, contents, prose]
    expected = [one_line if part is prose else part for part in parts]
    assert unwrap('\n\n\n'.join(parts)) == '\n\n'.join(expected)
    assert unwrap(unwrap('\n\n'.join(parts))) == unwrap('\n\n'.join(parts))
    assert extract('\n\n'.join(parts), unwrap=False).text == '\n\n'.join(parts)


def test_unwrapping_changes_white_space_only():
    text = 'The a--\nb fore-\ntold, and a much longer line of words that goes to the end\nof it. ' * 3
    assert re.sub(r'\s', '', unwrap(text)) == re.sub(r'\s', '', text)


def test_real_books(shared_data):
    """All styles of header; every eighth book of the most common one."""
    index = [json.loads(line) for line in (shared_data / 'books' / 'books_index.jsonl').open()]
    rare = [entry for entry in index if entry['header_style'] != 'start_end_markers']
    assert len(rare) == 11
    wanted = {entry['file']: entry for entry in rare + [e for e in index if e not in rare][::8]}
    seen = 0
    with (shared_data / 'books' / 'books.tar.zst').open('rb') as file:
        reader = zstandard.ZstdDecompressor(max_window_size=1 << 28).stream_reader(file)
        with tarfile.open(fileobj=reader, mode='r|') as tar:
            for member in tar:
                entry = wanted.get(member.name.rsplit('/', 1)[-1])
                if entry:
                    check(entry, tar.extractfile(member).read())
                    seen += 1
    assert seen == len(wanted)


def check(entry: dict, data: bytes) -> None:
    result = extract(data, unwrap=False)
    if entry['file'].startswith('git__old_pandp09'):
        assert result.reason == 'extract.listing'
        return
    encoding = {'latin-1/cp1252': 'cp1252'}.get(entry['encoding'], entry['encoding'])
    text = data.decode(encoding).replace('\r\n', '\n')
    start, stop = 0, len(text)
    if entry['start_marker']:
        start = text.index(entry['start_marker']) + len(entry['start_marker'])
    elif 'SMALL PRINT' in text:
        start = text.index('*END*THE SMALL PRINT')
    if entry['end_of_line']:
        stop = text.rindex(entry['end_of_line'])
    elif entry['end_marker']:
        stop = text.index(entry['end_marker'])
    body = text[start:stop]
    assert not re.search(r'project\s+gutenberg', result.text, re.I), entry['file']
    headings = lambda of: re.findall(r'^ *(?:CHAPTER|BOOK|PART|CHAPITRE|VOLUME)\b.*', of, re.M)
    assert headings(result.text) == headings(body), entry['file']
    # What went are credits, notes, captions and, of one book, the small print behind it.
    lost = len(body.split()) - len(result.text.split())
    assert 0 <= lost <= 0.02 * len(body.split()) + 200, (entry['file'], lost)
