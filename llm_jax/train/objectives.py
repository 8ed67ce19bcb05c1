"""Objectives: what a stage trains on, and what it minimises.

The loop, the step, micro-batches, checkpoints and meshes are the same for all. An objective says the rest:

  outputs               outputs of the head of scores that the model gets beside that of tokens
  constant_shapes       parameters besides those of the model: a teacher's
  complete_data         what the rows lack, made once before the first step (log-probabilities of a reference)
  train_rows            rows of each step on the host, a function of (seed, step)
  collect               rows made from the current parameters before a step (online objectives)
  make_batch            rows -> Batch, on the device
  add_statistics        what is taken over the whole batch, before it is split into micro-batches
  loss, normaliser      sums over a batch or micro-batch, and their divisor
  metrics               what a step reports
  eval_rows, eval_sums, eval_metrics

`config.train.objective` names one: a key of `OBJECTIVES`, or any subclass of `Objective`. Its further attributes are
options, `config.train.objective_options`; made with `config.schema.field` they have a meaning and a range.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import math
from typing import Any, ClassVar

from etils import epath
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from llm_jax.config.load import check_values
from llm_jax.config.parts import check_options, resolve_part
from llm_jax.config.schema import Config, ConfigError
from llm_jax.data.batch import Batch, split_length, unpack_examples, unpack_rows
from llm_jax.data.batches import BatchSource, TrainRows, eval_batches
from llm_jax.data.examples import FORMS
from llm_jax.data.prepare import Prepared
from llm_jax.dist import mesh
from llm_jax.nn.transformer import Transformer
from llm_jax.train.forward import per_token_nll, run_features, sum_cross_entropy

# Name -> sum over a batch, or a tree of them ('routers').
Sums = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Start:
    """What an objective may compute with before the first step.

    Attributes:
      run_dir: of the run.
      is_first: whether no step is taken yet; else the run goes on from a checkpoint.
      origin: what the parameters of the run began as, in words that stay the same.
      initial_params: gives all parameters that the run began with, on the mesh.
      place: this host's rows of a batch -> those of the global batch on the mesh.
      local_rows: indices into the global batch that this host reads.
      say: tells the user.
    """

    run_dir: epath.Path
    is_first: bool
    origin: str
    initial_params: Callable[[], Any]
    place: Callable[[Any], Any]
    local_rows: np.ndarray
    say: Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Objective:
    """The base of all objectives. A subclass must give `loss`; everything else is as in pre-training.

    Everything that is not of the host is a pure function, and is traced.

    Attributes:
      model: the Transformer.
      config: the experiment, `config.model` as that of the model.
      bos_id: the token that begins every document.
    """

    model: Transformer
    config: Config
    bos_id: int
    # The form of the data that the objective reads: 'documents', or a key of `data.examples.FORMS`.
    form: ClassVar[str] = 'documents'
    # Of what the loss is a mean, for people.
    loss_unit: ClassVar[str] = 'nats per token'
    # Whether the model that it trains writes text, of which there can be samples.
    writes_text: ClassVar[bool] = True

    @staticmethod
    def outputs(config: Config) -> int:
        """Outputs of the head of scores that the model gets; 0 gives it none."""
        del config
        return 0

    @property
    def columns(self) -> int:
        """Arrays [L+1] in each row that a step takes."""
        return 1 if self.form == 'documents' else FORMS[self.form].columns

    # --- Parameters that are not of the model ---

    def constant_shapes(self) -> dict[str, Any]:
        """Shapes of parameters that `loss` finds among its `params` besides those of the model, such as a teacher's.

        They are on the current mesh, by a name that no parameter of the model has. They are neither trained nor saved.
        """
        return {}

    def load_constants(self, mesh: Mesh) -> dict[str, Any]:
        """The arrays of `constant_shapes`, on a mesh."""
        del mesh
        return {}

    # --- Rows: on the host ---

    def train_rows(self, prepared: Prepared, rows: Sequence[int]) -> BatchSource:
        """The rows of each step, a function of (seed, step).

        Args:
          prepared: the data.
          rows: indices into the global batch that this host reads.
        """
        self.check_data(prepared)
        data, batch_size = self.config.data, self.config.train.batch_size
        return TrainRows(prepared, data.mixture, self.config.seed, batch_size, rows)

    def complete_data(self, prepared: Prepared, start: 'Start') -> Prepared:
        """The data with what the objective needs of it besides: it may compute, and keep files in the run directory.

        Args:
          prepared: the data.
          start: of the run.
        """
        del start
        return prepared

    def check_data(self, prepared: Prepared) -> None:
        """Raises a ConfigError if the data has another form than the objective trains on."""
        if prepared.form != self.form:
            wanted = 'documents' if self.form == 'documents' else f'{self.form}:PLACE'
            fits = [name for name, form in _FORM_OF.items() if form == prepared.form]
            fix = f'or set the objective to {" or ".join(fits)}' if fits else 'or take another objective'
            raise ConfigError(
                f'train.objective = {self.config.train.objective!r} trains on {self.form}, but data.sources has '
                f'{prepared.form}; name sources of {wanted}, {fix}'
            )

    def step_shapes(self) -> Any:
        """Arrays [B, ...] that a step takes, as a tree of `jax.ShapeDtypeStruct` for the global batch.

        They are those of `train_rows`, or of `collect` where that makes others.
        """
        width = self.columns * (self.config.data.seq_len + 1)
        return jax.ShapeDtypeStruct((self.config.train.batch_size, width), np.int32)

    def collect(self, params: Any, rows: Any, step: int) -> Any:
        """Makes the rows of a step from the current parameters: rollouts, their rewards, log-probabilities.

        It runs on the host before each step and may call whatever compiles, such as the decoding engine. For an exact
        resume it must be a function of its arguments and the seed alone.

        Args:
          params: all parameters, on the mesh.
          rows: those of the step, on the mesh.
          step: optimizer steps taken before.

        Returns:
          a tree of arrays as `step_shapes` says.
        """
        del params, step
        return rows

    # --- The step: on the device ---

    def make_batch(self, rows: Any) -> Batch:
        """The batch of some rows, each made by itself; here of packed documents int[B, L+1]."""
        return split_length(unpack_rows(rows, self.bos_id), self.model.config.rules)

    def add_statistics(self, batch: Batch) -> Batch:
        """The batch with what is taken over all of it (group means, whitening) in its `extras`.

        It gets the batch of the whole step, over all devices, before it is split into micro-batches.
        """
        return batch

    def loss(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> tuple[jax.Array, Sums]:
        """The loss summed over a batch or a micro-batch, and what else is summed over it.

        Gradients are those of the sum of all micro-batches' losses over `normaliser` of all their sums. The reports
        of routers, if there are any, are returned as sums['routers']: their balance losses are added by the step.

        Args:
          params: all parameters.
          batch: from `make_batch` and `add_statistics`.
          dropout_key: decides the dropout; None means that there is none.
        """
        raise NotImplementedError(f'{type(self).__name__}.loss')

    def normaliser(self, sums: Sums) -> jax.Array:
        """The divisor of loss and gradients: targets, pairs, tokens.

        It is linear in the sums. A constant is one per row, `loss` summing it over its rows.
        """
        return sums['weight']

    def metrics(self, sums: Sums) -> dict[str, jax.Array]:
        """Metrics of a step, 'loss' among them, from the sums of the whole batch and 'objective', that of the loss."""
        return {'loss': sums['objective'] / self.normaliser(sums)}

    # --- Evaluation ---

    def eval_rows(self, prepared: Prepared, split: str, max_batches: int, rows: Sequence[int]) -> Iterator[Any]:
        """Batches of a held-out split on the host, every row of it once.

        Args:
          prepared: the data.
          split: 'validation' or 'test'.
          max_batches: 0 means the whole split.
          rows: indices into the global batch that this host reads.
        """
        return eval_batches(prepared, split, self.config.train.batch_size, max_batches, rows)

    def eval_sums(self, params: Any, rows: Any, token_bytes_V: jax.Array) -> Sums:
        """Sums over an evaluation batch; here of next-token prediction on packed documents, see `next_token_sums`.

        Args:
          params: all parameters.
          rows: from `eval_rows`, here int[B, L+1].
          token_bytes_V: int[V], bytes of text that each token stands for.
        """
        batch = split_length(unpack_rows(rows, self.bos_id), self.model.config.rules)
        return self.next_token_sums(params, batch, token_bytes_V)

    def next_token_sums(self, params: Any, batch: Batch, token_bytes_V: jax.Array) -> Sums:
        """{'nll', 'weight', 'bytes'}: nats, weights and bytes of text of a batch's targets, each times its weight."""
        train = self.config.train
        options = {'loss_chunk': train.loss_chunk, 'gather_head_once': train.gather_head_once}
        nll_BL = per_token_nll(self.model, params, batch, **options)
        spec = mesh.spec(self.model.config.rules, mesh.TOKENS)
        bytes_BL = jnp.asarray(token_bytes_V, jnp.float32).at[batch.targets].get(out_sharding=spec)
        weights_BL = batch.loss_weights
        sums = {'nll': nll_BL * weights_BL, 'weight': weights_BL, 'bytes': bytes_BL * weights_BL}
        return {name: jnp.sum(values_BL) for name, values_BL in sums.items()}

    def eval_metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """Metrics of a split from its sums, 'loss' among them, which decides the best checkpoint.

        By default 'loss' in nats per token, 'perplexity' = exp(loss), and 'bits_per_byte': all nats, those spent on
        ends of documents too, over the bytes of the text. It does not depend on the tokenizer, so that it compares
        with anything, a compressor included.
        """
        loss = sums['nll'] / sums['weight']
        return {
            'loss': loss,
            'perplexity': math.exp(min(loss, 700)),
            'bits_per_byte': sums['nll'] / math.log(2) / sums['bytes'],
        }


