# ruff: noqa: E501 (XLA writes long lines)
"""Reading the text of compiled programs, on programs short enough to count by hand."""

import pytest

from llm_jax.plan import hlo
from llm_jax.plan.cost import analyse

# Four devices. A loop of 5 turns multiplies [8,16] by [16,4] and gathers over pairs;
# around it: a fused product, a reduction over all, a started permutation, a TPU-style batched product.
PROGRAM = """HloModule jit_step, is_scheduled=true, num_partitions=4

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.0 = f32[] add(%a, %b)
}

%fused (p0: f32[8,16], p1: f32[16,4]) -> f32[8,4] {
  %p0 = f32[8,16]{1,0} parameter(0)
  %p1 = f32[16,4]{1,0} parameter(1)
  ROOT %dot.0 = f32[8,4]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%cut (s0: bf16[5,32,32], s1: s32[]) -> bf16[32,32] {
  %s0 = bf16[5,32,32]{2,1,0} parameter(0)
  %s1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %piece = bf16[1,32,32]{2,1,0} dynamic-slice(%s0, %s1, %zero, %zero), dynamic_slice_sizes={1,32,32}
  ROOT %flat = bf16[32,32]{1,0} bitcast(%piece)
}

%body (arg: (s32[], f32[8,16], f32[16,4], /*index=3*/bf16[5,32,32])) -> (s32[], f32[8,16], f32[16,4], bf16[5,32,32]) {
  %arg = (s32[], f32[8,16]{1,0}, f32[16,4]{1,0}, /*index=3*/bf16[5,32,32]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %x = f32[8,16]{1,0} get-tuple-element(%arg), index=1
  %w = f32[16,4]{1,0} get-tuple-element(%arg), index=2
  %stack = bf16[5,32,32]{2,1,0} get-tuple-element(%arg), index=3
  %one = s32[] constant(2)
  %next = s32[] add(%i, %one)
  %y = f32[8,4]{1,0} fusion(%x, %w), kind=kOutput, calls=%fused
  %part = bf16[32,32]{1,0} fusion(%stack, %i), kind=kLoop, calls=%cut
  %wide = f32[16,4]{1,0} all-gather(%y), channel_id=1, replica_groups=[2,2]<=[4], dimensions={0}
  ROOT %out = (s32[], f32[8,16]{1,0}, f32[16,4]{1,0}, bf16[5,32,32]{2,1,0}) tuple(%next, %x, %w, %stack)
}

%condition (arg.1: (s32[], f32[8,16], f32[16,4], bf16[5,32,32])) -> pred[] {
  %arg.1 = (s32[], f32[8,16]{1,0}, f32[16,4]{1,0}, bf16[5,32,32]{2,1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%arg.1), index=0
  %bound = s32[] constant(13)
  ROOT %less = pred[] compare(%i.1, %bound), direction=LT
}

ENTRY %main (x: f32[8,16], w: f32[16,4], stack: bf16[5,32,32]) -> f32[] {
  %x.0 = f32[8,16]{1,0} parameter(0)
  %w.0 = f32[16,4]{1,0:T(8,128)S(1)} parameter(1)
  %stack.0 = bf16[5,32,32]{2,1,0} parameter(2)
  %start = s32[] constant(3)
  %init = (s32[], f32[8,16]{1,0}, f32[16,4]{1,0}, bf16[5,32,32]{2,1,0}) tuple(%start, %x.0, %w.0, %stack.0)
  %loop = (s32[], f32[8,16]{1,0}, f32[16,4]{1,0}, bf16[5,32,32]{2,1,0}) while(%init), condition=%condition, body=%body
  %b.0 = f32[3,8,16]{2,1,0} constant({...})
  %b.1 = f32[3,16,4]{2,1,0} constant({...})
  %batched = f32[3,8,4]{2,1,0} convolution(%b.0, %b.1), window={size=3 stride=2 pad=0_0 lhs_dilate=3}, dim_labels=0bf_0io->0bf
  %all = f32[8,16]{1,0} all-reduce(%x.0), channel_id=2, replica_groups={}, to_apply=%sum
  %sent = (f32[8,16]{1,0}, f32[8,16]{1,0}, u32[], u32[]) collective-permute-start(%all), channel_id=3, source_target_pairs={{0,2},{2,0},{1,3},{3,1}}
  %got = f32[8,16]{1,0} collective-permute-done(%sent)
  ROOT %result = f32[] constant(0)
}
"""


