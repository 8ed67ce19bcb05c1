"""The state that a run begins with: its newest checkpoint, the parameters of another model, or scratch.

What is trained and how may change between two starts of a run (`train.*`, `optimizer.*`, `mesh.*`): parameters are
always kept, and of the optimizer's state all that fits. What does not fit begins afresh, and the origin of the state
says so.
"""

from collections import defaultdict
import dataclasses
import re
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
import optax

from llm_jax import hub, runs
from llm_jax import tokenizer as tokenizer_lib
from llm_jax.adapt import lora
from llm_jax.adapt.start import param_shapes
from llm_jax.checkpoint import Checkpoints, Items, shapes_by_path
from llm_jax.config.schema import Adapter, ConfigError, Model, Part
from llm_jax.data.prepare import Prepared
from llm_jax.interop import hf
from llm_jax.interop.same import differences
from llm_jax.interop.tensors import shapes_of
from llm_jax.nn.transformer import Transformer, build
from llm_jax.tokenizer import Tokenizer
from llm_jax.train.setup import Plan
from llm_jax.train.state import State
from llm_jax.train.trainable import merge_params, split_params


def start_state(plan: Plan, checkpoints: Checkpoints, prepared: Prepared) -> tuple[State, Any, str]:
    """The state to begin with: this run's newest checkpoint, else `init_from`, else scratch.

    Returns:
      the state on the mesh, the parameters that are not trained or None, and a sentence on where they came from.

    Raises:
      ConfigError: a checkpoint that does not fit, or a tokenizer other than that of the parameters.
    """
    if (step := checkpoints.latest_step) is not None:
        _check_same_data(checkpoints.meta(step), step, plan, prepared)
        return resume(plan, checkpoints, step)
    return initial_state(plan, prepared.tokenizer)


def initial_state(plan: Plan, tokenizer: Tokenizer) -> tuple[State, Any, str]:
    """The state before the first step, from `init_from` or from scratch; returns and raises as `start_state`."""
    config = plan.config
    if not config.init_from:
        if config.model.adapter.kind != 'none':
            raise ConfigError(
                f'model.adapter.kind = {config.model.adapter.kind!r} changes a model that was trained; name it with '
                'init_from, or set model.adapter.kind = "none" to train from scratch'
            )
        return *jax.jit(plan.init)(jax.random.key(config.seed)), 'started from scratch'
    params, origin = _initial_params(plan, tokenizer)
    return *jax.jit(plan.start)(params), origin


def _check_same_data(meta: dict[str, Any], step: int, plan: Plan, prepared: Prepared) -> None:
    if meta['tokenizer'] != prepared.tokenizer.fingerprint:
        raise ConfigError(
            f'the checkpoint of step {step} was trained with another tokenizer ({meta["tokenizer"]}) than the '
            f'data is now prepared with ({prepared.tokenizer.fingerprint}); set data.tokenizer.path to the '
            "run directory's tokenizer, or train elsewhere with --workdir"
        )
    if meta['data'] != prepared.manifest['digest']:
        raise ConfigError(
            f'data.sources = {plan.config.data.sources} holds other text than up to the checkpoint of step {step}, so '
            'going on would repeat some rows and skip others; bring the text back, or start a new run from these '
            'parameters with --config.init_from=RUN --workdir=ANOTHER'
        )


# --- This run's checkpoint -------------------------------------------------------------


