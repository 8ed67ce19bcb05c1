"""Whether an experiment fits a TPU slice or GPUs that one does not have, how fast it goes there, what it costs.

./tools/run plan experiments/pretrain/llama3_8b.py --topology v5p:4x4x4 --price 4.2
./tools/run plan experiments/pretrain/llama3_70b.py --topology v5p:8x8x8 --slices 4 --search
./tools/run plan experiments/pretrain/llama3_8b.py --gpu h100 --devices 64 --tokens 15e12
./tools/run plan experiments/pretrain/llama3_8b.py --gpu b200 --devices 64 --analytic
./tools/run plan llama:3.1-8b --topology v6e:2x2 --decode 64 --context 2048 --config.mesh.tensor=4
"""

import os
import pathlib
import shlex
import sys

from llm_jax.config import cli


def main(argv: list[str]) -> None:
    parser = cli.Parser('plan', __doc__)
    parser.add_argument('experiment', help='an experiment file, or a model: llama:3.1-8b, hf:OWNER/NAME, a directory')
    parser.add_argument('--topology', help='TPU slice such as v5p:8x8x8: the step is compiled for it')
    parser.add_argument('--slices', type=cli.at_least(1), default=1, help='slices joined by the data-centre network')
    parser.add_argument('--gpu', help='instead: a GPU such as h100')
    parser.add_argument('--devices', type=cli.at_least(1), default=8, help='how many GPUs')
    parser.add_argument('--analytic', action='store_true', help='of GPUs: by numbers alone, without their compiler')
    parser.add_argument('--tokens', help='budget of the whole run, such as 15e12; default train.duration')
    parser.add_argument('--price', help='of one chip-hour')
    parser.add_argument('--search', action='store_true', help='try meshes, remat policies and micro-batches')
    parser.add_argument('--compile', type=cli.at_least(1), default=3, help='a search compiles until so many fit')
    parser.add_argument(
        '--decode', type=cli.at_least(1), metavar='ROWS', help='instead of training: a token of so many rows'
    )
    parser.add_argument(
        '--context', type=cli.at_least(1), help='tokens in the cache of a row (model.max_seq_len), with --decode'
    )
    parser.add_argument('--out', help='the page that is written; default plans/<experiment>-<machine>.html')
    known, fields = parser.parse_with_config(argv)
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # nothing runs: an accelerator here would only be taken
    from llm_jax.interop import published  # imports JAX
    from llm_jax.train.inherit import inherit

    config = cli.experiment(known.experiment, fields, published.experiment)
    config = inherit(config, pathlib.Path('runs') / config.name)
    from llm_jax.plan import command

    request = command.Request(
        known.topology, known.slices, known.gpu, known.devices, known.tokens, known.price, known.search,
        known.analytic, known.compile, known.decode, known.context,
        known.out, shlex.join(['./tools/run', 'plan', *argv]),
    )  # fmt: skip
    command.plan(config, request)


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
