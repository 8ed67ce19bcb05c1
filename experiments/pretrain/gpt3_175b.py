"""GPT-3 175B (Brown et al. 2020, arXiv:2005.14165): 96 layers of width 12,288, on a pod of 512 chips (v5p:8x8x8).

  ./tools/run train experiments/pretrain/gpt3_175b.py --config.data.sources='corpus:gs://my-bucket/corpus'

Plans, compiled in 1 to 2 minutes each (./tools/run plan experiments/pretrain/gpt3_175b.py --topology ...):

  v5p:8x8x8    26.6 of 95.7 GiB a chip; 26.6 s a step at the roofline, bound by compute, 54 % MFU at most
  v6e:16x16    29.3 of 31.2 GiB; 29.0 s, 50 %, with --config.mesh.fsdp=128 --config.mesh.tensor=2
               --config.mesh.rules.residual_length="('context', 'tensor')" --config.train.grad_accumulation=4
               --config.optimizer.mu_dtype=bfloat16 --config.train.accumulation_dtype=bfloat16
               (found by --search; fsdp 32 x tensor 8 with 24 micro-batches takes 76.1 s)

The mesh is fsdp 64 x tensor 8 on v5p. With stages, where links between parts of the pod are slow:

  --config.mesh.stage=8 --config.mesh.fsdp=8 --config.mesh.pipeline_microbatches=64 --config.train.grad_accumulation=1

is 8 stages of 12 layers, with a bubble of 7 / 71 of the time. Compiled ahead of time for
v5p:8x8x8 with attention in plain XLA it took 93.2 of a chip's 95 GiB, 4.0 of it state.
"""

import ml_collections

from llm_jax import models


def get_config() -> ml_collections.ConfigDict:
    config = models.experiment('gpt3:175b')
    config.name = 'gpt3_175b'
    model = config.model
    model.vocab_size = 50_304  # the next multiple of 128, so that it splits over 8
    model.dtype = 'bfloat16'
    model.remat = 'full'

    config.data.sources = 'corpus:data/corpus'  # stands for text of your own
    config.data.tokenizer.vocab_size = 50_257
    config.data.validation_fraction = config.data.test_fraction = 0.001

    config.train.duration = '300e9 tokens'
    config.train.batch_size = 1536
    config.train.grad_accumulation = 8
    config.train.eval_every = '1000 steps'
    config.train.eval_batches = 10
    config.train.sample_every = 0  # sampling gathers a copy of the layers
    config.train.sample_prompts = ('The ', 'In 1969, ', 'Once upon a time')
    config.optimizer.learning_rate = 6e-5
    config.schedule.warmup = '375e6 tokens'
    config.checkpoint.every = '500 steps'

    config.mesh.fsdp, config.mesh.tensor = -1, 8
    return config
