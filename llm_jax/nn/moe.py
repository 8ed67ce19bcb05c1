"""Mixture of experts: each token goes to a few of many feed-forwards.

Shapes: T = B·L tokens, E experts, k experts of a token, N groups of experts.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from llm_jax.config import parts
from llm_jax.config.facts import Dimension, FeedForwardFacts, require
from llm_jax.config.schema import ConfigError, Model, Moe
from llm_jax.dist import mesh
from llm_jax.init import describe
from llm_jax.nn.einsum import Einsum, kernel, vector
from llm_jax.nn.feed_forward import Plain
from llm_jax.ops.blockwise import Blockwise
from llm_jax.ops.dispatch import Dispatch
from llm_jax.ops.grouped import grouped_product
from llm_jax.ops.product import activation_axes
from llm_jax.ops.quantised import cast, gather

# Collection of what routers report, one dict of scalars or [E] vectors per layer.
STATS = 'router'


class MixtureOfExperts(FeedForwardFacts, nn.Module):
    """Σ over the chosen experts of weight · expert(x), with all choices, unless model.moe.dropless says otherwise.

    Shazeer et al. 2017, arXiv:1701.06538; Mixtral, arXiv:2401.04088; shared experts and
    groups: DeepSeek-V2, arXiv:2405.04434; sigmoid scores and loss-free balance:
    DeepSeek-V3, arXiv:2412.19437, and Wang et al. 2024, arXiv:2408.15664.
    """

    config: Model

    @classmethod
    def is_gated(cls, config: Model) -> bool:
        return parts.expert(config).is_gated(config)

    @staticmethod
    def is_mixture(config: Model) -> bool:
        return True

    @staticmethod
    def hidden_units(config: Model) -> int:
        return expert_size(config) * config.moe.top_k

    @staticmethod
    def dimensions(config: Model) -> list[Dimension]:
        experts = ('model.moe.n_experts', config.moe.n_experts, 'experts')
        return [experts, ('model.moe.d_ff', expert_size(config), 'd_ff')]

    @staticmethod
    def check(config: Model) -> None:
        moe = config.moe
        require(1 <= moe.top_k <= moe.n_experts, 'model.moe.top_k', moe.top_k,
                f'it must be 1 to model.moe.n_experts = {moe.n_experts}')  # fmt: skip
        require(moe.n_groups >= 1 and moe.n_experts % moe.n_groups == 0, 'model.moe.n_groups', moe.n_groups,
                f'it must divide model.moe.n_experts = {moe.n_experts}')  # fmt: skip
        require(1 <= moe.top_groups <= moe.n_groups, 'model.moe.top_groups', moe.top_groups,
                f'it must be 1 to model.moe.n_groups = {moe.n_groups}')  # fmt: skip
        reachable = moe.top_groups * moe.n_experts // moe.n_groups
        require(moe.top_k <= reachable, 'model.moe.top_k', moe.top_k,
                f'model.moe.top_groups = {moe.top_groups} groups hold only {reachable} experts')  # fmt: skip
        require(moe.capacity_factor >= 1, 'model.moe.capacity_factor', moe.capacity_factor,
                'it must be at least 1: a round takes at least an even share')  # fmt: skip

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        """dtype[B, L, D] -> dtype[B, L, D]."""
        config, moe = self.config, self.config.moe
        x_BLD = mesh.shard(x_BLD, config.rules, (*mesh.TOKENS, 'residual'))
        D, E = config.d_model, moe.n_experts
        bias = config.bias is True
        router = Einsum('BLD,DE->BLE', (D, E), ('d_model', 'scores'), _float32(config), use_bias=bias, name='router')
        logits_BLE = router(x_BLD)
        balance_E = None
        if moe.balance == 'bias':
            balance_E = vector(self, 'balance', nn.initializers.zeros, (E,), (None,), trained=False)
        chosen_BLk, weights_BLk = route(moe, logits_BLE, balance_E)
        weights_BLk = weights_BLk.astype(config.dtype)
        y_BLD, dropped = mixture(config, self.dense, self.experts(), x_BLD, chosen_BLk, weights_BLk)
        stats = router_stats(moe, logits_BLE, chosen_BLk)
        stats = stats if moe.dropless else stats | {'dropped': dropped}
        self.sow(STATS, 'stats', stats, reduce_fn=lambda _, new: new, init_fn=dict)
        if moe.n_shared:
            shared_BLD = self.dense(config, moe.n_shared * expert_size(config), name='shared')(x_BLD)
            if moe.shared_gate:
                gate = Einsum('BLD,DE->BLE', (D, 1), ('d_model', 'scores'), config, name='shared_gate')
                shared_BLD *= mesh.shard(jax.nn.sigmoid(gate(x_BLD)), config.rules, mesh.STREAM)
            y_BLD = mesh.shard(y_BLD, config.rules, mesh.STREAM) + shared_BLD
        return mesh.shard(y_BLD, config.rules, mesh.STREAM)

    @property
    def dense(self) -> type[Plain]:
        return parts.expert(self.config)

    def experts(self) -> tuple[list[tuple[jax.Array, ...]], tuple[jax.Array, ...]]:
        """The matrices (and biases) of all experts: those that read the residual stream, and the one that writes it."""
        config, moe = self.config, self.config.moe
        D, E, F = config.d_model, moe.n_experts, expert_size(config)

        def matrix(name: str, shape: tuple, axes: tuple, writes_residual: bool = False) -> tuple[jax.Array, ...]:
            return _Matrices(config, E, shape, axes, moe.top_k / E, writes_residual, name=name)()

        ins = [matrix(name, (D, F), ('d_model', 'd_ff')) for name in self.dense.inputs]
        return ins, matrix('down', (F, D), ('d_ff', 'd_model'), writes_residual=True)


def expert_size(config: Model) -> int:
    """Hidden width of one expert."""
    return config.moe.d_ff or config.ff_size


class _Matrices(nn.Module):
    """One matrix of every expert, [E, in, out], and its bias [E, out] where the config asks for biases."""

    config: Model
    n_experts: int
    shape: tuple[int, int]
    axes: tuple[str, str]
    active_fraction: float
    writes_residual: bool

    @nn.compact
    def __call__(self) -> tuple[jax.Array, ...]:
        shape, axes = (self.n_experts, *self.shape), ('experts', *self.axes)
        known = {'active_fraction': self.active_fraction, 'writes_residual': self.writes_residual}
        weight = describe(self.config, self.shape, self.axes, 1, **known)
        w = kernel(self, 'kernel', shape, axes, weight, wide=False)
        w = w.astype(jnp.float32) if isinstance(w, Blockwise) else w
        if self.config.bias is not True:
            return (w,)
        outputs = (axes[0], activation_axes(axes)[2])
        return w, vector(self, 'bias', nn.initializers.zeros, (shape[0], shape[2]), outputs)


def mixture(
    config: Model, dense: type[Plain], weights: Any, x_BLD: jax.Array, chosen_BLk: jax.Array, weights_BLk: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Each token through the experts that it chose, wherever on the mesh they are.

    Experts stay where `mesh.rules.experts` puts them and tokens travel (`nn.dispatch`).
    The rest of a matrix is treated as in any other layer: gathered over the axes that
    also split tokens (as FSDP does), left in pieces over the others, whose sums are
    added up in the end (tensor parallelism).

    Args:
      config: of the layer.
      dense: what an expert is.
      weights: of `MixtureOfExperts.experts`.
      x_BLD: tokens.
      chosen_BLk: int, the experts of each token.
      weights_BLk: what their results are multiplied by, dtype.

    Returns:
      dtype[B, L, D], and the number of choices that were dropped, float32.
    """
    moe, rules = config.moe, config.rules
    table, sizes = mesh.active_rules(rules), dict(jax.sharding.get_abstract_mesh().shape)
    axes = {name: mesh.mesh_axes(table.get(name)) for name in ('batch', 'length', 'experts', 'd_model', 'd_ff')}
    token_axes = axes['batch'] + axes['length']
    if not set(axes['d_model']) <= set(token_axes):
        raise ConfigError(
            f'mesh.rules.d_model = {axes["d_model"]} splits experts over an axis whose devices have the same tokens; '
            'use axes of mesh.rules.batch for it, and others for mesh.rules.d_ff'
        )
    n_pieces = math.prod(sizes[axis] for axis in axes['d_ff'])
    n_devices = math.prod(sizes[axis] for axis in axes['experts'])
    dispatch = Dispatch(
        moe.dispatch, moe.n_experts, axes['experts'], n_devices, token_axes, moe.capacity_factor, moe.dropless
    )

    def network(params: Any, rows_ND: jax.Array, sizes_e: jax.Array, expert_N: jax.Array) -> jax.Array:
        ins, out = params

        def multiply(
            x_ND: jax.Array, w_eDF: jax.Array, bias_eF: jax.Array | None = None, summed: tuple[str, ...] = ()
        ) -> jax.Array:
            y_NF = grouped_product(x_ND, w_eDF, sizes_e, summed)
            # The bias of `down` is not split over d_ff: each of those n devices adds an n-th of it.
            return y_NF if bias_eF is None else y_NF + bias_eF[expert_N] / (n_pieces if summed else 1)

        return multiply(dense.activation(*(multiply(rows_ND, *w) for w in ins)), *out, summed=axes['d_ff'])

    def local(
        x_BLD: jax.Array, chosen_BLk: jax.Array, weights_BLk: jax.Array, params: Any
    ) -> tuple[jax.Array, jax.Array]:
        (*ins, out), D = params, x_BLD.shape[-1]
        if axes['d_model']:
            whole = lambda w, dim: (gather(w[0], axes['d_model'], dim), *w[1:])
            ins, out = [whole(w, 1) for w in ins], whole(out, 2)
        x_TD, chosen_Tk, weights_Tk = (x.reshape(-1, x.shape[-1]) for x in (x_BLD, chosen_BLk, weights_BLk))
        if axes['d_ff']:
            # Each of those devices has a part of the gradient: they are added up here, by token, and not by row.
            x_TD, weights_Tk = jax.lax.pcast((x_TD, weights_Tk), axes['d_ff'], to='varying')
        y_TD, dropped = dispatch(network, (ins, out), x_TD, chosen_Tk, weights_Tk)
        y_TD = jax.lax.psum(y_TD, axes['d_ff']) if axes['d_ff'] else y_TD
        return y_TD.reshape(*x_BLD.shape[:2], D), jax.lax.psum(dropped, token_axes) if token_axes else dropped

    ins, out = cast(weights, config.dtype, gathered=axes['d_model'])
    x_BLD, params = x_BLD.astype(config.dtype), (*ins, out)
    if not sizes:
        return local(x_BLD, chosen_BLk, weights_BLk, params)
    rows, lies = mesh.spec(rules, mesh.TOKENS), jax.tree.map(lambda w: jax.typeof(w).sharding.spec, params)
    run = jax.shard_map(local, in_specs=(rows, rows, rows, lies), out_specs=(rows, jax.P()), check_vma=True)
    return run(x_BLD, chosen_BLk, weights_BLk, params)


