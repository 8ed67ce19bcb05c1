"""The command of `tools/plan.py`: parses arguments, plans, prints, and writes the page."""

import contextlib
import dataclasses
import sys

import rich.box
import rich.console
import rich.table

from llm_jax.config.schema import Config, ConfigError
from llm_jax.plan import facts, page, planner, topology
from llm_jax.plan import search as search_lib
from llm_jax.plan.compiled import CompilerFails, DoesNotFit
from llm_jax.plan.decoding import plan_decoding
from llm_jax.plan.facts import gib
from llm_jax.plan.planner import Outcome
from llm_jax.report import plan as report
from llm_jax.report.tables import Table


@dataclasses.dataclass(frozen=True)
class Request:
    """The command line, its numbers still text."""

    topology: str | None
    slices: int
    gpu: str | None
    devices: int
    tokens: str | None
    price: str | None
    search: bool
    analytic: bool
    compile_best: int
    decode: int | None
    context: int | None
    out: str | None
    command: str


def plan(config: Config, request: Request) -> None:
    """Plans a run and says what was found.

    Raises:
      ConfigError: a mistake in the request or config, or a step that does not fit: by how much, its breakdown,
        and the cheapest change that would fit.
    """
    tokens, price = planner.number(request.tokens, '--tokens'), planner.number(request.price, '--price')
    if (request.topology is None) == (request.gpu is None):
        raise ConfigError('give either --topology, such as v5p:8x8x8, or --gpu, such as h100 with --devices 8')
    if request.topology:
        machine = topology.parse_tpu(request.topology, request.slices)
    else:
        machine = topology.parse_gpu(request.gpu, request.devices)
    if request.analytic and request.topology:
        raise ConfigError('--analytic is for --gpu: where the devices of a slice lie, only the TPU compiler says')
    if not request.search:
        topology.sizes(config, machine)  # mistakes come before minutes of compiling
    console = rich.console.Console()
    if not console.is_terminal:
        console.width = 160  # what goes into a file is not cut
    say = lambda text: print(text, file=sys.stderr, flush=True)
    with topology.compiler() if request.topology else contextlib.nullcontext():
        devices = _devices(machine, request, say)
        if request.decode is not None:
            _show_decoding(console, config, machine, devices, request)
            return
        tried = []
        if request.search:
            tried = search_lib.search(config, machine, devices, compile_best=request.compile_best, progress=say)
            best = next((one for one in tried if one.fits), None)
            console.print(_table(facts.search_table(tried)))
            if best is None:
                raise ConfigError(f'no configuration of {config.name} that was tried fits {machine}; take more chips')
            outcome = best.outcome
            console.print(f'the best: {best.flags or "the experiment as it stands"}\n', soft_wrap=True)
        else:
            outcome = _outcome(config, machine, devices, say)
        budget = outcome.budget(tokens, price)
        show(console, outcome, budget, price)
        out = request.out or page.default_path(config.name, machine)
        report.write(out, page.collect(outcome, command=request.command, budget=budget, price=price, tried=tried))
        console.print(f'wrote {out}', soft_wrap=True)
        if not outcome.memory.fits:
            raise ConfigError(f'{config.name} {facts.verdict(outcome)}. {_advice(config, machine, devices)}')


def _show_decoding(
    console: rich.console.Console, config: Config, machine: topology.Machine, devices: list | None, request: Request
) -> None:
    """Plans a step of decoding and prints it.

    Raises:
      ConfigError: it does not fit.
    """
    case = planner.case_of(config, machine, devices)
    context = case.config.model.max_seq_len if request.context is None else request.context
    found = plan_decoding(case, request.decode, context, compiles=devices is not None)
    rows = [tuple(row) for row in facts.decoding_rows(found)]
    console.print(_table(Table(f'A token of {found.rows} rows on {machine}', ('', '', 'source'), rows)))
    if not found.fits:
        raise ConfigError(
            f'{config.name} does not fit {machine} when {found.rows} rows of {context} tokens are decoded: '
            f'{gib(sum(found.memory.values()))} of {gib(machine.hbm)}; take fewer rows, a shorter --context, or a '
            'larger mesh.tensor'
        )


def _devices(machine: topology.Machine, request: Request, say) -> list | None:
    """Devices to compile for; None where there is no compiler, or none is asked for."""
    if request.topology:
        return topology.tpu_devices(machine)
    if request.analytic:
        return None
    if why := topology.no_cuda():
        say(f'planned by numbers alone: {why}')
        return None
    return topology.gpu_devices(machine)


def _outcome(config: Config, machine: topology.Machine, devices: list | None, say) -> Outcome:
    case = planner.case_of(config, machine, devices)
    if devices is None:
        return planner.estimated(case)
    say(f'compiling {config.name} for {machine}')
    try:
        return planner.compiled(case)
    except CompilerFails as error:
        raise ConfigError(
            f'the TPU compiler fails on {config.name} for {machine}, which is a mistake of its own: {error}. '
            'Another mesh, model.remat or train.grad_accumulation makes another program; --search leaves such ones out'
        ) from error
    except DoesNotFit as error:
        estimate = planner.estimated(case)
        parts = ', '.join(f'{row.name} {row.value}' for row in facts.memory_rows(estimate)[:-2])
        state = sum(n for name, n in estimate.memory.parts.items() if name in ('parameters', 'optimizer'))
        raise ConfigError(
            f'{config.name} does not fit {machine}: the compiler needs {gib(error.needed)} for temporaries alone and '
            f'has {gib(error.available)}, of which the state takes {gib(state)}: '
            f'{gib(error.needed + state - error.available)} too much. Estimated parts: {parts}. '
            f'{_advice(config, machine, devices)}'
        ) from error


def _advice(config: Config, machine: topology.Machine, devices: list | None) -> str:
    best = search_lib.cheapest_fit(config, machine, devices)
    if best is None:
        return 'No mesh, remat policy or number of micro-batches would fit it, by an estimate; take more chips'
    memory, roof = best.outcome.memory, best.outcome.roofline
    return (
        f'The cheapest change that would fit, by an estimate: {best.flags} ({gib(memory.total)}, '
        f'{facts.seconds(roof.step)} a step at the roofline)'
    )


def show(console: rich.console.Console, outcome: Outcome, budget: planner.Budget | None, price: float | None) -> None:
    """Prints a plan."""
    case = outcome.case
    console.print(f'{case.config.name} on {case.machine} {facts.verdict(outcome)}')
    if outcome.compile_seconds:
        console.print(f'compiled in {outcome.compile_seconds:.0f} s')
    for note in facts.notes(outcome):
        console.print(f'note: {note}')
    for title, rows in (
        ('Step', facts.step_rows(outcome)),
        ('Memory of one device', facts.memory_rows(outcome)),
        ('The whole run', facts.budget_rows(budget, price, case.machine)),
        ('Serving', facts.serving_rows(outcome)),
        ('Rates of the chip', facts.assumed_rows(outcome)),
    ):
        console.print(_table(Table(title, ('', '', 'source'), [tuple(row) for row in rows])))
    if outcome.roofline.traffic:
        console.print(_table(facts.traffic_table(outcome)))


def _table(table: Table) -> rich.table.Table:
    out = rich.table.Table(*table.header, title=table.title, title_justify='left', box=rich.box.SIMPLE)
    for row in table.rows:
        out.add_row(*row)
    return out
