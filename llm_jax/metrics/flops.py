"""How many parameters a model has and how many FLOPs one token of training takes.

Counted from the config alone, so that a run that does not exist yet can be planned.
A custom part (a callable) is counted as the standard part of its kind: 'gelu'
feed-forward, grouped-query attention, a norm with one scale; the true number of
parameters is that of the params tree.
"""

from llm_jax.schema import GATED, ConfigError, Model


def flops_per_token(model: Model, seq_len: int) -> float:
    """Training FLOPs per token, forward and backward.

    6 N + 12 n_layers H K L, the convention of PaLM (Chowdhery et al. 2022, appendix
    B), which makes MFU comparable between codebases:

    - N is the number of weights that multiply an activation (`matmul_count`): 2 FLOPs
      forward, 4 backward for each. The embedding is a lookup and counts nothing; the
      output head counts V D also when it is tied to the embedding.
    - Attention scores and their use take 2 H K L each forward, twice that backward.
      The full L x L square is counted, although a causal kernel may skip half of it.
      Grouped keys change the weights, not this term.
    - Norms, biases, activations and the softmax are left out, and so is what remat
      computes a second time: MFU is about useful work.

    Args:
      model: with `vocab_size` filled in.
      seq_len: tokens L of one row.
    """
    attention = 12 * model.n_layers * model.n_heads * model.head_size * seq_len
    return 6.0 * matmul_count(model) + attention


def parameter_count(model: Model) -> int:
    """All parameters: weights, embeddings, norms and biases.

    A sequential block has two norms (attention, feed-forward), a parallel block one
    that both branches share (as in GPT-J and PaLM), and the trunk ends in one more.
    """
    width, heads, kv_heads = model.d_model, model.n_heads * model.head_size, model.kv_heads * model.head_size
    norm = width * (2 if model.norm_bias else 1)
    norms = norm * (model.n_layers * (1 if model.residual == 'parallel' else 2) + 1)
    up_matrices = 2 if model.feed_forward in GATED else 1
    block_biases = heads + 2 * kv_heads + width + up_matrices * model.ff_size + width
    biases = model.n_layers * block_biases if model.bias else 0
    head = 0 if model.tie_embeddings else _head_count(model)
    return model.n_layers * _block_matmul_count(model) + head + embedding_count(model) + norms + biases


def embedding_count(model: Model) -> int:
    """Parameters that are only looked up: tokens V D, and learned positions."""
    positions = 0
    if model.position == 'learned':
        if not model.max_seq_len:
            raise ConfigError('model.max_seq_len = 0: learned positions are counted by it; fill it in first')
        positions = model.max_seq_len * model.d_model
    return _head_count(model) + positions


def matmul_count(model: Model) -> int:
    """Weights that multiply an activation: projections, feed-forward and output head."""
    return model.n_layers * _block_matmul_count(model) + _head_count(model)


def _block_matmul_count(model: Model) -> int:
    width, head_width = model.d_model, model.head_size
    query_and_out = 2 * width * model.n_heads * head_width
    key_and_value = 2 * width * model.kv_heads * head_width
    matrices = 3 if model.feed_forward in GATED else 2
    return query_and_out + key_and_value + matrices * width * model.ff_size


def _head_count(model: Model) -> int:
    if not model.vocab_size:
        raise ConfigError("model.vocab_size = 0 stands for the tokenizer's size; fill it in before counting")
    return model.vocab_size * model.d_model
