"""Everything a training run needs, built and checked before the first step."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np
import optax

from llm_jax import config as config_lib
from llm_jax.adapt.start import start_adapters
from llm_jax.config.schema import ADAPTERS, Config, ConfigError
from llm_jax.dist import mesh as mesh_lib
from llm_jax.dist.fit import check_fit
from llm_jax.nn.transformer import Transformer, build, init_params, parameters_of
from llm_jax.ops import matmul
from llm_jax.ops.attend.choose import kernels
from llm_jax.train import compiler, offload, reproducible
from llm_jax.train import optimizer as optimizer_lib
from llm_jax.train.objectives import Objective, fill_scores, find_objective, make_objective
from llm_jax.train.state import State, start_training
from llm_jax.train.step import Metrics, Schedule, make_train_step
from llm_jax.train.trainable import add_constants, merge_params, split_params


@dataclasses.dataclass(frozen=True)
class Steps:
    """The config's durations in optimizer steps; 0 is never, also at the end."""

    total: int
    warmup: int
    decay: int
    log: int
    eval: int
    sample: int
    checkpoint: int

    @classmethod
    def of(cls, config: Config, rows: int) -> 'Steps':
        """Args: rows: training rows of one epoch."""
        train, schedule = config.train, config.schedule
        parse = lambda field, value, total: config_lib.steps(
            value,
            field,
            tokens_per_step=train.batch_size * config.data.seq_len,
            steps_per_epoch=rows / train.batch_size,
            total=total,
        )
        total = parse('train.duration', train.duration, None)
        if total < 1:
            raise ConfigError(f'train.duration = {train.duration!r} is no step at all; train for at least one')
        return cls(
            total=total,
            warmup=parse('schedule.warmup', schedule.warmup, total),
            decay=parse('schedule.decay', schedule.decay, total),
            log=parse('train.log_every', train.log_every, total),
            eval=parse('train.eval_every', train.eval_every, total),
            sample=parse('train.sample_every', train.sample_every, total),
            checkpoint=parse('checkpoint.every', config.checkpoint.every, total),
        )

    def due(self, every: int, step: int) -> bool:
        """True if something that happens every so many steps, and at the end, happens after `step` of them."""
        return every > 0 and (step % every == 0 or step == self.total)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The pure half of a run: what is computed, on which mesh, for how long.

    Attributes:
      config: the experiment, with what data decides filled in.
      mesh: concrete or abstract.
      steps: its durations.
      model: the Transformer.
      objective: what is minimised.
      optimizer: from gradients to updates.
      schedule: step -> learning rate.
      shapes: the state as `jax.ShapeDtypeStruct`.
      frozen_shapes: the parameters that are not trained; None if all are.
      constant_shapes: those that the objective reads besides, by name.
      bos_id: the token that begins every document.
      attention: kernel -> why it was chosen.
      compiler_options: options of XLA that the compiler of the devices accepts.
    """

    config: Config
    mesh: Mesh
    steps: Steps
    model: Transformer
    objective: Objective
    optimizer: optax.GradientTransformation
    schedule: Schedule
    shapes: State
    frozen_shapes: Any
    constant_shapes: dict[str, Any]
    bos_id: int
    attention: dict[str, str]
    compiler_options: dict[str, Any]

    @property
    def param_shapes(self) -> Any:
        """All parameters as `jax.ShapeDtypeStruct`, trained and frozen."""
        return merge_params(self.shapes.params, self.frozen_shapes)

    def init(self, key: jax.Array) -> tuple[State, Any]:
        """A fresh state, and the parameters that are not trained, or None; jit it under the mesh."""
        return self.start(init_params(self.model, key))

    def start(self, params: Any) -> tuple[State, Any]:
        """The state that begins with these parameters of the base, and what is not trained of all; jit it.

        A head of scores that the base does not have is new.
        """
        if self.config.model.scores and 'score' not in params:
            params = params | {'score': init_params(self.model, jax.random.key(self.config.seed))['score']}
        params = start_adapters(self.model, params, self.config.seed)
        trained, frozen = split_params(params, self.config.train.trainable)
        return start_training(trained, self.optimizer, with_ema=self.config.train.ema_decay > 0), frozen

    def train_step(self) -> Callable[..., tuple[State, Metrics]]:
        """`(state, rows, [frozen]) -> (state, metrics)`, jitted with the compiler's options.

        The state is donated; the parameters that are not trained, given only if there are any, are not.
        """
        return self._jit_step(self.compiler_options)

    def _jit_step(self, options: dict[str, Any] | None) -> Callable[..., tuple[State, Metrics]]:
        parts = self.model, self.config, self.optimizer, self.schedule
        return jit_train_step(*parts, bos_id=self.bos_id, compiler_options=options)

    def lowered_step(self, state: State) -> jax.stages.Lowered:
        """The step as XLA gets it, of a state or its shapes; to be called under the mesh.

        Raises:
          ConfigError: `train.reproducible`, whose step is made of several programs.
        """
        if self.config.train.reproducible:
            raise ConfigError(
                'train.reproducible = True: a step is then several programs, one device after the other, which is for '
                'debugging alone; set it to False to plan or measure one'
            )
        fixed = add_constants(self.frozen_shapes, self.constant_shapes)
        frozen = () if fixed is None else (fixed,)
        return self._jit_step(None).lower(state, self.step_shapes, *frozen)

    def compiled_step(self, state: State) -> jax.stages.Compiled:
        """The step as a program of the mesh's devices, for a state or its shapes; to be called under the mesh.

        Raises:
          ConfigError: `train.reproducible`, or compiler options of the config that the compiler refuses.
        """
        return compiler.compile_step(self.lowered_step(state), self.config, self.compiler_options)

    @property
    def rows_sharding(self) -> jax.sharding.NamedSharding:
        return mesh_lib.batch_sharding(self.mesh, self.config.model.rules)

    @property
    def step_shapes(self) -> Any:
        """The rows that a step takes, on the mesh; int32[B, L+1] in pre-training."""
        place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.rows_sharding)
        return jax.tree.map(place, self.objective.step_shapes())

    @property
    def local_rows(self) -> np.ndarray:
        """Rows of the global batch that this host reads."""
        return mesh_lib.local_rows(self.rows_sharding, self.config.train.batch_size)

    def place(self, local: Any) -> Any:
        """This host's rows of a batch, arrays [rows, ...] -> those of the global batch on the mesh."""
        args = (self.local_rows, self.rows_sharding, self.config.train.batch_size)
        return jax.tree.map(lambda array: mesh_lib.global_batch(array, *args), local)

    def collect(self, params: Any, rows: Any, step: int) -> Any:
        """Rows as the step takes them: as they are, or as the objective makes them with the parameters.

        Args:
          params: all parameters.
          rows: from `place`.
          step: optimizer steps taken before.

        Raises:
          ConfigError: the objective makes other arrays than it says.
        """
        made = self.objective.collect(params, rows, step)
        if made is rows:
            return rows
        shape_of = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)
        if shape_of(made) != (wanted := shape_of(self.step_shapes)):
            raise ConfigError(
                f'train.objective = {self.config.train.objective!r}: collect() gives {shape_of(made)}, but '
                f'step_shapes() says {wanted}; make them the same'
            )
        return jax.device_put(made, jax.tree.map(lambda leaf: leaf.sharding, self.step_shapes))


