"""Build a corpus: prepare_data experiments/data/stdlib.py [--config.a.b=value ...] [--workers N]

Sources are read, cleaned, deduplicated, split, tokenised and packed into corpora/<name>,
which an experiment trains on with --config.data.sources=corpus:corpora/<name>. Killed, the same
command goes on. With --engine beam, arguments that are not known here are options of
Apache Beam, such as --runner=DataflowRunner --project=... --temp_location=gs://...
"""

import functools
import itertools
import sys

from llm_jax.config import cli


def main(argv: list[str]) -> None:
    parser = cli.Parser('prepare_data', __doc__, unknown='options of Apache Beam need --engine beam')
    parser.add_argument('experiment', help='the experiment file, e.g. experiments/data/stdlib.py')
    parser.add_argument('--workers', type=cli.at_least(1), help='processes of the local engine (one for each core)')
    parser.add_argument('--engine', choices=('local', 'beam'), default='local', help='where the steps run')
    fields, others = cli.split_overrides(argv)
    is_beam = '--engine=beam' in argv or ('--engine', 'beam') in itertools.pairwise(argv)
    ours, options = parser.split_known(others) if is_beam else (others, [])
    known = parser.parse(ours)
    from llm_jax.corpus import schema

    corpus = schema.load(known.experiment, cli.overrides(fields))
    from llm_jax.corpus.build import build  # imports JAX, which workers, who import this file, do without
    from llm_jax.corpus.progress import Console
    from llm_jax.report.corpus import count_in_splits

    if is_beam:
        from llm_jax.corpus.engines.beam import Beam  # an extra: it needs apache-beam

        engine = Beam(options)
    else:
        from llm_jax.corpus.engines.local import Local, default_workers

        engine = Local(known.workers or default_workers())
    console = Console()
    try:
        manifest = build(corpus, engine, console)
    finally:
        engine.close()
    total = functools.partial(count_in_splits, manifest)
    console.event(
        f'{corpus.out}: {total("documents", "train"):,} documents to train on ({total("documents"):,} with '
        f'validation and test), {total("tokens", "train"):,} tokens, {total("rows", "train"):,} rows; '
        f'see {corpus.out}/report.html'
    )


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
