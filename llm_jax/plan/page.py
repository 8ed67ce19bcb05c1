"""plan.html: a plan as a page that needs no other file and no network."""

from collections.abc import Sequence

from etils import epath
import matplotlib
from matplotlib import axes, figure

from llm_jax.metrics import format as fmt
from llm_jax.plan import facts
from llm_jax.plan.facts import GIB
from llm_jax.plan.planner import Budget, Outcome
from llm_jax.plan.search import Tried, pareto
from llm_jax.report import load_template
from llm_jax.report.charts import INK, MAIN, SECOND, STYLE, Chart, svg

# What a run keeps is in one colour, what a step needs on top of it in the other.
_KEPT = ('parameters', 'optimizer', 'average of parameters', 'batch', 'padding of arrays')


def write(
    path: epath.PathLike,
    outcome: Outcome,
    *,
    command: str,
    budget: Budget | None,
    price: float | None,
    tried: Sequence[Tried] = (),
) -> None:
    """Writes the page.

    Args:
      path: of the file; its directory is made.
      outcome: the configuration that was planned.
      command: that makes the page again.
      budget: of the whole run.
      price: of a chip-hour.
      tried: from a search; may be empty.
    """
    case = outcome.case
    charts = [_memory(outcome), _timeline(outcome)] + ([_pareto(tried, case.machine.hbm)] if tried else [])
    tables = [('Step', facts.step_rows(outcome)), ('Memory of one device', facts.memory_rows(outcome)),
              ('The whole run', facts.budget_rows(budget, price, case.machine)),
              ('Serving', facts.serving_rows(outcome)), ('Rates of the chip', facts.assumed_rows(outcome))]  # fmt: skip
    wide = [facts.traffic_table(outcome)] + ([facts.search_table(tried)] if tried else [])
    text = load_template('plan.html.jinja').render(
        name=case.config.name, machine=str(case.machine), fits=outcome.memory.fits, verdict=facts.verdict(outcome),
        share=outcome.memory.total / outcome.memory.limit, cards=_cards(outcome, budget), charts=charts,
        tables=tables, wide=wide, notes=facts.notes(outcome), command=command,
    )  # fmt: skip
    file = epath.Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def _cards(outcome: Outcome, budget: Budget | None) -> list[tuple[str, str]]:
    roof = outcome.roofline
    cards = [
        (facts.seconds(roof.step), f'a step at the roofline, bound by {roof.bound}'),
        (fmt.percent(outcome.mfu), 'MFU at most'),
        (fmt.count(outcome.tokens_per_second), 'tokens/s at most'),
    ]
    if budget is not None:
        cards.append((f'{budget.seconds / 86400:.1f} d', f'for {fmt.count(budget.tokens)} tokens'))
        cards.append((fmt.count(budget.chip_hours), 'chip-hours'))
        if budget.cost is not None:
            cards.append((fmt.count(budget.cost), 'cost at the given price'))
    return cards


def _bar(ax: axes.Axes, y: float, start: float, width: float, color: str, shade: float, height: float = 0.62) -> None:
    ax.barh(y, width, left=start, height=height, color=color, alpha=shade, linewidth=0)


def _memory(outcome: Outcome) -> Chart:
    """One stacked bar against the limit, its parts named with their sizes."""
    parts = [(name, n / GIB) for name, n in outcome.memory.parts.items() if n > 0.002 * outcome.memory.total]
    limit = outcome.memory.limit / GIB
    with matplotlib.rc_context(STYLE):
        fig = figure.Figure(figsize=(9.6, 2.5), layout='constrained')
        ax = fig.subplots()
        at, shades = 0.0, {MAIN: 1.0, SECOND: 1.0}
        for name, n in parts:
            color = MAIN if name in _KEPT else SECOND
            ax.barh(0, n, left=at, height=0.6, color=color, alpha=shades[color], linewidth=0,
                    label=f'{name}  {n:.2f} GiB')  # fmt: skip
            shades[color] = max(0.18, shades[color] - 0.24)
            at += n
        ax.axvline(limit, color=INK, linewidth=1.4)
        ax.annotate(f'limit {limit:.1f} GiB', (limit, 0.42), xytext=(-5, 0), textcoords='offset points',
                    ha='right', va='bottom', annotation_clip=False)  # fmt: skip
        ax.set_xlim(0, 1.04 * max(limit, at))
        ax.set_ylim(-0.4, 0.7)
        ax.set_yticks([])
        ax.grid(axis='y', visible=False)
        ax.spines['left'].set_visible(False)
        ax.tick_params(length=0)
        ax.set_xlabel('GiB')
        ax.legend(loc='upper center', bbox_to_anchor=(0.5, -0.32), ncols=3, handlelength=1, columnspacing=1.6)
        note = (
            f'At the peak of a step ({outcome.memory.source}). Blue stays between steps, orange is needed within one.'
        )
        return Chart('Memory of one device', note, svg(fig, 'plan-memory'))


