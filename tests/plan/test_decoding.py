import pytest
import small
from test_tpu import needs_libtpu, plan

from llm_jax.config.schema import ConfigError
from llm_jax.plan import planner, topology
from llm_jax.plan.decoding import plan_decoding


def on_h200(rows, context, **fields):
    machine = topology.parse_gpu('h200', fields.get('mesh__tensor', 1))
    case = planner.case_of(small.config(model__dtype='bfloat16', mesh__fsdp=1, **fields), machine, None)
    return plan_decoding(case, rows, context, compiles=False)


def test_a_token_reads_the_weights_and_the_caches_once():
    """Counted by hand: matrices in bfloat16, norms in float32; keys and values of 4 layers, 8 heads of 16."""
    found = on_h200(4, 64)
    D, V, F = 128, 512, found.case.config.model.ff_size
    matrices = V * D + 4 * (4 * D * D + 3 * D * F)
    assert found.memory['weights'] == 2 * matrices + 4 * 9 * D
    assert found.memory['caches'] == 4 * 64 * 4 * 2 * 128 * 2
    rate = found.case.machine.chip.hbm_rate
    assert found.roofline.step == pytest.approx(sum(found.memory.values()) / rate)
    assert found.tokens_per_second == pytest.approx(4 / found.roofline.step)
    assert found.roofline.bound == 'HBM' and found.source == 'analytic'


def test_tensor_shards_the_weights_and_sums_over_them():
    one, four = on_h200(4, 64), on_h200(4, 64, mesh__tensor=4)
    assert four.memory['caches'] == one.memory['caches'] / 4
    assert one.memory['weights'] / 4 < four.memory['weights'] < one.memory['weights'] / 3.5
    (sums,) = four.roofline.traffic
    assert (sums.kind, sums.axes, sums.times) == ('all-reduce', ('tensor',), 8)


@pytest.mark.parametrize('rows, context, message', [(0, 64, '--decode = 0'), (1, 65, '--context = 65 must be between')])
def test_mistakes(rows, context, message):
    with pytest.raises(ConfigError, match=message):
        on_h200(rows, context)


@needs_libtpu
def test_the_compiled_step_gathers_no_weight_on_a_tensor_mesh(tmp_path):
    """And does gather them where they are split over fsdp: the control."""
    decode = ('--topology', 'v6e:2x2', '--decode', '8')
    done = plan(tmp_path, *decode, '--config.mesh.tensor=4', '--config.mesh.fsdp=1')
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if 'gathered' in line]
    assert 'none' in line and 'compiled' in line
    done = plan(tmp_path, *decode, '--config.mesh.tensor=1', '--config.mesh.fsdp=4')
    (line,) = [line for line in done.stdout.splitlines() if 'gathered' in line]
    assert 'mesh.tensor alone' in line
