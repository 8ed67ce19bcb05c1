"""Collects what the page of a plan shows, as plain data: `llm_jax.report.plan` draws it."""

from collections.abc import Sequence
import re

from llm_jax.metrics import format as fmt
from llm_jax.plan import facts
from llm_jax.plan.planner import Budget, Outcome
from llm_jax.plan.search import Tried
from llm_jax.plan.topology import Machine
from llm_jax.report.page import Card
from llm_jax.report.plan import Fact, Lane, Part, Plan, Point

# Parts of memory that a run keeps; a step needs the others on top of them.
_KEPT = ('parameters', 'optimizer', 'average of parameters', 'batch', 'padding of arrays')


def default_path(name: str, machine: Machine) -> str:
    """Path of the page of an experiment on a machine: plans/llama3_8b-v5p-4x4x8.html, which git ignores."""
    return f'plans/{re.sub("[^A-Za-z0-9._]+", "-", f"{name}-{machine}").strip("-")}.html'


def collect(
    outcome: Outcome, *, command: str, budget: Budget | None, price: float | None, tried: Sequence[Tried] = ()
) -> Plan:
    """All that the page shows.

    Args:
      outcome: the configuration that was planned.
      command: that makes the page again.
      budget: of the whole run.
      price: of a chip-hour.
      tried: from a search; may be empty.
    """
    case = outcome.case
    tables = [
        ('Step', facts.step_rows(outcome)),
        ('Memory of one device', facts.memory_rows(outcome)),
        ('The whole run', facts.budget_rows(budget, price, case.machine)),
        ('Serving', facts.serving_rows(outcome)),
        ('Rates of the chip', facts.assumed_rows(outcome)),
    ]
    return Plan(
        name=case.config.name,
        machine=str(case.machine),
        verdict=facts.verdict(outcome),
        cards=_cards(outcome, budget),
        parts=[Part(name, n, name in _KEPT) for name, n in outcome.memory.parts.items()],
        limit=outcome.memory.limit,
        source=outcome.memory.source,
        lanes=_lanes(outcome),
        seconds=outcome.roofline.step,
        bound=outcome.roofline.bound,
        tried=_points(tried),
        facts=[(title, [Fact(*row) for row in rows]) for title, rows in tables],
        tables=[facts.traffic_table(outcome)] + ([facts.search_table(tried)] if tried else []),
        notes=facts.notes(outcome),
        command=command,
    )


def _cards(outcome: Outcome, budget: Budget | None) -> list[Card]:
    roof = outcome.roofline
    cards = [
        Card('step at the roofline', facts.seconds(roof.step), f'bound by {roof.bound}'),
        Card('MFU', fmt.percent(outcome.mfu), 'at most'),
        Card('tokens/s', fmt.count(outcome.tokens_per_second), 'at most'),
    ]
    if budget is not None:
        cards.append(Card('the whole run', fmt.duration(budget.seconds), f'for {fmt.count(budget.tokens)} tokens'))
        cards.append(Card('chip-hours', fmt.count(budget.chip_hours), 'at the roofline'))
        if budget.cost is not None:
            cards.append(Card('cost', fmt.count(budget.cost), 'at the given price'))
    return cards


def _lanes(outcome: Outcome) -> list[Lane]:
    """Resources of a step: transfers that nothing hides, then operations, each bound by arithmetic or memory."""
    roof, is_tpu = outcome.roofline, outcome.case.machine.chip.is_tpu
    moving = [traffic for traffic in roof.traffic if traffic.ici + traffic.dcn]
    exposed = lambda seconds: sum(t.exposed * seconds(t) / (t.ici + t.dcn) for t in moving)
    lanes = [
        Lane('operations', roof.exposed, roof.serial, roof.serial),
        Lane('compute', roof.exposed, roof.compute),
        Lane('HBM', roof.exposed, roof.hbm),
        Lane('ICI' if is_tpu else 'NVLink', 0, roof.ici, exposed(lambda t: t.ici), transfer=True),
        Lane('DCN' if is_tpu else 'network', 0, roof.dcn, exposed(lambda t: t.dcn), transfer=True),
    ]
    return lanes + ([Lane('PCIe', 0, roof.host, transfer=True)] if roof.host else [])


def _points(tried: Sequence[Tried]) -> list[Point]:
    """The configurations of which time and memory are known."""
    known = [one for one in tried if one.outcome is not None]
    best = next((one for one in known if one.fits), None)
    points = []
    for one in known:
        roles = [role for role, is_so in (('best', one is best), ('as it stands', not one.different)) if is_so]
        outcome = one.outcome
        points.append(Point(outcome.memory.total, outcome.roofline.step, one.fits, outcome.source, ', '.join(roles)))
    return points
