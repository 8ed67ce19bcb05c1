"""A tiny model that can be talked to, the same in all tests, so that its programs are compiled once."""

import functools
import pathlib
from typing import Any

import jax
from tiny import LLAMA, random_params, tiny_config

from llm_jax import chat as chat_lib
from llm_jax import runs
from llm_jax import tokenizer as tokenizer_lib
from llm_jax.checkpoint import Checkpoints
from llm_jax.config import schema
from llm_jax.nn.transformer import Transformer, build

CONTEXT = 256
FORMAT = chat_lib.FORMATS['llm_jax']


@functools.cache
def tokenizer() -> tokenizer_lib.Tokenizer:
    """Bytes, and the marks of its template."""
    made = tokenizer_lib.train(schema.Tokenizer(kind='bytes', reserved=FORMAT.marks), [], seed=0)
    return made.with_chat_templates({'default': FORMAT.source})


@functools.cache
def config() -> schema.Config:
    return tiny_config(**(LLAMA | {'vocab_size': tokenizer().vocab_size, 'n_layers': 1}), data__seq_len=CONTEXT)


@functools.cache
def model() -> tuple[Transformer, Any]:
    """The model and its parameters, committed to a device as those of a checkpoint are."""
    made = build(config().model, vocab_size=tokenizer().vocab_size, seq_len=CONTEXT)
    return made, jax.device_put(random_params(made), jax.devices()[0])


def save_run(directory: pathlib.Path) -> None:
    """Writes a run directory of the model."""
    directory.mkdir()
    runs.write_config(directory, config(), None)
    tokenizer().save(directory / 'tokenizer')
    checkpoints = Checkpoints(directory, schema.Checkpoint())
    checkpoints.save(1, {'params': model()[1]}, {'step': 1})
    checkpoints.close()
