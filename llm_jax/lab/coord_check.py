"""The coordinate check: do activations change as much in a wide model as in a narrow one?

Under muP the change of every activation in the first steps is independent of the
width, as is its size at the start or it falls; in the standard parametrisation some
grow as a power of the width (Yang et al. 2022, arXiv:2203.03466, appendix D.1). It sees
initial values, multipliers and learning rates; weight decay it cannot see.
"""

import collections
from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.config.schema import Config
from llm_jax.data.batch import unpack_rows
from llm_jax.lab.widths import MUP, STANDARD, require_two, slope, widened
from llm_jax.nn.transformer import Transformer, build, parameters_of
from llm_jax.train.optimizer import make_optimizer
from llm_jax.train.state import init_state
from llm_jax.train.step import make_train_step

# A slope from which on muP counts as broken.
LIMIT = 0.25
# A firm verdict takes so many: from two widths any noise is a power, and one seed has no error.
FIRM_WIDTHS, FIRM_SEEDS = 3, 2


@dataclasses.dataclass(frozen=True)
class CoordCheck:
    """Result of the measurement.

    Attributes:
      widths: W of them, ascending; at the first both parametrisations are the same.
      grow: as in `widened`.
      names: of the activations, 'layer 0 attention logits' and so on, N of them.
      change: parametrisation -> root mean square of the difference to step 0,
        [W, seeds, steps, N].
      size: the same of the activations themselves, step 0 first, [W, seeds, steps + 1, N].
    """

    widths: list[int]
    grow: str
    names: list[str]
    change: dict[str, np.ndarray]
    size: dict[str, np.ndarray]

    def slopes(self, parametrisation: str) -> dict[str, float]:
        """Name -> exponent of the width in the change after the last step, over the seeds' geometric mean."""
        last = np.exp(np.mean(np.log(self.change[parametrisation][:, :, -1]), axis=1))
        return {name: slope(self.widths, last[:, i]) for i, name in enumerate(self.names)}

    @property
    def excess(self) -> dict[str, float]:
        """Name -> what of its exponent under muP counts: its size; NaN if a change is 0 or not finite.

        Logits of wider heads may fall: divided by the width, what of q·k is not aligned
        shrinks as its root, and it is most of their change until heads are wider than
        there are different queries.
        """
        may_fall = lambda name: self.grow == 'd_head' and name.endswith('attention logits')
        return {name: max(value, 0.0) if may_fall(name) else abs(value) for name, value in self.slopes(MUP).items()}

    @property
    def passed(self) -> bool:
        """True if all changes under muP are flat; one that is 0 or not finite is not."""
        return all(value < LIMIT for value in self.excess.values())

    @property
    def is_firm(self) -> bool:
        """False if there are too few widths to see a power in, or too few seeds to tell it from chance."""
        return len(self.widths) >= FIRM_WIDTHS and self.change[MUP].shape[1] >= FIRM_SEEDS

    @property
    def sentence(self) -> str:
        """The verdict, and how firm it is."""
        excess, slopes = self.excess, self.slopes(MUP)
        name = max(excess, key=lambda name: np.nan_to_num(excess[name], nan=np.inf))
        verb = ('holds', 'does not hold') if self.is_firm else ('seems to hold', 'seems not to hold')
        _, seeds, steps, _ = self.change[MUP].shape
        if np.isfinite(slopes[name]):
            reason = (
                f'of the changes of activations in the first {steps} steps the steepest under it is {name}, as the '
                f'width to the power of {slopes[name]:+.2f}; the limit is {LIMIT}.'
            )
        else:
            reason = f'the change of {name} in the first {steps} steps is 0 or not finite at some width.'
        sentence = f'muP {verb[not self.passed]}: {reason}'
        if not self.is_firm:
            sentence += (
                f' That is a hint, from {len(self.widths)} widths and {seeds} seed{"s" * (seeds != 1)}; '
                f'a verdict takes {FIRM_WIDTHS} widths and {FIRM_SEEDS} seeds.'
            )
        return sentence

    @property
    def numbers(self) -> dict[str, Any]:
        """All of it, for JSON and for `report.coord_check`."""
        return {
            'widths': self.widths,
            'grow': self.grow,
            'names': self.names,
            'passed': self.passed,
            'is_firm': self.is_firm,
            'limit': LIMIT,
            'parametrisations': [STANDARD, MUP],
            'slopes': {p: self.slopes(p) for p in (STANDARD, MUP)},
            'change': {p: values.tolist() for p, values in self.change.items()},
            'size': {p: values.tolist() for p, values in self.size.items()},
        }


