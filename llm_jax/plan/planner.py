"""The plan of one configuration: its memory and its time, compiled where a compiler is to be had, and what it costs."""

import collections
from collections.abc import Sequence
import dataclasses

import jax

from llm_jax.config.schema import Config, ConfigError
from llm_jax.dist import mesh as mesh_lib
from llm_jax.plan import analytic, memory, schedule, topology
from llm_jax.plan.cases import Case, abstract_mesh, make_case
from llm_jax.plan.compiled import compile_step
from llm_jax.plan.cost import Cost
from llm_jax.plan.memory import ANALYTIC, COMPILED, Memory
from llm_jax.plan.network import Network
from llm_jax.plan.roofline import Roofline, rates, roofline
from llm_jax.plan.topology import Machine

# Products of L × L that a run of a kernel computes: splash attention on TPU, cuDNN's on GPU.
ATTENTION_PRODUCTS = {
    'splash_mha_fwd': 2, 'splash_mha_dq': 3, 'splash_mha_dkv': 4,
    'dot_product_attention_fwd': 2, 'dot_product_attention_bwd': 5,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Budget:
    """Training to the end, at the roofline.

    Attributes:
      tokens: of the whole run.
      seconds: it takes.
      chip_hours: chips times hours.
      cost: in the currency of the price; None without a price.
    """

    tokens: float
    seconds: float
    chip_hours: float
    cost: float | None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Plan of one configuration.

    Attributes:
      case: the configuration on its machine.
      memory: of one device.
      roofline: of one step.
      cost: of one device and step.
      source: 'compiled' or 'analytic': where memory, traffic and collectives come from.
      compile_seconds: 0 if nothing was compiled.
    """

    case: Case
    memory: Memory
    roofline: Roofline
    cost: Cost
    source: str
    compile_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.case.tokens_per_step / self.roofline.step

    @property
    def mfu(self) -> float:
        """The most that it can be: useful FLOPs over what the chips could do in the time of the roofline."""
        return self._rate_of(self.case.flops_per_token)

    @property
    def unmasked_mfu(self) -> float:
        """MFU without what a causal mask leaves nothing of: FLOPs that some result depends on."""
        return self._rate_of(analytic.unmasked_flops_per_token(self.case))

    def _rate_of(self, flops_per_token: float) -> float:
        peak = self.case.machine.chip.bf16 * self.case.machine.chips
        return self.tokens_per_second * flops_per_token / peak

    def budget(self, tokens: float | None, price: float | None) -> Budget | None:
        """Args: tokens: None takes the config's duration, if that is not in epochs."""
        if tokens is None:
            if self.case.in_epochs:
                return None
            tokens = self.case.plan.steps.total * self.case.tokens_per_step
        seconds = tokens / self.tokens_per_second
        hours = seconds / 3600 * self.case.machine.chips
        return Budget(tokens, seconds, hours, None if price is None else hours * price)


def case_of(config: Config, machine: Machine, devices: Sequence[jax.Device] | None) -> Case:
    """A configuration on a machine.

    Args:
      config: the experiment.
      machine: where.
      devices: from `topology.tpu_devices` or `gpu_devices`; None without a compiler, to plan by numbers.

    Raises:
      ConfigError: it cannot be laid out on this machine.
    """
    sizes = topology.sizes(config, machine)
    if devices is None:
        return make_case(
            config, abstract_mesh(sizes), machine, Network(machine, topology.gpu_coordinates(machine), sizes)
        )
    mesh = mesh_lib.make_mesh(config.mesh, list(devices))
    return make_case(config, mesh, machine, Network(machine, topology.coordinates(mesh, machine), sizes))


def estimated(case: Case) -> Outcome:
    """The plan by numbers alone."""
    cost = analytic.cost(case)
    roof = roofline(case, cost, bubble=analytic.bubble(case))
    return Outcome(case, memory.estimate(case), roof, cost, ANALYTIC)


def compiled(case: Case) -> Outcome:
    """The plan of the compiled step.

    Raises:
      DoesNotFit: the compiler found no way to fit it in.
      CompilerFails: it gave up for a reason of its own.
    """
    result = compile_step(case)
    cost = with_attention(case, result.cost)
    cost = dataclasses.replace(cost, waits=schedule.waits(result.module, _clock(case, result.cost)))
    return Outcome(case, result.memory, roofline(case, cost), cost, COMPILED, result.seconds)


def with_attention(case: Case, cost: Cost) -> Cost:
    """Adds the FLOPs of attention kernels, which the compiled text does not give, counted on paper."""
    flops = sum(n * _kernel_flops(case, cost, kernel) for kernel, n in cost.kernels.items())
    return dataclasses.replace(cost, work=cost.work + collections.Counter({(flops, 0.0): 1})) if flops else cost


def _kernel_flops(case: Case, cost: Cost, kernel: str) -> float:
    """FLOPs of one run of an attention kernel on one device; 0 for other kernels.

    By the convention of MFU training has six products of L × L, of which a causal kernel computes half.
    """
    products = next((n for name, n in ATTENTION_PRODUCTS.items() if kernel.startswith(name)), 0)
    runs = lambda name: sum(n for other, n in cost.kernels.items() if other.startswith(name))
    # Layers times micro-batches: each has one backward pass.
    blocks = max(runs('splash_mha_dq'), runs('dot_product_attention_bwd'), 1)
    attention = (case.flops_per_token - 6 * case.counts.matmul) * case.tokens_per_step / case.abstract_mesh.size
    return analytic.causal_share(case.config.model) * attention * products / 6 / blocks


def _clock(case: Case, cost: Cost) -> schedule.Clock:
    """Times on the case's machine, at its peak rates."""
    flop_rate, byte_rate = rates(case)
    return schedule.Clock(
        flop_rate, byte_rate,
        move=lambda collective: sum(case.network.seconds(collective)),
        kernel=lambda name: _kernel_flops(case, cost, name) / flop_rate,
    )  # fmt: skip


def number(text: str | None, flag: str) -> float | None:
    """A positive number from the command line; '15e12' and '1_000' work.

    Raises:
      ConfigError: it is not one.
    """
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float('inf'):
        raise ConfigError(f'{flag} = {text!r} is not a number above 0; write it like 2.5 or 15e12')
    return value