def _timeline(outcome: Outcome) -> Chart:
    """Busy times of the resources within one step."""
    roof, is_tpu = outcome.roofline, outcome.case.machine.chip.is_tpu
    lanes = [
        ('operations', roof.serial),
        ('compute', roof.compute),
        ('HBM', roof.hbm),
        ('ICI' if is_tpu else 'NVLink', roof.ici),
        ('DCN' if is_tpu else 'network', roof.dcn),
    ] + ([('PCIe', roof.host)] if roof.host else [])
    unit, scale = ('ms', 1e3) if roof.step < 1 else ('s', 1)
    with matplotlib.rc_context(STYLE):
        fig = figure.Figure(figsize=(9.6, 3.0), layout='constrained')
        ax = fig.subplots()
        for y, (_, total) in enumerate(lanes):
            if y < 3:
                # What nothing hides comes first; then operations in turn, each bound by arithmetic or memory.
                _bar(ax, y, roof.exposed * scale, total * scale, MAIN, 1.0 if y == 0 else 0.5)
            elif y == 5:
                _bar(ax, y, 0, total * scale, SECOND, 0.4)
            else:
                exposed = sum(t.exposed * (t.ici if y == 3 else t.dcn) / (t.ici + t.dcn)
                              for t in roof.traffic if t.ici + t.dcn)  # fmt: skip
                _bar(ax, y, 0, exposed * scale, SECOND, 1.0)
                _bar(ax, y, exposed * scale, (total - exposed) * scale, SECOND, 0.4)
            if not total:
                ax.annotate('idle', (0, y), xytext=(4, 0), textcoords='offset points', va='center')
            else:
                end = (total + (roof.exposed if y < 3 else 0)) * scale
                ax.annotate(
                    f'{total * scale:,.1f} {unit}', (end, y), xytext=(4, 0), textcoords='offset points', va='center'
                )
        ax.axvline(roof.step * scale, color=INK, linewidth=1.4, linestyle=(0, (4, 3)))
        ax.set_yticks(range(len(lanes)), [name for name, _ in lanes])
        ax.invert_yaxis()
        ax.set_xlim(0, 1.16 * max(roof.step, roof.exposed + max(roof.serial, roof.hbm)) * scale)
        ax.grid(axis='y', visible=False)
        ax.tick_params(length=0)
        ax.set_xlabel(unit)
        note = (
            f'At the peak rates of the chip; the dashed line is the end, {facts.seconds(roof.step)}. '
            'Operations follow each other, each bound by compute or HBM. Solid orange: collectives that nothing hides.'
        )
        return Chart(f'One step, bound by {roof.bound}', note, svg(fig, 'plan-timeline'))


def _pareto(tried: Sequence[Tried], limit: float) -> Chart:
    """Every configuration by memory and time, and the front of those that no other beats in both."""
    # What is far too large or slow would squeeze the rest into a corner.
    some = [one for one in tried if one.outcome is not None and one.outcome.memory.total < 1.5 * limit]
    fastest = min((one.outcome.roofline.step for one in some), default=0.0)
    known = [one for one in some if one.outcome.roofline.step < 2 * fastest]
    x = lambda one: one.outcome.memory.total / GIB
    y = lambda one: one.outcome.roofline.step
    with matplotlib.rc_context(STYLE):
        fig = figure.Figure(figsize=(9.6, 3.8), layout='constrained')
        ax = fig.subplots()
        for source, size, fill in (('analytic', 22, False), ('compiled', 54, True)):
            for fits, color, label in ((True, MAIN, 'fits'), (False, SECOND, 'does not fit')):
                dots = [one for one in known if one.outcome.source == source and one.fits == fits]
                if dots:
                    ax.scatter([x(o) for o in dots], [y(o) for o in dots], s=size, linewidths=1.1, edgecolors=color,
                               facecolors=color if fill else 'none', label=f'{label}, {source}', zorder=3)  # fmt: skip
        front = pareto([one for one in known if one.fits])
        ax.plot([x(o) for o in front], [y(o) for o in front], color=INK, linewidth=1, zorder=2, drawstyle='steps-post',
                label='Pareto front')  # fmt: skip
        low, high = min(map(y, known)), max(map(y, known))
        margin = 0.12 * (high - low) + 0.02 * high
        ax.set_ylim(low - margin, high + margin)
        ax.set_xlim(0, 1.04 * max(limit / GIB, *map(x, known)))
        ax.axvline(limit / GIB, color=INK, linewidth=1.4)
        ax.annotate('limit', (limit / GIB, high + margin), xytext=(-5, -2), textcoords='offset points',
                    ha='right', va='top')  # fmt: skip
        for one, text in _named(known):
            ax.annotate(text, (x(one), y(one)), xytext=(0, -13), textcoords='offset points', ha='center')
        ax.tick_params(length=0)
        ax.set_xlabel('GiB a device')
        ax.set_ylabel('step at the roofline, s')
        ax.legend(loc='upper center', bbox_to_anchor=(0.5, -0.2), ncols=5, handlelength=1.2, columnspacing=1.6)
        note = (
            f'{len(known)} of {len(tried)} configurations: below 1.5 times the limit and twice the shortest step. '
            'Down and to the left is better; nothing that fits is below the front.'
        )
        return Chart('Search', note, svg(fig, 'plan-pareto'))


def _named(known: Sequence[Tried]) -> list[tuple[Tried, str]]:
    """Labels of the dots that matter: the best, and the start."""
    best = next((one for one in known if one.fits), None)
    base = next((one for one in known if not one.different), None)
    if best is base:
        return [(best, 'best, as it stands')] if best else []
    return [(one, text) for one, text in ((best, 'best'), (base, 'as it stands')) if one]