def test_a_program_by_hand():
    cost = analyse(PROGRAM)
    # The loop counts 3, 5, ..., 11: five turns. One product is 2·8·16·4; of the batched one three are.
    assert cost.flops == 5 * 2 * 8 * 16 * 4 + 3 * 2 * 8 * 16 * 4
    assert not cost.unknown_loops
    found = {(c.kind, c.bytes, c.group, c.times, c.overlapped) for c in cost.collectives}
    assert found == {
        ('all-gather', 16 * 4 * 4, (0, 1), 5, False),
        ('all-reduce', 8 * 16 * 4, (0, 1, 2, 3), 1, False),
        ('collective-permute', 8 * 16 * 4, (0, 2), 1, True),
    }


def test_traffic_counts_the_slice_that_is_read_and_not_the_chips_own_memory():
    module = hlo.parse(PROGRAM)
    assert not module.computations['main'].by_name['w.0'].shapes[0].in_hbm
    cost = analyse(PROGRAM)
    fusions = {work: times for work, times in cost.work.items() if times == 5}
    # The product reads x, w and writes y; the slice reads one of five matrices and writes it.
    assert (2 * 8 * 16 * 4.0, 4 * (8 * 16 + 16 * 4 + 8 * 4)) in fusions
    assert any(n_bytes == pytest.approx(2 * 2 * 32 * 32 + 4) for _, n_bytes in fusions)


@pytest.mark.parametrize(
    ('written', 'expected'),
    [
        ('{{1,3},{0,2}}', (1, 3)),
        ('[4,2]<=[8]', (0, 1)),
        ('[2,4]<=[4,2]T(1,0)', (0, 2, 4, 6)),
        ("mesh['a'=4,'b'=2] {'a'}", (0, 2, 4, 6)),
        ("mesh['a'=4,'b'=2] {'b'}", (0, 1)),
        ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}", (0, 1)),
        ("mesh['a'=8] {'a':(1)2}", (0, 4)),
        ("mesh['a'=8] {'a':(2)2}", (0, 2)),
        ('{}', tuple(range(8))),
    ],
)
def test_groups_of_devices(written, expected):
    op = hlo._op(f'%g = f32[4]{{0}} all-gather(%x), channel_id=1, replica_groups={written}, dimensions={{0}}')
    assert hlo.group(op, 8) == expected


def test_a_loop_without_a_known_end_is_named():
    text = PROGRAM.replace('direction=LT', 'direction=NE')
    assert analyse(text).unknown_loops == ['loop']


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match='no ENTRY'):
        hlo.parse('module @jit_step {}')
    with pytest.raises(ValueError, match='unknown way'):
        hlo.group(hlo._op('%g = f32[4]{0} all-gather(%x), replica_groups=<new>, dimensions={0}'), 8)


def test_what_goes_between_slices_is_sent_by_hosts():
    """Two slices of two devices: the sum over both leaves each device as a send of its part."""
    text = """HloModule jit_step, num_partitions=4

ENTRY %main (p: f32[8,16]) -> f32[8,16] {
  %p = f32[8,16]{1,0} parameter(0)
  %token = token[] after-all()
  %send = (f32[8,16]{1,0}, u32[], token[]) send(%p, %token), channel_id=6, is_host_transfer=true, frontend_attributes={kernel_metadata={
"note":"{1}"
}}, frontend_attributes={_megascale_reduce_operation="SUM",_megascale_target="{1,2}x{0:1}",_megascale_transfer_type="ALL_REDUCE"}
  %done = token[] send-done(%send), channel_id=6
  ROOT %out = f32[8,16]{1,0} copy(%p)
}
"""
    (found,) = analyse(text).collectives
    assert (found.kind, found.bytes, found.group, found.times, found.overlapped) == ('all-reduce', 512, (0, 2), 1, True)
    assert hlo.members('0:3,7') == 5