def resume(plan: Plan, checkpoints: Checkpoints, step: int) -> tuple[State, Any, str]:
    """The state of a checkpoint, for the optimizer and the average that are configured now; see `start_state`."""
    wanted = to_items(plan.shapes, plan.frozen_shapes)
    notes = []
    if 'ema' in wanted and not checkpoints.has(step, 'ema'):
        del wanted['ema']
        notes.append('the average of train.ema_decay begins with these parameters')
    items, begins_afresh = _restore(plan, checkpoints, step, wanted)
    if begins_afresh:
        notes.append(
            f"the optimizer's state begins afresh, as that of the checkpoint is of another rule than optimizer.name = "
            f'{plan.config.optimizer.name!r} with its options'
        )
    state, frozen = from_items(items, plan.config.train.trainable)
    if plan.shapes.ema is not None and state.ema is None:
        state = dataclasses.replace(state, ema=jax.tree.map(jnp.copy, state.params))
    return state, frozen, f'resumed at step {step}' + (f' ({"; ".join(notes)})' if notes else '')


def _restore(plan: Plan, checkpoints: Checkpoints, step: int, wanted: Items) -> tuple[Items, bool]:
    """(the items of a checkpoint, whether the optimizer's state is not among what was saved but new)."""
    saved = checkpoints.saved_shapes(step, 'train')
    if shapes_by_path(saved) == shapes_by_path(wanted['train']):
        return checkpoints.restore(step, wanted, plan.mesh), False
    places = _match(shapes_by_path(saved), shapes_by_path(wanted['train']))
    if places is None:
        others = {name: tree for name, tree in wanted.items() if name != 'train'}
        items = checkpoints.restore(step, others, plan.mesh)
        trained = split_params(items['params'], plan.config.train.trainable)[0]
        return items | {'train': jax.jit(lambda params: _begin_optimizer(plan, params, step))(trained)}, True
    # The same arrays at other places, as under a clipping stage that was put before or taken away.
    leaves, structure = jax.tree.flatten(wanted['train'])
    by_path = dict(zip(shapes_by_path(wanted['train']), leaves, strict=True))
    as_saved = jax.tree.unflatten(jax.tree.structure(saved), [by_path[places[path]] for path in shapes_by_path(saved)])
    items = checkpoints.restore(step, wanted | {'train': as_saved}, plan.mesh)
    found = dict(zip(shapes_by_path(saved), jax.tree.leaves(items['train']), strict=True))
    came_from = {ours: theirs for theirs, ours in places.items()}
    train = jax.tree.unflatten(structure, [found[came_from[path]] for path in by_path])
    return items | {'train': train}, False


