"""Looks for a better configuration: ranks candidates on paper, compiles the best, ranks those again."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import math

import jax

from llm_jax.config import parts
from llm_jax.config.schema import Config, ConfigError
from llm_jax.dist import mesh as mesh_lib
from llm_jax.plan import analytic, candidates, memory, planner, topology
from llm_jax.plan.candidates import HEAD_ONCE, Changes, changed
from llm_jax.plan.cases import Case
from llm_jax.plan.compiled import CompilerFails, DoesNotFit
from llm_jax.plan.cost import Cost
from llm_jax.plan.planner import Outcome
from llm_jax.plan.roofline import Roofline, roofline
from llm_jax.plan.topology import Machine

# So many that fit are estimated, and at most so many times as many that do not.
_ENOUGH, _PATIENCE = 24, 3
# What of a device's memory may be in use by estimate.
_MARGIN = 0.9


@dataclasses.dataclass(frozen=True)
class Tried:
    """A configuration of the search.

    Attributes:
      changes: field -> value, all of a candidate's.
      different: those that differ from the experiment as it stands; empty for itself.
      outcome: what is known of it; None if it did not compile.
      needed: bytes that the compiler asked for, where memory is the reason.
    """

    changes: Changes
    different: Changes
    outcome: Outcome | None
    needed: float = 0.0

    @property
    def fits(self) -> bool:
        return self.outcome is not None and self.outcome.memory.fits

    @property
    def sure(self) -> bool:
        """True if it fits with room for an estimate's error of a tenth and more."""
        return self.fits and (
            self.outcome.source == memory.COMPILED or self.outcome.memory.total < _MARGIN * self.outcome.memory.limit
        )

    @property
    def flags(self) -> str:
        """The command-line form."""
        return candidates.flags(self.different)


@dataclasses.dataclass(frozen=True)
class _OnPaper:
    """A candidate whose time is estimated, and of its memory all but what the forward pass keeps."""

    changes: Changes
    case: Case
    roof: Roofline
    cost: Cost

    @property
    def key(self) -> tuple[float, float]:
        """The fastest first; of those, which communicates least."""
        return round(self.roof.step, 3), self.roof.ici + self.roof.dcn


class _Estimates:
    """Candidates by estimate. What the forward pass keeps takes a trace, and is proportional to the rows."""

    def __init__(self, config: Config, machine: Machine, devices: Sequence[jax.Device] | None):
        self._config, self._machine, self._devices = config, machine, devices
        self._cases: dict[tuple, Case] = {}
        self._kept: dict[tuple, float] = {}
        try:
            self.base = candidates.as_it_stands(config, topology.sizes(config, machine))
        except ConfigError:
            self.base = {}  # it cannot be laid out on this machine

    def on_paper(self, changes: Changes) -> _OnPaper | None:
        """None where state and gradients alone are too large."""
        case = self._case(changes)
        state = sum(memory.state_parts(case).values()) + memory.gradient_bytes(case)
        if state + least_kept(case) > self._machine.hbm:
            return None
        cost = analytic.cost(case)
        return _OnPaper(changes, case, roofline(case, cost, bubble=analytic.bubble(case)), cost)

    def tried(self, one: _OnPaper) -> Tried:
        """With its memory estimated; with the head gathered for each slice of the loss where that makes it fit."""
        found = self._tried(one)
        if found.sure or not one.changes[HEAD_ONCE]:
            return found
        thrifty = self.on_paper({**one.changes, HEAD_ONCE: False})
        smaller = self._tried(thrifty) if thrifty else found
        return smaller if smaller.sure else found

    def _tried(self, one: _OnPaper) -> Tried:
        estimate = memory.estimate(one.case, self._residuals(one))
        outcome = Outcome(one.case, estimate, one.roof, one.cost, memory.ANALYTIC)
        return Tried(one.changes, self.different(one.changes), outcome)

    def different(self, changes: Changes) -> Changes:
        return {field: value for field, value in changes.items() if self.base.get(field, '') != value}

    def _case(self, changes: Changes) -> Case:
        """Shapes depend on the mesh alone, and take a second: they are shared."""
        mesh = tuple(value for field, value in changes.items() if field in (f'mesh.{axis}' for axis in mesh_lib.AXES))
        config = changed(self._config, changes)
        if mesh not in self._cases:
            self._cases[mesh] = planner.case_of(config, self._machine, self._devices)
        return self._cases[mesh].with_config(config)

    def _residuals(self, one: _OnPaper) -> float:
        rows = one.case.config.train.batch_size // one.case.config.train.grad_accumulation
        # Neither changes what is kept of a row.
        layout = tuple(v for field, v in one.changes.items() if field not in ('train.grad_accumulation', HEAD_ONCE))
        if layout not in self._kept:
            self._kept[layout] = memory.residual_bytes(one.case) / rows
        return self._kept[layout] * rows


