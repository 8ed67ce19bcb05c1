"""Contract 7 for conversations: trained by the real command, killed, resumed, bit-equal."""

import json
import re
import signal

from jobs import finish, losses, parameters, start, wait_for_step, write_experiment
import numpy as np

from llm_jax import tokenizer
from llm_jax.config import schema


def test_killed_and_resumed_it_is_the_same_run(tmp_path):
    experiment = write_experiment(tmp_path)
    lines = [json.loads(line)['text'] for line in (tmp_path / 'corpus.jsonl').read_text().splitlines()]
    marks = ('<|im_start|>', '<|im_end|>')
    tokenizer.train(schema.Tokenizer(vocab_size=300, reserved=marks), iter(lines), 0).save(tmp_path / 'tokenizer')
    records = [{'prompt': text[:40], 'response': text[40:120] or 'no'} for text in lines]
    (tmp_path / 'chat.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
    chosen = f"""
    config.chat.template = 'chatml'
    config.train.objective = 'sft'
    config.train.eval_every = 1  # slow enough for a checkpoint to be complete before the kill
    config.data.seq_len = 96
    config.data.sources = {{'chat': 'conversations:{tmp_path}/chat.jsonl'}}
    config.data.tokenizer.path = '{tmp_path}/tokenizer'
    return config"""
    experiment.write_text(experiment.read_text().replace('\n    return config', chosen))
    undisturbed, killed = tmp_path / 'undisturbed', tmp_path / 'killed'
    said = finish(start(experiment, undisturbed))
    assert re.search(r'conversations: rows are \d+% full; [1-9]\d* longer than data.seq_len dropped, 0 cut', said)
    assert 'gzip -9' not in said

    process = start(experiment, killed)
    wait_for_step(process, killed, 20)
    process.send_signal(signal.SIGKILL)
    finish(process, code=-signal.SIGKILL)
    assert 'resumed at step' in finish(start(experiment, killed))
    assert losses(killed) == losses(undisturbed)
    for ours, theirs in zip(parameters(killed), parameters(undisturbed), strict=True):
        np.testing.assert_array_equal(ours, theirs)
