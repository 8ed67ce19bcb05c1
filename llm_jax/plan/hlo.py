"""Reads the text of a compiled XLA program: computations, operations, shapes, groups of devices.

XLA prints one operation a line, `%name = shape kind(operands), attributes`, and a header
before each computation. Only what `cost.py` asks for is taken apart.
"""

import dataclasses
import functools
import math
import re

import numpy as np

from llm_jax.ops.grouped import ABOUT

_BYTES = {
    'pred': 1, 's4': 0.5, 'u4': 0.5, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2, 'f16': 2, 's32': 4, 'u32': 4,
    'f32': 4, 's64': 8, 'u64': 8, 'f64': 8, 'c64': 8, 'c128': 16, 'token': 0, 'opaque': 0,
}  # fmt: skip
_SHAPE = re.compile(r'\b([a-z]\w*)\[([\d,]*)\](\{[^{}]*\})?')
_NAME = re.compile(r'%([\w.\-]+)')
_HEADER = re.compile(r'^(ENTRY )?%([\w.\-]+) \(.*\{$')


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array.

    Attributes:
      dtype: as XLA writes it.
      dims: the sizes.
      in_hbm: False for what the compiler keeps on the chip (memory space 1 of TPUs), and on the host.
      on_host: whether it is in the host's memory (memory space 5).
    """

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool = True
    on_host: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        if self.dtype.startswith('f8'):
            return self.size
        return self.size * _BYTES[self.dtype]


@dataclasses.dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
      name: unique in the program.
      kind: 'dot', 'fusion', 'all-gather-start', ...
      shapes: of the result; several for a tuple.
      operands: names of operations of the same computation.
      inside: what stands between the parentheses: the value of a constant, the index of a parameter.
      attributes: the rest of the line.
      root: whether it is the result of its computation.
    """

    name: str
    kind: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    inside: str
    attributes: str
    root: bool

    def called(self, *keys: str) -> list[str]:
        """The computations behind `body=`, `calls=`, ..."""
        found = []
        for key in keys:
            for one, many in re.findall(rf'\b{key}=(?:%([\w.\-]+)|\{{([^}}]*)\}})', self.attributes):
                found += [one] if one else _NAME.findall(many)
        return found

    @property
    def callees(self) -> list[str]:
        """The computations that a call, or the start of one, goes through."""
        return self.called('to_apply', 'calls', 'called_computations')

    @property
    def starts(self) -> bool:
        """True if it starts computations that run beside the others: a thread of the host, or a TPU's SparseCores."""
        return self.kind.endswith('-start') and bool(self.callees)

    @property
    def branches(self) -> list[str]:
        """The computations of which a conditional goes through one."""
        return self.called('branch_computations', 'true_computation', 'false_computation')

    @property
    def channel(self) -> str:
        match = re.search(r'channel_id=(\d+)', self.attributes)
        return match[1] if match else self.name

    @property
    def source(self) -> str:
        """Origin in the program, such as 'jit(step)/.../dot_general'."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ''


@dataclasses.dataclass(frozen=True)
class Computation:
    name: str
    ops: tuple[Op, ...]

    @functools.cached_property
    def by_name(self) -> dict[str, Op]:
        return {op.name: op for op in self.ops}

    @property
    def root(self) -> Op:
        return next(op for op in self.ops if op.root)


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program for each of `partitions` devices."""

    computations: dict[str, Computation]
    entry: str
    partitions: int


def parse(text: str) -> Module:
    """Args: text: from `jax.stages.Compiled.as_text()`.

    Raises:
      ValueError: it is not the text of a compiled program.
    """
    computations, entry, name, lines = {}, '', '', []
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name, lines = header[2], []
            entry = name if header[1] else entry
        elif name and re.match(r'\}(?!\})', line):
            computations[name] = Computation(name, tuple(map(_op, lines)))
            name = ''
        elif name and line.startswith(' ') and ' = ' in line:
            lines.append(line.strip())
        elif name and lines and not line.startswith(' '):
            lines[-1] += line  # the attributes of a kernel go over several lines
    if not entry:
        raise ValueError('this is not the text of a compiled XLA program: it has no ENTRY computation')
    partitions = re.search(r'num_partitions=(\d+)', text.partition('\n')[0])
    return Module(computations, entry, int(partitions[1]) if partitions else 1)


def _op(line: str) -> Op:
    root = line.startswith('ROOT ')
    name, _, rest = line.removeprefix('ROOT ').partition(' = ')
    end = _closing(rest, 0) + 1 if rest.startswith('(') else rest.index(' ')
    shapes, rest = rest[:end], rest[end:].lstrip()
    start = rest.index('(')
    end = _closing(rest, start)
    inside = rest[start + 1 : end]
    operands = tuple(_NAME.findall(inside))
    return Op(name.lstrip('%'), rest[:start], shapes_of(shapes), operands, inside, rest[end + 1 :], root)


def _closing(text: str, start: int) -> int:
    depth = 0
    for i in range(start, len(text)):
        depth += {'(': 1, ')': -1}.get(text[i], 0)
        if depth == 0:
            return i
    raise ValueError(f'parentheses do not match in {text[:200]!r}')


def shapes_of(text: str) -> tuple[Shape, ...]:
    """Every array in a written shape, tuples flattened."""
    return tuple(
        Shape(dtype, tuple(map(int, dims.split(','))) if dims else (), 'S(' not in layout, 'S(5)' in layout)
        for dtype, dims, layout in _SHAPE.findall(text)
    )


