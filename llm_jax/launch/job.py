"""What is launched: an experiment as a job."""

import dataclasses
import hashlib
import re
import shlex

from llm_jax.config.schema import ConfigError

# Beside requirements.txt: what reads and writes gs://.
TPU_PACKAGES = 'jax[tpu] gcsfs'
# The longest name that a node pool and a workload of XPK may have; pods' names add to it, up to 63.
LONGEST_NAME = 40


def at_least(flag: str, value: int, least: int) -> None:
    """Raises: ConfigError: a number is too small."""
    if value < least:
        raise ConfigError(f'{flag} = {value} must be at least {least}')


def resource_name(text: str, longest: int = LONGEST_NAME) -> str:
    """`text` as Google Cloud and Kubernetes allow names; where it is too long, its end becomes a digest of it."""
    name = re.sub(r'[^a-z0-9]+', '-', text.lower()).strip('-')
    name = name if name[:1].isalpha() else f'run-{name}'.strip('-')
    if len(name) > longest:
        digest = hashlib.sha256(text.encode()).hexdigest()[:6]
        name = f'{name[: longest - 7].rstrip("-")}-{digest}'
    return name


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
        if wrong := set(self.name) & set('"\'$`\\\n'):
            raise ConfigError(
                f'name = {self.name!r} names a directory on all hosts: leave out {" ".join(sorted(wrong))}'
            )
        at_least('--restarts', self.restarts, 0)
        at_least('--slices', self.slices, 1)

    @property
    def resource(self) -> str:
        """The name as Google Cloud and Kubernetes allow it."""
        return resource_name(self.name)

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

    def enter_repository(self) -> str:
        """Shell: goes to the root of the repository, from anywhere inside it."""
        return 'cd "$(git rev-parse --show-toplevel)"'

    def upload(self) -> str:
        """Shell: the files that git knows, as they are on disk, into the bucket."""
        return f"""\
# The files that git knows, as they are on disk.
{self.enter_repository()}
EXPERIMENT={shlex.quote(self.experiment)}
git ls-files --error-unmatch "$EXPERIMENT" >/dev/null || {{
  echo "git does not know $EXPERIMENT, so the hosts would not get it: git add it, then run this again" >&2
  exit 2
}}
git ls-files -z | tar --null --files-from=- --create --gzip |
  gcloud storage cp - "$BUCKET/code/$NAME.tar.gz" --project="$PROJECT" """.rstrip()

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

    def finished(self, python: str) -> str:
        """Shell: a command that succeeds where `run.json` of the run in $BUCKET says that it is finished.

        Args:
          python: shell word of an interpreter with fsspec and gcsfs.
        """
        code = (
            'import fsspec, json, os, sys; '
            f'run = json.load(fsspec.open(os.environ["BUCKET"] + "/runs/{self.name}/run.json").open()); '
            'sys.exit(run["status"] != "finished")'
        )
        return f'{python} -c {shlex.quote(code)}'