def least_kept(case: Case) -> float:
    """Bytes that the forward pass keeps at least, on one device: to leave out what cannot fit without a trace."""
    config, sizes, model = case.config, case.sizes, case.config.model
    tokens = config.train.batch_size / config.train.grad_accumulation / memory.mesh_shards(case)
    tokens *= config.data.seq_len / sizes['context'] * sizes['stage']
    width = jax.numpy.dtype(model.dtype).itemsize
    stream = model.d_model / (
        sizes['tensor'] if 'tensor' in mesh_lib.mesh_axes(dict(model.rules)['residual_length']) else 1
    )
    is_mixture = parts.feed_forward(model).is_mixture(model)
    inner = 0 if is_mixture else 2 * model.ff_size / sizes['tensor']
    units = {'none': 2 * stream + inner, 'attention': 2 * stream + inner, 'dots': stream + inner}
    return tokens * width * model.n_layers / sizes['stage'] * units.get(model.remat, stream)


def search(
    config: Config,
    machine: Machine,
    devices: Sequence[jax.Device] | None,
    *,
    compile_best: int,
    progress: Callable[[str], None],
) -> list[Tried]:
    """Ranks configurations: those that fit first, the fastest of them first; what was compiled before what was not.

    The experiment as it stands is among them where it can be laid out on the machine.

    Args:
      config: the experiment; its mesh, remat policy and accumulation are what is searched.
      machine: where.
      devices: from `topology.tpu_devices` or `gpu_devices`, None for a machine without a compiler.
      compile_best: how many that fit are wanted compiled beside the experiment as it stands; of those that are
        best on paper at most twice as many are compiled for it.
      progress: gets a line for each.
    """
    estimates = _Estimates(config, machine, devices)
    paper = _ranked(estimates, candidates.candidates(config, machine))
    ranked = list(_estimated(estimates, paper))
    if estimates.base and not any(not one.different for one in ranked):
        case = planner.case_of(config, machine, devices)
        ranked.append(Tried(estimates.base, {}, planner.estimated(case)))
    ranked.sort(key=_order)
    progress(f'{len(paper)} configurations ranked on paper, the memory of {len(ranked)} estimated: '
             f'{sum(one.fits for one in ranked)} fit')  # fmt: skip
    if devices is None:
        return ranked
    done: list[Tried] = []
    for one in _to_compile(ranked, 2 * compile_best):
        if sum(other.fits for other in done if other.different) == compile_best:
            break
        progress(f'compiling {candidates.short(one.changes)}' + ('' if one.different else ' (as it stands)'))
        try:
            outcome = planner.compiled(planner.case_of(changed(config, one.changes), machine, devices))
            done.append(dataclasses.replace(one, outcome=outcome))
            progress(f'  {outcome.memory.total / 2**30:.1f} GiB, {outcome.roofline.step:.2f} s a step at the roofline')
        except DoesNotFit as error:
            done.append(dataclasses.replace(one, outcome=None, needed=error.needed))
            progress(f'  does not fit: it needs {error.needed / 2**30:.1f} GiB')
        except CompilerFails as error:
            done.append(dataclasses.replace(one, outcome=None))
            progress(f'  the compiler fails: {error}')
    compiled = [one.changes for one in done]
    return sorted(done, key=_order) + [one for one in ranked if one.changes not in compiled]


def _ranked(estimates: _Estimates, some: Iterator[Changes]) -> list[_OnPaper]:
    """By the estimate of time, those that cannot fit left out."""
    known = (estimates.on_paper(changes) for changes in some)
    return sorted((one for one in known if one), key=lambda one: one.key)


def _estimated(estimates: _Estimates, paper: Sequence[_OnPaper]) -> Iterator[Tried]:
    """The memory of the fastest, on to slower ones until enough that fit are found."""
    fitting = others = 0
    for one in paper:
        if fitting >= _ENOUGH or others >= _PATIENCE * _ENOUGH and fitting:
            return
        tried = estimates.tried(one)
        fitting, others = fitting + tried.fits, others + (not tried.fits)
        yield tried


def _to_compile(ranked: Sequence[Tried], most: int) -> list[Tried]:
    """The experiment as it stands, and the best that fit by estimate."""
    as_it_stands = [one for one in ranked if not one.different]
    return as_it_stands + [one for one in of_each_kind(ranked) if one.fits and one.different][:most]


def of_each_kind(tried: Sequence[Tried]) -> list[Tried]:
    """Keeps the first of each mesh and remat policy: others differ in their micro-batches alone."""
    first = {}
    for one in tried:
        kind = tuple(v for field, v in one.changes.items() if 'batch' not in field and 'accumulation' not in field)
        first.setdefault(kind, one)
    return list(first.values())


def _order(one: Tried) -> tuple:
    step = one.outcome.roofline.step if one.outcome else math.inf
    return not one.sure, not one.fits, round(step, 3), one.outcome.memory.total if one.outcome else one.needed


def cheapest_fit(config: Config, machine: Machine, devices: Sequence[jax.Device] | None) -> Tried | None:
    """The change that makes it fit, on paper, and slows it least.

    Remat and micro-batches are tried on the mesh as it is, then other meshes.
    """
    estimates = _Estimates(config, machine, devices)
    base = estimates.base
    same_mesh = lambda changes: all(changes[field] == base[field] for field in base if field.startswith('mesh.'))
    for some in (filter(same_mesh, candidates.candidates(config, machine)), candidates.candidates(config, machine)):
        for one in _estimated(estimates, _ranked(estimates, some)):
            if one.different and one.sure:
                return one
    return None
