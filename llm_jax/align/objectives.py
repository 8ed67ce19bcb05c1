"""Objectives of post-training over rows that are given as arrays: preferences, reward models, classification.

A row holds whole sequences as segments, one after the other: a pair is the prompt with the chosen answer (segment 1)
and the prompt with the rejected one (segment 2), so that micro-batches and meshes never part a pair. The arrays, which
`train_rows` of a subclass or `collect` gives, are

  tokens      int32[B, L + 1]
  segments    int32[B, L + 1], 0 on padding
  trained     [B, L + 1], the weight of each token as a target (preferences)

and those that an objective names. Their options are attributes: a function `(model, config, bos_id) -> Objective` in
the experiment file sets others.
"""

import dataclasses
import inspect
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.align import preference, scores
from llm_jax.align.targets import masked_sum, row_lengths, row_sums, segment_positions, target_weights
from llm_jax.config.schema import ConfigError
from llm_jax.data.batch import Batch, split_length
from llm_jax.dist import mesh
from llm_jax.nn.transformer import Transformer
from llm_jax.train.forward import run_features, target_log_probs
from llm_jax.train.objectives import Objective, Sums

CHOSEN, REJECTED = 1, 2


def segment_batch(rows: dict[str, jax.Array], extras: dict[str, jax.Array], rules: tuple) -> Batch:
    """The batch of rows of segments; `extras` are put into the order of the tokens where they are [B, L]."""
    tokens, segments = rows['tokens'], rows['segments']
    weights_BL = target_weights(rows['trained'], segments) if 'trained' in rows else jnp.zeros(tokens[:, 1:].shape)
    positions_BL = segment_positions(segments)[:, :-1]
    inputs_BL, targets_BL = jnp.maximum(tokens[:, :-1], 0), jnp.maximum(tokens[:, 1:], 0)
    batch = Batch(inputs_BL, targets_BL, weights_BL, positions_BL, segments[:, :-1], extras)
    return split_length(batch, rules)


