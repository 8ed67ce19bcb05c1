"""Bits per byte of texts from outside: evaluate runs/quickstart --text code=text:FILE [--text web=jsonl:FILE ...]"""

import dataclasses
import json
import pathlib
import sys

from llm_jax.config import cli


def main(argv: list[str]) -> None:
    parser = cli.Parser('evaluate', __doc__)
    parser.add_argument('run_dir', help='of a run, e.g. runs/quickstart, or a Hugging Face directory')
    parser.add_argument(
        '--text', action='append', required=True, metavar='NAME=SOURCE', help='as in data.sources: wiki=text:FILE'
    )
    parser.add_argument(
        '--max_bytes', type=cli.at_least(0), default=0, help='of each text, from its beginning; default all'
    )
    parser.add_argument('--seq_len', type=cli.at_least(0), default=0, help='tokens of a row; default as in training')
    parser.add_argument('--step', type=cli.at_least(0), help='of the checkpoint; default the newest')
    parser.add_argument('--json', type=pathlib.Path, help='a file to write the figures to as well')
    args = parser.parse(argv)
    specs = cli.named(args.text, '--text')

    from llm_jax.evals import texts  # imports JAX: a mistake in the arguments comes first, and at once
    from llm_jax.runs import load

    read = texts.read_texts(specs, args.max_bytes)
    loaded = load(args.run_dir, args.step, max_seq_len=args.seq_len or None)
    scores = {name: texts.score(loaded, some, seq_len=args.seq_len) for name, some in read.items()}
    rows = [
        [name, f'{s.bits_per_byte:.4f}', f'{s.perplexity:.2f}', f'{s.bytes:,}', f'{s.tokens:,}', f'{s.documents:,}']
        for name, s in scores.items()
    ]
    header = ['text', 'bits per byte', 'perplexity of a token', 'bytes', 'tokens', 'documents']
    cli.print_table(f'{args.run_dir}, step {loaded.step}', [header, *rows])
    if args.json:
        args.json.write_text(json.dumps({name: dataclasses.asdict(s) for name, s in scores.items()}, indent=1))


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
