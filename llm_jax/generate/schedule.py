"""Which rows the device works on next: plain Python, without JAX.

Programs are sent before the results of those before them are known. So the schedule reckons
with the most tokens that a row can have drawn; what it drew is told by `collect`.
"""

import collections
from collections.abc import Sequence
import dataclasses

import numpy as np

from llm_jax.generate.requests import Finish, Row

# Tokens drawn by one program: while rows wait for a slot, few, so that one that ends is replaced soon.
BLOCK, BUSY_BLOCK = 16, 4
# What a program reports for a row that draws nothing, and for one whose logits are no numbers.
NONE, NOT_FINITE = -1, -2


@dataclasses.dataclass(frozen=True)
class Enter:
    """Rows that enter slots; None frees the slot."""

    rows: dict[int, Row | None]


@dataclasses.dataclass(frozen=True)
class Prefill:
    """Part of some prompts.

    Attributes:
      parts: (row, its slot, first token, number of tokens).
      n_rows: prompts of the program on each shard: 1, or all its slots.
      n_tokens: tokens of the program.
      bound: of the caches that are read.
    """

    parts: list[tuple[Row, int, int, int]]
    n_rows: int
    n_tokens: int
    bound: int


@dataclasses.dataclass(frozen=True)
class Decode:
    """Up to `limit` tokens for the live rows, by slot."""

    rows: dict[int, Row]
    limit: int
    bound: int


Work = Enter | Prefill | Decode


