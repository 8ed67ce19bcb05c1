"""A classifier on a laptop: is a text message spam? A head on the last token of a small base model.

  ./tools/run train experiments/post/sms_spam.py --config.data.sources.sms=labelled:sms.jsonl

A line of the file is {"text": "...", "label": "spam"}. The SMS Spam Collection has 13 % spam: to call nothing spam is
right 87 % of the time, so the report has balanced accuracy, F1 and the confusion matrix.
"""

import ml_collections

from llm_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
    config = config_lib.default()
    config.init_from = 'runs/quickstart'

    config.data.sources = {'sms': 'labelled:data/sms.jsonl'}
    config.data.classes = ('ham', 'spam')
    config.data.seq_len = 256
    config.data.too_long = 'cut'
    config.data.test_fraction = 0.2

    config.train.objective = 'classify'
    config.train.duration = '5 epochs'
    config.train.batch_size = 8  # rows, of up to eight messages each
    config.optimizer.learning_rate = 1e-3
    config.schedule.warmup = '5 %'
    return config