def check(
    config: Config,
    batches: np.ndarray,
    *,
    vocab_size: int,
    bos_id: int,
    widths: list[int],
    seeds: int,
    grow: str = 'heads',
    progress: Callable[[str], None] = lambda text: None,
) -> CoordCheck:
    """Trains at every width, with and without muP, at a constant learning rate.

    Args:
      config: the experiment; its optimizer and peak learning rate are used.
      batches: int32[steps + 1, B, L+1]; activations are those of the last one, which is not trained on.
      vocab_size: of the tokenizer.
      bos_id: of the tokenizer.
      widths: values of model.d_model; the smallest is the base.
      seeds: how many initial values.
      grow: as in `widened`.
      progress: told what is measured now.

    Raises:
      ConfigError: fewer than two widths, or one that the experiment cannot have.
    """
    widths = require_two(widths)
    size, names = {STANDARD: [], MUP: []}, []
    change = {STANDARD: [], MUP: []}
    for parametrisation in size:
        for width in widths:
            if parametrisation == MUP and width == widths[0]:  # the same model
                size[MUP].append(size[STANDARD][0])
                change[MUP].append(change[STANDARD][0])
                continue
            progress(f'{parametrisation}, width {width}')
            wide = unstacked(widened(config, width, base=widths[0], parametrisation=parametrisation, grow=grow))
            names, sizes, changes = _measure(wide, batches, vocab_size, bos_id, seeds)
            size[parametrisation].append(sizes)
            change[parametrisation].append(changes)
    stack = lambda parts: {name: np.asarray(part) for name, part in parts.items()}
    return CoordCheck(widths, grow, names, stack(change), stack(size))


def unstacked(config: Config) -> Config:
    """The experiment with layers that are parameters of their own, as only those show what they compute; float32."""
    model, n_first = config.model, len(config.model.first_layers)
    rest = [model.pattern[i % len(model.pattern)] if model.pattern else () for i in range(model.n_layers - n_first)]
    first_layers = (*model.first_layers, *rest)
    model = dataclasses.replace(model, first_layers=first_layers, pattern=(), remat='none', dtype='float32')
    return dataclasses.replace(config, model=model)


def _measure(
    config: Config, batches: np.ndarray, vocab_size: int, bos_id: int, seeds: int
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, sizes [seeds, steps + 1, N] and changes [seeds, steps, N]."""
    model = build(config.model, vocab_size=vocab_size, seq_len=config.data.seq_len)
    schedule = lambda step: jnp.asarray(config.optimizer.learning_rate)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))['params']
    optimizer = make_optimizer(config.optimizer, schedule, shapes, parameters_of(model))
    init = jax.jit(lambda key: init_state(model, optimizer, key, with_ema=False))
    step = jax.jit(make_train_step(model, config, optimizer, schedule, bos_id=bos_id), donate_argnums=0)
    look = jax.jit(lambda params, tokens: activations(model, params, tokens, bos_id=bos_id))
    rms = jax.jit(lambda tree: jax.tree.map(lambda x: jnp.sqrt(jnp.mean(jnp.square(x))), tree))
    difference = jax.jit(lambda a, b: rms(jax.tree.map(jnp.subtract, a, b)))
    *training, probe = batches
    names, sizes, changes = [], [], []
    for seed in range(seeds):
        state = init(jax.random.key(seed))
        start = look(state.params, probe)
        names = list(start)
        size, change = [rms(start)], []
        for tokens in training:
            state, _ = step(state, tokens)
            now = look(state.params, probe)
            size.append(rms(now))
            change.append(difference(now, start))
        sizes.append([[float(x[name]) for name in names] for x in size])
        changes.append([[float(x[name]) for name in names] for x in change])
    return names, np.asarray(sizes), np.asarray(changes)


def activations(model: Transformer, params: Any, tokens: jax.Array, *, bos_id: int) -> dict[str, jax.Array]:
    """Name -> activation, of a model without stacked layers, in order of the computation.

    Attention logits that are masked count as 0, and the others for them, so that the
    root mean square is that of the others.
    """
    rows = unpack_rows(tokens, bos_id)
    logits, seen = model.apply(
        {'params': params}, rows.tokens, rows.positions, rows.segments,
        capture_intermediates=lambda module, method: method == '__call__' and _is_shown(module),
        mutable=['intermediates'],
    )  # fmt: skip
    seen = seen['intermediates']
    first = lambda value: value[0] if isinstance(value, tuple) else value  # a branch may return a cache with it
    # Ordered, which a plain dict that comes out of `jit` is not.
    out = collections.OrderedDict(embedding=first(seen['embed']['__call__']))
    for layer in range(model.config.n_layers):
        block = seen[f'first_{layer}']
        if 'queries_keys' in block['attention']:
            q, k, scale = block['attention']['queries_keys'][0]
            out[f'layer {layer} attention logits'] = _scores(q, k, rows.segments) * scale
        out[f'layer {layer} attention'] = first(first(block['attention']['__call__']))
        out[f'layer {layer} feed-forward'] = first(block['feed_forward']['__call__'])
        out[f'layer {layer} residual'] = first(first(block['__call__']))
    out['logits'] = logits
    return out


def _is_shown(module: Any) -> bool:
    return module.name in ('embed', 'attention', 'feed_forward') or str(module.name).startswith('first_')


def _scores(q_BLHK: jax.Array, k_BLGK: jax.Array, segments_BL: jax.Array) -> jax.Array:
    """q·k of each head, [B, H, L, L]."""
    L, H, G = q_BLHK.shape[1], q_BLHK.shape[2], k_BLGK.shape[2]
    scores = jnp.einsum('blhk,bshk->bhls', q_BLHK, jnp.repeat(k_BLGK, H // G, axis=2))
    mask = jnp.tril(jnp.ones((L, L), bool)) & (segments_BL[:, :, None] == segments_BL[:, None])
    return jnp.where(mask[:, None], scores, 0) * jnp.sqrt(mask.size / mask.sum())