def _match(saved: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> dict[str, str] | None:
    """Saved path -> wanted path, where they differ only in their places in chains of updates; None if they do not."""

    def by_name(shapes: dict[str, tuple[int, ...]]) -> dict[tuple, list[str]]:
        out = defaultdict(list)
        for path, shape in shapes.items():
            out[re.sub(r'(?<=/)\d+/', '', path), shape].append(path)
        return dict(out)

    theirs, ours = by_name(saved), by_name(wanted)
    if {name: len(paths) for name, paths in theirs.items()} != {name: len(paths) for name, paths in ours.items()}:
        return None
    return {old: new for name, paths in theirs.items() for old, new in zip(paths, ours[name], strict=True)}


def _begin_optimizer(plan: Plan, params: Any, step: int) -> dict[str, Any]:
    """The item `train` after a step, of an optimizer that begins there; its schedules, which count alone, do not."""

    def place(node: Any) -> Any:
        return node._replace(count=jnp.full_like(node.count, step)) if is_schedule(node) else node

    is_schedule = lambda node: isinstance(node, optax.ScaleByScheduleState)
    opt_state = jax.tree.map(place, plan.optimizer.init(params), is_leaf=is_schedule)
    return {'step': jnp.full((), step, jnp.int32), 'opt_state': opt_state}


def to_items(state: State, frozen: Any = None) -> Items:
    """A state as the named items of a checkpoint: all parameters can be read without the rest.

    Args:
      state: of training.
      frozen: the parameters that are not trained, or None.
    """
    params = merge_params(state.params, frozen)
    items = {'params': params, 'train': {'step': state.step, 'opt_state': state.opt_state}}
    return items if state.ema is None else items | {'ema': merge_params(state.ema, frozen)}


def from_items(items: Items, trainable: Part) -> tuple[State, Any]:
    """The inverse of `to_items`: (state, frozen). Args: trainable: `train.trainable` of the config."""
    params, frozen = split_params(items['params'], trainable)
    ema = split_params(items['ema'], trainable)[0] if 'ema' in items else None
    return State(items['train']['step'], params, items['train']['opt_state'], ema), frozen


# --- Another model's parameters --------------------------------------------------------


def _initial_params(plan: Plan, tokenizer: Tokenizer) -> tuple[Any, str]:
    """All parameters of the run or Hugging Face directory that `init_from` names, and where they came from in words."""
    source = epath.Path(hub.fetch_model(plan.config.init_from))
    if hf.is_hf(source):
        return _params_of_hf(plan, source, tokenizer)
    config = runs.read_config(source)
    if kind := config.model.quantised:
        raise ConfigError(
            f'init_from = {str(source)!r}: its weights are {kind}, which are not trained; take the run that it was '
            'made of'
        )
    if (source / 'tokenizer').exists():
        _check_same_tokenizer(source / 'tokenizer', tokenizer_lib.load(source / 'tokenizer'), tokenizer)
    checkpoints = Checkpoints(source, config.checkpoint, read_only=True)
    step = runs.pick_step(checkpoints, source, None)
    item = 'ema' if checkpoints.has(step, 'ema') else 'params'
    model = build(config.model, vocab_size=plan.config.model.vocab_size, seq_len=config.data.seq_len)
    with jax.set_mesh(plan.mesh):
        plain = dataclasses.replace(plan.config.model, adapter=config.model.adapter, scores=config.model.scores)
        wanted = param_shapes(Transformer(plain))
        params = checkpoints.restore(step, {item: wanted}, plan.mesh)[item]
        if config.model.adapter.kind != 'none':  # of another stage, which are part of the base now
            params = jax.jit(lambda params: lora.merge(Transformer(plain), params)[1])(params)
    if plain.scores != plan.config.model.scores:  # a head of another stage; `Plan.start` makes a new one
        params = {name: part for name, part in params.items() if name != 'score'}
    return params, f'started from {source} at step {step}' + _other_fields(model.config, plan.config.model)


def _params_of_hf(plan: Plan, source: epath.Path, tokenizer: Tokenizer) -> tuple[Any, str]:
    family, config = hf.read_config(source)
    if (theirs := tokenizer_lib.find(source)) is not None:
        _check_same_tokenizer(source, theirs.limit(config.model.vocab_size), tokenizer)
    model = dataclasses.replace(plan.config.model, scores=0)
    if shapes_by_path(shapes_of(config.model)) != shapes_by_path(shapes_of(model)):
        raise ConfigError(
            f'init_from = {str(source)!r} is of another model than config.model; set '
            + (', '.join(differences(config.model, plan.config.model)) or 'it as its config.json says')
        )
    params = hf.load_params(source, family, model, plan.mesh)
    return params, f'started from {source}' + _other_fields(config.model, plan.config.model)


def _check_same_tokenizer(place: epath.Path, theirs: Tokenizer, ours: Tokenizer) -> None:
    if theirs.fingerprint != ours.fingerprint:
        raise ConfigError(
            f'init_from: its model was trained with another tokenizer ({theirs.fingerprint}, in {place}) than the data '
            f'is now prepared with ({ours.fingerprint}), so its parameters would mean nothing; set '
            f'data.tokenizer.path = {str(place)!r}'
        )


def _other_fields(there: Model, here: Model) -> str:
    """What says in which fields the model that the parameters come from differs; '' for none."""
    there, here = (dataclasses.replace(model, adapter=Adapter(), scores=0) for model in (there, here))
    differ = [said for said in differences(there, here) if not re.search(r'= .*(:|<)', said)]  # of parts, only names
    return f', whose model had {", ".join(differ)}' if differ else ''
