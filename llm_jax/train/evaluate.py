"""Loss on held-out rows: every token counted once, whatever the batch size or mesh."""

from collections.abc import Callable
import math
from typing import Any

import jax
import numpy as np

from llm_jax.data.batches import eval_batches
from llm_jax.data.prepare import Prepared
from llm_jax.train.setup import Plan


def evaluate(
    plan: Plan,
    eval_step: Callable[[Any, jax.Array], dict[str, jax.Array]],
    params: Any,
    prepared: Prepared,
    split: str,
    *,
    max_batches: int = 0,
) -> dict[str, float]:
    """Loss, perplexity and bits per byte of a split.

    Args:
      plan: of the run.
      eval_step: jitted, from `make_eval_step`.
      params: on the mesh.
      prepared: the data.
      split: 'validation' or 'test'.
      max_batches: 0 means the whole split.

    Returns:
      'loss' in nats per token, 'perplexity' = exp(loss), and 'bits_per_byte': all nats,
      those spent on ends of documents too, over the bytes of the text. It does not
      depend on the tokenizer, so that it compares with anything, a compressor included.
    """
    sums = []
    batches = eval_batches(prepared, split, plan.config.train.batch_size, max_batches, rows=plan.local_rows)
    for batch in batches:
        sums.append(eval_step(params, plan.place(batch)))
    # Added up in float64 on the host: a split has more tokens than float32 counts exactly.
    total = {name: float(np.sum([jax.device_get(s[name]) for s in sums], dtype=np.float64)) for name in sums[0]}
    loss = total['nll'] / total['weight']
    return {
        'loss': loss,
        'perplexity': math.exp(min(loss, 700)),
        'bits_per_byte': total['nll'] / math.log(2) / total['bytes'],
    }