def trip_count(module: Module, caller: Computation, loop: Op) -> int | None:
    """Trip count of a `while`; None where the text does not give it.

    XLA writes it down where it knows it; else a loop that counts up to a constant has it in
    its condition (`counter < bound`), its start in what the loop is called with, and its step in the body.
    A loop whose turns depend on data says in its name how many to expect (`nn.grouped.loop`).
    """
    if about := re.search(ABOUT, loop.source):
        return int(about[1])
    if known := re.search(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)', loop.attributes):
        return int(known[1])
    condition = module.computations[loop.called('condition')[0]]
    body = module.computations[loop.called('body')[0]]
    compare = condition.root
    operands = [condition.by_name[name] for name in compare.operands]
    if compare.kind == 'fusion':  # the comparison itself lies within: its operands in the order of its parameters
        inner = module.computations[compare.called('calls')[0]]
        compare = inner.root
        parameters = [inner.by_name[name] for name in compare.operands]
        if any(p.kind not in ('parameter', 'constant') for p in parameters):
            return None
        operands = [operands[int(p.inside)] if p.kind == 'parameter' else p for p in parameters]
    if compare.kind != 'compare' or 'direction=LT' not in compare.attributes or len(operands) != 2:
        return None
    counter, bound = operands
    given = caller.by_name[loop.operands[0]]
    at_start = lambda op: caller.by_name[given.operands[_index(op)]] if given.kind == 'tuple' else None
    if bound.kind == 'get-tuple-element':
        bound = at_start(bound)
    if counter.kind != 'get-tuple-element' or (end := _constant(bound)) is None:
        return None
    start = _constant(at_start(counter)) or 0
    return max(0, math.ceil((end - start) / _step(module, body, _index(counter))))


def _index(op: Op) -> int:
    return int(re.search(r'index=(\d+)', op.attributes)[1])


def _constant(op: Op | None) -> int | None:
    return int(op.inside) if op and op.kind == 'constant' and re.fullmatch(r'-?\d+', op.inside) else None


def _step(module: Module, body: Computation, index: int) -> int:
    """Increment of a loop's counter; 1 where it is not written plainly."""
    if body.root.kind != 'tuple':
        return 1
    op = body.by_name[body.root.operands[index]]
    while op.kind in ('copy', 'bitcast') and op.operands:
        op = body.by_name[op.operands[0]]
    inner = body
    if op.kind == 'fusion':
        inner = module.computations[op.called('calls')[0]]
        op = inner.root
    steps = [_constant(inner.by_name.get(name)) for name in op.operands] if op.kind == 'add' else []
    return next((step for step in steps if step), 1)


def group(op: Op, partitions: int) -> tuple[int, ...]:
    """The devices of the first group of a collective, as places in the mesh; of a permutation, one pair.

    Raises:
      ValueError: the groups are written in a way that is not known.
    """
    if pairs := re.search(r'source_target_pairs=\{(.*?)\}\}', op.attributes):
        moved = [tuple(map(int, pair)) for pair in re.findall(r'(\d+),(\d+)', pairs[1])]
        return next((pair for pair in moved if pair[0] != pair[1]), (0, 0))
    written = re.search(r'replica_groups=(.*)', op.attributes)
    if not written:
        raise ValueError(f'{op.kind} %{op.name} has no groups of devices')
    text = written[1]
    if text.startswith('{}'):
        return tuple(range(partitions))
    if text.startswith('{{'):
        return tuple(map(int, text[2 : text.index('}')].split(',')))
    if iota := re.match(r'\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)', text):
        return tuple(_order(iota[2], partitions).reshape(_ints(iota[1]))[0].tolist())
    if named := re.match(r'mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))?\s*\{([^}]*)\}', text):
        order = _order(named[2], partitions)
        return tuple(int(order[i]) for i in _named_group(named[1], named[3], partitions))
    raise ValueError(f'the groups of {op.kind} %{op.name} are written in an unknown way: {text[:120]}')


def members(text: str) -> int:
    """Number of entries of a list such as '1,2' or '0:3', ends included."""
    spans = (part.split(':') for part in text.split(','))
    return sum(int(span[-1]) - int(span[0]) + 1 for span in spans)


def _order(text: str | None, partitions: int) -> np.ndarray:
    """'[4,2]T(1,0)' -> 0, 1, ... in that shape, transposed, flat; nothing leaves them in order; or a plain list."""
    ids = np.arange(partitions)
    if not text:
        return ids
    if not (iota := re.fullmatch(r'\[([\d,]+)\](?:T\(([\d,]+)\))?', text)):
        return np.array(_ints(text))
    ids = ids.reshape(_ints(iota[1]))
    return (ids.transpose(_ints(iota[2])) if iota[2] else ids).reshape(-1)


def _named_group(axes: str, used: str, partitions: int) -> tuple[int, ...]:
    """Groups along named axes; `'a':(2)4` is the part of 4 of axis a that follows a part of 2."""
    sizes = {name: int(n) for name, n in re.findall(r"'?(\w+)'?=(\d+)", axes)}
    index = np.arange(partitions).reshape(tuple(sizes.values()))
    wanted = {}
    for name, before, size in re.findall(r"'?(\w+)'?(?::\((\d+)\)(\d+))?(?:,|$)", used.strip()):
        before, size = (int(before), int(size)) if before else (1, sizes[name])
        after = sizes[name] // (before * size)
        steps = {step * after for step in range(size)}
        old = wanted.get(name, {0})
        wanted[name] = {a + b for a in old for b in steps}
    take = [sorted(wanted.get(name, {0})) for name in sizes]
    return tuple(index[np.ix_(*take)].reshape(-1).tolist())


def _ints(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(',')))
