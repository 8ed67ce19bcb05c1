"""Objectives of scores, numbers that a head reads at the last token of a text: reward models and classification."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.align import scores
from llm_jax.align.examples import ends_of_segments, example_values, segment_sums
from llm_jax.config.schema import Config, ConfigError, field
from llm_jax.data.batch import Batch, split_length, unpack_examples
from llm_jax.data.examples import FORMS
from llm_jax.train.forward import run_features
from llm_jax.train.objectives import Objective, Sums


@dataclasses.dataclass(frozen=True)
class _Scores(Objective):
    """What reward models and classifiers share: a head of scores, read where each segment ends."""

    writes_text = False

    def make_batch(self, rows: jax.Array) -> Batch:
        """The batch of packed examples; `extras` have the segment of each token, 1 where one ends, and the values."""
        batch, form, n = unpack_examples(rows, self.columns), FORMS[self.form], self.config.data.examples_per_row
        is_there = segment_sums(batch.loss_weights, batch.segments, form.segments * n)[:, :: form.segments] > 0
        extras = {
            'segments': batch.segments,
            'ends': ends_of_segments(batch),
            'values': example_values(rows, self.columns, form.columns - 1, form.segments, n),
            'is_example': is_there.astype(jnp.float32),
        }
        return split_length(batch.replace(extras=extras), self.model.config.rules)

    def scores(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> tuple[jax.Array, Any]:
        """(the outputs of the head at the end of each segment, float32[B, S, C]; the reports of routers)."""
        x_BLD, routers = run_features(self.model, params, batch, dropout_key)
        scores_BLC = self.model.apply({'params': params}, x_BLD, method='score_tokens')
        n = FORMS[self.form].segments * self.config.data.examples_per_row
        at_end = lambda score_BL: segment_sums(score_BL * batch.extras['ends'], batch.extras['segments'], n)
        return jnp.stack([at_end(scores_BLC[..., c]) for c in range(scores_BLC.shape[-1])], -1), routers

    def normaliser(self, sums: Sums) -> jax.Array:
        """Examples."""
        return sums['examples']

    def eval_sums(self, params: Any, rows: jax.Array, token_bytes_V: jax.Array) -> Sums:
        """The sums of `loss`, and its own as 'objective'."""
        del token_bytes_V
        total, sums = self.loss(params, self.make_batch(rows), None)
        return {name: value for name, value in sums.items() if name != 'routers'} | {'objective': total}


@dataclasses.dataclass(frozen=True)
class Reward(_Scores):
    """Bradley-Terry on the scores of both answers of a pair, per pair; the value of a pair is its margin."""

    centre: float = field(0.0, 'weight of the square of the sum of both scores, which keeps them around 0', at_least=0)

    form = 'pairs'
    loss_unit = 'nats per pair'

    @staticmethod
    def outputs(config: Config) -> int:
        """One."""
        del config
        return 1

    def loss(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> tuple[jax.Array, Sums]:
        """Losses, pairs in the right order and differences of scores, summed over pairs."""
        scores_BSC, routers = self.scores(params, batch, dropout_key)
        chosen_BP, rejected_BP = scores_BSC[:, ::2, 0], scores_BSC[:, 1::2, 0]
        is_pair_BP, margins_BP = batch.extras['is_example'], batch.extras['values']
        losses_BP = scores.bradley_terry_losses(chosen_BP, rejected_BP, margins_BP, centre=self.centre)
        sums = {
            'examples': jnp.sum(is_pair_BP),
            'right': jnp.sum(is_pair_BP * (chosen_BP > rejected_BP)),  # equal scores are wrong
            'margin': jnp.sum(is_pair_BP * (chosen_BP - rejected_BP)),
            'score_chosen': jnp.sum(is_pair_BP * chosen_BP),
            'score_rejected': jnp.sum(is_pair_BP * rejected_BP),
        }
        return jnp.sum(is_pair_BP * losses_BP), jax.lax.stop_gradient(sums) | ({'routers': routers} if routers else {})

    def metrics(self, sums: Sums) -> dict[str, jax.Array]:
        """The loss, pairs in the right order, and the mean scores of both sides."""
        means = {name: sums[name] / sums['examples'] for name in ('margin', 'score_chosen', 'score_rejected')}
        return super().metrics(sums) | {'accuracy': sums['right'] / sums['examples']} | means

    def eval_metrics(self, sums: dict[str, Any]) -> dict[str, float]:
        """As `metrics`, over a split."""
        return {name: float(value) for name, value in self.metrics(sums).items()}


@dataclasses.dataclass(frozen=True)
class Classify(_Scores):
    """Cross-entropy of the classes `data.classes`, per text."""

    form = 'labelled'
    loss_unit = 'nats per text'

    @staticmethod
    def outputs(config: Config) -> int:
        """One for each class.

        Raises:
          ConfigError: fewer than two classes.
        """
        if len(config.data.classes) < 2:
            raise ConfigError(
                f'data.classes = {config.data.classes}: name the labels of the texts, two at least, such as '
                '("ham", "spam")'
            )
        return len(config.data.classes)

    def loss(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> tuple[jax.Array, Sums]:
        """Nats, and the confusion matrix, summed over texts."""
        logits_BEC, routers = self.scores(params, batch, dropout_key)
        texts = logits_BEC, batch.extras['values'], batch.extras['is_example']
        total, n = scores.class_nll(*texts)
        sums = {'examples': n, 'confusion': scores.confusion(*texts)}
        return total, jax.lax.stop_gradient(sums) | ({'routers': routers} if routers else {})

    def metrics(self, sums: Sums) -> dict[str, jax.Array]:
        """The loss, accuracy, balanced accuracy, and the mean F1 of the classes."""
        made = scores.class_metrics(sums['confusion'])
        return super().metrics(sums) | made | {'f1': jnp.mean(made['f1'])}

    def eval_metrics(self, sums: dict[str, Any]) -> dict[str, float]:
        """As `metrics` over a split, with the F1 of each class, and how often one was taken for another."""
        names = [str(name) for name in self.config.data.classes]
        made = scores.class_metrics(sums['confusion'])
        by_class = {f'f1/{name}': float(value) for name, value in zip(names, made['f1'], strict=True)}
        counts = {
            f'confusion/{true}/{guess}': float(sums['confusion'][i, j])
            for i, true in enumerate(names) for j, guess in enumerate(names)
        }  # fmt: skip
        return {name: float(value) for name, value in self.metrics(sums).items()} | by_class | counts
