"""The objective of distillation: a student learns the distribution of a teacher over the next token."""

import dataclasses
import functools
from typing import Any, Literal

from etils import epath
import jax
from jax.sharding import Mesh

from llm_jax import hub, runs
from llm_jax import tokenizer as tokenizer_lib
from llm_jax.adapt import lora
from llm_jax.adapt.start import param_shapes
from llm_jax.align.distill import sum_divergence
from llm_jax.checkpoint import Checkpoints
from llm_jax.config.schema import Adapter, Config, ConfigError, field
from llm_jax.data.batch import Batch, split_length, unpack_examples
from llm_jax.data.examples import form_of
from llm_jax.data.prepare import Prepared
from llm_jax.interop import hf
from llm_jax.nn.transformer import Transformer, build
from llm_jax.train.forward import head_of, run_features, slice_length
from llm_jax.train.objectives import Objective, Sums

_BETA = {'forward': 0.0, 'reverse': 1.0}


@dataclasses.dataclass(frozen=True)
class Distill(Objective):
    """A divergence of the student from a teacher of the same vocabulary, per unit of weight of the targets.

    The data are documents, of which every token counts, or conversations, of which that does which assistants wrote.
    The teacher's parameters are an argument of the step; they are neither trained nor in a checkpoint.
    """

    teacher: str = field('', 'run directory or Hugging Face model whose distribution is learnt')
    divergence: Literal['forward', 'reverse', 'jsd'] = field(
        'forward', 'forward: KL(teacher, student); reverse: KL(student, teacher); jsd: the generalised JSD of GKD'
    )
    beta: float = field(0.5, 'β of jsd, between 0 (forward) and 1 (reverse)', at_least=0, below=1)
    temperature: float = field(1.0, 'of both distributions', at_least=1e-3)

    def __post_init__(self) -> None:
        if not self.teacher:
            raise ConfigError('train.objective_options.teacher is empty; name the run that the student learns from')

    @property
    def form(self) -> str:
        """'documents' or 'conversations', as the data is."""
        return 'documents' if form_of(self.config.data) == 'documents' else 'conversations'

    @property
    def columns(self) -> int:
        """Those of documents or conversations."""
        return 1 if self.form == 'documents' else 3

    # --- The teacher ---

    @functools.cached_property
    def _directory(self) -> epath.Path:
        return epath.Path(hub.fetch_model(self.teacher))

    @functools.cached_property
    def _teacher_config(self) -> Config:
        return hf.read_config(self._directory)[1] if hf.is_hf(self._directory) else runs.read_config(self._directory)

    @functools.cached_property
    def _saved_teacher(self) -> Transformer:
        """The teacher as it is saved, adapters included, computed as the student is."""
        ours, theirs = self.model.config, self._teacher_config.model
        if theirs.quantised:
            raise ConfigError(
                f'train.objective_options.teacher = {self.teacher!r} has {theirs.quantised} weights; take the run that '
                'it was made of'
            )
        model = dataclasses.replace(theirs, rules=ours.rules, pipeline=ours.pipeline, dtype=ours.dtype, dropout=0.0)
        model = build(model, vocab_size=ours.vocab_size, seq_len=self._teacher_config.data.seq_len).config
        if model.vocab_size != ours.vocab_size:
            raise ConfigError(
                f'train.objective_options.teacher = {self.teacher!r} has {model.vocab_size} tokens and the student '
                f'{ours.vocab_size}; set model.vocab_size = {model.vocab_size}, of the same tokenizer'
            )
        return Transformer(model)

    @functools.cached_property
    def _teacher(self) -> Transformer:
        return Transformer(dataclasses.replace(self._saved_teacher.config, adapter=Adapter()))

    def check_data(self, prepared: Prepared) -> None:
        """Raises a ConfigError if the teacher reads other tokens than the student."""
        super().check_data(prepared)
        place = self._directory if hf.is_hf(self._directory) else self._directory / 'tokenizer'
        theirs = tokenizer_lib.find(place)
        if theirs is not None and theirs.fingerprint != prepared.tokenizer.fingerprint:
            raise ConfigError(
                f'train.objective_options.teacher = {self.teacher!r} has another tokenizer ({theirs.fingerprint}) than '
                f'the data ({prepared.tokenizer.fingerprint}); set data.tokenizer.path = {str(place)!r}'
            )

    def constant_shapes(self) -> dict[str, Any]:
        """{'teacher': shapes of its parameters}, on the current mesh."""
        return {'teacher': param_shapes(self._teacher)}

    def load_constants(self, mesh: Mesh) -> dict[str, Any]:
        """{'teacher': its parameters}, of the newest checkpoint, averaged where it has averages, adapters merged."""
        if hf.is_hf(self._directory):
            family, _ = hf.read_config(self._directory)
            return {'teacher': hf.load_params(self._directory, family, self._teacher.config, mesh)}
        checkpoints = Checkpoints(self._directory, self._teacher_config.checkpoint, read_only=True)
        step = runs.pick_step(checkpoints, self._directory, None)
        item = 'ema' if checkpoints.has(step, 'ema') else 'params'
        params = checkpoints.restore(step, {item: param_shapes(self._saved_teacher)}, mesh)[item]
        if self._saved_teacher.config.adapter.kind != 'none':
            params = jax.jit(lambda params: lora.merge(self._saved_teacher, params)[1])(params)
        return {'teacher': params}

    # --- The step ---

    def make_batch(self, rows: jax.Array) -> Batch:
        """The batch of packed documents or conversations."""
        if self.form == 'documents':
            return super().make_batch(rows)
        return split_length(unpack_examples(rows), self.model.config.rules)

    def loss(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> tuple[jax.Array, Sums]:
        """Divergences summed over weighted targets, in nats.

        Args:
          params: of the student, and those of the teacher under 'teacher'.
          batch: from `make_batch`.
          dropout_key: of the student; None means that there is none.
        """
        x_BLD, routers = run_features(self.model, params, batch, dropout_key)
        teacher_params = jax.lax.stop_gradient(params['teacher'])
        teacher_BLD, _ = run_features(self._teacher, teacher_params, batch)
        total, weight = sum_divergence(
            *head_of(self.model, params),
            x_BLD,
            *head_of(self._teacher, teacher_params),
            teacher_BLD,
            batch.loss_weights,
            chunk=slice_length(self.model, x_BLD, self.config.train.loss_chunk),
            beta=_BETA.get(self.divergence, self.beta),
            temperature=self.temperature,
        )
        sums = {'weight': weight, 'divergence': jax.lax.stop_gradient(total)}
        return total, sums | ({'routers': routers} if routers else {})

    def eval_sums(self, params: Any, rows: jax.Array, token_bytes_V: jax.Array) -> Sums:
        """The divergence, and what the student makes of the text itself, see `next_token_sums`."""
        batch = self.make_batch(rows)
        _, sums = self.loss(params, batch, None)
        return self.next_token_sums(params, batch, token_bytes_V) | {'divergence': sums['divergence']}

    def eval_metrics(self, sums: dict[str, Any]) -> dict[str, float]:
        """'loss' is the divergence in nats per token; 'nll', 'perplexity' and 'bits_per_byte' are of the text."""
        text = super().eval_metrics(sums)
        return {'loss': sums['divergence'] / sums['weight'], 'nll': text.pop('loss')} | text
