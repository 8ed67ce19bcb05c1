"""Tokens in, tokens out: one engine for samples, evaluation, rollouts, chat and servers.

`Engine` prepares the weights once and keeps rows in slots: a request enters when a slot is
free, and leaves when it ends. `generate` and `stream` make an engine for one call.
"""

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from llm_jax.config.schema import ConfigError
from llm_jax.dist import mesh
from llm_jax.generate import blocks, decode, pages, schedule, slots
from llm_jax.generate.prefix import PAGE
from llm_jax.generate.requests import Constraint, Finish, Request, Row, Watcher, check_request
from llm_jax.generate.settings import NO_ID, Sampler, pack_settings
from llm_jax.generate.speculate import Speculation, check_draft
from llm_jax.nn.transformer import Transformer
from llm_jax.ops.quantised import KINDS

# Most stop ids of one request; the number is part of the compiled programs.
MAX_STOP_IDS = 16
# Most tokens of a prompt that are prefilled between two blocks, where many requests share the engine and where not.
CHUNK, WHOLE = 128, 512
# Most rows that one call of `stream` decodes together; further ones enter as others end.
SLOTS = 64


class Engine:
    """Decodes requests over slots, on the mesh that is current when it is made and used.

    A row's tokens are a function of its request alone: not of its neighbours, its slot, the
    lengths of chunks, nor the mesh, up to rounding. On several hosts every one must make the
    same calls in the same order. No request compiles a program once those of its length exist.

    Attributes:
      model: as it decodes, see `decode.decoding_model`.
      context: tokens that a row has room for.
    """

    def __init__(
        self,
        model: Transformer,
        params: Any,
        *,
        n_slots: int = 8,
        context: int | None = None,
        vocab_size: int | None = None,
        chunk: int = CHUNK,
        prefix_tokens: int = 0,
        speculation: Speculation | None = None,
        draft_params: Any = None,
        quantise: str = '',
        cache: str = '',
    ) -> None:
        """Args:
          model: the Transformer.
          params: its parameters, on the current mesh.
          n_slots: rows that are decoded together; rounded up to a multiple of the mesh's shards of a batch.
          context: tokens that a row has room for; None: the model's max_seq_len.
          vocab_size: only ids below it are drawn; None: the whole vocabulary of the model.
          chunk: most tokens of a prompt that are prefilled between two blocks of decoding.
          prefix_tokens: tokens whose keys and values are kept after their rows have ended, for prompts that
            begin with them; rounded up to whole pages on each shard.
          speculation: guesses several tokens at once, which the model then checks together; it changes the speed,
            not the tokens.
          draft_params: parameters of `speculation.draft`.
          quantise: 'int8' or 'int4' quantises the weights, once, also those of a draft; '' takes them as they are.
          cache: 'int8' keeps keys and values in int8; '' in the dtype of the computation.

        Raises:
          ConfigError: an argument out of its range or unknown, or an attention part that keeps no cache.
        """
        self.model = decode.decoding_model(model)
        config = self.model.config
        self.context = config.max_seq_len if context is None else context
        if not 0 < self.context <= config.max_seq_len:
            raise ConfigError(f'context = {context} must be between 1 and model.max_seq_len = {config.max_seq_len}')
        self.vocab_size = config.vocab_size if vocab_size is None else vocab_size
        if not 0 < self.vocab_size <= config.vocab_size:
            raise ConfigError(f"vocab_size = {vocab_size} must be between 1 and the model's {config.vocab_size}")
        if n_slots < 1:
            raise ConfigError(f'n_slots = {n_slots} must be at least 1')
        for name, value, known in (('quantise', quantise, KINDS), ('cache', cache, ('int8',))):
            if value not in ('', *known):
                raise ConfigError(
                    f"{name} = {value!r} is not known; use {' or '.join(map(repr, known))}, or '' for none"
                )
        n_shards = mesh.batch_shard_count(config.rules)
        self.n_slots = -(-n_slots // n_shards) * n_shards
        n_pages = -(-prefix_tokens // (PAGE * n_shards)) if self.context >= PAGE else 0
        self._schedule = schedule.Schedule(self.n_slots, self.context, n_shards=n_shards, chunk=chunk, n_pages=n_pages)
        self._weights, self._draft_weights = decode.prepare(self.model, params, quantise), None
        self._speculation = speculation
        if draft := speculation and speculation.draft:
            check_draft(self.model, draft, self.context)
            draft = decode.decoding_model(draft)
            self._speculation = dataclasses.replace(speculation, draft=draft)
            self._draft_weights = decode.prepare(draft, draft_params, quantise)
        self._draft = draft
        self._slots = slots.make_slots(self.model, draft, self.n_slots, self.context, self._pack({}), cache)
        self._pool = pages.make_pool(self.model, draft, n_pages * n_shards, cache) if n_pages else ()
        if jax.sharding.get_abstract_mesh().empty:
            # Weights of a checkpoint are committed to their device, and so is what programs make of them: arrays that
            # are not would have each program compiled once more, after the first request.
            (device,) = jax.tree.leaves(self._weights)[0].devices()
            self._slots, self._pool = jax.device_put((self._slots, self._pool), device)
        self._sent: collections.deque[tuple[schedule.Prefill | schedule.Decode, slots.Drawn]] = collections.deque()
        self._all_allowed = np.full((self.n_slots, -(-config.vocab_size // 32)), 0xFFFFFFFF, np.uint32)

    def submit(self, request: Request) -> Row:
        """Queues a request; `step` works on it.

        Raises:
          ConfigError: a field out of its range; see `check_request`.
        """
        return self._queue(request, self.context)

    def _queue(self, request: Request, context: int) -> Row:
        limits = {'max_stop_ids': MAX_STOP_IDS, 'max_alternatives': slots.ALTERNATIVES}
        row = Row(check_request(request, context=context, vocab_size=self.model.config.vocab_size, **limits))
        self._schedule.add(row)
        return row

    def cancel(self, row: Row, **options: Any) -> None:
        """Ends a row at once; its slot is free for the next program."""
        self._schedule.cancel(row, **options)

    @property
    def is_idle(self) -> bool:
        """True if every request has ended."""
        return self._schedule.is_idle and not self._sent

    def step(self, block: int = schedule.BLOCK) -> list[Row]:
        """Sends the next programs and waits for those before; returns the rows that got tokens or ended.

        Args:
          block: most tokens that a row draws until the next call: few where each should be seen as it comes.
        """
        work = self._schedule.plan(block)
        for one in work:
            self._send(one)
        # The device computes the newest program while the host reads the others.
        keep = 1 if work and not self._schedule.in_lockstep else 0
        changed = {}
        while len(self._sent) > keep:
            sent, drawn = self._sent.popleft()
            rows = [row for row, *_ in sent.parts] if isinstance(sent, schedule.Prefill) else sent.rows.values()
            read = drawn if any(row.request.alternatives for row in rows) else drawn[:3]
            results = schedule.Results(*map(np.asarray, read))
            changed |= {id(row): row for row in self._schedule.collect(sent, results)}
        return list(changed.values())

    def run(self, requests: Iterable[Request]) -> list[Row]:
        """Decodes all requests to their ends; returns their rows, in order."""
        rows = [self.submit(request) for request in requests]
        while not self.is_idle:
            self.step()
        return rows

    def warm_up(self) -> None:
        """Compiles every program and runs it once, so that no request has to wait for one."""
        plan, none = self._schedule, schedule.Enter({})
        works: list[schedule.Work] = [none]
        if self._pool:
            works += [schedule.Load([]), schedule.Store([])]
        for n_rows in {1, self.n_slots // plan.n_shards}:
            works += [schedule.Prefill([], n_rows, n, bound) for n in plan.chunks for bound in plan.prefill_bounds]
        works += [schedule.Decode({}, 0, bound) for bound in plan.bounds]
        for work in works:
            self._send(work)
        self._sent.clear()
        jax.block_until_ready((self._slots, self._pool))

    def _send(self, work: schedule.Work) -> None:
        """Sends a program to the device without waiting for it."""
        if isinstance(work, schedule.Enter):
            enters_B = np.zeros(self.n_slots, bool)
            enters_B[list(work.rows)] = True
            self._slots = slots.enter_slots(self.model, self._slots, enters_B, self._pack(work.rows))
            return
        if isinstance(work, schedule.Load):
            self._slots = pages.load_pages(self.model, self._slots, self._pool, *self._pages_to_load(work))
            return
        if isinstance(work, schedule.Store):
            self._pool = pages.store_pages(self.model, self._pool, self._slots, *self._pages_to_store(work))
            return
        shared = (self.vocab_size, work.bound, self._weights, self._draft_weights, self._slots)
        if isinstance(work, schedule.Prefill):
            allowed = self._allowed({slot: row for row, slot, *_ in work.parts if row.is_prefilled})
            self._slots, drawn = slots.prefill_chunk(self.model, self._draft, *shared, self._chunk(work), allowed)
        else:
            self._slots, drawn = blocks.decode_block(
                self.model, self._speculation, *shared, np.int32(work.limit), self._allowed(work.rows)
            )
        self._sent.append((work, drawn))

    def _pack(self, rows: dict[int, Row | None]) -> slots.Requests:
        """Makes the arrays of the requests that enter; other slots have those of none."""
        requests = [row.request if (row := rows.get(slot)) else None for slot in range(self.n_slots)]
        stop_ids = np.full((self.n_slots, MAX_STOP_IDS), slots.NONE, np.int32)
        seeds = np.zeros((self.n_slots, 2), np.uint32)
        for slot, request in enumerate(requests):
            if request:
                stop_ids[slot, : len(request.stop_ids)] = request.stop_ids
                seeds[slot] = request.seed >> 32, request.seed & 0xFFFFFFFF
        of = lambda name, default, dtype: np.array([getattr(r, name) if r else default for r in requests], dtype)
        return slots.Requests(
            pack_settings([request.sampler if request else Sampler(0) for request in requests]),
            seeds, of('choice', 0, np.int32), stop_ids, of('max_new_tokens', 0, np.int32), of('alternatives', 0, bool),
        )  # fmt: skip

    def _pages_to_load(self, work: schedule.Load) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Makes the arrays of `pages.load_pages`."""
        slots_P, pages_PM = self._no_pages()
        tokens_PS = np.full((len(slots_P), pages_PM.shape[1] * PAGE), NO_ID, np.int32)
        for slot, row, loaded in work.parts:
            shard, slots_P[shard] = self._schedule.split(slot)
            pages_PM[shard, : len(loaded)] = loaded
            tokens_PS[shard, : row.n_reused] = row.request.prompt[: row.n_reused]
        return slots_P, pages_PM, tokens_PS

    def _pages_to_store(self, work: schedule.Store) -> tuple[np.ndarray, np.ndarray]:
        """Makes the arrays of `pages.store_pages`."""
        slots_P, pages_PM = self._no_pages()
        for slot, stored in work.parts:
            shard, slots_P[shard] = self._schedule.split(slot)
            for index, page in stored:
                pages_PM[shard, index] = page
        return slots_P, pages_PM

    def _no_pages(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns slots_P and pages_PM of `pages.load_pages` that copy nothing."""
        n_shards = self._schedule.n_shards
        return (
            np.full(n_shards, self.n_slots // n_shards, np.int32),
            np.full((n_shards, self.context // PAGE), -1, np.int32),
        )

    def _chunk(self, work: schedule.Prefill) -> slots.Chunk:
        """Makes the arrays of a part of some prompts."""
        n_shards = self._schedule.n_shards
        per_shard, P = self.n_slots // n_shards, work.n_rows * n_shards
        tokens_PC = np.zeros((P, work.n_tokens), np.int32)
        slots_P, starts_P, lengths_P = (np.full(P, value, np.int32) for value in (per_shard, 0, 0))
        is_last_P = np.zeros(P, bool)
        used = [0] * n_shards
        for row, slot, start, count in work.parts:
            shard, index = self._schedule.split(slot)
            p = shard * work.n_rows + used[shard]
            used[shard] += 1
            tokens_PC[p, :count] = row.request.prompt[start : start + count]
            slots_P[p], starts_P[p], lengths_P[p] = index, start, count
            is_last_P[p] = start + count == len(row.request.prompt)
        return slots.Chunk(tokens_PC, slots_P, starts_P, lengths_P, is_last_P)

    def _allowed(self, rows: dict[int, Row]) -> np.ndarray:
        """Returns the bits of the ids that each slot may draw next, uint32[B, ceil(V / 32)]."""
        constrained = {slot: row.request.constraint for slot, row in rows.items() if row.request.constraint}
        if not constrained:
            return self._all_allowed
        allowed = self._all_allowed.copy()
        for slot, constraint in constrained.items():
            words_W = constraint.allowed()
            allowed[slot, : len(words_W)], allowed[slot, len(words_W) :] = words_W, 0
        return allowed


def stream(
    model: Transformer,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampler: Sampler | None = None,
    seed: int = 0,
    stop_ids: Iterable[int] = (),
    vocab_size: int | None = None,
    slide: bool = False,
    watchers: Sequence[Watcher] = (),
    constraints: Sequence[Constraint] = (),
    speculation: Speculation | None = None,
    draft_params: Any = None,
    quantise: str = '',
    cache: str = '',
) -> Iterator[list[list[int]]]:
    """Continues the prompts, and yields new tokens as they are decoded.

    A row's tokens are a function of (seed, its index, its prompt) alone: not of the
    other rows, nor of the mesh, up to rounding. For several samples of one prompt, give
    it several times. Under `jax.set_mesh` the rows are split over the mesh; every host
    must make the same call.

    Args:
      model: the Transformer.
      params: its parameters, on the current mesh.
      prompts: token ids, at least one each.
      max_new_tokens: most tokens to add to each.
      sampler: draws the tokens; default: from the model's own distribution.
      seed: seed of the draws.
      stop_ids: tokens that end a row; they are not part of its result. A row that ends
        with fewer than max_new_tokens met one.
      vocab_size: only ids below it are drawn; default: the whole vocabulary of the model.
      slide: whether to go past model.max_seq_len; there each token is drawn from a forward pass
        over the last max_seq_len ones, without a cache, so that it takes many times as long.
      watchers: one for each prompt, which sees the tokens and may end the row; none if empty.
      constraints: one for each prompt, which allows its tokens; none if empty.
      speculation: as of `Engine`.
      draft_params: as of `Engine`.
      quantise: kind of the weights, as of `Engine`.
      cache: kind of the keys and values, as of `Engine`.

    Yields:
      First one new token of each row, then blocks of at most BLOCK; a row that has
      ended gives no more. The blocks, joined, are what `generate` returns.

    Raises:
      ConfigError: an empty or unknown prompt, or, without `slide`, one that max_new_tokens takes
        past model.max_seq_len; raised by the call, not by the first step of the iteration. By
        that: logits that are no numbers, or a constraint that nothing can follow.
    """
    if not prompts:
        return iter(())
    if max_new_tokens < 1:
        raise ConfigError(f'max_new_tokens = {max_new_tokens} must be at least 1')
    most = model.config.max_seq_len
    longest = max(map(len, prompts))
    context = bucket(min(longest + max_new_tokens, most), most)
    engine = Engine(
        model, params, n_slots=min(len(prompts), SLOTS), context=context, vocab_size=vocab_size, chunk=WHOLE,
        speculation=speculation, draft_params=draft_params,
        quantise=quantise, cache=cache,
    )  # fmt: skip
    shared = {'sampler': sampler or Sampler(), 'stop_ids': tuple(stop_ids), 'seed': seed}
    requests = {
        i: Request(
            prompt,
            max_new_tokens,
            choice=i,
            watcher=watchers[i] if watchers else None,
            constraint=constraints[i] if constraints else None,
            **shared,
        )
        for i, prompt in enumerate(prompts)
    }
    if slide and longest + max_new_tokens > most:
        return _slide_windows(engine, requests, _queue_cached(engine, requests))
    return _stream_rows(engine, _queue_all(engine, requests, most), len(prompts))


def generate(model: Transformer, params: Any, prompts: Sequence[Sequence[int]], **options: Any) -> list[list[int]]:
    """Returns all new tokens of each prompt. Options and errors are those of `stream`."""
    out = [[] for _ in prompts]
    for block in stream(model, params, prompts, **options):
        for row, new in zip(out, block, strict=True):
            row.extend(new)
    return out


def _queue_all(engine: Engine, requests: Mapping[int, Request], context: int) -> dict[int, Row]:
    """Queues requests by the number of their prompt, which an error names."""
    rows = {}
    for i, request in requests.items():
        try:
            rows[i] = engine._queue(request, context)
        except ConfigError as error:
            raise ConfigError(f'prompt {i}: {error}') from error
    return rows


def _queue_cached(engine: Engine, requests: Mapping[int, Request]) -> dict[int, Row]:
    """Queues the part of each request that the context has room for; none of prompts that fill it."""
    room = {i: engine.context - len(request.prompt) for i, request in requests.items()}
    cached = {
        i: dataclasses.replace(request, max_new_tokens=min(request.max_new_tokens, room[i]))
        for i, request in requests.items()
        if room[i] > 0
    }
    return _queue_all(engine, cached, engine.context)


def _stream_rows(engine: Engine, rows: Mapping[int, Row], n_rows: int) -> Iterator[list[list[int]]]:
    """Yields the new tokens of `n_rows` prompts until all rows have ended; prompts without a row get none."""
    given = dict.fromkeys(rows, 0)
    while not engine.is_idle:
        engine.step()
        for i, row in rows.items():
            if row.finish is Finish.ERROR:
                raise ConfigError(f'prompt {i}: {row.error}')
        block = [rows[i].tokens[given[i] :] if i in rows else [] for i in range(n_rows)]
        given = {i: len(row.tokens) for i, row in rows.items()}
        if any(block):
            yield block


def _slide_windows(
    engine: Engine, requests: Mapping[int, Request], cached: Mapping[int, Row]
) -> Iterator[list[list[int]]]:
    """Yields the blocks of `stream` with `slide`: each row with a cache as far as it fits, then token by token.

    Token k past a row's cache has k in the upper half of its seed, since its position, which the draw depends on,
    is that in the window. Penalties take what stands in the window for the prompt.

    Args:
      engine: with the context of the model.
      requests: by the number of the prompt, with all tokens that are asked for.
      cached: rows that `_queue_cached` made of them.
    """
    n_rows, most = len(requests), engine.context
    tokens = {i: list(request.prompt) for i, request in requests.items()}
    for block in _stream_rows(engine, cached, n_rows):
        for i, new in enumerate(block):
            tokens[i].extend(new)
        yield block
    n_past = {i: 0 for i in requests if i not in cached or cached[i].finish is Finish.LENGTH}
    count = lambda i: len(tokens[i]) - len(requests[i].prompt)
    while n_past := {i: k for i, k in n_past.items() if count(i) < requests[i].max_new_tokens}:
        windows = {
            i: dataclasses.replace(
                requests[i], prompt=tokens[i][-most:], max_new_tokens=1, seed=requests[i].seed ^ (k + 1 << 32)
            )
            for i, k in n_past.items()
        }
        rows = _queue_all(engine, windows, most + 1)
        blocks = list(_stream_rows(engine, rows, n_rows))
        for i, row in rows.items():
            tokens[i].extend(row.tokens)
        n_past = {i: k + 1 for i, k in n_past.items() if rows[i].finish is Finish.LENGTH}
        yield from blocks


def bucket(n: int, most: int) -> int:
    """Rounds `n` up so that few different lengths are compiled: by at most a quarter, and never past `most`.

    Powers of two from 32 on, and three even steps between each and the next.
    """
    n = max(n, 32)
    step = 1 << ((n - 1).bit_length() - 3)
    return min(-(-n // step) * step, most)
