"""An engine without a model: what `Engine` promises the server, with answers that a test writes."""

from collections.abc import Callable, Sequence
import time

from llm_jax.generate.engine import MAX_STOP_IDS
from llm_jax.generate.requests import Finish, Request, Row, check_request
from llm_jax.generate.slots import ALTERNATIVES


class ScriptedEngine:
    """Gives each row the tokens of `reply(prompt)`, `per_step` of them a step, over slots and a queue.

    Attributes:
      seconds: that a step takes; may be changed while it runs.
    """

    def __init__(
        self,
        reply: Callable[[Sequence[int]], Sequence[int]],
        *,
        context: int,
        vocab_size: int,
        n_slots: int = 4,
        per_step: int = 1,
        seconds: float = 0.0,
    ) -> None:
        self._reply, self.context, self._vocab_size = reply, context, vocab_size
        self._n_slots, self._per_step, self.seconds = n_slots, per_step, seconds
        self._waiting: list[tuple[Row, list[int]]] = []
        self._running: list[tuple[Row, list[int]]] = []

    @property
    def is_idle(self) -> bool:
        return not self._waiting and not self._running

    def submit(self, request: Request) -> Row:
        limits = {'max_stop_ids': MAX_STOP_IDS, 'max_alternatives': ALTERNATIVES}
        row = Row(check_request(request, context=self.context, vocab_size=self._vocab_size, **limits))
        self._waiting.append((row, list(self._reply(row.request.prompt))))
        return row

    def cancel(self, row: Row) -> None:
        if row.finish is None:
            row.finish = Finish.CANCELLED
            self._waiting = [one for one in self._waiting if one[0] is not row]
            self._running = [one for one in self._running if one[0] is not row]

    def step(self) -> list[Row]:
        if self.seconds:
            time.sleep(self.seconds)
        n_free = self._n_slots - len(self._running)
        self._running, self._waiting = self._running + self._waiting[:n_free], self._waiting[n_free:]
        changed = [row for row, _ in self._running]
        for row, reply in self._running:
            for _ in range(self._per_step):
                if row.finish is None:
                    self._draw(row, reply)
        self._running = [(row, reply) for row, reply in self._running if row.finish is None]
        return changed

    def _draw(self, row: Row, reply: list[int]) -> None:
        request = row.request
        token = reply[len(row.tokens)] if len(row.tokens) < len(reply) else request.stop_ids[0]
        if token in request.stop_ids:
            row.finish = Finish.STOP_ID
            return
        row.tokens.append(token)
        row.log_probs.append(-0.5)
        row.sampled_log_probs.append(-0.5)
        row.top.append([(token, -0.5)] * request.alternatives)
        if request.watcher and request.watcher.push(token):
            row.finish = Finish.STOP
        elif len(row.tokens) == request.max_new_tokens:
            row.finish = Finish.LENGTH
