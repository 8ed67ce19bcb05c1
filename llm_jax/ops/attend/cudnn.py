"""Attention by cuDNN's fused kernel, on NVIDIA GPUs."""

import jax


def attend_rows(scores, q_BLHK, k_BSGK, v_BSGK, segments_BL, slots_BL, slopes_H, sinks_H, dropout_key):
    """Attention of the rows and heads that are here, [B, L, H, K]; arguments as of `attend`, the scale given.

    Causality and the window are the kernel's own. Segments are not: they come as a mask
    [B, 1, L, L] which the kernel adds, in the dtype of q, one for all heads.
    `choose_kernel` does not let what it lacks come here.
    """
    same_B1LL = None if segments_BL is None else segments_BL[:, None, :, None] == segments_BL[:, None, None]
    window = {'local_window_size': (scores.window - 1, 0)} if scores.window else {}
    return jax.nn.dot_product_attention(
        q_BLHK, k_BSGK, v_BSGK, mask=same_B1LL, scale=scores.scale, is_causal=True, implementation='cudnn', **window
    )
