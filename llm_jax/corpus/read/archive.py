"""Archives of files: tar, compressed or not, and zip. A member is a document, as a file of a directory is.

A zip or a plain tar is read in several units, as its members can be reached; a
compressed tar in one, from its beginning to its end.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import io
import posixpath
import re
import tarfile
from typing import BinaryIO
import zipfile
import zlib

from llm_jax.corpus.digest import digest
from llm_jax.corpus.document import Broken
from llm_jax.corpus.read import content, licences
from llm_jax.corpus.read.encoding import decode
from llm_jax.corpus.read.unit import Input, Record, Source, groups, matches, numbered
from llm_jax.data import files

_NAME = re.compile(r'\.(zip|tar(\.(gz|zst|bz2|xz))?|tgz)$', re.I)
_BLOCK = 512


@dataclasses.dataclass(frozen=True)
class _Member:
    """A member of an archive.

    Attributes:
      index: its number in the archive.
      path: within the archive; '' for bytes that are no member.
      size: in bytes.
      rule: why it is not read, of those of `Skipped`; '' if it is.
      offset: where its bytes are in a plain tar.
    """

    index: int
    path: str
    size: int
    rule: str = ''
    offset: int = 0


def is_archive(path: str) -> bool:
    """Whether a file is an archive, by its name."""
    return _NAME.search(path) is not None


def inputs(name: str, source: Source, path: str, file: files.File) -> list[Input]:
    """Units of an archive.

    Args:
      name: of the source.
      source: its options.
      path: of the archive within the source.
      file: the archive.
    """
    place = content.Place(name, source, prefix=f'{path}/', named=bool(source.include))
    plan = {'.zip': _zip_plan, '.tar': _tar_plan}.get(posixpath.splitext(path)[1].lower())
    if not plan:
        return [Input(path, digest(path, file.stamp), file.size, functools.partial(_read_stream, place, path, file))]
    members, notes = plan(place, file)
    parts = list(groups(members, lambda member: member.size)) or [[]]
    return [
        Input(
            numbered(path, i, len(parts)),
            digest(path, file.stamp, i),
            sum(member.size for member in part),
            functools.partial(_read_part, place, path, file, tuple(part), _stating(members), notes if i == 0 else ()),
        )
        for i, part in enumerate(parts)
    ]


def _stating(members: Sequence[_Member]) -> tuple[_Member, ...]:
    """The members that are licence files."""
    return tuple(m for m in members if licences.is_licence_file(posixpath.basename(m.path)) and m.size < 1 << 20)


def _read_part(
    place: content.Place,
    path: str,
    file: files.File,
    part: Sequence[_Member],
    stating: Sequence[_Member],
    notes: Sequence[Broken],
) -> Iterator[Record]:
    """Records of some members of a zip or plain tar."""
    yield from notes
    read_all = _zip_contents if path.lower().endswith('.zip') else _tar_contents
    if not place.source.licence:
        found = {m.path: licences.recognise(decode(data)[0]) for m, data in read_all(file, stating) if data is not None}
        place = dataclasses.replace(place, licences=licences.of_directories(found))
    chosen = [(member, _refused(place, member)) for member in part if matches(member.path, place.source.include)]
    contents = read_all(file, [member for member, refused in chosen if not refused])
    for member, refused in chosen:
        if refused:
            yield refused
            continue
        _, data = next(contents)
        if data is None:
            yield place.broken(member.path, 'damaged', f'member {member.index} of the archive')
        else:
            yield content.record(place, member.path, data, f'{path}#{member.index}')


def _refused(place: content.Place, member: _Member) -> Record | None:
    if member.rule:
        return place.skipped(member.path, member.rule)
    return content.passed_over(place, member.path, member.size)


# --- Zip -------------------------------------------------------------------------------


def _zip_plan(place: content.Place, file: files.File) -> tuple[list[_Member], tuple[Broken, ...]]:
    try:
        with file.open() as stream, zipfile.ZipFile(stream) as archive:
            found = enumerate(archive.infolist())
            return [_Member(i, _clean(m.filename), m.file_size) for i, m in found if not m.is_dir()], ()
    except zipfile.BadZipFile as error:
        detail = f'{error}; a zip has its contents at its end'
    except UnicodeDecodeError as error:
        detail = f'it says that the name {error.object!r} is UTF-8, and it is not'
    return [], (Broken(place.name, place.prefix[:-1], 'read.damaged', detail),)


def _zip_contents(file: files.File, members: Sequence[_Member]) -> Iterator[tuple[_Member, bytes | None]]:
    """Members with their bytes, None for those that cannot be read."""
    if not members:
        return
    with file.open() as stream, zipfile.ZipFile(stream) as archive:
        entries = archive.infolist()
        for member in members:
            try:
                data = archive.read(entries[member.index])
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):  # encrypted
                data = None
            yield member, data


# --- Tar -------------------------------------------------------------------------------


def _tar_plan(place: content.Place, file: files.File) -> tuple[list[_Member], tuple[Broken, ...]]:
    with file.open() as stream:
        walked = list(_walk(stream, 'r:', lambda end: _filled(stream, end) if end <= file.size else file.size))
    members = [m for m, _, _ in walked if m.path]
    return members, tuple(Broken(place.name, place.prefix[:-1], 'read.damaged', w) for _, w, _ in walked if w)


def _tar_contents(file: files.File, members: Sequence[_Member]) -> Iterator[tuple[_Member, bytes | None]]:
    with file.open() as stream:
        for member in members:
            stream.seek(member.offset)
            data = stream.read(member.size)
            yield member, data if len(data) == member.size else None


def _walk(stream: BinaryIO, mode: str, filled: Callable[[int], int]) -> Iterator[tuple[_Member, str, BinaryIO | None]]:
    """(member, what is wrong before it, its content in a stream) of each file of a tar.

    A header that is no header is passed over up to the next one, as are the zero blocks
    between archives that were joined. What is wrong at the end comes with a member
    without path.

    Args:
      filled: end of the members -> where the last byte is that is not 0.
    """
    end = index = 0
    wrong = ''
    try:
        with tarfile.open(fileobj=stream, mode=mode, ignore_zeros=True, bufsize=1 << 16) as tar:
            for index, entry in enumerate(tar, 1):
                tar.members = []  # else it keeps all that it has seen
                gap = entry.offset - end
                wrong = f'{gap} bytes before {entry.name!r} are no member' if end and gap else ''
                end = tar.offset  # of the next header: what is stored of a sparse file is less than its size
                if entry.isdir():
                    continue
                rule = 'link' if entry.issym() or entry.islnk() else '' if entry.isreg() else 'no_file'
                rule = 'sparse' if entry.issparse() else rule  # a disk image or a data base
                member = _Member(index - 1, _clean(entry.name), entry.size, rule, entry.offset_data)
                yield member, wrong, tar.extractfile(entry) if mode == 'r|' and not rule else None
    except tarfile.TarError as error:
        wrong = str(error)
    else:
        left = filled(end) - end
        wrong = f'{left} bytes that are no member' if left > 0 else ''
        wrong = f'cut off: {-left} bytes are missing' if left <= -_BLOCK else wrong
    if wrong:
        yield _Member(index, '', 0), f'after member {index}: {wrong}', None


def _read_stream(place: content.Place, path: str, file: files.File) -> Iterator[Record]:
    """Records of a compressed tar."""
    if not place.source.licence and place.source.format in ('auto', 'code'):  # stated before or after what it covers
        place = dataclasses.replace(place, licences=_licences_in_stream(file))
    try:
        stream = _Stream(file.blocks())
        for member, wrong, reader in _walk(stream, 'r|', stream.filled):
            if wrong:
                yield Broken(place.name, path, 'read.damaged', wrong)
            if not member.path or not matches(member.path, place.source.include):
                continue
            if refused := _refused(place, member):
                yield refused
                continue
            try:
                data = reader.read()
            except tarfile.ReadError:
                yield place.broken(member.path, 'truncated')
                continue
            yield content.record(place, member.path, data, f'{path}#{member.index}')
    except files.Damaged as error:
        yield Broken(place.name, path, 'read.damaged', f'{error}; what follows is lost')


def _licences_in_stream(file: files.File) -> dict[str, str]:
    found = {}
    try:
        stream = _Stream(file.blocks())
        for member, _, reader in _walk(stream, 'r|', stream.filled):
            if reader and _stating((member,)):
                found[member.path] = licences.recognise(decode(reader.read())[0])
    except (tarfile.TarError, files.Damaged):
        pass  # met again, and counted, by whoever reads the members
    return licences.of_directories(found)


class _Stream(io.RawIOBase):
    """Blocks of bytes as a file to read."""

    def __init__(self, blocks: Iterator[bytes]):
        self._blocks, self._held = blocks, memoryview(b'')
        self._size = self._filled = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        if not self._held and not self._next():
            return 0
        count = min(len(buffer), len(self._held))
        buffer[:count] = self._held[:count]
        self._held = self._held[count:]
        return count

    def filled(self, end: int) -> int:
        """Reads to the end, where damage may show; where the last byte is that is not 0, but at least `end`."""
        while self._next():
            pass
        return max(self._filled, end)

    def _next(self) -> bool:
        block = next((block for block in self._blocks if block), b'')
        if used := len(block.rstrip(b'\0')):
            self._filled = self._size + used
        self._size += len(block)
        self._held = memoryview(block)
        return bool(block)


def _filled(stream: BinaryIO, end: int) -> int:
    """Where the last byte from `end` on is that is not 0."""
    last = end
    stream.seek(end)
    while block := stream.read(1 << 20):
        if used := len(block.rstrip(b'\0')):
            last = end + used
        end += len(block)
    return last


def _clean(path: str) -> str:
    return posixpath.normpath(path).lstrip('/')
