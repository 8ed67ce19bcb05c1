"""Every family against Hugging Face's implementation of it, on random weights, in both directions."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

from safetensors.numpy import load_file  # noqa: E402

from families import CASES  # noqa: E402
from llm_jax.generate import decode, engine  # noqa: E402
from llm_jax.generate.samplers import Sampler  # noqa: E402
from llm_jax.interop import hf, tensors  # noqa: E402
from llm_jax.nn.transformer import Transformer  # noqa: E402
from llm_jax.train.losses import token_losses  # noqa: E402
