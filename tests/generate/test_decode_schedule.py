"""The schedule on a device that is played: slots and pages hold ids, and a token is a function of all ids before it."""

import collections
import random

import numpy as np
import pytest

from llm_jax.generate import schedule
from llm_jax.generate.prefix import PAGE
from llm_jax.generate.requests import Finish, Request, Row
from llm_jax.generate.schedule import BLOCK, BUSY_BLOCK, NONE, Results, Schedule

STOP = 7


def next_token(ids):
    return hash((13, *ids)) % 50


class Device:
    """Runs works in the order in which they are sent; its results are read later."""

    def __init__(self, plan):
        self.plan, n = plan, len(plan.slots)
        self.held, self.live, self.left, self.stops = [[] for _ in range(n)], [False] * n, [0] * n, [()] * n
        self.newest, self.pool, self.computed = [None] * n, {}, 0

    def run(self, work):
        n_slots = len(self.held)
        tokens = np.full((n_slots, BLOCK), NONE)
        match work:
            case schedule.Enter(rows):
                for slot, row in rows.items():
                    self.live[slot] = False
                    if row:
                        self.left[slot], self.held[slot] = row.request.max_new_tokens, []
                        self.stops[slot] = row.request.stop_ids
            case schedule.Load(parts):
                assert len({self.plan.split(slot)[0] for slot, *_ in parts}) == len(parts)
                for slot, row, pages in parts:
                    shard = self.plan.split(slot)[0]
                    self.held[slot] = [token for page in pages for token in self.pool[shard, page]]
                    assert len(self.held[slot]) == row.n_reused
            case schedule.Store(parts):
                for slot, pages in parts:
                    for index, page in pages:
                        ids = self.held[slot][index * PAGE : (index + 1) * PAGE]
                        assert len(ids) == PAGE
                        self.pool[self.plan.split(slot)[0], page] = ids
            case schedule.Prefill(parts, n_rows, n_tokens, bound):
                per_shard = collections.Counter(self.plan.split(slot)[0] for _, slot, _, _ in parts)
                assert max(per_shard.values()) <= n_rows
                for row, slot, start, count in parts:
                    assert len(self.held[slot]) == start and count <= n_tokens and start + count <= bound
                    self.held[slot] += row.request.prompt[start : start + count]
                    self.computed += count
                    if row.is_prefilled and len(self.held[slot]) == len(row.request.prompt):
                        tokens[slot, 0] = self.draw(slot)
            case schedule.Decode(rows, limit, bound):
                for i in range(limit):
                    for slot, live in enumerate(self.live):
                        if live:
                            assert slot in rows
                            self.held[slot].append(self.newest[slot])
                            assert len(self.held[slot]) <= bound
                            tokens[slot, i] = self.draw(slot)
        return tokens

    def draw(self, slot):
        token = self.newest[slot] = next_token(self.held[slot])
        self.left[slot] -= 1
        self.live[slot] = token not in self.stops[slot] and self.left[slot] > 0
        return token


def play(plan, requests, *, device=None, cancel=lambda row: False):
    """Decodes all requests as `Engine.step` does: results are read one program late."""
    rows, device, sent = [Row(request) for request in requests], device or Device(plan), collections.deque()
    for row in rows:
        plan.add(row)
    while not plan.is_idle or sent:
        works = plan.plan()
        for work in works:
            tokens = device.run(work)
            if isinstance(work, schedule.Prefill | schedule.Decode):
                sent.append((work, tokens))
        while len(sent) > (1 if works and not plan.in_lockstep else 0):
            work, tokens = sent.popleft()
            plan.collect(work, Results(tokens, np.zeros(tokens.shape), np.zeros(tokens.shape)))
        for row in rows:
            if row.finish is None and cancel(row):
                plan.cancel(row)
    return rows, device


def expected(request):
    ids, tokens = list(request.prompt), []
    while len(tokens) < request.max_new_tokens:
        token = next_token(ids)
        if token in request.stop_ids:
            return tokens, Finish.STOP_ID
        ids.append(token)
        tokens.append(token)
    return tokens, Finish.LENGTH


