"""The stages of a config, made: what happens to one document after the other."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import functools
import glob
import hashlib
import importlib
import os
import pathlib
import sys
import time
from typing import Any

from llm_jax import config as config_lib
from llm_jax.config import parts
from llm_jax.config.schema import ConfigError, Part
from llm_jax.corpus.batch import batches, through
from llm_jax.corpus.document import Document, Dropped, Stage
from llm_jax.corpus.exchange import Exchange
from llm_jax.corpus.tally import Tally

# What a stage is given at a time, at most.
_BATCH_DOCUMENTS = 256
_BATCH_CHARS = 4 << 20


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

    A class is made with its options (`config.options`), once per process; any other
    callable is the stage itself, and gets them as keyword arguments.

    Raises:
      ConfigError: there is none of that name.
    """
    if isinstance(part, str) and part in known:
        found = known[part]
        function = parts.resolve_part(field, found.make, {})
        return function(getattr(config, found.section)) if found.section else function()
    resolved = parts.resolve_part(field, part, dict.fromkeys(known, label))
    options = config.options.get(label(part), {})
    if isinstance(resolved, type):
        return resolved(**options)
    return functools.partial(resolved, **options) if options else resolved


def depends_on(part: Part, known: Mapping[str, Known], config: Any) -> list[Any]:
    """What the result of a stage follows from besides its documents: its options and its code."""
    if isinstance(part, str) and part in known:
        section, module = known[part].section, known[part].make.partition(':')[0]
        options = config_lib.to_dict(getattr(config, section)) if section else {}
        model = model_of(part, known, config)
        return [part, options, [model] if model else _stamps(options), code_of(module)]
    resolved = parts.resolve_part('stages', part, {})
    file = sys.modules[resolved.__module__].__file__
    said = [label(part), hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest()]
    options = config.options.get(label(part))
    return [*said, options] if options else said


def model_of(part: Part, known: Mapping[str, Known], config: Any) -> str:
    """A hash of the model that a stage of the library applies; '' for those that apply none.

    It is what the stage's module calls `fingerprint`, a function of its options.

    Raises:
      ConfigError: there is no such model.
    """
    if not (isinstance(part, str) and part in known):
        return ''
    module = importlib.import_module(known[part].make.partition(':')[0])
    fingerprint = getattr(module, 'fingerprint', None)
    return fingerprint(getattr(config, known[part].section)) if fingerprint else ''


def _stamps(value: Any) -> list[str]:
    """Of the files that options name: what changes when they do."""
    if isinstance(value, Mapping):
        return [stamp for one in value.values() for stamp in _stamps(one)]
    if isinstance(value, (tuple, list)):
        return [stamp for one in value for stamp in _stamps(one)]
    if not isinstance(value, str) or not any(character in value for character in './'):
        return []
    found = (
        [value] if os.path.isfile(value) else glob.glob(os.path.join(value, '**') if os.path.isdir(value) else value)
    )
    stats = ((path, os.stat(path)) for path in sorted(found) if os.path.isfile(path))
    return [f'{path} {stat.st_size} {stat.st_mtime_ns}' for path, stat in stats]


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
      seconds: name of a stage -> CPU time spent in it so far.
    """

    def __init__(self, stages: Sequence[tuple[str, Stage]]):
        self._stages = list(stages)
        self.seconds = dict.fromkeys((name for name, _ in stages), 0.0)

    def run(self, documents: Iterable[Document], tally: Tally) -> Iterator[tuple[Document, int]]:
        """Documents that no stage drops, with the bytes of their texts; counts all of them."""
        for some in batches(documents, lambda document: len(document.text), _BATCH_CHARS, _BATCH_DOCUMENTS):
            here = [(document, text_bytes(document, 'the stages before')) for document in some]
            for name, stage in self._stages:
                start = time.process_time()
                results = _through(name, stage, [document for document, _ in here])
                self.seconds[name] += time.process_time() - start
                before, here = here, []
                for (document, n_bytes), out in zip(before, results, strict=True):
                    if isinstance(out, Dropped):
                        tally.drop(name, out, n_bytes)
                        continue
                    if out.text is not document.text:
                        n_bytes = text_bytes(out, name)
                    tally.arrived(name, n_bytes)
                    here.append((out, n_bytes))
            yield from here


def _through(name: str, stage: Stage, documents: list[Document]) -> list[Document | Dropped]:
    try:
        results = through(stage, documents)
    except ConfigError:
        raise
    except Exception as error:
        raise RuntimeError(f'stage {name!r} failed on {_which(stage, documents)}') from error
    for document, out in zip(documents, results, strict=True):
        if not isinstance(out, Document | Dropped):
            raise ConfigError(
                f'stage {name!r} gave {type(out).__name__} for document {document.id}; '
                'it must give a Document or a Dropped'
            )
    return results


def _which(stage: Stage, documents: Sequence[Document]) -> str:
    """Says on which of some documents a stage fails."""
    for document in documents:
        try:
            stage(document)
        except Exception:  # it is raised where this is called
            return f'document {document.id}'
    return f'documents {documents[0].id} to {documents[-1].id}'


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
