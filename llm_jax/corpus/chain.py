"""The stages of a config, made: what happens to one document after the other."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
import hashlib
import pathlib
import sys
import time
from typing import Any

from llm_jax import config as config_lib
from llm_jax import parts
from llm_jax.corpus.document import Document, Dropped, Stage
from llm_jax.corpus.exchange import Exchange
from llm_jax.corpus.tally import Tally
from llm_jax.schema import ConfigError, Part


@dataclasses.dataclass(frozen=True)
class Known:
    """A stage or an exchange that the library offers.

    Attributes:
      make: 'module:function' that makes it, given its options.
      section: the section of the config that holds its options; '' for one that has none.
    """

    make: str
    section: str = ''


def label(part: Part) -> str:
    """The name under which a stage is counted."""
    if not isinstance(part, str):
        return part.__name__
    return part.rpartition(':')[2] if ':' in part else part


def make(field: str, part: Part, known: Mapping[str, Known], config: Any) -> Stage | Exchange:
    """The stage or exchange that a config names.

    A class is made without arguments, once per process; any other callable is the stage itself.

    Raises:
      ConfigError: there is none of that name.
    """
    if isinstance(part, str) and part in known:
        found = known[part]
        function = parts.resolve_part(field, found.make, {})
        return function(getattr(config, found.section)) if found.section else function()
    resolved = parts.resolve_part(field, part, dict.fromkeys(known, label))
    return resolved() if isinstance(resolved, type) else resolved


def depends_on(part: Part, known: Mapping[str, Known], config: Any) -> list[Any]:
    """What the result of a stage follows from besides its documents: its options and its code."""
    if isinstance(part, str) and part in known:
        section, module = known[part].section, known[part].make.partition(':')[0]
        return [part, config_lib.to_dict(getattr(config, section)) if section else None, code_of(module)]
    resolved = parts.resolve_part('stages', part, {})
    file = sys.modules[resolved.__module__].__file__
    return [label(part), hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest()]


@functools.cache
def code_of(module: str) -> str:
    """A hash of the module's source; of a module within a package of llm_jax.corpus, of the whole package."""
    root = pathlib.Path(__file__).parents[1]
    inside = module.split('.')[1:]
    path = root.joinpath(*inside[:2])
    files = sorted(path.rglob('*.py')) if path.is_dir() else [path.with_suffix('.py')]
    contents = (hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    return hashlib.sha256(' '.join(contents).encode()).hexdigest()[:16]


class Chain:
    """Stages in a row.

    Attributes:
      seconds: name of a stage -> time spent in it so far.
    """

    def __init__(self, stages: Sequence[tuple[str, Stage]]):
        self._stages = list(stages)
        self.seconds = dict.fromkeys((name for name, _ in stages), 0.0)

    def run(self, documents: Iterator[Document] | Sequence[Document], tally: Tally) -> Iterator[tuple[Document, int]]:
        """Documents that no stage drops, with the bytes of their texts; counts all of them."""
        for document in documents:
            n_bytes = text_bytes(document, 'the stages before')
            for name, stage in self._stages:
                start = time.perf_counter()
                out = self._step(name, stage, document)
                self.seconds[name] += time.perf_counter() - start
                if isinstance(out, Dropped):
                    tally.drop(name, out, n_bytes)
                    break
                if out.text is not document.text:
                    n_bytes = text_bytes(out, name)
                tally.arrived(name, n_bytes)
                document = out
            else:
                yield document, n_bytes

    def _step(self, name: str, stage: Callable[[Document], Any], document: Document) -> Document | Dropped:
        try:
            out = stage(document)
        except ConfigError:
            raise
        except Exception as error:
            raise RuntimeError(f'stage {name!r} failed on document {document.id}') from error
        if not isinstance(out, Document | Dropped):
            raise ConfigError(
                f'stage {name!r} gave {type(out).__name__} for document {document.id}; '
                'it must give a Document or a Dropped'
            )
        return out


def text_bytes(document: Document, stage: str) -> int:
    """The length of its text as UTF-8.

    Raises:
      ConfigError: the text has half a surrogate pair, which no encoding can write.
    """
    try:
        return len(document.text) if document.text.isascii() else len(document.text.encode())
    except UnicodeEncodeError as error:
        raise ConfigError(
            f'{stage} left {error.object[error.start]!r} in the text of document {document.id}, which is no character'
        ) from error
