"""Attention by cuDNN's fused kernel, on NVIDIA GPUs."""

import jax

from llm_jax.ops.attend.scores import Scores


def attend_rows(
    scores: Scores,
    q_BLHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    segments_BL: jax.Array | None,
    slots_BL: jax.Array | None,
    slopes_H: jax.Array | None,
    sinks_H: jax.Array | None,
    dropout_key: jax.Array | None,
) -> jax.Array:
    """Attention of local rows and heads, [B, L, H, K]; arguments as in `attend`, with `scores.scale` filled in.

    Causality and the window are built into the kernel. Segments become a mask [B, 1, L, L],
    shared by all heads, which the kernel adds in the dtype of q. `choose_kernel` rules out
    slots, slopes, sinks and dropout, which the kernel does not support.
    """
    same_B1LL = None if segments_BL is None else segments_BL[:, None, :, None] == segments_BL[:, None, None]
    window = {'local_window_size': (scores.window - 1, 0)} if scores.window else {}
    return jax.nn.dot_product_attention(
        q_BLHK, k_BSGK, v_BSGK, mask=same_B1LL, scale=scores.scale, is_causal=True, implementation='cudnn', **window
    )
