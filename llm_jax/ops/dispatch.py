"""Expert dispatch: rows travel to the devices of their experts, and results return.

Everything here runs within `jax.shard_map`, on the local arrays of one device. The number of
rows that an expert gets is not known when the program is compiled, so rows are exchanged and
multiplied in *chunks* of a fixed size: a little more than an even share. The first chunk is
nearly always the only one. Where a router is uneven, further chunks take the rest: the result
is that of an unbounded buffer, the memory that of one chunk. (Or the rest is dropped, as in
GShard, arXiv:2006.16668, and Switch Transformer, arXiv:2101.03961.)

Shapes: T tokens of this device, k choices of a token, n devices that share the experts,
E experts in all, e = E / n local experts, C rows of a chunk (for each device in 'all_to_all').
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llm_jax.ops.grouped import loop, unify_varying

# (parameters, rows [N, D] in order of their expert, rows of each expert int[e], expert of each row int[N]) -> [N, D].
# Its results for rows past the last expert's are ignored.
Network = Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]
# (index of the chunk, routing tables, (parameters, tokens [T, D], weights [T, k])) -> [T, D], its part of the sum.
ChunkFn = Callable[[jax.Array | int, Any, tuple], jax.Array]


@dataclasses.dataclass(frozen=True)
class Dispatch:
    """Weighted sum of expert outputs over devices that share the experts.

    Attributes:
      how: 'all_to_all' sends each row to the device of its expert; 'gather' gathers all rows
        on every device.
      n_experts: E, of all devices.
      axes: mesh axes over which the experts are split.
      n_devices: n, the size of those axes together.
      token_axes: mesh axes over which tokens are split; includes `axes`.
      capacity_factor: rows of a chunk relative to an even share, at least 1.
      dropless: whether further chunks process the rows that exceed the first.
    """

    how: str
    n_experts: int
    axes: tuple[str, ...] = ()
    n_devices: int = 1
    token_axes: tuple[str, ...] = ()
    capacity_factor: float = 1.0
    dropless: bool = True

    def __call__(
        self, network: Network, params: Any, x_TD: jax.Array, chosen_Tk: jax.Array, weights_Tk: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Σ over each token's choices of weight · network(token).

        Args:
          network: the local experts, applied to sorted rows.
          params: parameters of the network.
          x_TD: tokens.
          chosen_Tk: int, the experts of each token, all different.
          weights_Tk: factor of each expert's output.

        Returns:
          dtype[T, D], and the number of dropped choices of this device, float32.
        """
        dispatch = self._all_to_all if self.how == 'all_to_all' and self.n_devices > 1 else self._gather
        return dispatch(network, params, x_TD, chosen_Tk, weights_Tk)

    def _gather(
        self, network: Network, params: Any, x_TD: jax.Array, chosen_Tk: jax.Array, weights_Tk: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """All-gathers the tokens, applies the local experts to those that chose them, and reduce-scatters the sums."""
        T, k = chosen_Tk.shape
        n, e = self.n_devices, self.n_experts // self.n_devices
        local_Tk = chosen_Tk  # from here on, T counts the tokens of all n devices
        if n > 1:
            all_gather = lambda x: jax.lax.all_gather(x, self.axes, tiled=True)
            x_TD, weights_Tk = all_gather(x_TD), all_gather(weights_Tk)
            local_Tk = all_gather(chosen_Tk) - e * jax.lax.axis_index(self.axes)
        local_Tk = jnp.where((local_Tk >= 0) & (local_Tk < e), local_Tk, e)  # e marks experts of other devices
        order_N, position_Tk = _sort_choices(local_Tk)
        sizes_e = jnp.bincount(local_Tk.reshape(-1), length=e)
        ends_e, n_local = jnp.cumsum(sizes_e), sizes_e.sum()
        worst = n * T * min(k, e)
        C = self._chunk_rows(T * k, worst)

        def process_chunk(i: jax.Array | int, routing: Any, inputs: tuple) -> jax.Array:
            (order_N, position_Tk, local_Tk, ends_e, n_local), (params, x_TD, weights_Tk) = routing, inputs
            slots_C = i * C + jnp.arange(C)
            slot_Tk = position_Tk - i * C
            choices = Moves(
                source_N=order_N[jnp.minimum(slots_C, order_N.size - 1)],
                valid_N=slots_C < n_local,
                target_Tk=slot_Tk.reshape(-1, 1),
                moved_Tk=((local_Tk < e) & (slot_Tk >= 0) & (slot_Tk < C)).reshape(-1, 1),
            )
            tokens = choices.to_token_moves(k)
            chunk_ends_e = jnp.clip(ends_e - i * C, 0, C)
            expert_C = jnp.minimum((jnp.arange(C)[:, None] >= chunk_ends_e).sum(-1), e - 1)
            y_CD = network(params, spread(x_TD, tokens), jnp.diff(chunk_ends_e, prepend=0), expert_C)
            y_CD = jnp.where(tokens.valid_N[:, None], y_CD, 0) * spread(weights_Tk.reshape(-1, 1), choices)
            return collect(y_CD, tokens)

        # A chunk has no collectives here, so each device can run its own number of chunks.
        routing, inputs = (order_N, position_Tk, local_Tk, ends_e, n_local), (params, x_TD, weights_Tk)
        y_TD = self._sum_chunks(process_chunk, math.ceil(worst / C), -(-n_local // C), routing, inputs)
        dropped = jnp.zeros_like(n_local) if self.dropless else jnp.maximum(n_local - C, 0)
        y_TD = jax.lax.psum_scatter(y_TD, self.axes, tiled=True) if n > 1 else y_TD
        return y_TD, dropped.astype(jnp.float32)

    def _all_to_all(
        self, network: Network, params: Any, x_TD: jax.Array, chosen_Tk: jax.Array, weights_Tk: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Sends each row to the device of its expert, and the result back."""
        T, k = chosen_Tk.shape
        n, e = self.n_devices, self.n_experts // self.n_devices
        exchange = lambda x: jax.lax.all_to_all(x, self.axes, 0, 0, tiled=True)  # [device, ...]
        order_N, position_Tk = _sort_choices(chosen_Tk)  # by device, and for each device by expert
        sent_ne = jnp.bincount(chosen_Tk.reshape(-1), length=n * e).reshape(n, e)
        received_ne = exchange(sent_ne)
        sent_n = sent_ne.sum(1)
        starts_n, ends_ne = jnp.cumsum(sent_n) - sent_n, jnp.cumsum(received_ne, 1)
        worst = T * min(k, e)  # a token's choices differ, so at most e of them are on one device
        C = self._chunk_rows(T * k / n, worst)

        def process_chunk(i: jax.Array | int, routing: Any, inputs: tuple) -> jax.Array:
            (*choice_tables, ends_ne), (params, x_TD, weights_Tk) = routing, inputs
            choices = _send_moves(i, C, e, *choice_tables)
            tokens = choices.to_token_moves(k)
            sorting, sizes_e, expert_N = _sort_moves(i, C, ends_ne)
            received_nCD = exchange(spread(x_TD, tokens).reshape(n, C, -1))
            # Weights travel with their rows: applied at the sender, their gradient would need the results once more.
            weights_nC1 = exchange(spread(weights_Tk.reshape(-1, 1), choices).reshape(n, C, 1))
            y_ND = network(params, spread(received_nCD.reshape(n * C, -1), sorting), sizes_e, expert_N)
            y_nCD = collect(y_ND, sorting).reshape(n, C, -1) * weights_nC1
            return collect(exchange(y_nCD).reshape(n * C, -1), tokens)

        # A chunk has collectives, so all devices run as many chunks as the fullest needs.
        needed = jax.lax.pmax(-(-sent_n.max() // C), self.token_axes)
        routing = order_N, position_Tk, chosen_Tk, starts_n, sent_n, ends_ne
        y_TD = self._sum_chunks(process_chunk, math.ceil(worst / C), needed, routing, (params, x_TD, weights_Tk))
        dropped = jnp.zeros_like(sent_n) if self.dropless else jnp.maximum(sent_n - C, 0)
        return y_TD, dropped.sum().astype(jnp.float32)

    def _chunk_rows(self, share: float, worst: int) -> int:
        """C: `capacity_factor` times an even share, in multiples of 8, the rows of a TPU's register."""
        return min(worst, 8 * math.ceil(self.capacity_factor * share / 8))

    def _sum_chunks(
        self, process_chunk: ChunkFn, most: int, needed: jax.Array, routing: Any, inputs: tuple
    ) -> jax.Array:
        """Sums the results of the first chunk and of as many others as are needed.

        The first chunk is differentiated as usual. Of the others the backward pass saves
        nothing and recomputes them, so that a chunk that is not needed costs neither memory
        nor time.

        Args:
          process_chunk: computes one chunk.
          most: chunks in the worst case.
          needed: int, chunks that have rows.
          routing: tables without a gradient.
          inputs: (parameters, tokens, weights).
        """
        leaves, tree = jax.tree.flatten((routing, inputs))
        routing, inputs = jax.tree.unflatten(tree, unify_varying(*leaves))

        if most == 1 or not self.dropless:
            return process_chunk(0, routing, inputs)

        @jax.custom_vjp
        def sum_chunks(needed: jax.Array, routing: Any, inputs: tuple) -> jax.Array:
            return add_others(process_chunk(0, routing, inputs), needed, routing, inputs)

        def add_others(y_TD: jax.Array, needed: jax.Array, routing: Any, inputs: tuple) -> jax.Array:
            return loop(1, needed, 0, lambda i, y_TD: y_TD + process_chunk(i, routing, inputs), y_TD)

        def forward(needed: jax.Array, routing: Any, inputs: tuple) -> tuple[jax.Array, tuple]:
            y_TD, pull_back = jax.vjp(lambda inputs: process_chunk(0, routing, inputs), inputs)
            return add_others(y_TD, needed, routing, inputs), (needed, routing, inputs, pull_back)

        # With y = Σ_i f_i(inputs): d_inputs = f_0ᵀ(d_y) + Σ_{i > 0} f_iᵀ(d_y), where each f_i is recomputed.
        def backward(residuals: tuple, d_TD: jax.Array) -> tuple[None, None, tuple]:
            needed, routing, inputs, pull_back = residuals

            def add_gradients(i: jax.Array, sums: tuple) -> tuple:
                pull_back_i = jax.vjp(lambda inputs: process_chunk(i, routing, inputs), inputs)[1]
                return jax.tree.map(jnp.add, sums, *pull_back_i(d_TD))

            return None, None, loop(1, needed, 0, add_gradients, *pull_back(d_TD))

        sum_chunks.defvjp(forward, backward)
        return sum_chunks(needed, routing, inputs)


class Moves(NamedTuple):
    """A partial map of T source rows to N target rows, indexed from both sides, so that moving them never scatters.

    Each target row has at most one source; a source row has at most k targets.

    Attributes:
      source_N: int, index of each target's source.
      valid_N: bool, False for targets without a source.
      target_Tk: int, indices of each source's targets.
      moved_Tk: bool, False for targets that a source does not have.
    """

    source_N: jax.Array
    valid_N: jax.Array
    target_Tk: jax.Array
    moved_Tk: jax.Array

    def to_token_moves(self, k: int) -> 'Moves':
        """Turns moves of choices into moves of tokens, which have k choices each."""
        return Moves(self.source_N // k, self.valid_N, self.target_Tk.reshape(-1, k), self.moved_Tk.reshape(-1, k))


def _send_moves(
    i: jax.Array | int,
    C: int,
    e: int,
    order_N: jax.Array,
    position_Tk: jax.Array,
    chosen_Tk: jax.Array,
    starts_n: jax.Array,
    sent_n: jax.Array,
) -> Moves:
    """Moves of choices into chunk i of the send buffer, C rows for each device.

    Args:
      i: index of the chunk.
      C: rows of a chunk for each device.
      e: experts of a device.
      order_N: choices in order of their expert.
      position_Tk: index of each choice in that order.
      chosen_Tk: expert of each choice.
      starts_n: index in that order of the first choice for each device.
      sent_n: choices for each device.
    """
    slots_C = i * C + jnp.arange(C)
    choice_nC = order_N[jnp.minimum(starts_n[:, None] + slots_C, order_N.size - 1)]
    device_Tk = chosen_Tk // e
    slot_Tk = position_Tk - starts_n[device_Tk] - i * C
    return Moves(
        source_N=choice_nC.reshape(-1),
        valid_N=(slots_C < sent_n[:, None]).reshape(-1),
        target_Tk=(device_Tk * C + slot_Tk).reshape(-1, 1),
        moved_Tk=((slot_Tk >= 0) & (slot_Tk < C)).reshape(-1, 1),
    )


def _sort_moves(i: jax.Array | int, C: int, ends_ne: jax.Array) -> tuple[Moves, jax.Array, jax.Array]:
    """Moves of the received rows, sorted by expert for each sender, into the order of experts.

    Args:
      i: index of the chunk.
      C: rows of a chunk from each device.
      ends_ne: end of each expert's rows among all those of a sender.

    Returns:
      (moves, rows of each expert int[e], expert of each sorted row int[N]).
    """
    n, e = ends_ne.shape
    ends_ne = jnp.clip(ends_ne - i * C, 0, C)
    sizes_ne = jnp.diff(ends_ne, axis=1, prepend=0)
    starts_ne = ends_ne - sizes_ne
    run_ends = jnp.cumsum(sizes_ne.T.reshape(-1))  # a run: the rows of one expert from one sender
    row_N = jnp.arange(n * C)
    run_N = jnp.minimum((row_N[:, None] >= run_ends).sum(-1), n * e - 1)
    sender_N, expert_N = run_N % n, run_N // n
    run_starts_ne = (run_ends - sizes_ne.T.reshape(-1)).reshape(e, n).T
    source_N = sender_N * C + starts_ne[sender_N, expert_N] + row_N - run_starts_ne[sender_N, expert_N]
    source_N, valid_N = jnp.minimum(source_N, n * C - 1), row_N < run_ends[-1]
    # The same map, indexed by received row.
    row_C = jnp.arange(C)
    expert_nC = (row_C[:, None] >= ends_ne[:, None]).sum(-1)
    moved_nC = expert_nC < e
    expert_nC, sender_n1 = jnp.minimum(expert_nC, e - 1), jnp.arange(n)[:, None]
    target_nC = run_starts_ne[sender_n1, expert_nC] + row_C - starts_ne[sender_n1, expert_nC]
    moves = Moves(source_N, valid_N, target_nC.reshape(-1, 1), moved_nC.reshape(-1, 1))
    return moves, sizes_ne.sum(0), expert_N


@jax.custom_vjp
def spread(x_TD: jax.Array, moves: Moves) -> jax.Array:
    """Copies rows to their targets, dtype[T, D] -> [N, D]; targets without a source are 0."""
    return jnp.where(moves.valid_N[:, None], x_TD[moves.source_N], 0)


@jax.custom_vjp
def collect(y_ND: jax.Array, moves: Moves) -> jax.Array:
    """Sums the targets of each source row, dtype[N, D] -> [T, D]: the transpose of `spread`."""
    target_Tk = jnp.clip(moves.target_Tk, 0, len(y_ND) - 1)
    return jnp.where(moves.moved_Tk[..., None], y_ND[target_Tk], 0).sum(1)


# Each is the transpose of the other, and so its backward pass.
spread.defvjp(lambda x, moves: (spread(x, moves), moves), lambda moves, d_ND: (collect(d_ND, moves), None))
collect.defvjp(lambda y, moves: (collect(y, moves), moves), lambda moves, d_TD: (spread(d_TD, moves), None))


def _sort_choices(keys_Tk: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(order int[T·k] that sorts the choices by their keys, position int[T, k] of each choice in it)."""
    order_N = jnp.argsort(keys_Tk.reshape(-1), stable=True)
    return order_N, jnp.argsort(order_N).reshape(keys_Tk.shape)
