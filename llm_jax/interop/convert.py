"""Run directories from weights of other projects, and the other way round."""

import dataclasses
import os
from typing import Any

from etils import epath

from llm_jax import hub, runs
from llm_jax.adapt import lora
from llm_jax.checkpoint import Checkpoints
from llm_jax.config.parts import EXPERIMENT
from llm_jax.config.schema import Config, ConfigError
from llm_jax.interop import hf, llama2c
from llm_jax.nn.transformer import build, weights_of
from llm_jax.ops.quantised import dequantise_params, quantise_params
from llm_jax.tokenizer import Tokenizer, find


def from_hf(
    source: str | os.PathLike, run_dir: str | os.PathLike, *, tokenizer: str = '', max_seq_len: int | None = None,
    quantise: str = '',
) -> Tokenizer | None:  # fmt: skip
    """Makes a run directory of a Hugging Face directory.

    Args:
      source: with config.json and safetensors; or 'hf:OWNER/NAME[@REVISION]', a model of the Hub.
      run_dir: where to; new or empty.
      tokenizer: a file or directory of another tokenizer than the source's own.
      max_seq_len: the context to use the model at; None takes that of config.json.
      quantise: 'int8' or 'int4' quantises the weights; '' leaves them.

    Returns:
      the tokenizer, None if there was none.

    Raises:
      ConfigError: what is not supported, or `run_dir` is in use.
    """
    _check_new(run_dir)
    directory = hub.fetch_model(source)
    family, config = hf.read_config(directory, max_seq_len)
    config = dataclasses.replace(config, name=hub.short_name(source))
    params = hf.load_params(directory, family, config.model)
    return _write(run_dir, config, params, tokenizer or directory, str(source), quantise=quantise)


def from_llama2c(
    file: str | os.PathLike, run_dir: str | os.PathLike, *, tokenizer: str = '', quantise: str = ''
) -> Tokenizer | None:
    """Makes a run directory of a llama2.c file; see `from_hf`."""
    _check_new(run_dir)
    config, params = llama2c.load(file)
    return _write(run_dir, config, params, tokenizer, str(file), quantise=quantise)


def quantise_run(
    source: str | os.PathLike, run_dir: str | os.PathLike, kind: str, *, step: int | None = None, tokenizer: str = ''
) -> Tokenizer | None:
    """Makes a run directory whose checkpoint holds the quantised weights of another's.

    Args:
      source: a run directory.
      run_dir: where to; new or empty.
      kind: 'int8' or 'int4'.
      step: of the checkpoint; None takes the newest.
      tokenizer: a file or directory of another tokenizer than the source's own.

    Returns:
      the tokenizer, None if there was none.

    Raises:
      ConfigError: `run_dir` is in use, or the weights are quantised in another way.
    """
    _check_new(run_dir)
    loaded, experiment = runs.load(source, step), epath.Path(source) / EXPERIMENT
    if not tokenizer and loaded.tokenizer is not None:
        tokenizer = epath.Path(source) / 'tokenizer'
    return _write(
        run_dir, loaded.config, loaded.params, tokenizer, str(source), quantise=kind, step=loaded.step,
        experiment=experiment if experiment.exists() else None,
    )  # fmt: skip


def to_hf(
    run_dir: str | os.PathLike, target: str | os.PathLike, *, step: int | None = None, family: str = '',
    dtype: str = 'float32',
) -> str:  # fmt: skip
    """Makes a Hugging Face directory of a run directory.

    Args:
      run_dir: with a checkpoint.
      target: where to; new or empty.
      step: of the checkpoint; None takes the newest.
      family: whose form; '' takes the first that can say all that the model is.
      dtype: of the tensors, 'float32' or 'bfloat16'.

    Returns:
      the name of the family.

    Raises:
      ConfigError: no family can say what the model is, or `target` is in use.
    """
    loaded = runs.load(run_dir, step)
    more = {}
    if loaded.tokenizer is not None:
        # BOS begins a document and so is also what a model of ours writes at its end.
        ends = [*loaded.tokenizer.eos_ids, loaded.tokenizer.bos_id]
        more = {'bos_token_id': loaded.tokenizer.bos_id, 'eos_token_id': list(dict.fromkeys(ends))}
    model, params = loaded.model, loaded.params
    if model.config.adapter.kind != 'none':
        model, params = lora.merge(model, params)
    family = hf.save(model.config, dequantise_params(params), target, family=family, dtype=dtype, more=more)
    if loaded.tokenizer is not None:
        loaded.tokenizer.export(target)
    return family


def _check_new(run_dir: str | os.PathLike) -> None:
    run_dir = epath.Path(run_dir)
    if run_dir.exists() and any(run_dir.iterdir()):
        raise ConfigError(f'{run_dir} is not empty; convert to a new directory')


def _write(
    run_dir: str | os.PathLike, config: Config, params: Any, tokenizer: str | os.PathLike, source: str, *,
    quantise: str = '', step: int = 0, experiment: epath.Path | None = None,
) -> Tokenizer | None:  # fmt: skip
    run_dir = epath.Path(run_dir)
    if quantise:
        vocab_size = params['embed']['embedding'].shape[0]
        model = build(config.model, vocab_size=vocab_size, seq_len=config.data.seq_len)
        params = quantise_params(params, weights_of(model), quantise)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, quantised=quantise))
    runs.write_config(run_dir, config, experiment)
    found = find(tokenizer) if tokenizer else None
    if found is not None:
        found = found.limit(config.model.vocab_size)
        found.save(run_dir / 'tokenizer')
    # Without text there is no data to go on with: a run begins from here with init_from.
    meta = {'tokenizer': found.fingerprint if found else '', 'data': '', 'source': source}
    checkpoints = Checkpoints(run_dir, config.checkpoint)
    checkpoints.save(step, {'params': params}, meta)
    checkpoints.close()
    return found
