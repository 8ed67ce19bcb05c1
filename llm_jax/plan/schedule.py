"""Exposed collectives: replays the operations of a program in their written order.

A compiler starts a collective as early as it can and awaits its result as late as it can.
What lies between takes time, by which the rest is shorter. Here the program is gone
through with a clock: one device computes and has one link, which collectives use one
after the other. Those that are fused with computation (on TPU) are not looked at.
"""

from collections.abc import Callable
import dataclasses
import functools

from llm_jax.plan import cost as cost_lib
from llm_jax.plan import hlo
from llm_jax.plan.cost import Collective
from llm_jax.plan.hlo import Computation, Module, Op


@dataclasses.dataclass(frozen=True)
class Clock:
    """Seconds that things take on a machine.

    Attributes:
      flop_rate: FLOPs a second.
      byte_rate: bytes of main memory a second.
      move: of a collective.
      kernel: of a custom kernel that does not say its FLOPs, by its name.
    """

    flop_rate: float
    byte_rate: float
    move: Callable[[Collective], float]
    kernel: Callable[[str], float]


def waits(module: Module, clock: Clock) -> dict[str, float]:
    """Collectives that are started and awaited -> seconds that each run of them keeps the device waiting."""
    walk = _Walk(module, clock)
    walk.seconds(module.entry)
    return walk.waits


class _Walk:
    def __init__(self, module: Module, clock: Clock):
        self.module, self.clock = module, clock
        self.waits: dict[str, float] = {}
        self.seconds = functools.cache(self._seconds)

    def _seconds(self, name: str) -> float:
        """Seconds of one run of a computation, waits included."""
        here = self.module.computations[name]
        now = free = 0.0  # `free`: when the link is done with what it has been given
        waking: dict[str, Collective] = {}
        arrives: dict[str, tuple[float, str]] = {}  # what is started -> when it is there, and the collective's name
        for op in here.ops:
            if started := self._started(here, op):
                if op.operands:
                    free = max(now, free) + self.clock.move(started)
                    arrives[op.name] = free, started.name
                else:  # a SparseCore is woken; it gets its operands, and begins, with the first update
                    waking[op.name] = started
            elif op.operands and op.operands[0] in waking:
                started = waking.pop(op.operands[0])
                free = max(now, free) + self.clock.move(started)
                arrives[op.name] = free, started.name
            elif op.kind.endswith(('-update', '-done')) and op.operands and op.operands[0] in arrives:
                there, collective = arrives.pop(op.operands[0])
                if op.kind.endswith('-update'):
                    arrives[op.name] = there, collective
                    continue
                self.waits[collective] = max(0.0, there - now)
                now = max(now, there)
            elif op.kind in cost_lib.COLLECTIVES:
                now = free = max(now, free) + sum(map(self.clock.move, self._cost(here, op).collectives))
            else:
                now += self._op(here, op)
        return now

    def _started(self, here: Computation, op: Op) -> Collective | None:
        """The collective that an operation starts."""
        if op.kind.removesuffix('-start') in cost_lib.COLLECTIVES and op.kind.endswith('-start'):
            found = self._cost(here, op).collectives
        elif op.starts:
            inner = [self.module.computations[name] for name in op.callees]
            found = [one for c in inner for inside in c.ops for one in self._cost(c, inside).collectives]
        else:
            found = []
        return found[0] if found else None

    def _op(self, here: Computation, op: Op) -> float:
        if op.kind == 'while':
            trips = hlo.trip_count(self.module, here, op)
            return (1 if trips is None else trips) * self.seconds(op.called('body')[0])
        if op.kind == 'conditional':
            return max(map(self.seconds, op.branches))
        if op.kind == 'call':
            return sum(map(self.seconds, op.callees))
        cost = self._cost(here, op)
        kernels = sum(self.clock.kernel(kernel) * times for kernel, times in cost.kernels.items())
        return kernels + cost.seconds(self.clock.flop_rate, self.clock.byte_rate)

    def _cost(self, here: Computation, op: Op) -> cost_lib.Cost:
        return cost_lib.of_op(self.module, here, op)