# A loop-invariant stack [5,32,32] of which a fusion within a fusion reads one matrix, and two results of one fusion:
# one matrix written in place into a stack, and one array as a whole. A copy to the host's memory and back.
NESTED = """HloModule jit_step, is_scheduled=true, num_partitions=1

%cut (s0: bf16[5,32,32], s1: s32[]) -> bf16[32,32] {
  %s0 = bf16[5,32,32]{2,1,0} parameter(0)
  %s1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %piece = bf16[1,32,32]{2,1,0} dynamic-slice(%s0, %s1, %zero, %zero), dynamic_slice_sizes={1,32,32}
  ROOT %flat = bf16[32,32]{1,0} bitcast(%piece)
}

%outer (o0: bf16[5,32,32], o1: s32[], o2: bf16[5,32,32]) -> (bf16[5,32,32], bf16[32,32]) {
  %o0 = bf16[5,32,32]{2,1,0} parameter(0)
  %o1 = s32[] parameter(1)
  %o2 = bf16[5,32,32]{2,1,0} parameter(2)
  %part = bf16[32,32]{1,0} fusion(%o0, %o1), kind=kLoop, calls=%cut
  %row = bf16[1,32,32]{2,1,0} bitcast(%part)
  %zero.1 = s32[] constant(0)
  %into = bf16[5,32,32]{2,1,0} dynamic-update-slice(%o2, %row, %o1, %zero.1, %zero.1)
  ROOT %both = (bf16[5,32,32]{2,1,0}, bf16[32,32]{1,0}) tuple(%into, %part)
}

ENTRY %main (stack: bf16[5,32,32], i: s32[], into: bf16[5,32,32]) -> bf16[32,32] {
  %stack = bf16[5,32,32]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %into.0 = bf16[5,32,32]{2,1,0} parameter(2)
  %done = (bf16[5,32,32]{2,1,0}, bf16[32,32]{1,0}) fusion(%stack, %i, %into.0), kind=kLoop, calls=%outer
  %small = bf16[32,32]{1,0} get-tuple-element(%done), index=1
  %away = (bf16[32,32]{1,0:S(5)}, bf16[32,32]{1,0}, u32[]) copy-start(%small)
  %kept = bf16[32,32]{1,0:S(5)} copy-done(%away)
  %again = (bf16[32,32]{1,0}, bf16[32,32]{1,0:S(5)}, u32[]) copy-start(%kept)
  ROOT %back = bf16[32,32]{1,0} copy-done(%again)
}
"""


def test_fusions_within_fusions_read_and_write_parts():
    matrix = 2 * 32 * 32
    # One matrix read, one written into the stack, one written as a whole; the index.
    assert list(analyse(NESTED).work) == [(0.0, 3 * matrix + 4.0)]


def test_what_goes_to_the_host_and_comes_back():
    assert analyse(NESTED).host_bytes == 2 * 2 * 32 * 32


def test_a_vector_goes_to_the_host_alone():
    text = """HloModule jit_step, is_scheduled=true, num_partitions=1

ENTRY %main (x: f32[96]) -> f32[96] {
  %x = f32[96]{0} parameter(0)
  ROOT %out = f32[96]{0:S(5)} copy(%x)
}
"""
    assert analyse(text).host_bytes == 4 * 96


def conditional():
    """One of two branches multiplies; the other gives its operand back."""
    return """HloModule jit_step, is_scheduled=true, num_partitions=1

%work (w: f32[8,8]) -> f32[8,8] {
  %w = f32[8,8]{1,0} parameter(0)
  ROOT %dot = f32[8,8]{1,0} dot(%w, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%skip (s: f32[8,8]) -> f32[8,8] {
  ROOT %s = f32[8,8]{1,0} parameter(0)
}

ENTRY %main (which: s32[], x: f32[8,8]) -> f32[8,8] {
  %which = s32[] parameter(0)
  %x = f32[8,8]{1,0} parameter(1)
  ROOT %out = f32[8,8]{1,0} conditional(%which, %x, %x), branch_computations={%skip, %work}
}
"""


def test_of_branches_the_one_with_most_work_counts():
    assert analyse(conditional()).flops == 2 * 8**3


def test_a_loop_of_unknown_turns_is_counted_as_its_name_says():
    text = PROGRAM.replace(
        'condition=%condition', 'condition=%condition, metadata={op_name="jit(f)/about_0_turns/while"}'
    )
    cost = analyse(text)
    assert cost.flops == 3 * 2 * 8 * 16 * 4  # those outside of the loop
    # What lies within such a loop is not meant.
    within = text.replace('about_0_turns/while', 'about_0_turns/while/body/while')
    assert analyse(within).flops == analyse(PROGRAM).flops
