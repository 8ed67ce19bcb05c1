"""The objective of pairs of answers: DPO and its family, with a term of supervised fine-tuning."""

import dataclasses
import inspect
from typing import Any, Literal

import jax
import jax.numpy as jnp

from llm_jax.align import preference
from llm_jax.align.examples import column, weighted_sums
from llm_jax.align.preference import PAIR_LOSSES, Losses, LossFacts
from llm_jax.align.reference import add_reference
from llm_jax.config.parts import resolve_part
from llm_jax.config.schema import ConfigError, Part, field
from llm_jax.data.batch import Batch, split_length, unpack_examples
from llm_jax.data.examples import FORMS
from llm_jax.data.prepare import Prepared
from llm_jax.train.forward import run_features, target_log_probs
from llm_jax.train.objectives import Objective, Start, Sums

_MEANS = ('rewards_chosen', 'rewards_rejected', 'margin', 'accuracy', 'log_prob_chosen', 'log_prob_rejected')


@dataclasses.dataclass(frozen=True)
class Preference(Objective):
    """Losses of pairs, per pair.

    A row holds whole pairs, so neither micro-batches nor meshes part one. Where the loss reads a reference, which is
    the model that the run begins with, its log-probabilities are one more column of the rows.

    Attributes:
      kind: a key of `preference.PAIR_LOSSES`, or `(Pairs, *, beta, ...) -> losses`, which gets those of these
        attributes that its arguments name; its `facts` are `preference.LossFacts`.
    """

    kind: Part = field('dpo', f'{", ".join(PAIR_LOSSES)}, or a callable')
    beta: float = field(0.1, 'β: how much of the log-ratio is a reward; of orpo, the weight of the odds', at_least=0)
    gamma: float = field(1.0, 'γ of simpo, the margin of the rewards', at_least=0)
    smoothing: float = field(0.0, 'ε, the share of labels that are wrong, of dpo, cdpo, robust', at_least=0, below=0.5)
    average: Literal['mean', 'sum'] = field('mean', 'of ipo: log-ratios per token (mean), or summed')
    sft_weight: float = field(
        -1.0, 'weight of the mean negative log-likelihood of chosen answers; -1: 1 in orpo and cpo, 0 else', at_least=-1
    )

    form = 'pairs'
    loss_unit = 'per pair'

    def __post_init__(self) -> None:
        if self.kind == 'kto':
            raise ConfigError(
                "train.objective_options.kind = 'kto' is no loss of pairs but of single answers: set train.objective = "
                "'kto', and sources of unpaired:PLACE"
            )
        resolve_part('train.objective_options.kind', self.kind, PAIR_LOSSES)
        if self.kind == 'cdpo' and not self.smoothing:
            raise ConfigError(
                'train.objective_options.smoothing = 0, with which cdpo is dpo; set the share of labels that are '
                'wrong, such as 0.1'
            )

    @property
    def _loss(self) -> Losses:
        return resolve_part('train.objective_options.kind', self.kind, PAIR_LOSSES)

    @property
    def _facts(self) -> LossFacts:
        return getattr(self._loss, 'facts', LossFacts())

    @property
    def columns(self) -> int:
        """Those of stored pairs, and the log-probabilities of the reference."""
        return FORMS[self.form].columns + self._facts.needs_reference

    def complete_data(self, prepared: Prepared, start: Start) -> Prepared:
        """The rows with the reference's log-probability of every token."""
        if not self._facts.needs_reference:
            return prepared
        return add_reference(self.model, self.config, prepared, start)

    def make_batch(self, rows: jax.Array) -> Batch:
        """The batch of packed pairs; `extras` have the segment of each token, and the reference's log-probabilities."""
        batch = unpack_examples(rows, self.columns)
        extras = {'segments': batch.segments}
        if self._facts.needs_reference:
            extras['reference'] = column(rows, self.columns, -1)[:, 1:]
        return split_length(batch.replace(extras=extras), self.model.config.rules)

    def add_statistics(self, batch: Batch) -> Batch:
        """Pairs over targets of chosen answers, of the whole batch: what makes the SFT term a mean over targets."""
        chosen_BP, rejected_BP = self._sum_sides(jnp.ones_like(batch.loss_weights), batch)
        ratio = jnp.sum(_is_pair(chosen_BP, rejected_BP)) / jnp.maximum(jnp.sum(chosen_BP), 1)
        ratio_B = jnp.zeros_like(jnp.sum(chosen_BP, 1)) + ratio
        return batch.replace(extras=batch.extras | {'pairs_per_token': ratio_B})

    def loss(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> tuple[jax.Array, Sums]:
        """Losses summed over pairs; sums of `preference.pair_metrics` beside them."""
        x_BLD, routers = run_features(self.model, params, batch, dropout_key)
        train = self.config.train
        options = {'loss_chunk': train.loss_chunk, 'gather_head_once': train.gather_head_once}
        log_probs_BL = target_log_probs(self.model, params, x_BLD, batch.targets, **options)
        chosen_BP, rejected_BP = self._sum_sides(log_probs_BL, batch)
        lengths = self._sum_sides(jnp.ones_like(log_probs_BL), batch)
        nothing = jnp.zeros_like(chosen_BP), jnp.zeros_like(chosen_BP)
        reference = self._sum_sides(batch.extras['reference'], batch) if 'reference' in batch.extras else nothing
        is_pair_BP = _is_pair(*lengths)
        # Where a row has no pair, the loss gets plain numbers, so that it is finite there as its gradient is.
        filled = lambda values_BP: jnp.where(is_pair_BP > 0, values_BP, -1.0)
        at_least_one = (jnp.maximum(length_BP, 1) for length_BP in lengths)
        pairs = preference.Pairs(*map(filled, (chosen_BP, rejected_BP, *reference)), *at_least_one)
        named = inspect.signature(self._loss).parameters
        given = {name: getattr(self, name) for name in named if name != 'pairs' and hasattr(self, name)}
        total, n = preference.sum_pairs(self._loss(pairs, **given), is_pair_BP)
        weight = self._facts.sft_weight if self.sft_weight < 0 else self.sft_weight
        nll = -jnp.sum(batch.extras['pairs_per_token'] * jnp.sum(chosen_BP * is_pair_BP, 1))
        if weight:
            total += weight * nll
        metrics = preference.pair_metrics(pairs, is_pair_BP, beta=self.beta)
        sums = {'pairs': n, 'nll': nll, **metrics}
        return total, jax.lax.stop_gradient(sums) | ({'routers': routers} if routers else {})

    def _sum_sides(self, values_BL: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Weighted sums over the targets of the chosen and of the rejected answers, each float32[B, P]."""
        n = 2 * self.config.data.examples_per_row
        sums_BS = weighted_sums(values_BL, batch.loss_weights, batch.extras['segments'], n)
        return sums_BS[:, ::2], sums_BS[:, 1::2]

    def normaliser(self, sums: Sums) -> jax.Array:
        """Pairs."""
        return sums['pairs']

    def metrics(self, sums: Sums) -> dict[str, jax.Array]:
        """Means over pairs; 'nll' is the mean negative log-likelihood of a target of the chosen answers."""
        means = {name: sums[name] / sums['pairs'] for name in (*_MEANS, 'nll')}
        return super().metrics(sums) | means | {'pairs': sums['pairs']}

    def eval_sums(self, params: Any, rows: jax.Array, token_bytes_V: jax.Array) -> Sums:
        """The sums of `loss`, and its own as 'objective'."""
        del token_bytes_V
        total, sums = self.loss(params, self.add_statistics(self.make_batch(rows)), None)
        return {name: value for name, value in sums.items() if name != 'routers'} | {'objective': total}

    def eval_metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """Means over the pairs of a split."""
        return {'loss': sums['objective'] / sums['pairs']} | {name: sums[name] / sums['pairs'] for name in _MEANS}


def _is_pair(chosen_BP: jax.Array, rejected_BP: jax.Array) -> jax.Array:
    """1 for pairs with targets on both sides, 0 for those that a row does not have, float32[B, P]."""
    return ((chosen_BP > 0) & (rejected_BP > 0)).astype(jnp.float32)
