"""Speed of the products of experts, against XLA's `ragged_dot` and one product of the same size.

    ./tools/run bench_experts

Forward and backward of one matrix for each of E experts, rows sorted by expert, in float32 on
this machine's default device. Each is run in turns with the others; the best of each counts.
"""

import sys
import time

from llm_jax.config import cli

_ROUNDS = 5
# (rows, experts, in, out)
_SHAPES = ((4096, 8, 512, 1024), (4096, 32, 512, 512), (1024, 64, 256, 256))


def main(argv: list[str]) -> None:
    parser = cli.Parser('bench_experts', __doc__)
    parser.add_argument('--rounds', type=cli.at_least(1), default=_ROUNDS, help='timed runs of each (5)')
    args = parser.parse(argv)
    from rich.console import Console
    from rich.table import Table

    table = Table(
        'rows × experts × in × out', 'grouped', 'ragged_dot', 'one matrix', 'ragged / grouped', 'one / grouped'
    )
    for shape in _SHAPES:
        ours, peer, limit = measure(*shape, args.rounds)
        cells = [f'{1e3 * seconds:.1f} ms' for seconds in (ours, peer, limit)]
        table.add_row(' × '.join(map(str, shape)), *cells, f'{peer / ours:.2f}', f'{limit / ours:.2f}')
    Console().print(table)


def measure(n_rows: int, n_experts: int, d_in: int, d_out: int, rounds: int) -> tuple[float, float, float]:
    """Seconds of our product, of `ragged_dot`, and of all rows times one matrix."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from llm_jax.ops.grouped import grouped_product

    def gradient(product):
        loss = lambda rows, kernels, sizes: jnp.sum(jnp.sin(product(rows, kernels, sizes)))
        return jax.jit(jax.grad(loss, argnums=(0, 1)))

    rng = np.random.default_rng(0)
    rows = jnp.asarray(rng.normal(size=(n_rows, d_in)), jnp.float32)
    kernels = jnp.asarray(rng.normal(size=(n_experts, d_in, d_out)), jnp.float32)
    # As uneven as a router that is balanced by a loss.
    sizes = jnp.asarray(rng.multinomial(n_rows, rng.dirichlet(np.full(n_experts, 20.0))), jnp.int32)
    one = lambda rows, kernels, sizes: rows @ kernels[0]
    runs = [gradient(product) for product in (grouped_product, jax.lax.ragged_dot, one)]
    best = [float('inf')] * len(runs)
    for run in runs:
        jax.block_until_ready(run(rows, kernels, sizes))
    for _ in range(rounds):
        for i, run in enumerate(runs):
            start = time.perf_counter()
            jax.block_until_ready(run(rows, kernels, sizes))
            best[i] = min(best[i], time.perf_counter() - start)
    return tuple(best)


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
