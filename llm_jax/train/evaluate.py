"""An objective's metrics on held-out rows: every row counted once, whatever the batch size or mesh."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from llm_jax.data.prepare import Prepared
from llm_jax.train.setup import Plan


def evaluate(
    plan: Plan,
    eval_step: Callable[[Any, Any], dict[str, jax.Array]],
    params: Any,
    prepared: Prepared,
    split: str,
    *,
    max_batches: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """The objective's metrics of a split; in pre-training loss, perplexity and bits per byte.

    Args:
      plan: of the run.
      eval_step: jitted, from `make_eval_step`.
      params: on the mesh.
      prepared: the data.
      split: 'validation' or 'test'.
      max_batches: 0 means the whole split.
      stop: asked before each batch whether to give up; then the result is None.
    """
    sums = []
    for batch in plan.objective.eval_rows(prepared, split, max_batches, plan.local_rows):
        if stop():
            return None
        sums.append(eval_step(params, plan.place(batch)))
        jax.block_until_ready(sums[-2:-1])  # the device has one batch ahead, and `stop` is not asked of all at once
    # Added up in float64 on the host: a split has more tokens than float32 counts exactly.
    total = {name: np.sum([jax.device_get(s[name]) for s in sums], axis=0, dtype=np.float64) for name in sums[0]}
    return {name: float(value) for name, value in plan.objective.eval_metrics(total).items()}
