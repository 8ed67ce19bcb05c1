"""Trains a quality classifier on good and bad texts: `train_quality labelled.jsonl --out quality.safetensors`.

Texts are JSON lines with a label, 1 for good and 0 for bad; or all of one source are good and
all of another bad ('jsonl:GLOB', 'text:GLOB', 'parquet:GLOB', 'tfds:NAME'):

    ./tools/run train_quality pages.jsonl.gz --out quality.safetensors
    ./tools/run train_quality --good 'jsonl:wiki/*.zst' --bad 'jsonl:crawl/*.zst' --out quality.safetensors
"""

import dataclasses
import itertools
import sys

from llm_jax.config import cli, schema
from llm_jax.config.schema import ConfigError
from llm_jax.corpus import quality
from llm_jax.corpus.read.plain import open_sources


def main(argv: list[str]) -> None:
    parser = cli.Parser('train_quality', __doc__)
    parser.add_argument('labelled', nargs='*', help='files or globs of {"text": ..., "label": ...}')
    parser.add_argument('--good', help='a source of good texts')
    parser.add_argument('--bad', help='a source of bad texts')
    parser.add_argument('--reference', help='a source of texts that keep_share is of; default: the training texts')
    parser.add_argument('--limit', type=cli.at_least(1), default=50_000, help='texts of each source, drawn at random')
    parser.add_argument('--text-field', default='text', help='of a line (text)')
    parser.add_argument('--label-field', default='label', help='of a line (label)')
    parser.add_argument('--out', required=True, help='where the model goes')
    for f in dataclasses.fields(quality.Training):
        parser.add_argument(f'--{f.name.replace("_", "-")}', type=f.type, default=f.default, help=f.metadata['meaning'])
    a = parser.parse(argv)
    training = quality.Training(**{f.name: getattr(a, f.name) for f in dataclasses.fields(quality.Training)})

    def texts(source: str | None) -> list[str]:
        if not source:
            return []
        data = schema.Data(sources={'all': source}, text_field=a.text_field, validation_fraction=0.0, test_fraction=0.0)
        ((opened,), _) = open_sources(data)
        return quality.sample(opened.documents('train'), a.limit, a.seed)

    pairs = [quality.read_labelled(pattern, a.text_field, a.label_field) for pattern in a.labelled]
    pairs += [[(text, 1) for text in texts(a.good)], [(text, 0) for text in texts(a.bad)]]
    read = list(itertools.chain.from_iterable(pairs))
    if not read:
        raise ConfigError('there is nothing to train on: name labelled files, or --good and --bad')
    read_texts, labels = zip(*read, strict=True)
    print(f'{len(labels)} texts, {sum(labels)} of them good')
    model, estimates = quality.train(read_texts, labels, training, texts(a.reference))
    rows = [['unseen texts', 'mean ± standard error'], *([name, str(value)] for name, value in estimates.items())]
    cli.print_table(f'{training.folds}-fold cross-validation', rows)
    model.save(a.out)
    print(f'wrote {a.out}')


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