@dataclasses.dataclass(frozen=True)
class Preference(Objective):
    """Losses of pairs, per pair, with a term of supervised fine-tuning on the chosen answers.

    Rows also have 'reference', float32[B, 2]: the log-probabilities of the chosen and the rejected answer by the
    reference, summed over their targets; losses without a reference do not read it.

    Attributes:
      kind: of `preference.PAIR_LOSSES`.
      beta: β.
      gamma: γ of 'simpo'.
      smoothing: share of labels that are wrong.
      average: of 'ipo': 'mean' or 'sum'.
      sft_weight: of the mean negative log-likelihood of the chosen answers; ORPO and CPO have it as 1.
    """

    kind: str = 'dpo'
    beta: float = 0.1
    gamma: float = 1.0
    smoothing: float = 0.0
    average: str = 'mean'
    sft_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in preference.PAIR_LOSSES:
            known = ', '.join(preference.PAIR_LOSSES)
            raise ConfigError(f'the preference loss {self.kind!r} is not known; there are {known}')

    def make_batch(self, rows: Any) -> Batch:
        """Weights of each side's targets in `extras`, and the reference's log-probabilities."""
        weights_BL, sides_BL = target_weights(rows['trained'], rows['segments']), rows['segments'][:, 1:]
        extras = {
            'chosen': jnp.where(sides_BL == CHOSEN, weights_BL, 0),
            'rejected': jnp.where(sides_BL == REJECTED, weights_BL, 0),
        }
        if 'reference' in rows:
            extras['reference_chosen'], extras['reference_rejected'] = rows['reference'][:, 0], rows['reference'][:, 1]
        return segment_batch(rows, extras, self.model.config.rules)

    def add_statistics(self, batch: Batch) -> Batch:
        """Pairs over targets of chosen answers, of the whole batch: what makes the SFT term a mean over targets."""
        chosen_BL = batch.extras['chosen']
        ratio = jnp.sum(_is_pair(batch)) / jnp.maximum(jnp.sum(chosen_BL), 1)
        ratio_B = jnp.zeros_like(jnp.sum(chosen_BL, 1)) + ratio
        return batch.replace(extras=batch.extras | {'pairs_per_token': ratio_B})

    def loss(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> tuple[jax.Array, Sums]:
        """Losses summed over pairs; sums of `preference.pair_metrics` beside them."""
        x_BLD, routers = run_features(self.model, params, batch, dropout_key)
        train = self.config.train
        options = {'loss_chunk': train.loss_chunk, 'gather_head_once': train.gather_head_once}
        log_probs_BL = target_log_probs(self.model, params, x_BLD, batch.targets, **options)
        chosen_BL, rejected_BL = batch.extras['chosen'], batch.extras['rejected']
        chosen_B, rejected_B = row_sums(log_probs_BL, chosen_BL), row_sums(log_probs_BL, rejected_BL)
        nothing = jnp.zeros_like(chosen_B)
        pairs = preference.Pairs(
            chosen_B,
            rejected_B,
            batch.extras.get('reference_chosen', nothing),
            batch.extras.get('reference_rejected', nothing),
            row_lengths(chosen_BL),
            row_lengths(rejected_BL),
        )
        loss = preference.PAIR_LOSSES[self.kind]
        named = {name: getattr(self, name) for name in inspect.signature(loss).parameters if name != 'pairs'}
        is_pair_B = _is_pair(batch)
        total, n = preference.sum_pairs(loss(pairs, **named), is_pair_B)
        if self.sft_weight:
            nll = -masked_sum(batch.extras['pairs_per_token'] * row_sums(log_probs_BL, chosen_BL), is_pair_B)
            total += self.sft_weight * nll
        metrics = preference.pair_metrics(pairs, is_pair_B, beta=self.beta)
        return total, {'pairs': n, **jax.lax.stop_gradient(metrics)} | ({'routers': routers} if routers else {})

    def normaliser(self, sums: Sums) -> jax.Array:
        """Pairs."""
        return sums['pairs']

    def metrics(self, sums: Sums) -> dict[str, jax.Array]:
        """Means over pairs."""
        names = ('rewards_chosen', 'rewards_rejected', 'margin', 'accuracy', 'log_prob_chosen', 'log_prob_rejected')
        return super().metrics(sums) | {name: sums[name] / sums['pairs'] for name in names}


def _is_pair(batch: Batch) -> jax.Array:
    """1 for rows with targets on both sides, 0 for those that only fill the batch, float32[B]."""
    sides = batch.extras['chosen'], batch.extras['rejected']
    return jnp.prod(jnp.stack([jnp.sum(side_BL, 1) > 0 for side_BL in sides]), 0).astype(jnp.float32)


# --- Scores --------------------------------------------------------------------------------


def init_score_head(model: Transformer, n_outputs: int, key: jax.Array, *, std: float = 0.0) -> dict[str, Any]:
    """A head [D, n_outputs] for `params['score']`, beside the parameters of a Transformer; 0 by default."""
    shape = (model.config.d_model, n_outputs)
    kernel = std * jax.random.normal(key, shape) if std else jnp.zeros(shape)
    return {'kernel': mesh.shard(kernel, model.config.rules, ('d_model', None))}


def score_rows(params: Any, x_BLD: jax.Array, is_last_BL: jax.Array) -> jax.Array:
    """Numbers of the head at one token of each row, float32[B, n]; 0 where no token is marked."""
    last_BD = jnp.sum(x_BLD.astype(jnp.float32) * is_last_BL[..., None], 1)
    return jnp.einsum('BD,DC->BC', last_BD, params['score']['kernel'], out_sharding=_rows_spec(last_BD))


def _rows_spec(x_BD: jax.Array) -> Any:
    return None if jax.sharding.get_abstract_mesh().empty else jax.P(jax.typeof(x_BD).sharding.spec[0], None)


def _last_of(segments: jax.Array, segment: int) -> jax.Array:
    """1 at the last input of a segment, float32[B, L]; its last token is read, too, so rows end in padding."""
    is_in = segments[:, :-1] == segment
    index = jnp.arange(is_in.shape[1])
    last_B = jnp.max(jnp.where(is_in, index, -1), 1)
    return (index == last_B[:, None]).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Reward(Objective):
    """Bradley-Terry on the scores at the last tokens of both sides of a pair, per pair.

    Parameters have `params['score']['kernel']` [D, 1]. Rows end in a token of padding, and may have 'margin' [B].

    Attributes:
      centre: weight of the square of the sum of both scores.
    """

    centre: float = 0.0

    def make_batch(self, rows: Any) -> Batch:
        """Where each side ends, and the margin, in `extras`."""
        extras = {'chosen': _last_of(rows['segments'], CHOSEN), 'rejected': _last_of(rows['segments'], REJECTED)}
        extras |= {'margin': rows['margin']} if 'margin' in rows else {}
        return segment_batch(rows, extras, self.model.config.rules)

    def loss(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> tuple[jax.Array, Sums]:
        """Losses and pairs in the right order, summed."""
        x_BLD, routers = run_features(self.model, params, batch, dropout_key)
        sides = (score_rows(params, x_BLD, batch.extras[side])[:, 0] for side in ('chosen', 'rejected'))
        chosen_B, rejected_B = sides
        margin_B = batch.extras.get('margin', 0.0)
        total, n = scores.bradley_terry(chosen_B, rejected_B, margin_B, centre=self.centre)
        right, _ = scores.pair_accuracy(chosen_B, rejected_B)
        sums = {'pairs': n, 'right': right, 'margin': jnp.sum(chosen_B - rejected_B)}
        return total, jax.lax.stop_gradient(sums) | ({'routers': routers} if routers else {})

    def normaliser(self, sums: Sums) -> jax.Array:
        """Pairs."""
        return sums['pairs']

    def metrics(self, sums: Sums) -> dict[str, jax.Array]:
        """The loss, accuracy, and the mean difference of scores."""
        means = {'accuracy': sums['right'] / sums['pairs'], 'margin': sums['margin'] / sums['pairs']}
        return super().metrics(sums) | means


@dataclasses.dataclass(frozen=True)
class Classify(Objective):
    """Cross-entropy of classes at the last token of a text, per row.

    Parameters have `params['score']['kernel']` [D, C]. Rows have one segment, end in a token of padding, and have
    'label', int32[B].
    """

    def make_batch(self, rows: Any) -> Batch:
        """Where the text ends, and its class, in `extras`."""
        extras = {'last': _last_of(rows['segments'], 1), 'label': rows['label']}
        return segment_batch(rows, extras, self.model.config.rules)

    def loss(self, params: Any, batch: Batch, dropout_key: jax.Array | None) -> tuple[jax.Array, Sums]:
        """Nats, and the confusion matrix, summed over rows."""
        x_BLD, routers = run_features(self.model, params, batch, dropout_key)
        logits_BC = score_rows(params, x_BLD, batch.extras['last'])
        total, n = scores.class_nll(logits_BC, batch.extras['label'])
        confusion_CC = scores.confusion(logits_BC, batch.extras['label'])
        sums = {'rows': n, 'confusion': confusion_CC}
        return total, jax.lax.stop_gradient(sums) | ({'routers': routers} if routers else {})

    def normaliser(self, sums: Sums) -> jax.Array:
        """Rows."""
        return sums['rows']

    def metrics(self, sums: Sums) -> dict[str, jax.Array]:
        """The loss, accuracy, balanced accuracy, and the mean F1 of the classes."""
        made = scores.class_metrics(sums['confusion'])
        return super().metrics(sums) | made | {'f1': jnp.mean(made['f1'])}
