"""How tokens get to the experts that they chose, and what comes of it back to them.

Everything here runs on one device of a mesh, inside `jax.shard_map`. Nothing knows how
many rows an expert will get when the program is compiled, so rows travel and are
multiplied in *rounds* of a fixed size: a little more than an even share. The first round
is nearly always the only one. Where a router is uneven, further rounds take the rest:
the result is that of an endless buffer, its memory that of one round. (Or the rest is
dropped, as in GShard, arXiv:2006.16668, and Switch Transformer, arXiv:2101.03961.)

Shapes: T tokens of this device, k choices of a token, n devices that share the experts,
E experts in all, e = E / n of this device, C rows of a round.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.nn.grouped import loop, varying

# (parameters, rows [N, D] in order of their expert, rows of each expert int[e], expert of each row int[N]) -> [N, D].
# What it gives for rows past the last expert's does not matter.
Network = Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]
# (which round, what says where rows go, (parameters, tokens [T, D], weights [T, k])) -> int[N], of which token; rows.
Round = Callable[[jax.Array | int, Any, tuple], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Dispatch:
    """Who shares the experts, and how.

    Attributes:
      how: 'all_to_all' sends each row where its expert is; 'gather' shows every device all rows.
      n_experts: E, of all devices.
      axes: mesh axes over which the experts are split.
      n_devices: n, the size of those axes together.
      token_axes: mesh axes over which tokens are split, `axes` among them.
      capacity: rows of a round over an even share, at least 1.
      dropless: whether further rounds take what did not fit into the first.
    """

    how: str
    n_experts: int
    axes: tuple[str, ...] = ()
    n_devices: int = 1
    token_axes: tuple[str, ...] = ()
    capacity: float = 1.0
    dropless: bool = True

    def __call__(
        self, network: Network, params: Any, x_TD: jax.Array, chosen_Tk: jax.Array, weights_Tk: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Σ over each token's choices of weight · network(token).

        Args:
          network: the experts of this device, applied to sorted rows.
          params: of the network.
          x_TD: tokens.
          chosen_Tk: int, the experts of each token, all different.
          weights_Tk: what their results are multiplied by.

        Returns:
          dtype[T, D], and how many choices of this device were dropped, float32.
        """
        dispatch = self._all_to_all if self.how == 'all_to_all' and self.n_devices > 1 else self._gather
        return dispatch(network, params, x_TD, chosen_Tk, weights_Tk)

    def _gather(self, network, params, x_TD, chosen_Tk, weights_Tk):
        """Each device takes what is its experts' from the tokens of all, and they sum what they make of them."""
        T, k = chosen_Tk.shape
        n, e = self.n_devices, self.n_experts // self.n_devices
        mine_Tk = chosen_Tk  # T is that of all n devices from here on
        if n > 1:
            together = lambda x: jax.lax.all_gather(x, self.axes, tiled=True)
            x_TD, weights_Tk = together(x_TD), together(weights_Tk)
            mine_Tk = together(chosen_Tk) - e * jax.lax.axis_index(self.axes)
        expert_N = jnp.where((mine_Tk >= 0) & (mine_Tk < e), mine_Tk, e).reshape(-1)  # e is nobody here
        order_N = jnp.argsort(expert_N, stable=True)
        sizes_e = jnp.bincount(expert_N, length=e)
        ends_e, taken = jnp.cumsum(sizes_e), sizes_e.sum()
        worst = n * T * min(k, e)
        C = self._rows(T * k, worst)

        def one_round(i, routing, inputs):
            (order_N, expert_N, ends_e, taken), (params, x_TD, weights_Tk) = routing, inputs
            slots_C = i * C + jnp.arange(C)
            choice_C = order_N[jnp.minimum(slots_C, order_N.size - 1)]
            sizes_of_round_e = jnp.diff(jnp.clip(ends_e - i * C, 0, C), prepend=0)
            expert_C = jnp.minimum(expert_N[choice_C], e - 1)
            valid_C = (slots_C < taken)[:, None]
            rows_CD = jnp.where(valid_C, x_TD[choice_C // k], 0)
            y_CD = jnp.where(valid_C, network(params, rows_CD, sizes_of_round_e, expert_C), 0)
            return choice_C // k, y_CD * weights_Tk.reshape(-1)[choice_C][:, None]

        # No device waits for another within a round, so each goes by its own count.
        routing, inputs = (order_N, expert_N, ends_e, taken), (params, x_TD, weights_Tk)
        y_TD = self._rounds(one_round, math.ceil(worst / C), -(-taken // C), routing, inputs)
        dropped = jnp.zeros_like(taken) if self.dropless else jnp.maximum(taken - C, 0)
        y_TD = jax.lax.psum_scatter(y_TD, self.axes, tiled=True) if n > 1 else y_TD
        return y_TD, dropped.astype(jnp.float32)

    def _all_to_all(self, network, params, x_TD, chosen_Tk, weights_Tk):
        """Each row goes to the device of its expert and comes back."""
        T, k = chosen_Tk.shape
        n, e = self.n_devices, self.n_experts // self.n_devices
        exchange = lambda x: jax.lax.all_to_all(x, self.axes, 0, 0, tiled=True)  # [to or from, ...]
        chosen_N = chosen_Tk.reshape(-1)  # N = T·k, one for each (token, choice)
        order_N = jnp.argsort(chosen_N, stable=True)  # by device, and for each device by expert
        going_ne = jnp.bincount(chosen_N, length=n * e).reshape(n, e)
        coming_ne = exchange(going_ne)
        going_n = going_ne.sum(1)
        starts_n, ends_ne = jnp.cumsum(going_n) - going_n, jnp.cumsum(coming_ne, 1)
        worst = T * min(k, e)  # a token's choices differ, so no more of them than e go to one device
        C = self._rows(T * k / n, worst)

        def one_round(i, routing, inputs):
            (order_N, starts_n, going_n, ends_ne), (params, x_TD, weights_Tk) = routing, inputs
            slots_C = i * C + jnp.arange(C)
            choice_nC = order_N[jnp.minimum(starts_n[:, None] + slots_C, order_N.size - 1)]
            valid_nC = slots_C < going_n[:, None]
            rows_nCD = exchange(jnp.where(valid_nC[..., None], x_TD[choice_nC // k], 0))
            # What arrived is sorted by expert for each device that it came from; e is nobody's.
            expert_N = (slots_C[:, None] >= ends_ne[:, None]).sum(-1).reshape(-1)
            arrival_N = jnp.argsort(expert_N, stable=True)
            back_N = jnp.argsort(arrival_N)
            rows_ND = rows_nCD.reshape(n * C, -1).at[arrival_N].get(unique_indices=True)
            expert_of_row_N = jnp.minimum(expert_N[arrival_N], e - 1)
            y_ND = network(params, rows_ND, jnp.bincount(expert_N, length=e), expert_of_row_N)
            y_ND = jnp.where((expert_N < e)[:, None], y_ND.at[back_N].get(unique_indices=True), 0)
            # The weight of a row travels with it: else its gradient would want the results sent once more.
            weights_nC = exchange(jnp.where(valid_nC, weights_Tk.reshape(-1)[choice_nC], 0))
            y_nCD = exchange(y_ND.reshape(n, C, -1) * weights_nC[..., None])
            return (choice_nC // k).reshape(-1), y_nCD.reshape(n * C, -1)

        # All devices go through as many rounds as the fullest needs, since they wait for each other there.
        needed = jax.lax.pmax(-(-going_n.max() // C), self.token_axes)
        routing, inputs = (order_N, starts_n, going_n, ends_ne), (params, x_TD, weights_Tk)
        y_TD = self._rounds(one_round, math.ceil(worst / C), needed, routing, inputs)
        dropped = jnp.zeros_like(going_n) if self.dropless else jnp.maximum(going_n - C, 0)
        return y_TD, dropped.sum().astype(jnp.float32)

    def _rows(self, share: float, worst: int) -> int:
        """C: `capacity` times an even share, in multiples of 8, the rows of a TPU's register."""
        return min(worst, 8 * math.ceil(self.capacity * share / 8))

    def _rounds(self, one_round: Round, most: int, needed: jax.Array, routing: Any, inputs: tuple) -> jax.Array:
        """Adds up the rounds: the first, and of the others as many as are needed.

        The first is differentiated as any function. Of the others the backward pass keeps nothing: it goes
        through them again, so that a round which is not needed costs neither memory nor time.
        """
        leaves, tree = jax.tree.flatten((routing, inputs))
        routing, inputs = jax.tree.unflatten(tree, varying(*leaves))

        def add(y_TD, i, routing, inputs):
            token_N, y_ND = one_round(i, routing, inputs)
            return y_TD.at[token_N].add(y_ND)

        def first(routing, inputs):
            x_TD = inputs[1]
            return add(jnp.zeros_like(x_TD), 0, routing, inputs)

        if most == 1 or not self.dropless:
            return first(routing, inputs)

        @jax.custom_vjp
        def rounds(needed, routing, inputs):
            return others(first(routing, inputs), needed, routing, inputs)

        def others(y_TD, needed, routing, inputs):
            return loop(1, needed, 0, lambda i, y_TD: add(y_TD, i, routing, inputs), y_TD)

        def forward(needed, routing, inputs):
            y_TD, back = jax.vjp(lambda inputs: first(routing, inputs), inputs)
            return others(y_TD, needed, routing, inputs), (needed, routing, inputs, back)

        def backward(kept, d_TD):
            needed, routing, inputs, back = kept

            def turn(i, sums):
                again = jax.vjp(lambda inputs: add(jnp.zeros_like(inputs[1]), i, routing, inputs), inputs)[1]
                return jax.tree.map(jnp.add, sums, *again(d_TD))

            return None, None, loop(1, needed, 0, turn, *back(d_TD))

        rounds.defvjp(forward, backward)
        return rounds(needed, routing, inputs)
