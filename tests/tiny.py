"""What tests of the model and of training share: tiny configs, models, meshes, batches."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax import config as config_lib
from llm_jax.config.schema import Config
from llm_jax.dist import mesh as mesh_lib
from llm_jax.dist.fit import check_fit
from llm_jax.nn.transformer import Transformer, build, init_params, parameters_of
from llm_jax.train.optimizer import Span, make_optimizer, make_schedule
from llm_jax.train.setup import jit_train_step
from llm_jax.train.state import State
from llm_jax.train.step import make_train_step

V, L, BOS = 64, 16, 1

GPT2 = {
    'position': 'learned', 'norm': 'layernorm', 'norm_bias': True, 'feed_forward': 'gelu', 'bias': True,
    'attention': 'mha', 'tie_embeddings': True,
}  # fmt: skip
LLAMA = {
    'position': 'rope', 'norm': 'rmsnorm', 'feed_forward': 'swiglu', 'attention': 'gqa', 'n_kv_heads': 2,
    'd_ff': 96, 'tie_embeddings': False,
}  # fmt: skip

# What can be swapped in LLAMA, one entry for each thing that attention, positions, norms,
# feed-forwards and patterns of layers can do. The contracts hold for all of them.
VARIANTS = {
    'window': {'window': 5},
    'soft-cap': {'attention_softcap': 2.0, 'logit_softcap': 3.0, 'attention_scale': 0.5},
    'sinks': {'attention_sinks': True},
    'qk-norm per head': {'qk_norm': 'head', 'norm_offset': True},
    'qk-norm whole': {'qk_norm': 'whole', 'norm_at': 'output'},
    'gate, biases': {'attention_gate': True, 'bias': 'qkv'},
    'sandwich': {'norm_at': 'sandwich', 'embed_scale': 5.6, 'residual_scale': 0.7, 'logit_scale': 0.5},
    'post-norm': {'norm_at': 'post'},
    'parallel, two norms': {'residual': 'parallel_two_norms', 'norm': 'layernorm', 'bias': True},
    'mla': {'attention': 'mla', 'n_kv_heads': 0, 'model__mla__q_rank': 16},
    'mla, direct queries': {
        'attention': 'mla', 'n_kv_heads': 0, 'model__rope__interleaved': True, 'model__rope__scaling': 'yarn',
        'model__rope__factor': 4.0, 'model__rope__mscale': 1.0, 'model__rope__mscale_all_dim': 0.8,
    },
    'alibi': {'position': 'alibi'},
    'alibi, window, soft-cap, sinks': {
        'position': 'alibi', 'window': 4, 'attention_softcap': 3.0, 'attention_sinks': True,
    },
    'partial rope': {'model__rope__fraction': 0.5, 'model__rope__interleaved': True},
    'moe': {'feed_forward': 'moe', 'model__moe__n_experts': 4},
    'moe, groups, shared': {
        'feed_forward': 'moe', 'bias': True, 'model__moe__score': 'sigmoid', 'model__moe__n_groups': 4,
        'model__moe__top_groups': 2, 'model__moe__n_shared': 1, 'model__moe__balance': 'bias',
        'model__moe__group_score': 'top2', 'model__moe__shared_gate': True,
    },
    'local and global': {
        'n_layers': 5, 'pattern': ({'window': 3}, {'rope.theta': 1e6, 'rope.scaling': 'linear', 'rope.factor': 8.0}),
    },
    'first layers dense': {
        'n_layers': 4, 'first_layers': ({'feed_forward': 'swiglu'},), 'feed_forward': 'moe',
        'pattern': ({}, {'position': 'none'}), 'model__moe__score': 'softmax_top',
    },
}  # fmt: skip


def tiny_config(**overrides: Any) -> Config:
    """A validated config of 2 layers, width 32.

    `norm='layernorm'` sets model.norm, `train__z_loss=1.0` train.z_loss.
    """
    config = config_lib.default()
    fields = {
        'vocab_size': V, 'd_model': 32, 'n_layers': 2, 'n_heads': 4, 'data__seq_len': L, 'train__batch_size': 8,
        'mesh__fsdp': 1,
    }  # fmt: skip
    for name, value in (fields | overrides).items():
        *sections, leaf = name.split('__') if '__' in name else ('model', name)
        node = config
        for section in sections:
            node = node[section]
        node[leaf] = value
    return config_lib.validate(config)


def tiny_model(config: Config) -> Transformer:
    return build(config.model, vocab_size=V, seq_len=config.data.seq_len)


def random_params(model: Transformer, seed: int = 0, scale: float = 0.3) -> dict:
    """Parameters where nothing is left at a special value: biases are not 0, scales are not 1."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        centre = 1.0 if path[-1].key == 'scale' else 0.0
        return (centre + scale * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def packed_tokens(rows: int, length: int = L, *, seed: int = 0, padding: bool = True) -> np.ndarray:
    """int32[rows, length + 1]: documents led by BOS, some rows beginning within one, some padded with -1."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, V, (rows, length + 1))
    tokens[rng.random(tokens.shape) < 0.2] = BOS
    if padding:
        for row in range(0, rows, 2):
            tokens[row, length + 1 - rng.integers(1, length // 2) :] = -1
    return tokens.astype(np.int32)


def on_mesh(sizes: tuple[int, int, int] | dict[str, int] | None) -> contextlib.AbstractContextManager:
    """The mesh (data, fsdp, tensor), or {axis: size}, as the current one; None means no mesh at all."""
    if sizes is None:
        return contextlib.nullcontext()
    named = sizes if isinstance(sizes, dict) else dict(zip(('data', 'fsdp', 'tensor'), sizes, strict=True))
    config = tiny_config(**{f'mesh__{axis}': n for axis, n in named.items()}).mesh
    return jax.set_mesh(mesh_lib.make_mesh(config, jax.devices()[: int(np.prod([*named.values()]))]))


def place(tokens: np.ndarray, config: Config) -> jax.Array:
    """A batch as it lies on the current mesh."""
    spec = mesh_lib.spec(config.model.rules, ('batch', None))
    return jnp.asarray(tokens) if spec is None else jax.device_put(tokens, spec)


def place_params(model: Transformer, params: dict) -> dict:
    """Parameters as `init_params` would lay them out on the current mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return jax.tree.map(jnp.asarray, params)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    return jax.tree.map(lambda x, leaf: jax.device_put(x, leaf.sharding.spec), params, shapes)


def tiny_training(config: Config, seed: int = 0) -> tuple:
    """(step, state) on the current mesh: the step jitted, the parameters from `random_params`."""
    model = tiny_model(config)
    params = place_params(model, random_params(model, seed))
    schedule = make_schedule(config.schedule, config.optimizer.learning_rate, Span(10, 2, 0, 0.1))
    optimizer = make_optimizer(config.optimizer, schedule, params, parameters_of(model))
    ema = jax.tree.map(jnp.copy, params) if config.train.ema_decay else None
    state = State(jnp.zeros((), jnp.int32), params, jax.jit(optimizer.init)(params), ema)
    if config.train.reproducible:
        return jit_train_step(model, config, optimizer, schedule, bos_id=BOS), state
    return jax.jit(make_train_step(model, config, optimizer, schedule, bos_id=BOS)), state  # nothing is donated


def one_step(
    config: Config, sizes: dict[str, int] | tuple[int, int, int], rows: np.ndarray | None = None
) -> tuple[dict, dict, dict | None]:
    """(metrics, parameters, their running mean) after one step on a mesh, fetched from it; `rows` are of documents."""
    with on_mesh(sizes):
        check_fit(config, dict(jax.sharding.get_abstract_mesh().shape))
        step, state = tiny_training(config)
        new, metrics = step(state, place(packed_tokens(config.train.batch_size) if rows is None else rows, config))
        # Shape, dtype and sharding: buffers can be donated.
        assert jax.tree.map(jax.typeof, new) == jax.tree.map(jax.typeof, state)
        return jax.device_get((metrics, new.params, new.ema))
