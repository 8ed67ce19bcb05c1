"""Small corpora for the tests of the pipeline."""

import hashlib
import json
import pathlib

import numpy as np

from llm_jax.corpus import schema

# Stages of a user's own; `calls` is where each call leaves a line, `hold` makes them wait.
STAGES = """
import dataclasses, os, pathlib, time
from llm_jax.corpus.document import Dropped

HERE = pathlib.Path(__file__).parent


def _called(document):
    with open(HERE / 'calls', 'a') as file:
        file.write(document.id + chr(10))


def no_bananas(document):
    _called(document)
    if (HERE / 'hold').exists() and document.id.endswith('30'):
        (HERE / 'holding').touch()
        time.sleep(60)
    return Dropped(document, 'no_bananas.found', 'banana') if 'banana' in document.text else document


class Shout:
    def __call__(self, document):
        signals = {**document.signals, 'shout.length': len(document.text)}
        return dataclasses.replace(document, text=document.text.upper(), signals=signals)


def nothing(document):
    return None


def everything_goes(document):
    return Dropped(document, 'everything_goes.all')
"""
WORDS = (
    'apple', 'banana', 'cherry', 'river', 'mountain', 'house', 'window', 'letter', 'morning', 'evening', 'walked',
    'talked', 'found', 'under', 'over', 'after', 'while', 'because', 'although', 'bright', 'narrow', 'quiet', 'sudden',
    'garden', 'market', 'winter', 'summer', 'captain', 'teacher',
)  # fmt: skip


def texts(count: int, seed: int, words: int = 60) -> list[str]:
    """Texts of which every fifth is like the one before but for a word, and every seventh the same."""
    rng = np.random.default_rng(seed)
    out: list[str] = []
    for i in range(count):
        new = ' '.join(rng.choice(WORDS, rng.integers(words // 2, words * 2)).tolist())
        if i % 5 == 4:
            new = f'{out[-1]} indeed'
        elif i % 7 == 6:
            new = out[-1]
        out.append(new)
    return out


def write(directory: pathlib.Path, files: dict[str, list[str]]) -> None:
    """Files of JSONL, and the stages in stages.py."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, some in files.items():
        (directory / f'{name}.jsonl').write_text(''.join(json.dumps({'text': text}) + '\n' for text in some))
    (directory / 'stages.py').write_text(STAGES)


def config(directory: pathlib.Path, out: str = 'out', **fields) -> schema.Corpus:
    """A corpus of sources 'a' (a1.jsonl, a2.jsonl ...) and 'b'."""
    made = schema.default()
    made.name = 'small'
    made.out = str(directory / out)
    made.sources = {'a': {'path': f'{directory}/a*.jsonl'}, 'b': {'path': f'{directory}/b*.jsonl'}}
    made.stages = (f'{directory}/stages.py:no_bananas', f'{directory}/stages.py:Shout')
    made.dedup = ('exact', 'near')
    made.tokenizer.vocab_size = 320
    made.packing.seq_len = 32
    made.splits.validation = made.splits.test = 0.2
    made.shard_bytes = 4000
    for name, value in fields.items():
        section, _, field = name.partition('__')
        if field:
            made[section][field] = value
        else:
            made[name] = value
    return schema.validate(made)


def hashes(directory: str | pathlib.Path) -> dict[str, str]:
    """Every file of a corpus but those that say how long it took."""
    root = pathlib.Path(directory)
    files = [file for file in sorted(root.rglob('*')) if file.is_file()]
    return {
        str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if 'work' not in file.relative_to(root).parts and file.name != 'timing.json'
    }
