"""Everything a training run needs, built and checked before the first step."""

from collections.abc import Callable
import dataclasses
import os
from typing import Any

from etils import epath
import jax
from jax.sharding import Mesh
import numpy as np
import optax

from llm_jax import config as config_lib
from llm_jax import runs
from llm_jax.checkpoint import Checkpoints
from llm_jax.config.schema import Config, ConfigError
from llm_jax.data.prepare import Prepared
from llm_jax.dist import mesh as mesh_lib
from llm_jax.dist.fit import check_fit
from llm_jax.nn.transformer import Transformer, build, parameters_of
from llm_jax.ops import matmul
from llm_jax.ops.attend.choose import kernels
from llm_jax.tokenizer import Tokenizer
from llm_jax.train import compiler, offload, reproducible
from llm_jax.train import optimizer as optimizer_lib
from llm_jax.train.state import State, init_state
from llm_jax.train.step import jit_train_step


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
    """The pure half of a run: what is computed, on which mesh, for how long."""

    config: Config
    mesh: Mesh
    steps: Steps
    model: Transformer
    optimizer: optax.GradientTransformation
    schedule: Callable[[Any], jax.Array]
    shapes: State  # of jax.ShapeDtypeStruct
    bos_id: int
    attention: dict[str, str]  # kernel -> why it was chosen
    compiler_options: dict[str, Any]  # of XLA, that the compiler of the mesh's devices accepts

    def init(self, key: jax.Array) -> State:
        """A fresh state; jit it under the mesh."""
        return init_state(self.model, self.optimizer, key, with_ema=self.config.train.ema_decay > 0)

    def train_step(self) -> Callable[[State, jax.Array], tuple[State, dict[str, jax.Array]]]:
        """`(state, tokens) -> (state, metrics)`, jitted with the compiler's options; its state is donated."""
        return self._jit_step(self.compiler_options)

    def _jit_step(self, options: dict[str, Any] | None) -> Callable[[State, jax.Array], tuple[State, dict]]:
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
        return self._jit_step(None).lower(state, self.batch_shape)

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
    def batch_shape(self) -> jax.ShapeDtypeStruct:
        """A batch of tokens, int32[B, L+1], on the mesh."""
        shape = (self.config.train.batch_size, self.config.data.seq_len + 1)
        return jax.ShapeDtypeStruct(shape, np.int32, sharding=self.rows_sharding)

    @property
    def local_rows(self) -> np.ndarray:
        """Rows of the global batch that this host reads."""
        return mesh_lib.local_rows(self.rows_sharding, self.config.train.batch_size)

    def place(self, local: np.ndarray) -> jax.Array:
        """This host's rows of a batch -> the global batch on the mesh."""
        return mesh_lib.global_batch(local, self.local_rows, self.rows_sharding, self.config.train.batch_size)


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
    span = optimizer_lib.Span(steps.total, steps.warmup, steps.decay, config.schedule.floor)
    schedule = optimizer_lib.make_schedule(config.schedule, config.optimizer.learning_rate, span)
    with jax.set_mesh(mesh) if isinstance(mesh, Mesh) else jax.sharding.use_abstract_mesh(mesh):
        context = mesh_lib.shard_count(config.model.rules, 'length')
        attention = kernels(config.model, platform=mesh_lib.platform(), length=config.data.seq_len, context=context)
        key = jax.eval_shape(lambda: jax.random.key(0))
        params = jax.eval_shape(lambda k: init_state(model, optax.identity(), k, with_ema=False), key).params
        optimizer = optimizer_lib.make_optimizer(config.optimizer, schedule, params, parameters_of(model))
        with_ema = config.train.ema_decay > 0
        shapes = jax.eval_shape(lambda k: init_state(model, optimizer, k, with_ema=with_ema), key)
    if config.optimizer.offload:
        shapes = dataclasses.replace(shapes, opt_state=offload.in_host_memory(shapes.opt_state))
    return Plan(config, mesh, steps, model, optimizer, schedule, shapes, bos_id, attention, compiler_options)


def keep_compiled(directory: str) -> None:
    """Keeps compiled programs in `directory` between runs, unless JAX was told of another; '' keeps none."""
    if directory and not jax.config.jax_compilation_cache_dir:
        jax.config.update('jax_compilation_cache_dir', directory if '://' in directory else os.path.abspath(directory))


def check_samples(config: Config, steps: Steps, tokenizer: Tokenizer) -> None:
    """Raises: ConfigError: a sample during training would be longer than the model's context."""
    for prompt in config.train.sample_prompts if steps.sample else ():
        length = 1 + len(tokenizer.encode(prompt)) + config.train.sample_tokens
        if length > config.model.max_seq_len:
            raise ConfigError(
                f'train.sample_tokens = {config.train.sample_tokens} after the prompt {prompt!r} is {length} tokens, '
                f'past model.max_seq_len = {config.model.max_seq_len}; lower it'
            )


def start_state(plan: Plan, checkpoints: Checkpoints, prepared: Prepared) -> tuple[State, str]:
    """The state to begin with: this run's newest checkpoint, else `init_from`, else scratch.

    Returns:
      the state on the mesh, and a sentence on where it came from.

    Raises:
      ConfigError: a checkpoint that does not fit.
    """
    config = plan.config
    if (step := checkpoints.latest_step) is not None:
        meta = checkpoints.meta(step)
        if meta['tokenizer'] != prepared.tokenizer.fingerprint:
            raise ConfigError(
                f'the checkpoint of step {step} was trained with another tokenizer ({meta["tokenizer"]}) than the '
                f'data is now prepared with ({prepared.tokenizer.fingerprint}); set data.tokenizer.path to the '
                "run directory's tokenizer, or train elsewhere with --workdir"
            )
        if meta['data'] != prepared.manifest['digest']:
            raise ConfigError(
                f'data.sources = {config.data.sources} holds other text than up to the checkpoint of step {step}, so '
                'going on would repeat some rows and skip others; bring the text back, or start a new run from these '
                'parameters with --config.init_from=RUN --workdir=ANOTHER'
            )
        items = checkpoints.restore(step, to_items(plan.shapes), plan.mesh)
        return from_items(items), f'resumed at step {step}'
    state = jax.jit(plan.init)(jax.random.key(config.seed))
    if not config.init_from:
        return state, 'started from scratch'
    source = epath.Path(config.init_from)
    source_config = runs.read_config(source)
    source_checkpoints = Checkpoints(source, source_config.checkpoint, read_only=True)
    step = runs.pick_step(source_checkpoints, source, None)
    item = 'ema' if source_checkpoints.has(step, 'ema') else 'params'
    params = source_checkpoints.restore(step, {item: plan.shapes.params}, plan.mesh)[item]
    ema = jax.tree.map(jax.numpy.copy, params) if state.ema is not None else None
    return dataclasses.replace(state, params=params, ema=ema), f'started from {source} at step {step}'


def to_items(state: State) -> dict[str, Any]:
    """A state as the named items of a checkpoint: parameters can be read without the rest."""
    items = {'params': state.params, 'train': {'step': state.step, 'opt_state': state.opt_state}}
    return items if state.ema is None else items | {'ema': state.ema}


def from_items(items: dict[str, Any]) -> State:
    """The inverse of `to_items`."""
    return State(items['train']['step'], items['params'], items['train']['opt_state'], items.get('ema'))
