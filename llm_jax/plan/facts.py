"""A plan as tables of text, each number with where it comes from: for the terminal and the page."""

from collections.abc import Sequence
from typing import NamedTuple

from llm_jax.config import parts
from llm_jax.dist import mesh as mesh_lib
from llm_jax.metrics import format as fmt
from llm_jax.plan import analytic
from llm_jax.plan.candidates import short
from llm_jax.plan.decoding import Decoding
from llm_jax.plan.memory import ANALYTIC, ASSUMED, COMPILED, serving
from llm_jax.plan.planner import ATTENTION_PRODUCTS, Budget, Outcome
from llm_jax.plan.search import Tried, of_each_kind
from llm_jax.report.tables import Table

GIB = 2**30


class Row(NamedTuple):
    """A number: what it is, its value, 'compiled', 'analytic' or 'assumed'."""

    name: str
    value: str
    source: str


def gib(n_bytes: float) -> str:
    """Bytes in the unit that memories are sold in: 20.1 GiB, 3.25 MiB."""
    unit, scale = ('GiB', GIB) if n_bytes >= 0.01 * GIB else ('MiB', 2**20)
    return f'{n_bytes / scale:,.{2 if n_bytes < 10 * scale else 1}f} {unit}'


def seconds(value: float) -> str:
    return f'{1000 * value:.1f} ms' if value < 1 else f'{value:.2f} s'


def verdict(outcome: Outcome) -> str:
    """One sentence: does it fit."""
    memory = outcome.memory
    per = 'device' if outcome.case.machine.chip.devices > 1 else 'chip'
    if memory.fits:
        return f'fits: {gib(memory.total)} of {gib(memory.limit)} a {per} ({memory.source})'
    over = memory.total - memory.limit
    return f'does not fit: {gib(memory.total)} of {gib(memory.limit)} a {per}, {gib(over)} too much ({memory.source})'


def memory_rows(outcome: Outcome) -> list[Row]:
    """The parts of a device's memory; shapes say what is not a temporary."""
    compiled = {'padding of arrays', 'temporaries', 'results', 'code'}
    rows = [
        Row(name, gib(n), COMPILED if outcome.memory.source == COMPILED and name in compiled else ANALYTIC)
        for name, n in outcome.memory.parts.items()
    ]
    return [*rows, Row('total', gib(outcome.memory.total), outcome.memory.source),
            Row('available', gib(outcome.memory.limit), ASSUMED)]  # fmt: skip


def step_rows(outcome: Outcome) -> list[Row]:
    """Facts of one step: its work, and its shortest time."""
    case, roof, cost = outcome.case, outcome.roofline, outcome.cost
    n = case.abstract_mesh.size
    useful = case.flops_per_token * case.tokens_per_step
    unmasked = analytic.unmasked_flops_per_token(case) * case.tokens_per_step
    source = outcome.source
    rows = [
        Row('mesh', mesh_lib.format_sizes(case.sizes), 'config'),
        Row('parameters', f'{fmt.count(case.counts.total)}, {fmt.count(case.counts.active)} active', ANALYTIC),
        Row('tokens a step', fmt.count(case.tokens_per_step), 'config'),
        Row('FLOPs a step, as MFU counts them', f'{useful / 1e15:,.1f} PFLOP', ANALYTIC),
        *([Row('of them not masked', f'{unmasked / 1e15:,.1f} PFLOP', ANALYTIC)] if unmasked < useful else []),
        Row(
            'executed FLOPs a step',
            f'{cost.flops * n / 1e15:,.1f} PFLOP, {cost.flops * n / unmasked:.2f} times those not masked',
            source,
        ),
        Row('HBM traffic a device', gib(cost.hbm_bytes), source),
        Row('compute', seconds(roof.compute), source),
        Row('HBM', seconds(roof.hbm), source),
        Row('operations in turn', seconds(roof.serial), source),
        Row('ICI' if case.machine.chip.is_tpu else 'NVLink', seconds(roof.ici), source),
        Row('DCN' if case.machine.chip.is_tpu else 'network', seconds(roof.dcn), source),
        *([Row("PCIe, to and from the host's memory", seconds(roof.host), source)] if roof.host else []),
        Row('collectives that nothing hides', seconds(roof.exposed), source),
    ]
    if roof.bubble:
        rows.append(Row('pipeline bubble', seconds(roof.bubble), ANALYTIC))
    return [
        *rows,
        Row('step at the roofline', f'{seconds(roof.step)}, bound by {roof.bound}', source),
        Row('MFU at most', mfu(outcome), source),
        Row('tokens/s at most', fmt.count(outcome.tokens_per_second), source),
    ]  # fmt: skip


