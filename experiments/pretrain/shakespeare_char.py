"""nanoGPT's first experiment: Shakespeare by characters.

  curl -O https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt
  ./tools/run train experiments/pretrain/shakespeare_char.py

The text comes with char-rnn and nanoGPT (1.1 MB); another file is --config.data.sources=text:FILE. Model, split (the
last tenth of the text), batches and optimizer are those of nanoGPT's command for a laptop (4 layers, width 128, 2000
steps).

Held-out loss after them, nats per character: 1.881 and 1.890 here (seeds 0 and 1), 1.898 in nanoGPT (one seed, the same
recipe and text).
"""

import ml_collections

from llm_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
    config = config_lib.default()
    model = config.model
    model.d_model, model.n_layers, model.n_heads = 128, 4, 4
    model.position = 'learned'
    model.norm = 'layernorm'
    model.feed_forward = 'gelu_exact'
    model.dtype = 'float32'

    config.data.sources = 'text:input.txt'
    config.data.split_by = 'place'
    config.data.validation_fraction, config.data.test_fraction = 0.1, 0.0
    config.data.seq_len = model.max_seq_len = 64
    config.data.tokenizer.kind = 'characters'

    config.train.duration = 2000
    config.train.batch_size = 12
    config.mesh.fsdp = 1  # twelve rows are for one device
    config.train.eval_every = 500
    config.train.sample_prompts = ('ROMEO:\n', 'First Citizen:\n')
    config.train.sample_tokens = 200
    config.optimizer.learning_rate = 1e-3
    config.optimizer.b2 = 0.99
    config.schedule.warmup = 100
    return config
