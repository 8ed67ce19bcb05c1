"""Which rows the device works on next: plain Python, without JAX.

Programs are sent before the results of those before them are known. So the schedule reckons
with the most tokens that a row can have drawn; what it drew is told by `collect`.
"""

import collections
from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

import numpy as np

from llm_jax.config.schema import ConfigError
from llm_jax.generate.prefix import PAGE, PrefixTree
from llm_jax.generate.requests import NOT_NUMBERS, Finish, Row

# Tokens drawn by one program: while rows wait for a slot, few, so that one that ends is replaced soon.
BLOCK, BUSY_BLOCK = 16, 8
# What a program reports for a row that draws nothing, and for one whose logits are no numbers.
NONE, NOT_FINITE = -1, -2


@dataclasses.dataclass(frozen=True)
class Enter:
    """Rows that enter slots; None frees the slot."""

    rows: dict[int, Row | None]


@dataclasses.dataclass(frozen=True)
class Load:
    """Pages of kept prefixes that are copied to the beginnings of slots: (slot, row, pages), one on each shard."""

    parts: list[tuple[int, Row, list[int]]]


@dataclasses.dataclass(frozen=True)
class Store:
    """Pages that are kept of slots: (slot, [(index of the page in the slot, page)]), one slot on each shard."""

    parts: list[tuple[int, list[tuple[int, int]]]]


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


class Results(NamedTuple):
    """Tokens that a program drew, as `slots.Drawn` has them, on the host.

    Attributes:
      tokens_BN: of each slot; NONE where it drew nothing, NOT_FINITE where its logits are no numbers.
      log_probs_BN: under the model.
      sampled_log_probs_BN: in the distribution that they were drawn from.
      top_ids_BNA: the likeliest tokens; None where no request asks for them.
      top_log_probs_BNA: theirs.
    """

    tokens_BN: np.ndarray
    log_probs_BN: np.ndarray
    sampled_log_probs_BN: np.ndarray
    top_ids_BNA: np.ndarray | None = None
    top_log_probs_BNA: np.ndarray | None = None


Work = Enter | Load | Store | Prefill | Decode


