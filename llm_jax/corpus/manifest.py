"""manifest.json: what a corpus was made of, by what, and what became of it; the same wherever it is made."""

from collections.abc import Mapping, Sequence
import dataclasses
import importlib.metadata
import platform
from typing import Any

from llm_jax import config as config_lib
from llm_jax.corpus import steps
from llm_jax.corpus.chain import label
from llm_jax.corpus.digest import digest
from llm_jax.corpus.read.source import Input
from llm_jax.corpus.schema import Corpus

FORMAT = 1
# Packages whose version may show in what they make.
_PACKAGES = (
    'numpy', 'sentencepiece', 'tokenizers', 'trafilatura', 'resiliparse', 'fastwarc', 'lxml', 'ftfy',
)  # fmt: skip
# Where files lie is no part of what they are.
_PLACES = ('out', 'work')


def versions() -> dict[str, str]:
    """Versions of what the content may depend on."""
    found = {'python': platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # optional: a stage that needs it says so itself
            continue
    return found


def config_of(config: Corpus) -> dict[str, Any]:
    """The config without places."""
    return {name: value for name, value in config_lib.to_dict(config).items() if name not in _PLACES}


def inputs_of(inputs: Mapping[str, Sequence[Input]]) -> dict[str, Any]:
    """Of each source: how much it is and a hash of its inputs."""
    return {
        name: {
            'inputs': len(some),
            'bytes': sum(one.bytes for one in some),
            'digest': digest([[one.name, one.fingerprint] for one in some]),
        }
        for name, some in inputs.items()
    }


@dataclasses.dataclass(frozen=True)
class Funnel:
    """Tallies of the steps, by source.

    Attributes:
      tallies: source -> the sum of the tallies of all steps.
    """

    config: Corpus
    tallies: Mapping[str, Mapping[str, Any]]

    def stages(self, source: str) -> list[str]:
        """The names of all stages of a source, in order."""
        parts = (*self.config.stages_of(source), *self.config.dedup, *self.config.finish)
        return [steps.READ, steps.EXTRACT, *map(label, parts)]

    def counts(self, source: str) -> dict[str, Any]:
        """What each stage let pass and dropped."""
        tally = self.tallies[source]
        rows = []
        for stage in self.stages(source):
            documents, n_bytes = tally['passed'].get(stage, (0, 0))
            reasons = sorted(tally['dropped'].get(stage, {}).items())
            dropped = {reason: {'documents': n, 'bytes': size} for reason, (n, size) in reasons}
            rows.append({'stage': stage, 'documents': documents, 'bytes': n_bytes, 'dropped': dropped})
        languages = sorted(tally['languages'].items())
        signals = {name: {'documents': n, 'sum': total} for name, (n, total) in sorted(tally['signals'].items())}
        return {
            'broken': dict(sorted(tally['broken'].items())),
            'skipped': dict(sorted(tally['skipped'].items())),
            'stages': rows,
            'languages': {name: {'documents': n, 'bytes': size} for name, (n, size) in languages},
            'in_clusters': tally['clusters'],
            'signals': signals,
        }
