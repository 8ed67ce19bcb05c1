"""A peer of bench_train: a decoder in plain Flax Linen, as NanoDO writes it. Takes a step per line of its input."""

import argparse
import functools
import sys
import time

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

parser = argparse.ArgumentParser(description=__doc__)
for name in ('n_layers', 'd_model', 'n_heads', 'd_ff', 'seq_len', 'vocab_size', 'batch_size'):
    parser.add_argument(f'--{name}', type=int, required=True)
parser.add_argument('--dtype', choices=('float32', 'bfloat16'), required=True)
args, _ = parser.parse_known_args()
dtype = jnp.dtype(args.dtype)


class Block(nn.Module):
    """Pre-norm attention and feed-forward, with the layers that Linen has."""

    @nn.compact
    def __call__(self, x):
        """x [B, L, D] -> [B, L, D]."""
        h = nn.LayerNorm(dtype=dtype)(x)
        heads = (args.n_heads, args.d_model // args.n_heads)
        project = lambda name: nn.DenseGeneral(heads, axis=-1, dtype=dtype, name=name)
        q, k, v = project('query')(h), project('key')(h), project('value')(h)
        scores = jnp.einsum('blhk,bmhk->bhlm', q / jnp.sqrt(heads[1]).astype(dtype), k).astype(jnp.float32)
        mask = nn.make_causal_mask(jnp.ones(x.shape[:2]))
        weights = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.float32).min)).astype(dtype)
        h = jnp.einsum('bhlm,bmhk->blhk', weights, v)
        x = x + nn.DenseGeneral(args.d_model, axis=(-2, -1), dtype=dtype, name='out')(h)
        h = nn.LayerNorm(dtype=dtype)(x)
        return x + nn.Dense(args.d_model, dtype=dtype)(jax.nn.gelu(nn.Dense(args.d_ff, dtype=dtype)(h)))


class Decoder(nn.Module):
    """Tokens int[B, L] -> logits float32[B, L, V]; the embedding is also the head."""

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(args.vocab_size, args.d_model, dtype=dtype)
        x = embed(tokens) + nn.Embed(args.seq_len, args.d_model, dtype=dtype)(jnp.arange(args.seq_len))
        for _ in range(args.n_layers):
            x = Block()(x)
        return embed.attend(nn.LayerNorm(dtype=dtype)(x)).astype(jnp.float32)


model = Decoder()
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-4, b1=0.9, b2=0.95, weight_decay=0.1))
rows = np.random.default_rng(0).integers(2, args.vocab_size, (args.batch_size, args.seq_len + 1), np.int32)
tokens = jax.device_put(rows)
params = model.init(jax.random.key(0), tokens[:, :-1])
state = (params, optimizer.init(params))


@functools.partial(jax.jit, donate_argnums=0)
def train_step(state, tokens):
    params, opt_state = state

    def loss(params):
        logits = model.apply(params, tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    value, grads = jax.value_and_grad(loss)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), value


print(f'plain Linen, jax {jax.__version__}', flush=True)
for _ in sys.stdin:
    start = time.perf_counter()
    state, value = train_step(state, tokens)
    value.block_until_ready()
    print(time.perf_counter() - start, flush=True)
