"""Cost of a compiled program: FLOPs, memory traffic and collectives, loops counted as often as they run.

XLA's own `cost_analysis` counts the body of a loop once; here it is multiplied by the
loop's trip count, which for scanned layers and micro-batches is most of the program.
"""

import collections
from collections.abc import Sequence
import dataclasses
import functools
import math
import re

from llm_jax.plan import hlo
from llm_jax.plan.hlo import Computation, Module, Op

COLLECTIVES = (
    'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'ragged-all-to-all', 'collective-permute',
    'collective-broadcast',
)  # fmt: skip
# What moves nothing.
_FREE = {
    'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'partition-id', 'replica-id',
    'iota', 'opt-barrier', 'add-dependency', 'domain', 'get-dimension-size',
}  # fmt: skip
# Custom calls that are kernels: of Pallas on TPU, attention of cuDNN.
_KERNELS = ('tpu_custom_call', '__cudnn$fmha')
# What reads of its first operand only as much as it gives.
_SLICES = ('dynamic-slice', 'slice', 'gather')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program.

    Attributes:
      kind: of `COLLECTIVES`.
      bytes: of the whole array of a group, on one device: what an all-gather gives, what a
        reduction or an exchange takes, what a permutation sends.
      group: devices, as places in the mesh.
      times: how often it runs in a step.
      overlapped: whether it is started and awaited, or fused with computation, so that other work may hide it.
      source: where in the program it comes from.
      name: of the operation.
    """

    kind: str
    bytes: float
    group: tuple[int, ...]
    times: int
    overlapped: bool
    source: str
    name: str = ''


@dataclasses.dataclass
class Cost:
    """Cost of one run of the program on one device.

    Attributes:
      work: (FLOPs of matrix products, bytes read from and written to the main memory) of an operation -> how often
        such a one runs. Operations that run at the same time as others are not in it.
      hidden_bytes: what is moved while other operations run: prefetches.
      host_bytes: what is moved to the host's memory or from it, while other operations run.
      collectives: each with how often it runs.
      kernels: custom kernels -> how often they run, of those that do not say their FLOPs.
      unknown_loops: loops whose trip count is not known; they are counted once.
      waits: seconds that each run of a collective which is started and awaited keeps the device waiting, by its name
        (`plan.schedule`); none where that is not known.
    """

    work: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    hidden_bytes: float = 0.0
    host_bytes: float = 0.0
    collectives: list[Collective] = dataclasses.field(default_factory=list)
    kernels: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    unknown_loops: list[str] = dataclasses.field(default_factory=list)
    waits: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def flops(self) -> float:
        """FLOPs of all matrix products."""
        return sum(flops * times for (flops, _), times in self.work.items())

    @property
    def hbm_bytes(self) -> float:
        """Bytes to and from main memory, if every operation reads its operands once."""
        return self.hidden_bytes + sum(n_bytes * times for (_, n_bytes), times in self.work.items())

    def seconds(self, flop_rate: float, byte_rate: float) -> float:
        """The operations one after the other, each bound by arithmetic or by memory."""
        work = self.work.items()
        return sum(max(flops / flop_rate, n_bytes / byte_rate) * times for (flops, n_bytes), times in work)


def analyse(text: str) -> Cost:
    """The cost of a compiled program.

    Args:
      text: from `jax.stages.Compiled.as_text()`.
    """
    return of_module(hlo.parse(text))


def of_module(module: Module) -> Cost:
    """The cost of a whole program."""
    cost = Cost()
    _Walk(module, cost).computation(module.computations[module.entry], 1, overlapped=False)
    return cost


def of_op(module: Module, here: Computation, op: Op) -> Cost:
    """The cost of one run of an operation of a computation, what it calls included."""
    cost = Cost()
    _Walk(module, cost).op(here, op, 1, False, set(), in_fusion=False)
    return cost


class _Walk:
    """Goes through the computations in the order they are called, with how often each runs."""

    def __init__(self, module: Module, cost: Cost):
        self.module, self.cost = module, cost
        self.fused = functools.cache(self._fused_bytes)

    def computation(self, here: Computation, times: int, *, overlapped: bool) -> None:
        # A collective that is fused with computation appears in each piece of it.
        seen: set[tuple[str, str]] = set()
        for op in here.ops:
            self.op(here, op, times, overlapped, seen, in_fusion=False)

    def op(self, here: Computation, op: Op, times: int, overlapped: bool, seen: set, *, in_fusion: bool) -> float:
        """Counts one operation, and returns its FLOPs for the fusion that it lies in."""
        base, flops = op.kind.removesuffix('-start'), 0.0
        if op.kind == 'while':
            trips = hlo.trip_count(self.module, here, op)
            if trips is None:
                self.cost.unknown_loops.append(op.source or op.name)
            body = self.module.computations[op.called('body')[0]]
            self.computation(body, times * (1 if trips is None else trips), overlapped=overlapped)
        elif base in COLLECTIVES:
            if in_fusion and (base, op.channel) in seen:
                return 0.0
            seen.add((base, op.channel))
            self._collective(op, base, times, overlapped or op.kind.endswith('-start') or in_fusion, here)
        elif op.kind == 'send' and '_megascale_target' in op.attributes:
            self._between_slices(op, times)
        elif op.kind == 'dot':
            flops = _dot_flops(here, op)
        elif op.kind == 'convolution':
            flops = _convolution_flops(here, op)
        elif op.kind == 'fusion':
            inner = self.module.computations[op.called('calls')[0]]
            flops = sum(self.op(inner, inside, times, overlapped, seen, in_fusion=True) for inside in inner.ops)
        elif op.kind == 'conditional':
            self._branches(op, times, overlapped)
        elif op.kind == 'call' or op.starts:
            for name in op.callees:
                self.computation(self.module.computations[name], times, overlapped=overlapped or op.starts)
        elif op.kind == 'custom-call':
            flops = self._custom(op, times)
        if not in_fusion:
            self.cost.host_bytes += times * _to_or_from_host(here, op)
            n_bytes = self._bytes(here, op)
            if op.kind in ('copy-start', 'slice-start'):
                self.cost.hidden_bytes += times * n_bytes
            elif flops or n_bytes:
                self.cost.work[flops, n_bytes] += times
        return flops

    def _branches(self, op: Op, times: int, overlapped: bool) -> None:
        """Adds the cost of a condition: that of its most expensive branch."""
        costs = []
        for name in op.branches:
            cost = Cost()
            _Walk(self.module, cost).computation(self.module.computations[name], times, overlapped=overlapped)
            costs.append(cost)
        most = max(costs, key=lambda cost: (cost.flops, cost.hbm_bytes))
        self.cost.work += most.work
        self.cost.hidden_bytes += most.hidden_bytes
        self.cost.host_bytes += most.host_bytes
        self.cost.collectives += most.collectives
        self.cost.kernels += most.kernels
        self.cost.unknown_loops += most.unknown_loops

    def _collective(self, op: Op, kind: str, times: int, overlapped: bool, here: Computation) -> None:
        members = hlo.group(op, self.module.partitions)
        if len(members) < 2:
            return
        shapes, started = op.shapes, op.kind.endswith('-start')
        if kind == 'collective-permute':
            shapes = shapes[:1]
        elif started and kind != 'all-reduce':
            shapes = shapes[len(shapes) // 2 :]  # (operands, results)
        n_bytes = sum(shape.bytes for shape in shapes)
        # TPUs write a reduce-scatter as an all-reduce of which each device keeps a part, fused.
        if kind == 'all-reduce' and here.name.startswith('all-reduce-scatter'):
            kind = 'reduce-scatter'
        elif kind == 'reduce-scatter':
            n_bytes *= len(members)
        self.cost.collectives.append(Collective(kind, n_bytes, members, times, overlapped, op.source, op.name))

    def _between_slices(self, op: Op, times: int) -> None:
        """The part of a collective between slices, which TPUs leave to their hosts: sent, and awaited later."""
        kind = re.search(r'_megascale_transfer_type="(\w+)"', op.attributes)[1].lower().replace('_', '-')
        target = re.search(r'_megascale_target="\{([^}]*)\}x\{([^}]*)\}', op.attributes)
        slices, devices = map(hlo.members, target.groups())
        # In a mesh slices come one after the other: the same place of each.
        group = tuple(range(0, slices * devices, devices))
        kind = kind if kind in COLLECTIVES else 'collective-permute'
        self.cost.collectives.append(Collective(kind, op.shapes[0].bytes, group, times, True, op.source))

    def _custom(self, op: Op, times: int) -> float:
        """A kernel of its own: its FLOPs are what it says itself."""
        target = re.search(r'custom_call_target="([^"]*)"', op.attributes)
        if not target or not target[1].startswith(_KERNELS):
            return 0.0
        if said := re.search(r'"flops":\s*"?(\d+)', op.attributes):
            return float(said[1])
        self.cost.kernels[re.sub(r'(\.\d+)+$', '', op.name)] += times
        return 0.0

    def _bytes(self, here: Computation, op: Op) -> float:
        """Main-memory traffic of one operation outside of fusions."""
        if (
            op.kind in _FREE
            or op.kind in ('while', 'call', 'conditional')
            or op.starts
            or op.kind.endswith(('-done', '-update'))
        ):
            return 0.0
        operands = [here.by_name[name] for name in op.operands if name in here.by_name]
        if op.kind == 'fusion':
            return self._fusion(op, operands)
        if op.kind == 'copy-start':
            return _hbm(op.shapes[:1]) + _hbm(operands[0].shapes)
        if op.kind == 'slice-start':
            target = op.shapes[-2]
            return _hbm((target,)) + (target.bytes if operands[0].shapes[0].in_hbm else 0.0)
        if op.kind in _SLICES:
            size = sum(shape.bytes for shape in op.shapes)
            return _hbm(op.shapes) + (size if operands[0].shapes[0].in_hbm else 0.0)
        if op.kind == 'dynamic-update-slice':
            return 2 * operands[1].shapes[0].bytes if op.shapes[0].in_hbm else _hbm(operands[1].shapes)
        if op.kind == 'scatter':
            return 3 * sum(shape.bytes for shape in operands[-1].shapes)
        return _hbm(op.shapes) + sum(_hbm(operand.shapes) for operand in operands)

    def _fusion(self, op: Op, operands: Sequence[Op]) -> float:
        reads, writes = self.fused(op.called('calls')[0])
        total = sum(min(shape.bytes, n) for shape, n in zip(op.shapes, writes, strict=True) if shape.in_hbm)
        for i, operand in enumerate(operands):
            total += min(_hbm(operand.shapes), reads.get(i, math.inf))
        return total

    def _fused_bytes(self, name: str) -> tuple[dict[int, float], list[float]]:
        """Bytes that a fusion reads of each parameter that it slices, and writes at most of each result."""
        inner = self.module.computations[name]
        users = collections.defaultdict(list)
        for op in inner.ops:
            for operand in op.operands:
                users[operand].append(op)

        def through(op: Op) -> list[tuple[Op, str]]:
            """Users of an operation and the names they use, seen through changes of shape alone."""
            return [
                found
                for user in users[op.name]
                for found in (through(user) if user.kind == 'bitcast' else [(user, op.name)])
            ]

        reads = {}
        for op in inner.ops:
            if op.kind != 'parameter':
                continue
            parts = sum(self._read(user, by, op.shapes[0].size) for user, by in through(op))
            if parts < math.inf:
                reads[int(op.inside)] = parts
        root = inner.root
        results = [inner.by_name[name] for name in root.operands] if root.kind == 'tuple' else [root]
        return reads, [n for result in results for n in self._written(inner, result)]

    def _read(self, user: Op, by: str, size: int) -> float:
        """Bytes that an operation within a fusion reads of its operand `by` of so many elements; inf for all of it."""
        if user.kind in _SLICES and user.operands[0] == by:
            return sum(shape.bytes for shape in user.shapes)
        if user.kind == 'dynamic-update-slice' and user.shapes[0].size == size:
            return 0.0  # written in place
        if user.kind == 'fusion':
            return self.fused(user.called('calls')[0])[0].get(user.operands.index(by), math.inf)
        return math.inf

    def _written(self, inner: Computation, op: Op) -> list[float]:
        """Bytes written of each result of an operation that a fusion gives; inf for all of it."""
        while op.kind == 'bitcast':
            op = inner.by_name[op.operands[0]]
        if op.kind == 'dynamic-update-slice':
            return [inner.by_name[op.operands[1]].shapes[0].bytes]
        if op.kind == 'fusion':
            return self.fused(op.called('calls')[0])[1]
        return [math.inf] * len(op.shapes)


def _hbm(shapes: Sequence[hlo.Shape]) -> float:
    return sum(shape.bytes for shape in shapes if shape.in_hbm)


def _to_or_from_host(here: Computation, op: Op) -> float:
    """Bytes that a copy, a slice or an update of a slice moves between the device's memory and the host's."""
    if op.kind in _FREE or op.kind in ('while', 'call', 'conditional') or op.kind.endswith(('-done', '-update')):
        return 0.0
    shapes = [
        *op.shapes,
        *(shape for name in op.operands if name in here.by_name for shape in here.by_name[name].shapes),
    ]
    crosses = any(shape.on_host for shape in shapes) and any(not shape.on_host and shape.dims for shape in shapes)
    # What moves is the smallest of the matrices; vectors among them, such as scales, do not, but may be moved alone.
    arrays = [shape for shape in shapes if len(shape.dims) > 1] or [shape for shape in shapes if shape.dims]
    return min(shape.bytes for shape in arrays) if crosses else 0.0


def _dot_flops(here: Computation, op: Op) -> float:
    """2 for each multiplication: the result's elements times what is summed over."""
    left = here.by_name[op.operands[0]].shapes[0]
    over = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', op.attributes)
    summed = math.prod(left.dims[int(i)] for i in over[1].split(',') if i) if over else 1
    return 2.0 * op.shapes[0].size * summed