class Schedule:
    """Rows in slots and rows that wait for one, in the order in which they came.

    Slots are split evenly over shards: those of one shard lie on the same devices.

    Attributes:
      slots: the row of each slot, or None.
      waiting: rows without a slot.
    """

    def __init__(self, n_slots: int, context: int, *, n_shards: int = 1, chunk: int = 256) -> None:
        """Args:
        n_slots: a multiple of n_shards.
        context: tokens that a slot has room for.
        n_shards: parts of the slots.
        chunk: most tokens of a prompt that are prefilled between two blocks of decoding.
        """
        self.context, self.n_shards = context, n_shards
        self.chunks = chunk_sizes(min(chunk, context))
        self.slots: list[Row | None] = [None] * n_slots
        self.waiting: collections.deque[Row] = collections.deque()

    def add(self, row: Row) -> None:
        self.waiting.append(row)

    def cancel(self, row: Row, finish: Finish = Finish.CANCELLED) -> None:
        """Ends a row; tokens of it that are still to come are dropped."""
        if row.finish is None:
            row.finish = finish
            if row.slot is None and row in self.waiting:
                self.waiting.remove(row)

    @property
    def is_idle(self) -> bool:
        return not self.waiting and not any(self.slots)

    @property
    def in_lockstep(self) -> bool:
        """True if the next program depends on the tokens of the last."""
        return any(row and row.request.constraint for row in self.slots)

    def plan(self) -> list[Work]:
        """Returns the next programs, in the order in which they are to be sent; none if nothing is left to do."""
        enter, prefill = self._enter(), self._prefill()
        # Tokens that depend on those of this program wait for them.
        holds = prefill and any(row.request.constraint and row.is_prefilled for row, *_ in prefill.parts)
        work = [enter, prefill, None if holds else self._decode()]
        return [one for one in work if one is not None]

    def collect(
        self, work: Prefill | Decode, tokens_BN: np.ndarray, log_probs_BN: np.ndarray,
        top_ids_BNA: np.ndarray | None = None, top_log_probs_BNA: np.ndarray | None = None,
    ) -> list[Row]:  # fmt: skip
        """Gives the tokens that a program drew to its rows; returns the rows that got some or ended."""
        rows = {slot: row for row, slot, _, _ in work.parts} if isinstance(work, Prefill) else work.rows
        changed = []
        for slot, row in rows.items():
            if row.finish is not None or tokens_BN[slot, 0] == NONE:
                continue
            for i, token in enumerate(tokens_BN[slot].tolist()):
                if token == NONE or row.finish is not None:
                    break
                top = []
                if row.request.alternatives:
                    n = row.request.alternatives
                    top = list(zip(top_ids_BNA[slot, i, :n].tolist(), top_log_probs_BNA[slot, i, :n].tolist()))  # noqa: B905
                _append(row, token, float(log_probs_BN[slot, i]), top)
            changed.append(row)
        return changed

    def _enter(self) -> Enter | None:
        """Frees the slots of rows that have ended, and gives free slots to rows that wait."""
        entering: dict[int, Row | None] = {}
        for slot, row in enumerate(self.slots):
            # A row whose every token has been sent for ends on the device before a program sent later begins.
            if row and (row.finish is not None or row.is_sent):
                self.slots[slot], row.slot = None, None
                if row.finish in (Finish.CANCELLED, Finish.STOP):  # which the device does not know of
                    entering[slot] = None
        for slot in self._free_slots():
            if not self.waiting:
                break
            row = self.waiting.popleft()
            self.slots[slot], row.slot, entering[slot] = row, slot, row
        return Enter(entering) if entering else None

    def _free_slots(self) -> list[int]:
        """Free slots, those of the emptiest shard first, so that rows are spread over the devices."""
        n = len(self.slots) // self.n_shards
        shards = [self.slots[i * n : (i + 1) * n] for i in range(self.n_shards)]
        free = []
        for shard, slots in enumerate(shards):
            used = sum(row is not None for row in slots)
            indices = [i for i, row in enumerate(slots) if row is None]
            free += [(used + rank, shard * n + i) for rank, i in enumerate(indices)]
        return [slot for _, slot in sorted(free)]

    def _prefill(self) -> Prefill | None:
        """The next part of prompts: of one in each shard, or of all slots where that takes fewer programs."""
        rows = [row for row in self.slots if row and row.finish is None and not row.is_prefilled]
        if not rows:
            return None
        n = len(self.slots) // self.n_shards
        by_shard = collections.defaultdict(list)
        for row in rows:
            by_shard[row.slot // n].append(row)
        n_rows = n if 2 * max(map(len, by_shard.values())) > n else 1
        rows = [row for shard in by_shard.values() for row in shard[:n_rows]]
        left = max(len(row.request.prompt) - row.n_prefilled for row in rows)
        n_tokens = next((size for size in self.chunks if size >= left), self.chunks[-1])
        parts = []
        for row in rows:
            start, count = row.n_prefilled, min(n_tokens, len(row.request.prompt) - row.n_prefilled)
            parts.append((row, row.slot, start, count))
            row.n_prefilled += count
            row.n_sent += row.is_prefilled
        return Prefill(parts, n_rows, n_tokens, self._bound(max(start + count for _, _, start, count in parts)))

    def _decode(self) -> Decode | None:
        live = {
            slot: row
            for slot, row in enumerate(self.slots)
            if row and row.finish is None and row.is_prefilled and not row.is_sent
        }
        if not live:
            return None
        limit = 1 if self.in_lockstep else BUSY_BLOCK if self.waiting else BLOCK
        left = [row.request.max_new_tokens - row.n_sent for row in live.values()]
        limit = min(limit, min(left) if self.waiting else max(left))
        reach = max(
            len(row.request.prompt) + min(row.n_sent + limit, row.request.max_new_tokens) for row in live.values()
        )
        for row in live.values():
            row.n_sent += limit
        return Decode(live, limit, self._bound(reach))

    def _bound(self, n_tokens: int) -> int:
        """Rounds up to a power of two from 128 on, or the context, so that few programs are compiled."""
        return min(max(128, 1 << (n_tokens - 1).bit_length()), self.context)


def chunk_sizes(most: int) -> list[int]:
    """Lengths of the programs that prefill: 32, 128, 512, ... and the longest."""
    sizes = [32]
    while sizes[-1] * 4 <= most:
        sizes.append(sizes[-1] * 4)
    return sizes if sizes[-1] >= most else [*sizes, most]


def _append(row: Row, token: int, log_prob: float, top: Sequence[tuple[int, float]]) -> None:
    """Adds a token to a row, or its end."""
    if token == NOT_FINITE:
        row.finish = Finish.ERROR
        row.error = (
            'the logits are not finite, so no token can be drawn: the weights hold NaN or infinities, or they '
            'overflow model.dtype; take another checkpoint, or model.dtype = float32'
        )
    elif token in row.request.stop_ids:
        row.finish, row.end_log_prob = Finish.STOP_ID, log_prob
    else:
        row.tokens.append(token)
        row.log_probs.append(log_prob)
        if row.request.alternatives:
            row.top.append(list(top))
        if row.request.constraint:
            row.request.constraint.advance(token)
            if row.request.constraint.is_complete():
                row.finish = Finish.STOP
        if row.finish is None and len(row.tokens) == row.request.max_new_tokens:
            row.finish = Finish.LENGTH
