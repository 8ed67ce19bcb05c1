"""Print an experiment or a published model as a tree with shapes, counts, costs and sharding.

./tools/run show experiments/pretrain/gpt2_124m.py --devices 8
./tools/run show llama:3.1-8b --devices 8 --config.mesh.tensor=2
./tools/run show hf:OWNER/NAME

With --tokens ROWS it prints training rows instead, each token in the colour of its weight in the loss.
"""

import pathlib
import sys

from llm_jax.config import cli


def main(argv: list[str]) -> None:
    parser = cli.Parser('show', __doc__)
    parser.add_argument('experiment', help='an experiment file, or a model: llama:3.1-8b, hf:OWNER/NAME, a directory')
    parser.add_argument(
        '--devices', type=cli.at_least(1), help='that the mesh is laid over; none is needed (the fewest that it allows)'
    )
    parser.add_argument(
        '--tokens',
        type=cli.at_least(1),
        metavar='ROWS',
        help='show training rows, tokens in the colour of their weight',
    )
    known, fields = parser.parse_with_config(argv)
    import rich.console

    from llm_jax.data.prepare import model_vocab_size, prepare  # imports JAX: a mistake in the arguments comes first
    from llm_jax.dist.mesh import device_count
    from llm_jax.interop import published
    from llm_jax.report import show, tokens
    from llm_jax.report.model import summarise
    from llm_jax.train.inherit import inherit
    from llm_jax.train.objectives import fill_scores

    config = cli.experiment(known.experiment, fields, published.experiment)
    config = inherit(config, pathlib.Path('runs') / config.name)
    console = rich.console.Console()
    if not console.is_terminal:
        console.width = 160  # what goes into a file is not cut
    if known.tokens:
        console.print(tokens.LEGEND)
        for text in tokens.preview(prepare(config.data, config.seed, template=config.chat.template), known.tokens):
            console.print(text)
        return
    console.print(show.config_table(config))
    devices = device_count(config.mesh, known.devices)
    console.print(show.model_tree(summarise(fill_scores(config), devices, model_vocab_size(config))))


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
