"""Convert weights: convert --from hf:OWNER/NAME --to runs/NAME [--quantize int8], or --from runs/NAME --to hf:DIR"""

import sys

from llm_jax.config import cli
from llm_jax.config.schema import ConfigError

_FORMS = (
    'hf:DIR (Hugging Face), hf:OWNER/NAME or hf:OWNER/NAME@REVISION (its Hub; only --from), '
    'llama2c:FILE (only --from), or a run directory'
)


def main(argv: list[str]) -> None:
    parser = cli.Parser('convert', __doc__)
    parser.add_argument('--from', dest='source', required=True, help=_FORMS)
    parser.add_argument('--to', dest='target', required=True, help=_FORMS)
    parser.add_argument('--tokenizer', default='', help="a tokenizer's file or directory, if not the source's own")
    parser.add_argument(
        '--max_seq_len', type=cli.at_least(1), help='context to use the model at; default that of config.json'
    )
    parser.add_argument('--step', type=cli.at_least(0), help='of the checkpoint; default the newest')
    parser.add_argument(
        '--dtype', choices=('float32', 'bfloat16'), default='float32', help='of what is written to hf: (float32)'
    )
    parser.add_argument('--family', default='', help='whose form hf: takes; default the first that fits')
    parser.add_argument(
        '--quantize', choices=('int8', 'int4'), default='', help='the weights of the run directory that is written'
    )
    args = parser.parse(argv)
    kinds = tuple(_kind(value) for value in (args.source, args.target))

    from llm_jax.interop import convert  # imports JAX: a mistake in the arguments comes first, and at once

    options = {'tokenizer': args.tokenizer, 'quantise': args.quantize}
    if args.quantize and kinds[1] != 'run':
        raise ConfigError(
            f'--quantize {args.quantize} --to {args.target}: only a run directory holds quantised weights'
        )
    if kinds == ('hf', 'run'):
        tokenizer = convert.from_hf(args.source, args.target, max_seq_len=args.max_seq_len, **options)
    elif kinds == ('llama2c', 'run'):
        tokenizer = convert.from_llama2c(_path(args.source), args.target, **options)
    elif kinds == ('run', 'run') and args.quantize:
        tokenizer = convert.quantise_run(
            args.source, args.target, args.quantize, step=args.step, tokenizer=args.tokenizer
        )
    elif kinds == ('run', 'hf'):
        family = convert.to_hf(args.source, _path(args.target), step=args.step, family=args.family, dtype=args.dtype)
        print(f'wrote {_path(args.target)} as {family}')
        return
    else:
        raise ConfigError(
            f'--from {args.source} --to {args.target}: one of them has to be a run directory, both only with --quantize'
        )
    print(f'wrote {args.target}' + ('' if tokenizer else ', without a tokenizer: give one with --tokenizer'))


def _kind(value: str) -> str:
    kind, colon, _ = value.partition(':')
    return kind if colon and kind in ('hf', 'llama2c') else 'run'


def _path(value: str) -> str:
    return value.partition(':')[2]


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