def random_requests(n, seed, shared=0):
    rng = random.Random(seed)
    begins = [[rng.randrange(50) for _ in range(shared)] for _ in range(2)]
    return [
        Request(
            [*begins[rng.randrange(2)], *(rng.randrange(50) for _ in range(rng.randrange(1, 150)))],
            rng.randrange(1, 60), stop_ids=(STOP,),
        )
        for _ in range(n)
    ]  # fmt: skip


@pytest.mark.parametrize('n_slots, n_shards', [(1, 1), (4, 1), (8, 4)])
@pytest.mark.parametrize('n_pages', [0, 3, 40])
def test_every_request_gets_its_tokens(n_slots, n_shards, n_pages):
    requests = random_requests(40, seed=n_slots + n_pages, shared=2 * PAGE + 5)
    plan = Schedule(n_slots, 512, n_shards=n_shards, chunk=128, n_pages=n_pages)
    rows, device = play(plan, requests)
    for request, row in zip(requests, rows, strict=True):
        assert (row.tokens, row.finish) == expected(request)
    prompts = sum(len(request.prompt) for request in requests)
    assert device.computed == prompts - sum(row.n_reused for row in rows)
    if n_pages == 40:
        # All but the first of each beginning on each shard find both of its pages.
        assert sum(row.n_reused >= 2 * PAGE for row in rows) >= 40 - 2 * n_slots
    if not n_pages:
        assert device.computed == prompts


def test_a_second_turn_computes_what_is_new():
    plan = Schedule(2, 2048, chunk=128, n_pages=64)
    first = Request([i % 50 for i in range(900)], 124)
    (row,), device = play(plan, [first])
    said, before = [8] * 20, device.computed
    (again,), device = play(plan, [Request([*first.prompt, *row.tokens, *said], 5)], device=device)
    assert device.computed - before <= PAGE + len(said)
    assert again.n_reused == 15 * PAGE  # 1,023 tokens of the first turn have been through the model


def test_cancelled_rows_leave_and_others_do_not_notice():
    requests = random_requests(30, seed=3)
    gone = {id(request) for request in requests[::3]}
    cancel = lambda row: id(row.request) in gone and len(row.tokens) > 5
    rows, _ = play(Schedule(4, 512, n_pages=20), requests, cancel=cancel)
    for request, row in zip(requests, rows, strict=True):
        tokens, finish = expected(request)
        if row.finish is Finish.CANCELLED:
            assert id(request) in gone and row.tokens == tokens[: len(row.tokens)]
        else:
            assert (row.tokens, row.finish) == (tokens, finish)
    assert sum(row.finish is Finish.CANCELLED for row in rows) > 3


def test_a_waiting_row_that_is_cancelled_never_enters():
    plan = Schedule(1, 512)
    rows = [Row(request) for request in random_requests(3, seed=1)]
    for row in rows:
        plan.add(row)
    plan.cancel(rows[1])
    assert list(plan.waiting) == [rows[0], rows[2]]


def test_slots_stay_full_while_rows_wait():
    """64 requests, log-uniform lengths: steps of the device against those of batches that end with their longest."""
    rng = random.Random(0)
    lengths = [int(2 ** rng.uniform(3, 8)) for _ in range(64)]
    requests = [Request([rng.randrange(50)], n) for n in lengths]
    plan = Schedule(8, 512)
    steps = 0

    class Counting(Device):
        def run(self, work):
            nonlocal steps
            steps += work.limit if isinstance(work, schedule.Decode) else 1
            return super().run(work)

    play(plan, requests, device=Counting(plan))
    static = sum(max(lengths[i : i + 8]) for i in range(0, 64, 8))
    assert steps * 1.5 < static


def test_blocks_are_short_while_rows_wait():
    plan = Schedule(1, 512)
    for _ in range(2):
        plan.add(Row(Request([1], 100)))
    *_, decode = plan.plan()
    assert decode.limit == BUSY_BLOCK
    plan.waiting.clear()
    *_, decode = plan.plan()
    assert decode.limit == BLOCK
