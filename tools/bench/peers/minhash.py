"""The peers of bench_data_dedup: MinHash signatures by other libraries. Takes a round per line of its standard input.

Word 5-grams, 112 hashes: of datatrove its signature stage (14 buckets of 8, 64 bits), of
datasketch and rensa signatures of the shingles of whitespace words. For each line, which
names a library, it writes the CPU seconds that its signatures of all texts took.
"""

import itertools
import json
import sys
import tempfile
import time

import datasketch
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
from datatrove.utils.hashing import HashConfig
import rensa

with open(sys.argv[1]) as lines:
    texts = [json.loads(line)['text'] for line in lines]
directory = tempfile.TemporaryDirectory()
config = MinhashConfig(hash_config=HashConfig(precision=64), num_buckets=14, hashes_per_bucket=8, n_grams=5)
stage = MinhashDedupSignature(directory.name, config=config)


def shingles(text: str) -> list[str]:
    words = text.lower().split()
    return [' '.join(words[i : i + 5]) for i in range(max(1, len(words) - 4))]


def datatrove_round() -> None:
    stage.run((Document(text=text, id=str(i)) for i, text in enumerate(texts)), 0, 1)


def datasketch_round() -> None:
    hashed = ([shingle.encode() for shingle in shingles(text)] for text in texts)
    for _ in datasketch.MinHash.generator(hashed, num_perm=112):
        pass


def rensa_round() -> None:
    for text in texts:
        sketch = rensa.RMinHash(112, 1)
        sketch.update(shingles(text))
        sketch.digest()


rounds = {'datatrove': datatrove_round, 'datasketch': datasketch_round, 'rensa': rensa_round}
# Word lists and models are loaded before the first measurement.
whole, texts = texts, texts[:3]
for warm_up in rounds.values():
    warm_up()
texts = whole
print(json.dumps(list(rounds)), flush=True)
for name in itertools.takewhile(bool, (line.strip() for line in sys.stdin)):
    start = time.process_time()
    rounds[name]()
    print(time.process_time() - start, flush=True)
directory.cleanup()