class Schedule:
    """Rows in slots and rows that wait for one, in the order in which they came.

    Slots are split evenly over shards: those of one shard lie on the same devices.

    Attributes:
      slots: the row of each slot, or None.
      waiting: rows without a slot.
    """

    def __init__(self, n_slots: int, context: int, *, n_shards: int = 1, chunk: int = 256, n_pages: int = 0) -> None:
        """Args:
        n_slots: a multiple of n_shards.
        context: tokens that a slot has room for.
        n_shards: parts of the slots.
        chunk: most tokens of a prompt that are prefilled between two blocks of decoding.
        n_pages: pages of kept prefixes on each shard.
        """
        self.context, self.n_shards = context, n_shards
        self._prefixes = [PrefixTree(n_pages) for _ in range(n_shards)] if n_pages else []
        self.chunks = _sizes(32, 4, min(chunk, context))
        self.bounds, self.prefill_bounds = _sizes(128, 2, context), _sizes(512, 4, context)
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

    def plan(self, block: int = BLOCK) -> list[Work]:
        """Returns the next programs, in the order in which they are to be sent; none if nothing is left to do.

        Args:
          block: most tokens that a row draws in one of them, at most BLOCK.
        """
        work: list[Work | None] = [*self._store(self._ended()), *self._enter()]
        prefill = self._prefill()
        work.append(prefill)
        if prefill:
            work += self._store([(row.slot, row.request.prompt) for row, *_ in prefill.parts if row.is_prefilled])
        # Tokens that depend on those of this program wait for them.
        holds = prefill and any(row.request.constraint and row.is_prefilled for row, *_ in prefill.parts)
        work.append(None if holds else self._decode(block))
        return [one for one in work if one is not None]

    def collect(self, work: Prefill | Decode, drawn: Results) -> list[Row]:
        """Gives the tokens that a program drew to its rows; returns the rows that got some or ended."""
        rows = {slot: row for row, slot, _, _ in work.parts} if isinstance(work, Prefill) else work.rows
        changed = []
        for slot, row in rows.items():
            if row.finish is not None or drawn.tokens_BN[slot, 0] == NONE:
                continue
            for i, token in enumerate(drawn.tokens_BN[slot].tolist()):
                if token == NONE or row.finish is not None:
                    break
                _append(row, token, drawn, (slot, i))
            changed.append(row)
        return changed

    def _ended(self) -> list[tuple[int, list[int]]]:
        """Tokens whose keys and values are in the slots of rows that have ended: (slot, tokens)."""
        is_whole = lambda row: row.is_prefilled and row.finish not in (None, Finish.ERROR)
        rows = [row for row in self.slots if row and is_whole(row)]
        # The newest token has not been through the model.
        return [(row.slot, [*row.request.prompt, *row.tokens[:-1]]) for row in rows]

    def _store(self, held: list[tuple[int, Sequence[int]]]) -> list[Store]:
        """Keeps the whole pages of tokens that slots hold."""
        if not self._prefixes:
            return []
        new = [(slot, self._prefixes[self.split(slot)[0]].insert(tokens)) for slot, tokens in held]
        return [Store(parts) for parts in self._one_by_shard([part for part in new if part[1]])]

    def _enter(self) -> list[Work]:
        """Frees the slots of rows that have ended, and gives free slots to rows that wait."""
        entering: dict[int, Row | None] = {}
        for slot, row in enumerate(self.slots):
            if row and (row.finish is not None or self._ends_by_itself(row)):
                self.slots[slot], row.slot = None, None
                if row.finish not in (Finish.STOP_ID, Finish.LENGTH):  # which the device does not know of
                    entering[slot] = None
        loads = []
        while self.waiting and (free := self._free_slots()):
            row = self.waiting.popleft()
            slot, pages = self._place(row, free)
            self.slots[slot], row.slot, entering[slot] = row, slot, row
            row.n_prefilled = row.n_reused = len(pages) * PAGE
            if pages:
                loads.append((slot, row, pages))
        return [*([Enter(entering)] if entering else []), *map(Load, self._one_by_shard(loads))]

    def _ends_by_itself(self, row: Row) -> bool:
        """True if a row whose every token has been sent for may be replaced before its tokens are known.

        It ends on the device before a program sent later begins. Where prefixes are kept, its tokens are waited
        for, unless other rows wait for its slot.
        """
        return row.is_sent and (not self._prefixes or bool(self.waiting))

    def _place(self, row: Row, free: list[int]) -> tuple[int, list[int]]:
        """Chooses the slot of a row on the shard that keeps most of its prompt; returns it, with the pages there.

        At least the last token of a prompt is computed, since the first new token is drawn from its logits.
        """
        if not self._prefixes:
            return free[0], []
        prompt = row.request.prompt[: len(row.request.prompt) - 1]
        firsts = {}
        for slot in free:
            firsts.setdefault(self.split(slot)[0], slot)
        pages = {shard: self._prefixes[shard].match(prompt) for shard in firsts}
        best = max(firsts, key=lambda shard: len(pages[shard]))
        return firsts[best], pages[best]

    def split(self, slot: int) -> tuple[int, int]:
        """Returns the shard of a slot, and the slot's index among those of the shard."""
        return divmod(slot, len(self.slots) // self.n_shards)

    def _one_by_shard(self, parts: list[tuple]) -> list[list[tuple]]:
        """Splits parts (slot, ...) into lists with one slot of each shard at most."""
        lists: list[dict[int, tuple]] = []
        for part in parts:
            shard, _ = self.split(part[0])
            if all(shard in one for one in lists):
                lists.append({})
            next(one for one in lists if shard not in one)[shard] = part
        return [list(one.values()) for one in lists]

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
        n_tokens = _at_least(min(left, self.chunks[-1]), self.chunks)
        parts = []
        for row in rows:
            start, count = row.n_prefilled, min(n_tokens, len(row.request.prompt) - row.n_prefilled)
            parts.append((row, row.slot, start, count))
            row.n_prefilled += count
            row.n_sent += row.is_prefilled
        reach = max(start + count for _, _, start, count in parts)
        return Prefill(parts, n_rows, n_tokens, _at_least(reach, self.prefill_bounds))

    def _decode(self, block: int) -> Decode | None:
        live = {
            slot: row
            for slot, row in enumerate(self.slots)
            if row and row.finish is None and row.is_prefilled and not row.is_sent
        }
        if not live:
            return None
        limit = 1 if self.in_lockstep else min(block, BUSY_BLOCK if self.waiting else BLOCK)
        left = [row.request.max_new_tokens - row.n_sent for row in live.values()]
        limit = min(limit, min(left) if self.waiting else max(left))
        reach = max(
            len(row.request.prompt) + min(row.n_sent + limit, row.request.max_new_tokens) for row in live.values()
        )
        for row in live.values():
            row.n_sent += limit
        return Decode(live, limit, _at_least(reach, self.bounds))


def _sizes(least: int, factor: int, most: int) -> list[int]:
    """Returns the sizes for which programs are compiled, each `factor` times the one before, and the largest."""
    sizes = [least]
    while sizes[-1] * factor <= most:
        sizes.append(sizes[-1] * factor)
    return sizes if sizes[-1] == most else [*(size for size in sizes if size < most), most]


def _at_least(n: int, sizes: Sequence[int]) -> int:
    """Returns the smallest size that holds `n`."""
    return next(size for size in sizes if size >= n)


def _append(row: Row, token: int, drawn: Results, at: tuple[int, int]) -> None:
    """Adds a token, drawn at (slot, index), to a row, or its end."""
    request, log_prob = row.request, float(drawn.log_probs_BN[at])
    if token == NOT_FINITE:
        row.finish, row.error = Finish.ERROR, NOT_NUMBERS
        return
    if token in request.stop_ids:
        row.finish, row.end_log_prob = Finish.STOP_ID, log_prob
        return
    row.tokens.append(token)
    row.log_probs.append(log_prob)
    row.sampled_log_probs.append(float(drawn.sampled_log_probs_BN[at]))
    if n := request.alternatives:
        ids, log_probs = drawn.top_ids_BNA[at][:n].tolist(), drawn.top_log_probs_BNA[at][:n].tolist()
        row.top.append(list(zip(ids, log_probs, strict=True)))
    if request.constraint:
        try:
            request.constraint.advance(token)
        except ConfigError as error:
            row.finish, row.error = Finish.ERROR, str(error)
            return
        if request.constraint.is_complete():
            row.finish = Finish.STOP
    if request.watcher and request.watcher.push(token):
        row.finish = Finish.STOP
    if row.finish is None and len(row.tokens) == request.max_new_tokens:
        row.finish = Finish.LENGTH