def mfu(outcome: Outcome) -> str:
    """MFU by the convention, and that without masked attention where they differ."""
    whole, unmasked = outcome.mfu, outcome.unmasked_mfu
    return fmt.percent(whole) + (f', without masked attention {fmt.percent(unmasked)}' if unmasked < whole else '')


def budget_rows(budget: Budget | None, price: float | None, machine: object) -> list[Row]:
    """Time and money for the whole run."""
    if budget is None:
        return [Row('budget', 'the length is in epochs, which only data can tell: give --tokens', ASSUMED)]
    rows = [
        Row('tokens', fmt.count(budget.tokens), 'config'),
        Row('time at the roofline', f'{budget.seconds / 86400:,.2f} days', ANALYTIC),
        Row('chip-hours', f'{budget.chip_hours:,.0f} on {machine}', ANALYTIC),
    ]
    if budget.cost is not None:
        rows.append(Row('cost', f'{budget.cost:,.0f} at {price:g} a chip-hour', ASSUMED))
    return rows


def serving_rows(outcome: Outcome) -> list[Row]:
    """Memory for generating text with the model."""
    it = serving(outcome.case)
    return [
        Row('parameters to serve', gib(it.parameters), ANALYTIC),
        Row('KV cache', f'{it.cache_per_token / 1024:.1f} KiB a token, '
                        f'{gib(it.cache_per_token * it.context)} for {it.context:,} tokens', ANALYTIC),
        Row('fewest devices to serve', f'{it.devices} with one whole context', ANALYTIC),
        Row('whole contexts at once', f'{it.contexts:,} on this machine', ANALYTIC),
    ]  # fmt: skip


def decoding_rows(found: Decoding) -> list[Row]:
    """Memory and time of a decoding step."""
    roof, source = found.roofline, found.source
    gathered = sum(n for n, _ in found.gathered_weights)
    rows = [Row(f'{name} a device', gib(n), source) for name, n in found.memory.items()]
    rows += [
        Row('available', gib(found.case.machine.hbm), ASSUMED),
        Row('context', f'{found.context:,} tokens a row', 'config'),
        Row('HBM', seconds(roof.hbm), source),
        Row('compute', seconds(roof.compute), source),
        Row('waiting for collectives', seconds(roof.exposed), source),
        Row('shortest step', f'{seconds(roof.step)}, bound by {roof.bound}', source),
        Row('tokens a second', f'{found.tokens_per_second:,.0f}', source),
    ]
    if source == COMPILED:
        says = (
            f'{len(found.gathered_weights)}: {gib(gathered)} a token; split them over mesh.tensor alone'
            if gathered
            else 'none'
        )
        rows.append(Row('weights that are gathered', says, source))
    return rows


def assumed_rows(outcome: Outcome) -> list[Row]:
    """The rates that times follow from."""
    chip = outcome.case.machine.chip
    per = ' a link and direction' if chip.is_tpu else ' a direction'
    rows = [
        Row('peak', fmt.flops(chip.bf16) + ' a chip in bfloat16', ASSUMED),
        Row('HBM', f'{chip.hbm_rate / 1e9:,.0f} GB/s a chip', ASSUMED),
        Row('ICI' if chip.is_tpu else 'NVLink', f'{chip.link_rate / 1e9:,.0f} GB/s{per}', ASSUMED),
        Row('DCN' if chip.is_tpu else 'network', f'{chip.dcn_rate / 1e9:,.2f} GB/s a chip', ASSUMED),
    ]
    if outcome.roofline.host:
        rows.append(Row('PCIe', f'{chip.host_rate / 1e9:,.0f} GB/s a chip and direction', ASSUMED))
    return rows


