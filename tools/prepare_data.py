"""Build a corpus: prepare_data experiments/data/stdlib.py [--config.a.b=value ...] [--workers N]

Sources are read, cleaned, deduplicated, split, tokenised and packed into corpora/<name>,
which an experiment trains on with --config.data.sources=corpus:corpora/<name>. Killed, the same
command goes on. With --engine beam, arguments that are not known here are options of
Apache Beam, such as --runner=DataflowRunner --project=... --temp_location=gs://...
"""

import argparse
import sys

from llm_jax.config import cli
from llm_jax.config.schema import ConfigError
from llm_jax.corpus import schema
from llm_jax.corpus.engines import Engine
from llm_jax.corpus.engines.local import Local, default_workers


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog='prepare_data', description=__doc__.partition('\n')[0], allow_abbrev=False)
    parser.add_argument('experiment', help='the experiment file, e.g. experiments/data/stdlib.py')
    parser.add_argument('--workers', type=int, default=default_workers(), help='processes of the local engine')
    parser.add_argument('--engine', choices=('local', 'beam'), default='local', help='where the steps run')
    cli.add_debug(parser)
    known, rest = parser.parse_known_args(argv)
    config, options = cli.split_overrides(rest)
    if known.workers < 1:
        raise ConfigError(f'--workers {known.workers}: it must be at least 1')
    if options and known.engine == 'local':
        raise ConfigError(f'unknown argument {options[0]!r}; options of Apache Beam need --engine beam')
    corpus = schema.load(known.experiment, cli.overrides(config))
    from llm_jax.corpus.build import build  # imports JAX, which workers, who import this file, do without
    from llm_jax.corpus.progress import Console

    engine = _engine(known.engine, known.workers, options)
    console = Console()
    try:
        manifest = build(corpus, engine, console)
    finally:
        engine.close()
    splits = manifest['rows']['splits']
    total = lambda what, *names: sum(entry[what] for name in names for entry in splits[name].values())
    console.event(
        f'{corpus.out}: {total("documents", "train"):,} documents to train on ({total("documents", *splits):,} with '
        f'validation and test), {total("tokens", "train"):,} tokens, {total("rows", "train"):,} rows; '
        f'see {corpus.out}/report.html'
    )


def _engine(name: str, workers: int, options: list[str]) -> Engine:
    if name == 'local':
        return Local(workers)
    from llm_jax.corpus.engines.beam import Beam  # an extra: it needs apache-beam

    return Beam(options)


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