def _convolution_flops(here: Computation, op: Op) -> float:
    """2 for each multiplication that is not with padding: TPUs write matrix products as convolutions.

    A batched product is one over a 'spatial' dimension that is padded and dilated such
    that every place of the window but one falls on padding.
    """
    left, right = (here.by_name[name].shapes[0].dims for name in op.operands[:2])
    labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', op.attributes)
    lhs, rhs, out = labels[1], labels[2], labels[3]
    window = re.search(r'window=\{([^}]*)\}', op.attributes)
    fields = dict(re.findall(r'(\w+)=(\S+)', window[1])) if window else {}
    spatial = sorted(set(lhs) - {'b', 'f'})
    numbers = lambda key, default: (
        [int(n) for n in fields[key].split('x')] if key in fields else [default] * len(spatial)
    )
    pads = (
        [tuple(map(int, p.split('_'))) for p in fields['pad'].split('x')]
        if 'pad' in fields
        else [(0, 0)] * len(spatial)
    )
    sizes, strides = numbers('size', 1), numbers('stride', 1)
    spread_l, spread_r = numbers('lhs_dilate', 1), numbers('rhs_dilate', 1)
    total = 2.0 * op.shapes[0].dims[out.index('b')] * op.shapes[0].dims[out.index('f')] * right[rhs.index('i')]
    for i, label in enumerate(spatial):
        n_in, n_out = left[lhs.index(label)], op.shapes[0].dims[out.index(label)]
        total *= _valid(n_in, n_out, sizes[i], strides[i], pads[i][0], spread_l[i], spread_r[i])
    return total


@functools.cache
def _valid(n_in: int, n_out: int, size: int, stride: int, pad: int, spread_in: int, spread_window: int) -> int:
    """Pairs (place of the result, place of the window) that meet an element and not padding."""
    count, end = 0, (n_in - 1) * spread_in
    for k in range(size):
        for o in range(n_out):
            at = o * stride + k * spread_window - pad
            count += 0 <= at <= end and at % spread_in == 0
    return count
