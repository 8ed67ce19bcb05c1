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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llm_jax.ops.grouped import loop, varying

# (parameters, rows [N, D] in order of their expert, rows of each expert int[e], expert of each row int[N]) -> [N, D].
# What it gives for rows past the last expert's does not matter.
Network = Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]
# (which round, what says where rows go, (parameters, tokens [T, D], weights [T, k])) -> [T, D], its part of the sum.
Round = Callable[[jax.Array | int, Any, tuple], jax.Array]


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
        mine_Tk = jnp.where((mine_Tk >= 0) & (mine_Tk < e), mine_Tk, e)  # e is nobody here
        order_N, position_Tk = _sorted(mine_Tk)
        sizes_e = jnp.bincount(mine_Tk.reshape(-1), length=e)
        ends_e, taken = jnp.cumsum(sizes_e), sizes_e.sum()
        worst = n * T * min(k, e)
        C = self._rows(T * k, worst)

        def one_round(i, routing, inputs):
            (order_N, position_Tk, mine_Tk, ends_e, taken), (params, x_TD, weights_Tk) = routing, inputs
            slots_C = i * C + jnp.arange(C)
            slot_Tk = position_Tk - i * C
            choices = Moves(
                order_N[jnp.minimum(slots_C, order_N.size - 1)], slots_C < taken,
                slot_Tk.reshape(-1, 1), ((mine_Tk < e) & (slot_Tk >= 0) & (slot_Tk < C)).reshape(-1, 1),
            )  # fmt: skip
            tokens = choices.of_tokens(k)
            ends_of_round_e = jnp.clip(ends_e - i * C, 0, C)
            expert_C = jnp.minimum((jnp.arange(C)[:, None] >= ends_of_round_e).sum(-1), e - 1)
            y_CD = network(params, spread(x_TD, tokens), jnp.diff(ends_of_round_e, prepend=0), expert_C)
            y_CD = jnp.where(tokens.valid_N[:, None], y_CD, 0) * spread(weights_Tk.reshape(-1, 1), choices)
            return collect(y_CD, tokens)

        # No device waits for another within a round, so each goes by its own count.
        routing, inputs = (order_N, position_Tk, mine_Tk, ends_e, taken), (params, x_TD, weights_Tk)
        y_TD = self._rounds(one_round, math.ceil(worst / C), -(-taken // C), routing, inputs)
        dropped = jnp.zeros_like(taken) if self.dropless else jnp.maximum(taken - C, 0)
        y_TD = jax.lax.psum_scatter(y_TD, self.axes, tiled=True) if n > 1 else y_TD
        return y_TD, dropped.astype(jnp.float32)

    def _all_to_all(self, network, params, x_TD, chosen_Tk, weights_Tk):
        """Each row goes to the device of its expert and comes back."""
        T, k = chosen_Tk.shape
        n, e = self.n_devices, self.n_experts // self.n_devices
        exchange = lambda x: jax.lax.all_to_all(x, self.axes, 0, 0, tiled=True)  # [to or from, ...]
        order_N, position_Tk = _sorted(chosen_Tk)  # by device, and for each device by expert
        going_ne = jnp.bincount(chosen_Tk.reshape(-1), length=n * e).reshape(n, e)
        coming_ne = exchange(going_ne)
        going_n = going_ne.sum(1)
        starts_n, ends_ne = jnp.cumsum(going_n) - going_n, jnp.cumsum(coming_ne, 1)
        worst = T * min(k, e)  # a token's choices differ, so no more of them than e go to one device
        C = self._rows(T * k / n, worst)

        def leaving(i, order_N, position_Tk, chosen_Tk, starts_n, going_n) -> Moves:
            """Choices into what is sent: C rows for each device."""
            slots_C = i * C + jnp.arange(C)
            choice_nC = order_N[jnp.minimum(starts_n[:, None] + slots_C, order_N.size - 1)]
            to_Tk = chosen_Tk // e
            slot_Tk = position_Tk - starts_n[to_Tk] - i * C
            return Moves(
                choice_nC.reshape(-1), (slots_C < going_n[:, None]).reshape(-1),
                (to_Tk * C + slot_Tk).reshape(-1, 1), ((slot_Tk >= 0) & (slot_Tk < C)).reshape(-1, 1),
            )  # fmt: skip

        def arriving(i, ends_ne) -> tuple[Moves, jax.Array, jax.Array]:
            """What came, which is sorted by expert for each device that it came from, into the order of experts.

            And how many rows each expert has, and the expert of each row in this order.
            """
            ends_ne = jnp.clip(ends_ne - i * C, 0, C)
            sizes_ne = jnp.diff(ends_ne, axis=1, prepend=0)
            starts_ne = ends_ne - sizes_ne
            run_ends = jnp.cumsum(sizes_ne.T.reshape(-1))  # a run: what is of one expert from one device
            row_N = jnp.arange(n * C)
            run_N = jnp.minimum((row_N[:, None] >= run_ends).sum(-1), n * e - 1)
            from_N, expert_N = run_N % n, run_N // n
            run_starts_ne = (run_ends - sizes_ne.T.reshape(-1)).reshape(e, n).T
            came_N = from_N * C + starts_ne[from_N, expert_N] + row_N - run_starts_ne[from_N, expert_N]
            came_N, valid_N = jnp.minimum(came_N, n * C - 1), row_N < run_ends[-1]
            # The same seen from what came.
            c_C = jnp.arange(C)
            of_nC = (c_C[:, None] >= ends_ne[:, None]).sum(-1)
            some_nC = of_nC < e
            of_nC, device_n1 = jnp.minimum(of_nC, e - 1), jnp.arange(n)[:, None]
            goes_nC = run_starts_ne[device_n1, of_nC] + c_C - starts_ne[device_n1, of_nC]
            return Moves(came_N, valid_N, goes_nC.reshape(-1, 1), some_nC.reshape(-1, 1)), sizes_ne.sum(0), expert_N

        def one_round(i, routing, inputs):
            (*where, ends_ne), (params, x_TD, weights_Tk) = routing, inputs
            choices = leaving(i, *where)
            tokens = choices.of_tokens(k)
            sorting, sizes_e, expert_N = arriving(i, ends_ne)
            came_nCD = exchange(spread(x_TD, tokens).reshape(n, C, -1))
            # The weight of a row travels with it: else its gradient would want the results sent once more.
            weights_nC1 = exchange(spread(weights_Tk.reshape(-1, 1), choices).reshape(n, C, 1))
            y_ND = network(params, spread(came_nCD.reshape(n * C, -1), sorting), sizes_e, expert_N)
            y_nCD = collect(y_ND, sorting).reshape(n, C, -1) * weights_nC1
            return collect(exchange(y_nCD).reshape(n * C, -1), tokens)

        # All devices go through as many rounds as the fullest needs, since they wait for each other there.
        needed = jax.lax.pmax(-(-going_n.max() // C), self.token_axes)
        routing = order_N, position_Tk, chosen_Tk, starts_n, going_n, ends_ne
        y_TD = self._rounds(one_round, math.ceil(worst / C), needed, routing, (params, x_TD, weights_Tk))
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

        if most == 1 or not self.dropless:
            return one_round(0, routing, inputs)

        @jax.custom_vjp
        def rounds(needed, routing, inputs):
            return others(one_round(0, routing, inputs), needed, routing, inputs)

        def others(y_TD, needed, routing, inputs):
            return loop(1, needed, 0, lambda i, y_TD: y_TD + one_round(i, routing, inputs), y_TD)

        def forward(needed, routing, inputs):
            y_TD, back = jax.vjp(lambda inputs: one_round(0, routing, inputs), inputs)
            return others(y_TD, needed, routing, inputs), (needed, routing, inputs, back)

        def backward(kept, d_TD):
            needed, routing, inputs, back = kept

            def turn(i, sums):
                again = jax.vjp(lambda inputs: one_round(i, routing, inputs), inputs)[1]
                return jax.tree.map(jnp.add, sums, *again(d_TD))

            return None, None, loop(1, needed, 0, turn, *back(d_TD))

        rounds.defvjp(forward, backward)
        return rounds(needed, routing, inputs)


class Moves(NamedTuple):
    """Where rows come from and go to, known from both sides, so that moving them never scatters.

    N rows are made of those of T, of which each is wanted k times at most.

    Attributes:
      from_N: int, which of T each of N is.
      valid_N: bool, whether it is any.
      to_Tk: int, where in N each of T goes.
      some_Tk: bool, whether it goes anywhere.
    """

    from_N: jax.Array
    valid_N: jax.Array
    to_Tk: jax.Array
    some_Tk: jax.Array

    def of_tokens(self, k: int) -> 'Moves':
        """The same of tokens, which have k choices each, where this is of choices."""
        return Moves(self.from_N // k, self.valid_N, self.to_Tk.reshape(-1, k), self.some_Tk.reshape(-1, k))


@jax.custom_vjp
def spread(x_TD: jax.Array, moves: Moves) -> jax.Array:
    """dtype[T, D] -> [N, D], 0 where a row is none."""
    return jnp.where(moves.valid_N[:, None], x_TD[moves.from_N], 0)


@jax.custom_vjp
def collect(y_ND: jax.Array, moves: Moves) -> jax.Array:
    """dtype[N, D] -> [T, D]: the transpose of `spread`, the sum of what each was made into."""
    to_Tk = jnp.clip(moves.to_Tk, 0, len(y_ND) - 1)
    return jnp.where(moves.some_Tk[..., None], y_ND[to_Tk], 0).sum(1)


spread.defvjp(lambda x, moves: (spread(x, moves), moves), lambda moves, d_ND: (collect(d_ND, moves), None))
collect.defvjp(lambda y, moves: (collect(y, moves), moves), lambda moves, d_TD: (spread(d_TD, moves), None))


def _sorted(of_Tk: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The order int[T·k] of all choices by a number that each has, and the place int[T, k] of each in it."""
    order_N = jnp.argsort(of_Tk.reshape(-1), stable=True)
    return order_N, jnp.argsort(order_N).reshape(of_Tk.shape)