class NextToken(Objective):
    """Pre-training: the cross-entropy of the next token, per target."""

    def loss(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> tuple[jax.Array, Sums]:
        """Summed nats, with the z-loss; `nll` is without it, `weight` counts the targets."""
        x_BLD, routers = run_features(self.model, params, batch, dropout_key)
        total, nll = sum_cross_entropy(self.model, params, x_BLD, batch, self.config.train)
        sums = {'nll': nll, 'weight': jnp.sum(batch.loss_weights)}
        return total, sums | ({'routers': routers} if routers else {})

    def metrics(self, sums: Sums) -> dict[str, jax.Array]:
        """'loss' without the z-loss, and the z-loss where there is one."""
        metrics = {'loss': sums['nll'] / sums['weight']}
        if self.config.train.z_loss:
            metrics['z_loss'] = (sums['objective'] - sums['nll']) / sums['weight']
        return metrics


class Sft(NextToken):
    """Supervised fine-tuning: the cross-entropy of what assistants wrote in conversations, per unit of weight."""

    form = 'conversations'

    def make_batch(self, rows: jax.Array) -> Batch:
        """The batch of packed conversations, int32[B, 3 (L+1)] as `data.example_rows` stores them."""
        return split_length(unpack_examples(rows), self.model.config.rules)

    def eval_sums(self, params: Any, rows: jax.Array, token_bytes_V: jax.Array) -> Sums:
        """Sums over what assistants wrote, see `next_token_sums`."""
        return self.next_token_sums(params, self.make_batch(rows), token_bytes_V)


# Those of `align` are imported when an experiment names them.
OBJECTIVES = {
    'next_token': NextToken,
    'sft': Sft,
    'preference': 'llm_jax.align.preference_objectives:Preference',
    'kto': 'llm_jax.align.kto_objective:Kto',
    'reward': 'llm_jax.align.score_objectives:Reward',
    'classify': 'llm_jax.align.score_objectives:Classify',
    'distill': 'llm_jax.align.distill_objective:Distill',
}
_FORM_OF = {
    'next_token': 'documents',
    'sft': 'conversations',
    'preference': 'pairs',
    'kto': 'unpaired',
    'reward': 'pairs',
    'classify': 'labelled',
}


def find_objective(config: Config) -> Any:
    """The part that `config.train.objective` names: a class, or a function that makes an `Objective`.

    Raises:
      ConfigError: an unknown name, or an option that the part does not take.
    """
    part = resolve_part('train.objective', config.train.objective, OBJECTIVES)
    if isinstance(part, str):
        part = resolve_part('train.objective', part, {})
    options = config.train.objective_options
    check_options('train.objective_options', part, options, ('model', 'config', 'bos_id'))
    return part


def fill_scores(config: Config) -> Config:
    """The config whose model has the head of scores that its objective needs.

    Raises:
      ConfigError: model.scores says another number of outputs.
    """
    outputs = getattr(find_objective(config), 'outputs', Objective.outputs)(config)
    if config.model.scores not in (0, outputs):
        raise ConfigError(
            f'model.scores = {config.model.scores}, but train.objective = {config.train.objective!r} needs {outputs}; '
            'leave it at 0, which fills it in'
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, scores=outputs))


def make_objective(model: Transformer, config: Config, *, bos_id: int) -> Objective:
    """The objective that `config.train.objective` names.

    Raises:
      ConfigError: an unknown name, an option that is wrong, or a callable that gives no `Objective`.
    """
    part, options = find_objective(config), config.train.objective_options
    if dataclasses.is_dataclass(part):
        options = check_values(part, options, 'train.objective_options.')
    objective = part(model, dataclasses.replace(config, model=model.config), bos_id, **options)
    if not isinstance(objective, Objective):
        raise ConfigError(
            f'train.objective = {config.train.objective!r} gives {type(objective).__name__}, which is no Objective; '
            'make it a subclass of llm_jax.train.objectives.Objective'
        )
    return objective
