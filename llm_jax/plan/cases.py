"""An experiment on a machine: all that a plan is made from, without an array."""

import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from llm_jax.config.schema import Config
from llm_jax.data.prepare import model_vocab_size
from llm_jax.dist import mesh as mesh_lib
from llm_jax.metrics import Counts, count, flops_per_token
from llm_jax.nn.transformer import weights_of
from llm_jax.plan.network import Network
from llm_jax.plan.topology import Machine
from llm_jax.train import setup

# Durations in epochs need the number of rows, which only prepared data has.
_ROWS_PER_BATCH = 1000


@dataclasses.dataclass(frozen=True)
class Case:
    """One configuration on one machine.

    Attributes:
      config: the experiment, every size filled in.
      machine: what it is planned for; None for the devices at hand (to compare with what is measured).
      plan: model, optimizer, schedule and the shapes of the state.
      network: how the mesh lies on the machine's links; None without a machine.
    """

    config: Config
    machine: Machine | None
    plan: setup.Plan
    network: Network | None

    @functools.cached_property
    def abstract_mesh(self) -> AbstractMesh:
        mesh = self.plan.mesh
        return mesh.abstract_mesh if isinstance(mesh, Mesh) else mesh

    @functools.cached_property
    def abstract_params(self) -> Any:
        """The parameters' shapes, laid out on the abstract mesh."""
        place = lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=jax.sharding.NamedSharding(self.abstract_mesh, leaf.sharding.spec)
        )
        return jax.tree.map(place, self.plan.param_shapes)

    @functools.cached_property
    def counts(self) -> Counts:
        with jax.sharding.use_abstract_mesh(self.abstract_mesh):
            return count(self.config.model, self.plan.param_shapes, weights_of(self.plan.model))

    def with_config(self, config: Config) -> 'Case':
        """Under another config that has the same parameters in the same places, of which the counts are kept."""
        filled = {name: getattr(self.config.model, name) for name in ('vocab_size', 'max_seq_len')}  # by `build`
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, **filled))
        plan = dataclasses.replace(self.plan, config=config, model=self.plan.model.clone(config=config.model))
        other = dataclasses.replace(self, config=config, plan=plan)
        other.__dict__['counts'] = self.counts
        return other

    @property
    def flops_per_token(self) -> float:
        """Model FLOPs of training, by the convention of MFU."""
        return flops_per_token(self.config.model, self.counts, self.config.data.seq_len)

    @property
    def tokens_per_step(self) -> int:
        return self.config.train.batch_size * self.config.data.seq_len

    @property
    def sizes(self) -> dict[str, int]:
        return dict(self.plan.mesh.shape)

    @property
    def in_epochs(self) -> bool:
        """True if the length of training is given in epochs, which are not known without data."""
        return 'epoch' in str(self.config.train.duration)


def make_case(config: Config, mesh: Mesh | AbstractMesh, machine: Machine | None, network: Network | None) -> Case:
    """Raises: ConfigError: anything about the config that cannot work on this mesh."""
    vocab_size = model_vocab_size(config)
    rows = _ROWS_PER_BATCH * config.train.batch_size
    plan = setup.plan(config, mesh, rows=rows, vocab_size=vocab_size, bos_id=0)
    return Case(plan.config, machine, plan, network)


def abstract_mesh(sizes: dict[str, int]) -> AbstractMesh:
    """A mesh over devices that are nowhere."""
    return AbstractMesh(tuple(sizes.values()), mesh_lib.AXES, axis_types=(AxisType.Explicit,) * len(mesh_lib.AXES))