def jit_train_step(
    model: Transformer,
    config: Config,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    *,
    bos_id: int,
    compiler_options: dict[str, Any] | None = None,
) -> Callable[..., tuple[State, Metrics]]:
    """`make_train_step`, jitted with the state donated; with `train.reproducible`, that of `reproducible`."""
    if config.train.reproducible:
        objective = make_objective(model, config, bos_id=bos_id)
        return reproducible.make_train_step(objective, optimizer, schedule)
    step = make_train_step(model, config, optimizer, schedule, bos_id=bos_id)
    return jax.jit(step, donate_argnums=0, compiler_options=compiler_options)


def plan(config: Config, mesh: Mesh, *, rows: int, vocab_size: int, bos_id: int) -> Plan:
    """Builds model, optimizer and schedule, and checks them against the mesh.

    Args:
      config: the experiment.
      mesh: concrete or abstract.
      rows: training rows of one epoch.
      vocab_size: of the tokenizer.
      bos_id: of the tokenizer.

    Raises:
      ConfigError: anything about the config that cannot work; nothing is compiled yet.
    """
    if kind := config.model.quantised:
        raise ConfigError(
            f'model.quantised = {kind!r}: quantised weights are not trained; train the run that they were made of'
        )
    config = fill_scores(config)
    if config.model.scores and config.train.trainable == ADAPTERS:  # a new head is trained beside them
        train = dataclasses.replace(config.train, trainable=f'{ADAPTERS}|score/.*')
        config = dataclasses.replace(config, train=train)
    model = build(config.model, vocab_size=vocab_size, seq_len=config.data.seq_len)
    config = dataclasses.replace(config, model=model.config)
    check_fit(config, dict(mesh.shape))
    if config.train.reproducible:
        reproducible.check(config, dict(mesh.shape))
    compiler_options: dict[str, Any] = {}
    if isinstance(mesh, Mesh):
        for layer in {model.config.layer(i) for i in range(model.config.n_layers)}:
            matmul.check_device(layer.matmul, mesh.devices.flat[0])
        if config.optimizer.offload:
            offload.check_devices(mesh)
        compiler_options = compiler.accepted_options(config, mesh)
    steps = Steps.of(config, rows)
    if not getattr(find_objective(config), 'writes_text', True):
        steps = dataclasses.replace(steps, sample=0)
    span = optimizer_lib.Span(steps.total, steps.warmup, steps.decay, config.schedule.final_lr_ratio)
    schedule = optimizer_lib.make_schedule(config.schedule, config.optimizer.learning_rate, span)
    with jax.set_mesh(mesh) if isinstance(mesh, Mesh) else jax.sharding.use_abstract_mesh(mesh):
        context = mesh_lib.shard_count(config.model.rules, 'length')
        attention = kernels(config.model, platform=mesh_lib.platform(), length=config.data.seq_len, context=context)
        key = jax.eval_shape(lambda: jax.random.key(0))
        params = jax.eval_shape(lambda k: start_adapters(model, init_params(model, k), config.seed), key)
        trained, frozen = split_params(params, config.train.trainable)
        optimizer = optimizer_lib.make_optimizer(config.optimizer, schedule, trained, parameters_of(model))
        start = lambda params: start_training(params, optimizer, with_ema=config.train.ema_decay > 0)
        shapes = jax.eval_shape(start, trained)
    if config.optimizer.offload:
        shapes = dataclasses.replace(shapes, opt_state=offload.in_host_memory(shapes.opt_state))
    objective = make_objective(model, config, bos_id=bos_id)
    with jax.set_mesh(mesh) if isinstance(mesh, Mesh) else jax.sharding.use_abstract_mesh(mesh):
        constants = objective.constant_shapes()
    if config.train.reproducible:
        reproducible.check_objective(objective, add_constants(frozen, constants))
    compiled = attention, compiler_options
    return Plan(
        config, mesh, steps, model, objective, optimizer, schedule, shapes, frozen, constants, bos_id, *compiled
    )
