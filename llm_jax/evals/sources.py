"""Documents of benchmarks from local files: JSONL, CSV, and members of tar archives, gzipped or not."""

import csv
import gzip
import hashlib
import io
import json
import pathlib
import tarfile

from llm_jax.config.schema import ConfigError
from llm_jax.evals.tasks.task import Document, Task


def read_documents(directory: pathlib.Path, task: Task) -> tuple[list[Document], str]:
    """The documents of a task, and the SHA-256 of its file.

    Raises:
      ConfigError: none of the task's files is there, or it cannot be read.
    """
    for name in task.files:
        file, _, member = name.partition(':')
        path = directory / file
        if path.exists():
            data = path.read_bytes()
            try:
                documents = [d for d in _parse(data, file, member) if task.keep(d)]
            except (ValueError, KeyError, OSError, tarfile.TarError) as error:
                raise ConfigError(f'{path}: {error}; it is no data of {task.name}, get another copy') from error
            if not documents:
                raise ConfigError(f'{path} has no item of {task.name}; check the name of the task')
            return documents, hashlib.sha256(data).hexdigest()
    raise ConfigError(f'--data {directory} has no {" or ".join(task.files)}, the data of {task.name}; put it there')


def _parse(data: bytes, file: str, member: str) -> list[Document]:
    if member:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            found = archive.extractfile(member)
            text = found.read().decode() if found else ''
        rows = csv.reader(io.StringIO(text))
        return [{'question': row[0], 'choices': row[1:5], 'gold': 'ABCD'.index(row[5])} for row in rows]
    text = (gzip.decompress(data) if file.endswith('.gz') else data).decode('utf-8-sig')
    if '.csv' in file:
        return list(csv.DictReader(io.StringIO(text)))
    return [json.loads(line) for line in text.splitlines() if line.strip()]
