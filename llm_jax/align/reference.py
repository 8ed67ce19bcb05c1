"""Log-probabilities of a reference, the model that a run began with: computed once, kept in the run directory.

They are a column of the rows: float32 at every token, that of the token given those before it in its segment, 0 where
it is no target. `reference/` has them and, in manifest.json, what they are of: the rows and the parameters.
"""

import functools
import io
import json
import time
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.checkpoint import write_atomically
from llm_jax.config.schema import Config, ConfigError
from llm_jax.corpus.digest import digest
from llm_jax.data.batch import split_length, unpack_examples
from llm_jax.data.examples import FORMS
from llm_jax.data.prepare import Prepared
from llm_jax.dist import mesh as mesh_lib
from llm_jax.nn.transformer import Transformer
from llm_jax.ops import zigzag
from llm_jax.train.forward import run_features, target_log_probs
from llm_jax.train.objectives import Start

DIRECTORY = 'reference'


def add_reference(model: Transformer, config: Config, prepared: Prepared, start: Start) -> Prepared:
    """The rows with the reference's log-probabilities, a column for each part of a row: computed, or read.

    Before the first step they must be of the parameters at hand, else they are computed again; a run that goes on
    takes those that it began with.

    Raises:
      ConfigError: those in the run directory are of another `init_from` or other rows.
    """
    directory = start.run_dir / DIRECTORY
    file = directory / 'manifest.json'
    of = {'init_from': start.origin, 'data': prepared.manifest['digest'], 'tokenizer': prepared.tokenizer.fingerprint}
    found = json.loads(file.read_text()) if file.exists() else {}
    if start.is_first or not found:
        of['parameters'] = fingerprint(start.initial_params())
    differ = [f'{name} {found[name]!r}, now {value!r}' for name, value in of.items() if found and found[name] != value]
    if found and not differ:
        start.say(f'reference: log-probabilities of {found["rows"]} rows are in {directory}')
        return prepared.widen({_split_and_source(name): _load(directory / name) for name in found['files']})
    if differ and not start.is_first:
        raise ConfigError(
            f'{directory} holds log-probabilities of another reference or other rows ({"; ".join(differ)}); undo the '
            f'change, or remove {directory} to have them computed again'
        )
    if differ:
        start.say(f'reference: {directory} is stale ({"; ".join(differ)}) and is computed again')
    began = time.perf_counter()
    more = compute(model, config, prepared, start)
    n_rows = sum(map(len, more.values()))
    if jax.process_index() == 0:
        directory.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        for (split, source), values in more.items():
            _save(directory / f'{split}.{source}.npy', values)
        files = [f'{split}.{source}.npy' for split, source in more]
        # Last of all: what has a manifest is whole.
        write_atomically(file, json.dumps(of | {'rows': n_rows, 'files': files}, indent=2) + '\n')
    start.say(f'reference: log-probabilities of {n_rows} rows computed in {time.perf_counter() - began:.1f} s')
    return prepared.widen(more)


def fingerprint(params: Any) -> str:
    """A number of the bits of all parameters, the same however they are sharded."""

    @jax.jit
    def sums(params: Any) -> list[jax.Array]:
        bits = [
            jax.lax.bitcast_convert_type(leaf, f'uint{8 * leaf.dtype.itemsize}') for leaf in jax.tree.leaves(params)
        ]
        wide = [leaf.astype(jnp.uint32) for leaf in bits]
        return [jnp.sum(part, dtype=jnp.uint32) for leaf in wide for part in (leaf, leaf * leaf)]

    return digest([int(number) for number in jax.device_get(sums(params))])


def compute(model: Transformer, config: Config, prepared: Prepared, start: Start) -> dict[tuple[str, str], np.ndarray]:
    """(split, source) -> float32[rows, parts (L+1)]: the log-probabilities of every row; every process gets all."""
    params, size = start.initial_params(), config.train.batch_size
    mesh = jax.sharding.get_mesh()
    run = jax.jit(
        functools.partial(token_log_probs, model, config, prepared.columns, FORMS[prepared.form].parts),
        out_shardings=None if mesh.empty else jax.NamedSharding(mesh, jax.P()),
    )
    out = {}
    for split in prepared.manifest['splits']:
        for source, rows in prepared.rows(split).items():
            parts = []
            for first in range(0, len(rows), size):
                indices = np.minimum(first + start.local_rows, len(rows) - 1)  # the last batch is filled up
                values = run(params, start.place(rows.read(indices)))
                parts.append(np.asarray(values.addressable_data(0)))
            out[split, source] = np.concatenate(parts)[: len(rows)]
    return out


def token_log_probs(
    model: Transformer, config: Config, columns: int, parts: int, params: Any, rows: jax.Array
) -> jax.Array:
    """Log-probability of each token of stored rows int[B, C (L+1)], float32[B, parts (L+1)]; 0 for no target."""
    train, rules = config.train, model.config.rules
    options = {'loss_chunk': train.loss_chunk, 'gather_head_once': train.gather_head_once}
    out = []
    for part in range(parts):
        batch = split_length(unpack_examples(rows, columns, part), rules)
        x_BLD, _ = run_features(model, params, batch)
        log_probs_BL = target_log_probs(model, params, x_BLD, batch.targets, **options)
        values_BL = zigzag.restore(jnp.where(batch.loss_weights != 0, log_probs_BL, 0.0), rules, ())
        out.append(jnp.pad(mesh_lib.shard(values_BL, rules, (None, None)), ((0, 0), (1, 0))))
    return jnp.concatenate(out, axis=1)


def _split_and_source(name: str) -> tuple[str, str]:
    split, _, source = name.removesuffix('.npy').partition('.')
    return split, source


def _save(file: epath.Path, values: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, values)
    file.write_bytes(buffer.getvalue())


def _load(file: epath.Path) -> np.ndarray:
    return np.load(io.BytesIO(file.read_bytes()))
