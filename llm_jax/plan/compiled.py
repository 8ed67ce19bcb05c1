"""Compiles the training step of a case, and reads what the compiler says."""

import dataclasses
import re
import time
from typing import Any

import jax

from llm_jax.plan import cost as cost_lib
from llm_jax.plan import hlo, memory
from llm_jax.plan.cases import Case
from llm_jax.plan.memory import Memory

_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


class DoesNotFit(Exception):
    """The compiler found no way to run the step in the memory that there is.

    Attributes:
      needed: bytes of temporaries that it asked for; without the state where the compiler leaves it out.
      available: bytes that there are.
    """

    def __init__(self, needed: float, available: float):
        super().__init__(f'{needed:.0f} of {available:.0f} bytes')
        self.needed, self.available = needed, available


class CompilerFails(Exception):
    """The compiler gives up on a program for a reason of its own: its first line."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled step.

    Attributes:
      memory: of one device.
      cost: FLOPs, traffic and collectives of one device.
      module: the program's text, read.
      xla_flops: what XLA's own analysis counts, in which the body of a loop counts once.
      seconds: that compiling took.
      program: to run, where the devices exist.
    """

    memory: Memory
    cost: cost_lib.Cost
    module: hlo.Module
    xla_flops: float
    seconds: float
    program: Any


def compile_step(case: Case) -> Compiled:
    """Compiles the step for the devices of the case's mesh, of which no array is made.

    Raises:
      DoesNotFit: the memory does not suffice.
      CompilerFails: anything else that the compiler says.
    """
    plan = case.plan
    start = time.monotonic()
    with jax.set_mesh(plan.mesh):
        try:
            program = plan.compiled_step(plan.shapes)
        except jax.errors.JaxRuntimeError as error:
            raise _translated(str(error)) or CompilerFails(str(error).partition('\n')[0].strip()) from error
    seconds = time.monotonic() - start
    analysis, module = program.cost_analysis() or {}, hlo.parse(program.as_text())
    return Compiled(
        memory=memory.compiled(case, program.memory_analysis()),
        cost=cost_lib.of_module(module),
        module=module,
        xla_flops=analysis.get('flops', 0.0),
        seconds=seconds,
        program=program,
    )


def _translated(message: str) -> DoesNotFit | None:
    """Reads the bytes in the compiler's message: '(195G) exceeds available HBM (96G)', 'Used 38G of 31G hbm'."""
    number = r'([\d.]+)([KMGT]?)'
    for pattern in (rf'\({number}\) exceeds available HBM \({number}\)', rf'Used {number} of {number} hbm'):
        if match := re.search(pattern, message):
            needed, unit, available, unit_available = match.groups()
            return DoesNotFit(float(needed) * _UNITS[unit], float(available) * _UNITS[unit_available])
    return None
