"""Attention by cuDNN's fused kernel, on NVIDIA GPUs."""

import jax

from llm_jax.ops.attend.scores import Operands, Scores


def attend_rows(scores: Scores, operands: Operands) -> jax.Array:
    """Attention of local rows and heads, [B, L, H, K]; `scores.scale` is filled in.

    Causality and the window are built into the kernel. Segments become a mask [B, 1, L, L],
    shared by all heads, which the kernel adds in the dtype of q. `choose_kernel` rules out
    slots, slopes, sinks and dropout, which the kernel does not support.
    """
    q_BLHK, k_BSGK, v_BSGK, segments_BL, *_ = operands
    same_B1LL = None if segments_BL is None else segments_BL[:, None, :, None] == segments_BL[:, None, None]
    window = {'local_window_size': (scores.window - 1, 0)} if scores.window else {}
    return jax.nn.dot_product_attention(
        q_BLHK, k_BSGK, v_BSGK, mask=same_B1LL, scale=scores.scale, is_causal=True, implementation='cudnn', **window
    )
