"""Numbers and classes read at the last real token of a row: classification and reward models."""

import jax
import jax.numpy as jnp

from llm_jax.align.targets import LossSum


def last_indices(mask_BL: jax.Array) -> jax.Array:
    """The index of the last real token of each row, int[B], wherever the padding is; -1 for a row of padding."""
    return jnp.max(jnp.where(jnp.asarray(mask_BL) > 0, jnp.arange(mask_BL.shape[1]), -1), axis=1)


def last_features(x_BLD: jax.Array, mask_BL: jax.Array) -> jax.Array:
    """The features of the last real token of each row, [B, L, D] -> [B, D]; 0 for a row of padding."""
    # A comparison and not a lookup: it stays local where devices share the tokens of a row.
    is_last = jnp.arange(mask_BL.shape[1]) == last_indices(mask_BL)[:, None]
    return jnp.sum(jnp.where(is_last[..., None], x_BLD, 0), axis=1)


def class_nll(logits_BC: jax.Array, labels_B: jax.Array, weights_B: jax.Array | None = None) -> LossSum:
    """Cross-entropy of the right class, per row; of any number of leading dimensions."""
    log_p_BC = jax.nn.log_softmax(logits_BC)
    nll_B = -jnp.sum(jnp.where(jnp.arange(logits_BC.shape[-1]) == labels_B[..., None], log_p_BC, 0), -1)
    weights_B = jnp.ones_like(nll_B) if weights_B is None else weights_B
    return jnp.sum(nll_B * weights_B), jnp.sum(weights_B)


def confusion(logits_BC: jax.Array, labels_B: jax.Array, weights_B: jax.Array | None = None) -> jax.Array:
    """How often a class (rows) was taken for another (columns), [C, C]; it adds up over batches."""
    classes = jnp.arange(logits_BC.shape[-1])
    truth_BC = (labels_B[..., None] == classes).astype(logits_BC.dtype)
    guess_BC = (jnp.argmax(logits_BC, -1)[..., None] == classes).astype(logits_BC.dtype)
    weighted_BC = truth_BC if weights_B is None else truth_BC * weights_B[..., None]
    # No product: rows may be split over devices, over which a sum goes.
    return jnp.sum(weighted_BC[..., :, None] * guess_BC[..., None, :], tuple(range(labels_B.ndim)))


def class_metrics(confusion_CC: jax.Array) -> dict[str, jax.Array]:
    """Accuracy, balanced accuracy (mean recall of the classes that occur) and F1, each class by itself [C].

    Args:
      confusion_CC: summed over all batches.
    """
    right_C, truth_C, guess_C = jnp.diagonal(confusion_CC), jnp.sum(confusion_CC, 1), jnp.sum(confusion_CC, 0)
    recall_C = right_C / jnp.maximum(truth_C, 1)
    return {
        'accuracy': jnp.sum(right_C) / jnp.maximum(jnp.sum(truth_C), 1),
        'balanced_accuracy': jnp.sum(recall_C) / jnp.maximum(jnp.sum(truth_C > 0), 1),
        'f1': 2 * right_C / jnp.maximum(truth_C + guess_C, 1),
    }


def bradley_terry_losses(
    chosen_P: jax.Array, rejected_P: jax.Array, margin_P: jax.Array | float = 0.0, *, centre: float = 0.0
) -> jax.Array:
    """−log σ(r_w − r_l − margin) + centre (r_w + r_l)² of each pair, [P].

    InstructGPT, arXiv:2203.02155, eq. 1; the margin of Llama 2, arXiv:2307.09288, eq. 2; centring, which fixes the
    constant that the pairs leave open, arXiv:2312.09244.
    """
    losses_P = -jax.nn.log_sigmoid(chosen_P - rejected_P - margin_P)
    return losses_P + centre * jnp.square(chosen_P + rejected_P) if centre else losses_P


def bradley_terry(
    chosen_P: jax.Array, rejected_P: jax.Array, margin_P: jax.Array | float = 0.0, *, centre: float = 0.0
) -> LossSum:
    """`bradley_terry_losses` summed, per pair."""
    losses_P = bradley_terry_losses(chosen_P, rejected_P, margin_P, centre=centre)
    return jnp.sum(losses_P), jnp.asarray(losses_P.size, losses_P.dtype)


def pair_accuracy(chosen_P: jax.Array, rejected_P: jax.Array) -> LossSum:
    """How many pairs are in the right order, and how many there are; equal scores are wrong."""
    right_P = (chosen_P > rejected_P).astype(chosen_P.dtype)
    return jnp.sum(right_P), jnp.asarray(right_P.size, right_P.dtype)
