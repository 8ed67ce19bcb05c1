"""How long a program waits for what it has started, against clocks read by hand."""

import pytest

from llm_jax.plan import hlo
from llm_jax.plan.schedule import Clock, waits

# A product of [8,8] by [8,8] takes a second, a collective as many as its first dimension says, a kernel ten.
CLOCK = Clock(
    flop_rate=2 * 8**3,
    byte_rate=float('inf'),
    move=lambda collective: collective.bytes / (8 * 4),
    kernel=lambda name: 10.0 if name == 'splash' else 0.0,
)
GATHER = 'channel_id={}, replica_groups={{{{0,1}}}}, dimensions={{0}}'
PRODUCT = 'f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}'


def program(*lines, loop=''):
    body = '\n'.join(f'  {line}' for line in lines)
    return hlo.parse(
        'HloModule jit_step, is_scheduled=true, num_partitions=2\n\n'
        f'{loop}'
        'ENTRY %main (x: f32[8,8]) -> f32[8,8] {\n  %x = f32[8,8]{1,0} parameter(0)\n'
        f'{body}\n  ROOT %out = f32[8,8]{{1,0}} bitcast(%x)\n}}\n'
    )


def start(name, seconds, kind='all-gather'):
    shape = f'f32[{seconds},8]{{1,0}}'
    return f'%{name} = ({shape}, {shape}) {kind}-start(%x), {GATHER.format(abs(hash(name)) % 1000)}'


def done(name, kind='all-gather'):
    return f'%{name}.done = f32[8,8]{{1,0}} {kind}-done(%{name})'


def product(name):
    return f'%{name} = {PRODUCT}'


def test_what_lies_between_start_and_done_is_not_waited_for():
    found = waits(program(start('a', 5), product('p'), product('q'), done('a'), product('r')), CLOCK)
    assert found == {'a': 3.0}
    assert waits(program(start('a', 2), product('p'), product('q'), done('a')), CLOCK) == {'a': 0.0}
    assert waits(program(start('a', 2), done('a')), CLOCK) == {'a': 2.0}


def test_a_link_serves_one_after_the_other():
    # a is there at 4, b at 4 + 3; one product after a.done the clock stands at 5.
    found = waits(program(start('a', 4), start('b', 3), done('a'), product('p'), done('b')), CLOCK)
    assert found == {'a': 4.0, 'b': 2.0}


def test_a_collective_that_is_not_started_ahead_uses_the_link_too():
    whole = f'%whole = f32[6,8]{{1,0}} all-gather(%x), {GATHER.format(7)}'
    # a holds the link until 4, the other one until 10, b until 12.
    found = waits(program(start('a', 4), whole, start('b', 2), product('p'), done('a'), done('b')), CLOCK)
    assert found == {'a': 0.0, 'b': 1.0}


def test_wrapped_collectives_and_their_updates():
    wrapped = (
        f'%wrap (y: f32[8,8]) -> f32[8,8] {{\n  %y = f32[8,8]{{1,0}} parameter(0)\n'
        f'  ROOT %inner = f32[8,8]{{1,0}} all-gather(%y), {GATHER.format(9)}\n}}\n\n'
    )
    lines = (
        '%a = ((f32[8,8]{1,0}), f32[8,8]{1,0}) async-start(%x), calls=%wrap',
        product('p'),
        '%a.more = ((f32[8,8]{1,0}), f32[8,8]{1,0}) async-update(%a)',
        product('q'),
        '%a.done = f32[8,8]{1,0} async-done(%a.more)',
    )
    assert waits(program(*lines, loop=wrapped), CLOCK) == {'inner': 6.0}


def test_a_sparse_core_begins_when_it_gets_its_operand():
    """It is woken by a `call-start` of a computation on a thread of its own, and its operand comes with an update."""
    gathers = (
        f'%on_sparse_core (y: f32[8,8]) -> f32[8,8] {{\n  %y = f32[8,8]{{1,0}} parameter(0)\n'
        f'  ROOT %inner = f32[8,8]{{1,0}} all-gather(%y), {GATHER.format(9)}\n}}, execution_thread="sparsecore"\n\n'
    )
    woken = '%a = ((), (), (s32[1]{0})) call-start(), async_execution_thread="sparsecore", to_apply=%on_sparse_core'
    given = '%a.given = ((f32[8,8]{1,0}), f32[8,8]{1,0}) call-update(%a, %x)'
    done = '%a.done = f32[8,8]{1,0} call-done(%a.given)'
    assert waits(program(woken, product('p'), given, product('q'), done, loop=gathers), CLOCK) == {'inner': 7.0}
    assert waits(program(woken, given, product('p'), product('q'), done, loop=gathers), CLOCK) == {'inner': 6.0}


@pytest.mark.parametrize('turns', [1, 7])
def test_loops_take_their_time_and_kernels_theirs(turns):
    loop = (
        '%body (s: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {\n  %s = (s32[], f32[8,8]{1,0}) parameter(0)\n'
        '  %x = f32[8,8]{1,0} get-tuple-element(%s), index=1\n'
        f'  {start("inside", 3)}\n  {product("p")}\n  {done("inside")}\n'
        '  ROOT %next = (s32[], f32[8,8]{1,0}) tuple(%s, %x)\n}\n\n'
        '%test (s: (s32[], f32[8,8])) -> pred[] {\n  %s = (s32[], f32[8,8]{1,0}) parameter(0)\n'
        '  ROOT %more = pred[] constant(true)\n}\n\n'
    )
    known = f'backend_config={{"known_trip_count":{{"n":"{turns}"}}}}'
    lines = (
        start('a', 40),
        f'%loop = (s32[], f32[8,8]{{1,0}}) while(%x), condition=%test, body=%body, {known}',
        '%splash.1 = f32[8,8]{1,0} custom-call(%x), custom_call_target="tpu_custom_call"',
        done('a'),
    )
    # A turn takes its product and the two seconds that are waited for.
    assert waits(program(*lines, loop=loop), CLOCK) == {'inside': 2.0, 'a': 40 - 3.0 * turns - 10}