def route(moe: Moe, logits_BLE: jax.Array, balance_E: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """The experts of each token, int[B, L, k], and their weights, float32[B, L, k].

    Args:
      moe: the config.
      logits_BLE: of the router.
      balance_E: added to the scores for the choice alone, not for the weights.
    """
    logits_BLE = logits_BLE.astype(jnp.float32)
    score = {'softmax': jax.nn.softmax, 'sigmoid': jax.nn.sigmoid, 'softmax_top': lambda x: x}[moe.score]
    scores_BLE = score(logits_BLE)
    ranked_BLE = jax.lax.stop_gradient(scores_BLE if balance_E is None else scores_BLE + balance_E)
    if moe.n_groups > 1:
        B, L, E = ranked_BLE.shape
        grouped = ranked_BLE.reshape(B, L, moe.n_groups, -1)
        best = 2 if moe.group_score == 'top2' else 1
        group_BLN = jax.lax.top_k(grouped, best)[0].sum(-1) if best > 1 else grouped.max(-1)
        _, kept = jax.lax.top_k(group_BLN, moe.top_groups)
        open_BLN = (kept[..., None] == jnp.arange(moe.n_groups)).any(-2)
        ranked_BLE = jnp.where(open_BLN[..., None], grouped, -jnp.inf).reshape(B, L, E)
    _, chosen_BLk = jax.lax.top_k(ranked_BLE, moe.top_k)
    picked = chosen_BLk[..., None] == jnp.arange(moe.n_experts)
    weights_BLk = jnp.sum(jnp.where(picked, scores_BLE[:, :, None], 0), -1)
    if moe.score == 'softmax_top':
        weights_BLk = jax.nn.softmax(weights_BLk)
    elif moe.normalize:
        weights_BLk /= weights_BLk.sum(-1, keepdims=True) + 1e-20
    return chosen_BLk, weights_BLk * moe.scale


def router_stats(moe: Moe, logits_BLE: jax.Array, chosen_BLk: jax.Array) -> dict[str, jax.Array]:
    """Statistics of a router on a batch: sums over tokens, so that batches and devices add up.

    Returns:
      'load' float32[E], how many choices fell on each expert; 'prob' float32[E], the sum
      of the probabilities; 'z' the sum of log(Σ exp)² and 'tokens', how many there were.
    """
    logits_BLE = logits_BLE.astype(jnp.float32)
    picked = chosen_BLk[..., None] == jnp.arange(moe.n_experts)
    prob_BLE = jax.nn.sigmoid(logits_BLE) if moe.score == 'sigmoid' else jax.nn.softmax(logits_BLE)
    if moe.score == 'sigmoid':
        prob_BLE /= prob_BLE.sum(-1, keepdims=True)
    return {
        'load': picked.astype(jnp.float32).sum((0, 1, 2)),
        'prob': prob_BLE.sum((0, 1)),
        'z': jnp.square(jax.nn.logsumexp(logits_BLE, -1)).sum(),
        'tokens': jnp.asarray(chosen_BLk.shape[0] * chosen_BLk.shape[1], jnp.float32),
    }


def _float32(config: Model) -> Model:
    """The router runs in float32 (Switch Transformer, arXiv:2101.03961, §2.4)."""
    return dataclasses.replace(config, dtype='float32', matmul='default')


def router_losses(moe: Moe, stats: Any) -> dict[str, jax.Array]:
    """Balance loss of the routers, averaged over layers; to be added to the mean loss.

    Args:
      moe: the config.
      stats: collection STATS of a forward pass; its leaves may be stacked over layers.

    Returns:
      'router_aux': E Σ_e (share of choices)_e (mean probability)_e, 1 when even (Switch
      Transformer, arXiv:2101.03961, eq. 4); 'router_z': mean of log(Σ exp)² (ST-MoE,
      arXiv:2202.08906, eq. 5); 'router_peak': load of the fullest expert over the mean;
      'router_dropped', unless dropless: share of the choices that no expert saw.
    """
    routers = [stat for _, stat in _routers(stats)]
    share = lambda x: x / x.sum(-1, keepdims=True)
    layer_mean = lambda f: jnp.concatenate([jnp.atleast_1d(f(stat)) for stat in routers]).mean()
    dropped = lambda s: s['dropped'] / s['load'].sum(-1)
    return {
        'router_aux': layer_mean(lambda s: moe.n_experts * jnp.sum(share(s['load']) * share(s['prob']), -1)),
        'router_z': layer_mean(lambda s: s['z'] / s['tokens']),
        'router_peak': layer_mean(lambda s: moe.n_experts * share(s['load']).max(-1)),
        **({} if moe.dropless else {'router_dropped': layer_mean(dropped)}),
    }


def rebalanced(moe: Moe, params: Any, stats: Any) -> Any:
    """The parameters with each router's `balance` moved: up where an expert had too little, down where too much
    (Wang et al. 2024, arXiv:2408.15664, algorithm 1)."""
    for path, stat in _routers(stats):
        load = stat['load']
        step = moe.bias_update_rate * jnp.sign(load.mean(-1, keepdims=True) - load)
        params = _at(params, path, lambda router, step=step: router | {'balance': router['balance'] + step})
    return params


def _routers(stats: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], dict]]:
    """(path of the module, what it reported) of every router."""
    if 'stats' in stats:
        return [(path, stats['stats'])]
    return [router for name in stats for router in _routers(stats[name], (*path, name))]


def _at(tree: dict, path: tuple[str, ...], change: Callable[[dict], dict]) -> dict:
    return tree | {path[0]: _at(tree[path[0]], path[1:], change)} if path else change(tree)