def notes(outcome: Outcome) -> list[str]:
    """Notes for readers of the numbers."""
    out = []
    if outcome.cost.unknown_loops:
        out.append(
            f'{len(outcome.cost.unknown_loops)} loops do not say how often they run and are counted once: '
            + ', '.join(outcome.cost.unknown_loops[:3])
        )
    kernels = outcome.cost.kernels
    if any(name.startswith(tuple(ATTENTION_PRODUCTS)) for name in kernels):
        out.append('the FLOPs of attention kernels are analytic: the compiled program does not say them')
    if outcome.source == COMPILED and not outcome.case.machine.chip.is_tpu:
        out.append(
            'compiled without a GPU: which kernels XLA would choose by timing them, and the workspace of cuBLAS and '
            'cuDNN, are not in the numbers'
        )
    if unknown := sorted(name for name in kernels if not name.startswith((*ATTENTION_PRODUCTS, 'ragged-dot-metadata'))):
        out.append(f'kernels whose FLOPs nobody knows count as none: {", ".join(unknown)}')
    model = outcome.case.config.model
    if parts.feed_forward(model).is_mixture(model):
        out.append('routing is taken to be even: one round of experts for each layer')
    if outcome.unmasked_mfu < outcome.mfu:
        out.append(
            'MFU counts the whole square of attention, as is the convention, of which a causal mask leaves half: what '
            'is executed may be less, and MFU may be above 100 %'
        )
    if outcome.source == ANALYTIC:
        out.append('nothing was compiled: every number is an estimate')
    return out


def traffic_table(outcome: Outcome) -> Table:
    """The collectives by kind and mesh axes, the longest first; a wait counts where it ends, whatever held the link."""
    rows = [
        (t.kind, ' × '.join(t.axes) or '–', f'{t.times:,}', gib(t.bytes), seconds(t.ici), seconds(t.dcn),
         fmt.percent(max(0.0, 1 - t.exposed / (t.ici + t.dcn))) if t.ici + t.dcn else fmt.DASH)
        for t in outcome.roofline.traffic if t.bytes > 1e6
    ]  # fmt: skip
    header = ('collective', 'over', 'times', 'bytes', 'ICI' if outcome.case.machine.chip.is_tpu else 'NVLink',
              'DCN' if outcome.case.machine.chip.is_tpu else 'network', 'hidden')  # fmt: skip
    return Table(f'Collectives of a step, on one device ({outcome.source})', header, rows, texts=2)


def search_table(tried: Sequence[Tried], best: int = 16) -> Table:
    """The ranking of a search."""
    rows = []
    kinds = of_each_kind(tried)[:best]
    shown = [one for one in tried if one in kinds or not one.different or one.outcome is None]
    for one in shown:
        name = short(one.changes) + ('' if one.different else '  (as it stands)')
        if one.outcome is None:
            why = f'> {gib(one.needed)}' if one.needed else 'compiler fails'
            rows.append((name, 'no', why, fmt.DASH, fmt.DASH, fmt.DASH, COMPILED))
            continue
        memory, roof = one.outcome.memory, one.outcome.roofline
        rows.append((name, 'yes' if memory.fits else 'no', gib(memory.total), seconds(roof.step),
                     roof.bound, fmt.percent(one.outcome.mfu), one.outcome.source))  # fmt: skip
    title = f'The best {len(rows)} of {len(tried)} configurations; of each mesh and remat policy only the first'
    return Table(title, ('configuration', 'fits', 'memory', 'step', 'bound by', 'MFU at most', 'source'), rows)
