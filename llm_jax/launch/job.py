"""What is launched, and the pieces of shell that every way of launching it has in common."""

from collections.abc import Iterable
import dataclasses
import shlex

from llm_jax.config.schema import ConfigError

# Beside requirements.txt: what reads and writes gs://.
TPU_PACKAGES = 'jax[tpu] gcsfs'


def at_least(flag: str, value: int, least: int) -> None:
    """Raises: ConfigError: a number is too small."""
    if value < least:
        raise ConfigError(f'{flag} = {value} must be at least {least}')


@dataclasses.dataclass(frozen=True)
class Job:
    """One experiment as a job.

    Attributes:
      name: of the run, e.g. 'llama3_8b'.
      experiment: the file, relative to the repository.
      overrides: arguments '--config.a.b=value'.
      project, zone, bucket: of Google Cloud; what is empty comes from the environment
        variable of that name when the script runs.
      spot: whether capacity may be taken away, for less money.
      restarts: how many times the job starts again when it was interrupted or failed.
      slices: TPU slices, over which `mesh.data` is split.

    Raises:
      ConfigError: a bucket that is none, or numbers that make no job.
    """

    name: str
    experiment: str
    overrides: tuple[str, ...] = ()
    project: str = ''
    zone: str = ''
    bucket: str = ''
    spot: bool = False
    restarts: int = 10
    slices: int = 1

    def __post_init__(self) -> None:
        if self.bucket and not self.bucket.startswith('gs://'):
            raise ConfigError(f'--bucket = {self.bucket!r} is no bucket: write it as gs://{self.bucket}')
        at_least('--restarts', self.restarts, 0)
        at_least('--slices', self.slices, 1)

    @property
    def resource(self) -> str:
        """The name as Google Cloud and Kubernetes allow it."""
        return self.name.lower().replace('_', '-').replace('.', '-')

    def variables(self) -> str:
        """Shell: the three things that nobody but the user knows."""
        lines = []
        for variable, value, what in (
            ('PROJECT', self.project, 'the Google Cloud project'),
            ('ZONE', self.zone, 'a zone that has these TPUs, such as us-west4-a'),
            ('BUCKET', self.bucket.rstrip('/'), 'a bucket for code and runs, such as gs://my-bucket'),
        ):
            given = shlex.quote(value) if value else f'"${{{variable}:?set it to {what}}}"'
            lines.append(f'{variable}={given}')
        return '\n'.join([*lines, f'NAME={self.resource}'])

    def upload(self) -> str:
        """Shell: the files that git knows, as they are on disk, into the bucket."""
        return (
            '# The files that git knows, as they are on disk.\n'
            'git ls-files -z | tar --null --files-from=- --create --gzip | '
            'gcloud storage cp - "$BUCKET/code/$NAME.tar.gz" --project="$PROJECT"'
        )

    def train(self, bucket: str = '') -> str:
        """Shell: the training command, as every process of the job runs it.

        Args:
          bucket: where the run and its prepared data go, so that one host prepares them
            for all; empty keeps them in the working directory.
        """
        words = ['./tools/run', 'train', self.experiment]
        own = ['--config.mesh.distributed=True']
        places = (
            [f'--workdir "{bucket}/runs/{self.name}"', f'--config.data.cache_dir="{bucket}/cache"'] if bucket else []
        )
        # What the user says comes last, and so holds.
        return ' '.join([shlex.join(words), *places, shlex.join([*own, *self.overrides])])


def script(title: str, *blocks: str, options: Iterable[str] = ()) -> str:
    """A shell script of blocks with an empty line between them; `options` are comments that a scheduler reads."""
    head = '\n'.join(['#!/usr/bin/env bash', f'# {title}', *options, 'set -euo pipefail'])
    return '\n\n'.join([head, *(block.strip('\n') for block in blocks if block)]) + '\n'


def heredoc(text: str, *variables: str) -> str:
    """`text` as a here-document of the shell gives it back, in which just these variables are filled in."""
    text = text.replace('\\', '\\\\').replace('`', '\\`').replace('$', '\\$')
    for variable in variables:
        text = text.replace(f'\\${variable}', f'${variable}').replace(f'\\${{{variable}}}', f'${{{variable}}}')
    return text
