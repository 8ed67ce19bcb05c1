"""Looks for a better configuration among mesh shapes, remat policies and micro-batches."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import math

import jax

from llm_jax import mesh as mesh_lib
from llm_jax.fit import check_fit
from llm_jax.plan import analytic, memory, planner, topology
from llm_jax.plan.compiled import DoesNotFit
from llm_jax.plan.planner import Outcome
from llm_jax.plan.roofline import roofline
from llm_jax.plan.topology import Machine
from llm_jax.schema import Config, ConfigError

REMAT = ('none', 'attention', 'dots', 'full')
# Memory is estimated, which takes a trace of the model, for so many of the fastest on paper.
_TRACED = 16
# An estimate of memory may be off by so much: what it says is just too large is still compiled.
_SLACK = 1.15


@dataclasses.dataclass(frozen=True)
class Tried:
    """A configuration of the search.

    Attributes:
      changes: field -> value, that lead to it: overrides for the command line.
      outcome: what is known of it; None if it did not compile for want of memory.
      needed: bytes that the compiler asked for then.
    """

    changes: dict[str, object]
    outcome: Outcome | None
    needed: float = 0.0

    @property
    def fits(self) -> bool:
        return self.outcome is not None and self.outcome.memory.fits

    @property
    def flags(self) -> str:
        """The command-line form."""
        return ' '.join(f'--config.{field}={value}' for field, value in self.changes.items())


def candidates(config: Config, machine: Machine) -> Iterator[dict[str, object]]:
    """Every mesh, remat policy and micro-batch that the model allows on a machine, as overrides."""
    for sizes in _meshes(config, machine):
        shards = math.prod(sizes[axis] for axis in mesh_lib.mesh_axes(dict(config.model.rules)['batch']))
        rows = config.train.batch_size // shards
        stages = sizes['stage']
        micro = [n for n in _divisors(rows) if n >= stages] if rows else []
        for accumulation in micro:
            for remat in REMAT:
                mesh = {f'mesh.{axis}': n for axis, n in sizes.items()}
                yield {**mesh, 'train.grad_accumulation': accumulation, 'model.remat': remat}


def _meshes(config: Config, machine: Machine) -> Iterator[dict[str, int]]:
    """Meshes over the machine that split every dimension evenly, axes that the model cannot use left at 1."""
    model, n = config.model, machine.devices
    powers = lambda most: [d for d in _divisors(n) if d <= most]
    tensors = powers(min(8, model.n_heads))
    contexts = powers(16) if config.mesh.context != 1 else [1]
    experts = powers(min(64, model.moe.n_experts)) if model.feed_forward == 'moe' else [1]
    stages = powers(16) if config.mesh.stage != 1 else [1]
    # Whole copies beyond those of the slices seldom pay: few are tried.
    datas = [machine.slices * copies for copies in (1, 2, 8)]
    for tensor in tensors:
        for context in contexts:
            for expert in experts:
                for stage in stages:
                    for data in datas:
                        rest = tensor * context * expert * stage * data
                        if n % rest:
                            continue
                        sizes = {'data': data, 'stage': stage, 'fsdp': n // rest, 'expert': expert,
                                 'context': context, 'tensor': tensor}  # fmt: skip
                        if _divides(config, sizes):
                            yield sizes


def _divides(config: Config, sizes: dict[str, int]) -> bool:
    try:
        check_fit(dataclasses.replace(config, train=dataclasses.replace(config.train, grad_accumulation=1)), sizes)
    except ConfigError:
        return False
    return True


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def changed(config: Config, changes: dict[str, object]) -> Config:
    """The config with some fields replaced."""
    for field, value in changes.items():
        section, _, name = field.partition('.')
        inner = dataclasses.replace(getattr(config, section), **{name: value})
        config = dataclasses.replace(config, **{section: inner})
    return config


def on_paper(
    config: Config, machine: Machine, devices: Sequence[jax.Device] | None, *, traced: int = _TRACED
) -> list[Tried]:
    """The fastest configurations by the estimate of time, with an estimate of memory; the fastest that fit first.

    Configurations whose state and gradients alone are too large are left out.
    """
    quick = []
    cases: dict[tuple, planner.Case] = {}
    for changes in candidates(config, machine):
        mesh = tuple(v for k, v in changes.items() if k.startswith('mesh.'))
        # Shapes depend on the mesh alone, and take a second: they are shared.
        if mesh not in cases:
            cases[mesh] = planner.case_of(changed(config, changes), machine, devices)
        case = _with(cases[mesh], changes)
        state = sum(memory.state_parts(case).values()) + memory.gradient_bytes(case)
        if state <= machine.hbm * _SLACK:
            roof = roofline(case, cost := analytic.cost(case), bubble=analytic.bubble(case))
            quick.append((roof.step, changes, case, roof, cost))
    if not quick:
        return []
    quick.sort(key=lambda item: item[0])
    out, fitting = [], 0
    for _, changes, case, roof, cost in quick[:traced]:
        # On to slower ones until enough that fit are found.
        if fitting >= traced // 2:
            break
        outcome = Outcome(case, memory.estimate(case), roof, cost, memory.ANALYTIC)
        fitting += outcome.memory.fits
        out.append(Tried(changes, outcome))
    return sorted(out, key=lambda one: (not one.fits, one.outcome.roofline.step, one.outcome.memory.total))


def _with(case: planner.Case, changes: dict[str, object]) -> planner.Case:
    """The case with other micro-batches and another remat policy: its shapes stay."""
    config = changed(case.config, {k: v for k, v in changes.items() if not k.startswith('mesh.')})
    model = case.plan.model.clone(config=config.model)
    return dataclasses.replace(case, config=config, plan=dataclasses.replace(case.plan, config=config, model=model))


def search(
    config: Config,
    machine: Machine,
    devices: Sequence[jax.Device] | None,
    *,
    compile_best: int,
    progress: Callable[[str], None],
) -> list[Tried]:
    """Ranks configurations: those that fit first, the fastest of them first; what was compiled before what was not.

    Args:
      config: the experiment; its mesh, remat policy and accumulation are what is searched.
      machine: where.
      devices: from `topology.tpu_devices`, None for a machine without a compiler.
      compile_best: how many of the best on paper are compiled.
      progress: gets a line for each.
    """
    ranked = on_paper(config, machine, devices)
    progress(f'{len(ranked)} configurations estimated, {sum(t.fits for t in ranked)} of them fit')
    if devices is None:
        return ranked
    near = [t for t in ranked if t.outcome.memory.total <= _SLACK * machine.hbm]
    near.sort(key=lambda tried: tried.outcome.roofline.step)
    done = []
    for tried in near[:compile_best]:
        progress(f'compiling {short(tried.changes)}')
        try:
            done.append(Tried(tried.changes, planner.compiled(tried.outcome.case)))
        except DoesNotFit as error:
            done.append(Tried(tried.changes, None, error.needed))
    done.sort(key=lambda tried: (not tried.fits, tried.outcome.roofline.step if tried.outcome else math.inf))
    compiled_changes = [tried.changes for tried in done]
    return done + [tried for tried in ranked if tried.changes not in compiled_changes]


def pareto(tried: Sequence[Tried]) -> list[Tried]:
    """Those of which no other is both faster and smaller, from the fastest on."""
    front, smallest = [], math.inf
    known = [t for t in tried if t.outcome is not None]
    for one in sorted(known, key=lambda t: (t.outcome.roofline.step, t.outcome.memory.total)):
        if one.outcome.memory.total < smallest:
            smallest = one.outcome.memory.total
            front.append(one)
    return front


def short(changes: dict[str, object]) -> str:
    """'fsdp 64 × tensor 8, remat full, 4 micro-batches'."""
    axes = ' × '.join(f'{k.removeprefix("mesh.")} {v}' for k, v in changes.items() if k.startswith('mesh.') and v != 1)
    return f'{axes or "1 device"}, remat {changes["model.remat"]}, {changes["train.grad_accumulation"]} micro-batches'


def cheapest_fit(config: Config, machine: Machine, devices: Sequence[jax.Device] | None) -> Tried | None:
    """The change that makes it fit, on paper, and slows it least: fewer fields changed come first.

    Remat and micro-batches are tried on the mesh as it is, then other meshes.
    """
    sizes = topology.sizes(config, machine)
    base = {**{f'mesh.{axis}': n for axis, n in sizes.items()},
            'train.grad_accumulation': config.train.grad_accumulation, 'model.remat': config.model.remat}  # fmt: skip
    same_mesh = [c for c in candidates(config, machine) if all(c[k] == base[k] for k in base if k.startswith('mesh.'))]
    case = planner.case_of(config, machine, devices)
    best = None
    for changes in same_mesh:
        if changes['train.grad_accumulation'] < base['train.grad_accumulation']:
            continue
        outcome = planner.estimated(_with(case, changes))
        if outcome.memory.total * 1.05 > machine.hbm:
            continue
        different = {k: v for k, v in changes.items() if v != base[k]}
        key = (outcome.roofline.step, len(different))
        if different and (best is None or key < best[0]):
            best = (key, Tried(different, outcome))
    if best is not None:
        return best[1]
    others = [tried for tried in on_paper(config, machine, devices, traced=12) if tried.fits]
    return (
        dataclasses.replace(others[0], changes={k: v for k, v in others[0].changes.items() if v != base[k]})
        if others
        else None
    )
