"""Train an experiment, or go on with it: train experiments/quickstart.py [--config.a.b=value ...]"""

import os
import pathlib
import sys
import time

from llm_jax.config import cli
from llm_jax.train import restart


def main(argv: list[str]) -> None:
    began = time.perf_counter()
    parser = cli.Parser('train', __doc__)
    parser.add_argument('experiment', help='the experiment file, e.g. experiments/quickstart.py')
    parser.add_argument('--workdir', help='the run directory; default runs/<name of the experiment>')
    parser.add_argument('--profile', type=cli.span, metavar='10:15', help='trace these steps, into <workdir>/profile')
    parser.add_argument(
        '--restart', type=cli.at_least(0), default=0, metavar='N', help='start again up to N times after a crash'
    )
    known, fields = parser.parse_with_config(argv)
    config = cli.experiment(known.experiment, fields)
    if known.restart and restart.SUPERVISED not in os.environ:
        sys.exit(restart.supervise([sys.executable, __file__, *argv], known.restart))
    from llm_jax.evals.during import Judge  # imports JAX: errors in the config come first, and at once
    from llm_jax.train.loop import train

    run_dir = known.workdir or pathlib.Path('runs') / config.name
    result = train(config, run_dir, experiment=known.experiment, profile=known.profile, began=began, make_judge=Judge)
    if result.status == 'stopped' and restart.SUPERVISED in os.environ:
        sys.exit(restart.TRY_AGAIN)


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
