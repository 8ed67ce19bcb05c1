"""Objectives of a user's own: policy gradients on packed rows, with signed weights and numbers of the whole batch."""

import functools

import jax
import jax.numpy as jnp

from llm_jax.data.batch import split_length, unpack_rows
from llm_jax.train.forward import per_token_nll, run_features, target_log_probs
from llm_jax.train.objectives import Objective


class Policy(Objective):
    """REINFORCE: the log-probabilities of a row times its advantage, per token.

    A row's reward is its share of odd tokens; advantages are rewards whitened over the whole batch, so that they sum
    to about 0, and so do the weights of the tokens.
    """

    def make_batch(self, rows):
        batch = super().make_batch(rows)
        return batch.replace(extras={'reward': jnp.mean(batch.targets % 2 * batch.loss_weights, axis=1)})

    def add_statistics(self, batch):
        reward_B = batch.extras['reward']
        advantage_B = (reward_B - jnp.mean(reward_B)) / (jnp.std(reward_B) + 1e-6)
        return batch.replace(extras=batch.extras | {'advantage': advantage_B})

    def loss(self, params, batch, dropout_key):
        x_BLD, routers = run_features(self.model, params, batch, dropout_key)
        chunk = self.config.train.loss_chunk
        log_probs_BL = target_log_probs(self.model, params, x_BLD, batch.targets, loss_chunk=chunk)
        weights_BL = batch.extras['advantage'][:, None] * batch.loss_weights
        sums = {'tokens': jnp.sum(batch.loss_weights), 'advantages': jnp.sum(weights_BL)}
        return -jnp.sum(weights_BL * log_probs_BL), sums | ({'routers': routers} if routers else {})

    def normaliser(self, sums):
        return sums['tokens']

    def metrics(self, sums):
        return super().metrics(sums) | {'advantage': sums['advantages'] / sums['tokens']}


class OnlinePolicy(Policy):
    """A row's reward is drawn by the current parameters: how likely they find it, and a noise of the step."""

    def step_shapes(self):
        rows = super().step_shapes()
        return {'rows': rows, 'reward': jax.ShapeDtypeStruct(rows.shape[:1], jnp.float32)}

    def collect(self, params, rows, step):
        return {'rows': rows, 'reward': self._reward(params, rows, step)}

    @functools.cached_property
    def _reward(self):
        @jax.jit
        def reward(params, rows, step):
            batch = split_length(unpack_rows(rows, self.bos_id), self.model.config.rules)
            likelihood_B = -jnp.mean(per_token_nll(self.model, params, batch) * batch.loss_weights, axis=1)
            key = jax.random.fold_in(jax.random.key(self.config.seed), step)
            return likelihood_B + 0.1 * jax.random.normal(key, likelihood_B.shape)

        return reward

    def make_batch(self, rows):
        batch = super().make_batch(rows['rows'])
        return batch.replace(extras={'reward': rows['reward']})
