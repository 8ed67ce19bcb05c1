"""What a search looks at, and how it ranks."""

import dataclasses
import shlex

from small import config

from llm_jax.config import cli
from llm_jax.plan import candidates, facts, memory, planner, search, topology
from llm_jax.plan.candidates import changed
from llm_jax.plan.compiled import CompilerFails, DoesNotFit
from llm_jax.plan.memory import ANALYTIC, COMPILED, Memory
from llm_jax.plan.search import Tried

H100 = topology.parse_gpu('h100', 8)


def test_candidates_can_all_be_laid_out_and_differ():
    made = config(train__batch_size=32)
    some = list(candidates.candidates(made, H100))
    assert len({tuple(c.items()) for c in some}) == len(some)
    for one in some:
        sizes = topology.sizes(changed(made, one), H100)  # raises where something does not divide
        assert one['mesh.fsdp'] == sizes['fsdp']
    assert {one['model.remat'] for one in some} == set(candidates.REMAT)
    # The residual stream may be split over tensor, and then it is in the model's own rules.
    (split, *_) = [one for one in some if one['mesh.rules.residual_length'] == ('context', 'tensor')]
    assert dict(changed(made, split).model.rules)['residual_length'] == ('context', 'tensor')


def test_axes_are_tried_where_they_may_help():
    axis = lambda made, name: {one[f'mesh.{name}'] for one in candidates.candidates(made, H100)}
    assert axis(config(), 'expert') == axis(config(), 'stage') == axis(config(), 'context') == {1}
    assert axis(config(model__feed_forward='moe'), 'expert') == {1, 2, 4, 8}
    assert axis(config(mesh__stage=2), 'stage') == {1, 2, 4}
    assert axis(config(data__seq_len=16_384), 'context') == {1, 2, 4, 8}


def test_a_table_of_positions_is_as_long_as_rows_where_the_config_says_no_length():
    """The length is filled into a changed config as it is into the first."""
    made = config(model__position='learned', model__n_layers=1)
    case = planner.case_of(made, H100, None)
    other = case.with_config(changed(made, {'model.remat': 'full'}))
    assert other.config.model.max_seq_len == case.config.model.max_seq_len == 64
    assert 0 < memory.estimate(other).total < memory.estimate(case).total


def test_flags_lead_to_the_same_config(tmp_path):
    file = tmp_path / 'experiment.py'
    file.write_text(
        'from llm_jax import config\n\n\ndef get_config():\n    made = config.default()\n'
        '    made.model.update(vocab_size=512, d_model=128, n_layers=4, n_heads=8)\n    return made\n'
    )
    changes = {
        'mesh.fsdp': 4,
        'mesh.tensor': 2,
        'mesh.rules.residual_length': ('context', 'tensor'),
        'model.remat': 'dots',
    }
    written = shlex.split(candidates.flags(changes))
    assert cli.experiment(str(file), written) == changed(cli.experiment(str(file), []), changes)


def outcome(total, step, source, limit=100.0):
    """As far as ranking looks at it."""
    fake = type('Fake', (), {})
    out = fake()
    out.memory, out.source, out.roofline = Memory({'all': total}, limit, source), source, fake()
    out.roofline.step = step
    return out


def test_the_fastest_that_surely_fits_is_first():
    tried = [
        Tried({'n': n}, {'n': n}, outcome(*how))
        for n, how in enumerate([(50, 3.0, ANALYTIC), (95, 1.0, ANALYTIC), (95, 2.0, COMPILED), (120, 0.5, COMPILED)])
    ]
    order = [one.changes['n'] for one in sorted(tried, key=search._order)]
    assert order == [2, 0, 1, 3]


def test_the_head_is_gathered_for_each_slice_where_that_makes_it_fit():
    # One head: nothing to split over tensor.
    made = config(
        model__vocab_size=262_144, model__d_model=4096, model__n_heads=1, data__seq_len=4096, train__batch_size=8
    )
    roomy = topology.parse_gpu('h100', 8)
    small = dataclasses.replace(roomy, chip=dataclasses.replace(roomy.chip, hbm=14 * 2**30))
    best = lambda machine: search.search(made, machine, None, compile_best=0, progress=lambda line: None)[0]
    assert best(roomy).fits and best(roomy).changes['train.gather_head_once']
    saving = best(small)
    assert saving.fits and not saving.changes['train.gather_head_once']
    assert 'train.gather_head_once=False' in saving.flags
    # Which costs time: the same with the head gathered once is faster, and does not fit.
    case = planner.case_of(changed(made, {**saving.changes, 'train.gather_head_once': True}), small, None)
    once = planner.estimated(case)
    assert once.roofline.step < saving.outcome.roofline.step and not once.memory.fits


def test_a_program_that_does_not_compile_does_not_end_the_search(monkeypatch):
    """The first that is compiled crashes the compiler, the second does not fit, others do."""
    tries = iter([CompilerFails('INTERNAL: RET_CHECK failure'), DoesNotFit(2.0**40, 2.0**36)])

    def compiled(case):
        for error in tries:
            raise error
        return dataclasses.replace(planner.estimated(case), source=COMPILED)

    monkeypatch.setattr(planner, 'compiled', compiled)
    # Devices of the same number stand in for those that a compiler describes.
    monkeypatch.setattr(
        planner, 'case_of', lambda config, machine, devices, real=planner.case_of: real(config, machine, None)
    )
    said = []
    found = search.search(config(), H100, ['a device'], compile_best=2, progress=said.append)
    assert [line for line in said if 'fails' in line] == ['  the compiler fails: INTERNAL: RET_CHECK failure']
    assert any('does not fit: it needs 1024.0 GiB' in line for line in said)
    assert sum(one.outcome is None for one in found) == 2
    assert sum(one.outcome.source == COMPILED for one in found if one.outcome) == 2
    assert found[0].outcome.source == COMPILED
    cells = {row[2] for row in facts.search_table(found).rows}
    assert {'compiler fails', '> 1,024.0 GiB'} <= cells


def test_a_table_of_positions_keeps_its_size():
    """The context that the length of rows gives is filled in once, and is that of every configuration tried."""
    made = config(model__position='learned')
    case = planner.case_of(made, H100, None).with_config(changed(made, {'model.remat': 'dots'}))
    assert (case.config.model.remat, case.config.model.max_seq_len) == ('dots', 64)
    assert memory.residual_bytes(case) > 0
