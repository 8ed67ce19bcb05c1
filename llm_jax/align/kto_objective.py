"""The objective of answers that are good or bad by themselves: KTO (arXiv:2402.01306)."""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from llm_jax.align import preference
from llm_jax.align.examples import column, example_values, segment_sums, weighted_sums
from llm_jax.align.reference import add_reference
from llm_jax.config.schema import field
from llm_jax.data.batch import Batch, split_length, unpack_examples
from llm_jax.data.examples import FORMS
from llm_jax.data.prepare import Prepared
from llm_jax.train.forward import run_features, target_log_probs
from llm_jax.train.objectives import Objective, Start, Sums


@dataclasses.dataclass(frozen=True)
class Kto(Objective):
    """KTO, per answer.

    Each row has answers in its first part and, in its second, the same prompts with answers to others. How far the
    policy is from the reference, z0, is the mean log-ratio of those in the whole batch; it is found before each step,
    with the current parameters, so that it does not depend on micro-batches.
    """

    beta: float = field(0.1, 'β: how much of the log-ratio is a reward', at_least=0)
    desirable_weight: float = field(1.0, 'weight of desirable answers', at_least=0)
    undesirable_weight: float = field(1.0, 'weight of the others', at_least=0)
    reference_point: Literal['batch', 'zero'] = field(
        'batch', 'z0: batch (as in the paper), or zero, which is APO-zero of unpaired answers'
    )

    form = 'unpaired'
    loss_unit = 'per answer'

    @property
    def columns(self) -> int:
        """Those of stored answers, and the log-probabilities of the reference for both parts."""
        return FORMS[self.form].columns + 2

    def complete_data(self, prepared: Prepared, start: Start) -> Prepared:
        """The rows with the reference's log-probability of every token."""
        return add_reference(self.model, self.config, prepared, start)

    def step_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """{'rows': as stored, 'z0': float32[B], one number repeated}."""
        rows = super().step_shapes()
        return {'rows': rows, 'z0': jax.ShapeDtypeStruct(rows.shape[:1], jnp.float32)}

    def collect(self, params: Any, rows: jax.Array, step: int) -> dict[str, jax.Array]:
        """The rows, and z0 by the current parameters."""
        del step
        return self._add_point(params, rows)

    @functools.cached_property
    def _add_point(self) -> Any:
        return jax.jit(lambda params, rows: {'rows': rows, 'z0': self._find_point(params, rows)})

    def _find_point(self, params: Any, rows: jax.Array) -> jax.Array:
        """z0 of a batch, repeated over its rows, float32[B]."""
        point = jnp.zeros(())
        if self.reference_point == 'batch':
            ratios_BE, is_there_BE = self._log_ratios(params, self._make_part(rows, 1))[:2]
            point = preference.kto_reference_point(ratios_BE, jnp.zeros_like(ratios_BE), is_there_BE)
        return jnp.zeros_like(rows[:, 0], jnp.float32) + jax.lax.stop_gradient(point)

    def make_batch(self, rows: dict[str, jax.Array]) -> Batch:
        """The batch of packed answers; `extras` have what each is worth, z0, and the reference's log-probabilities."""
        batch = self._make_part(rows['rows'], 0)
        n = self.config.data.examples_per_row
        values = example_values(rows['rows'], self.columns, FORMS[self.form].columns - 1, 1, n)
        return batch.replace(extras=batch.extras | {'desirable': values, 'z0': rows['z0']})

    def _make_part(self, rows: jax.Array, part: int) -> Batch:
        batch = unpack_examples(rows, self.columns, part)
        reference = column(rows, self.columns, FORMS[self.form].columns + part)[:, 1:]
        extras = {'segments': batch.segments, 'reference': reference}
        return split_length(batch.replace(extras=extras), self.model.config.rules)

    def _log_ratios(
        self, params: Any, batch: Batch, dropout_key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array, Any]:
        """(log-ratio of each answer, 1 where there is one, its log-probability, each float32[B, E]; router reports)."""
        x_BLD, routers = run_features(self.model, params, batch, dropout_key)
        train, n = self.config.train, self.config.data.examples_per_row
        options = {'loss_chunk': train.loss_chunk, 'gather_head_once': train.gather_head_once}
        log_probs_BL = target_log_probs(self.model, params, x_BLD, batch.targets, **options)
        sums = lambda values_BL: weighted_sums(values_BL, batch.loss_weights, batch.extras['segments'], n)
        policy_BE, reference_BE = sums(log_probs_BL), sums(batch.extras['reference'])
        is_there_BE = segment_sums(batch.loss_weights, batch.extras['segments'], n) > 0
        return policy_BE - reference_BE, is_there_BE.astype(jnp.float32), policy_BE, routers

    def loss(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> tuple[jax.Array, Sums]:
        """Losses summed over answers, and sums of what `metrics` are made of."""
        ratios_BE, is_there_BE, log_probs_BE, routers = self._log_ratios(params, batch, dropout_key)
        point_B1, desirable_BE = batch.extras['z0'][:, None], batch.extras['desirable'] > 0
        weights = {'desirable_weight': self.desirable_weight, 'undesirable_weight': self.undesirable_weight}
        losses_BE = preference.kto(ratios_BE, desirable_BE, point_B1, beta=self.beta, **weights)
        good_BE, bad_BE = is_there_BE * desirable_BE, is_there_BE * ~desirable_BE
        sums = {
            'examples': jnp.sum(is_there_BE),
            'desirable': jnp.sum(good_BE),
            'right': jnp.sum(is_there_BE * ((ratios_BE > point_B1) == desirable_BE)),
            'reward_desirable': jnp.sum(self.beta * ratios_BE * good_BE),
            'reward_undesirable': jnp.sum(self.beta * ratios_BE * bad_BE),
            'log_prob_desirable': jnp.sum(log_probs_BE * good_BE),
            'kl': jnp.sum(is_there_BE * point_B1),
        }
        return jnp.sum(is_there_BE * losses_BE), jax.lax.stop_gradient(sums) | ({'routers': routers} if routers else {})

    def normaliser(self, sums: Sums) -> jax.Array:
        """Answers."""
        return sums['examples']

    def metrics(self, sums: Sums) -> dict[str, jax.Array]:
        """The loss; z0 as 'kl'; answers on the right side of it; rewards of both kinds of answers."""
        n, good = sums['examples'], jnp.maximum(sums['desirable'], 1)
        return super().metrics(sums) | {
            'kl': sums['kl'] / n,
            'accuracy': sums['right'] / n,
            'reward_desirable': sums['reward_desirable'] / good,
            'reward_undesirable': sums['reward_undesirable'] / jnp.maximum(n - sums['desirable'], 1),
            'log_prob_desirable': sums['log_prob_desirable'] / good,
        }

    def eval_sums(self, params: Any, rows: jax.Array, token_bytes_V: jax.Array) -> Sums:
        """The sums of `loss`, and its own as 'objective'; z0 is that of each evaluation batch."""
        del token_bytes_V
        batch = self.make_batch({'rows': rows, 'z0': self._find_point(params, rows)})
        total, sums = self.loss(params, batch, None)
        return {name: value for name, value in sums.items() if name != 'routers'} | {'objective': total}

    def eval_metrics(self, sums: dict[str, Any]) -> dict[str, float]:
        """As `metrics`, over a split."""
        return {name: float(value) for name, value in self.metrics(sums).items()}
