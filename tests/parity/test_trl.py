"""A step of supervised fine-tuning and one of DPO against TRL's trainers, from the records to the gradients."""

import dataclasses
import json

from chats import byte_tokenizer
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from test_against_transformers import close, read_theirs

from llm_jax import config as config_lib
from llm_jax.align import reference
from llm_jax.data.prepare import prepare
from llm_jax.interop import hf, tensors
from llm_jax.nn.transformer import Transformer
from llm_jax.train.objectives import make_objective

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
trl = pytest.importorskip('trl')
datasets = pytest.importorskip('datasets')

# Nothing follows the mark that ends a turn: what does is no target of ours, and one of TRL's.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>{% endfor %}"
    '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)
ANSWERS = [('six and one', 'seven', 'it is eight, I think'), ('name a cat', 'Tom', 'no'), ('a', 'b c d e', 'ö'),
           ('say nothing', 'nothing', 'something else')]  # fmt: skip


def make_llama(directory, tokenizer, seed):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).float().save_pretrained(directory)
    return read_theirs(directory)


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """(directory, our tokenizer) with two models, 'policy' and 'reference', and the tokenizer of both libraries."""
    directory = tmp_path_factory.mktemp('trl')
    ours = byte_tokenizer(['<s>', '<|im_end|>', '<|im_start|>'], bos_token='<s>', eos_token='<|im_end|>')
    ours = ours.with_chat_templates({'default': TEMPLATE})
    ours.export(directory / 'tokenizer')
    for seed, name in enumerate(('policy', 'reference')):
        make_llama(directory / name, ours, seed)
    return directory


def turns(question, answer):
    return [{'role': 'user', 'content': question}], [{'role': 'assistant', 'content': answer}]


def their_step(trainer, model, directory):
    """(loss, gradients by the name in the files) of the first batch of a trainer."""
    (batch,) = trainer.get_train_dataloader()
    model.train()
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    for parameter in model.parameters():
        parameter.data = parameter.grad
    model.save_pretrained(directory)
    return loss.item(), load_file(directory / 'model.safetensors')


def our_step(models, tmp_path, form, objective, records, options=None):
    """The same of ours, from a file of records."""
    (tmp_path / 'records.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
    family, model_config = hf.read_config(models / 'policy')
    config = config_lib.default()
    config.data.sources = {'s': f'{form}:{tmp_path}/records.jsonl'}
    config.data.validation_sources = {'v': f'{form}:{tmp_path}/records.jsonl'}
    config.data.test_fraction, config.data.seq_len = 0.0, 256
    config.data.tokenizer.path, config.data.cache_dir = str(models / 'tokenizer'), str(tmp_path / 'cache')
    config.train.objective, config.train.objective_options = objective, options or {}
    config = dataclasses.replace(config_lib.validate(config), model=model_config.model)
    prepared, model = prepare(config.data, 0), Transformer(model_config.model)
    rows = prepared.rows('train')['s'].read(np.arange(prepared.count('train')))
    objective = make_objective(model, config, bos_id=prepared.tokenizer.bos_id)
    if form == 'pairs':
        params = hf.load_params(models / 'reference', family, model_config.model)
        kept = reference.token_log_probs(model, config, prepared.columns, 1, params, rows)
        rows = np.concatenate([rows, np.asarray(kept).view(np.int32)], 1)

    @jax.jit
    @jax.value_and_grad
    def step(params):
        batch = objective.add_statistics(objective.make_batch(rows))
        total, sums = objective.loss(params, batch, None)
        return total / objective.normaliser(sums)

    loss, gradients = step(hf.load_params(models / 'policy', family, model_config.model))
    return float(loss), dict(tensors.values(tensors.tensors(model_config.model, family), gradients))


def settings(cls, directory, **options):
    return cls(
        output_dir=str(directory / 'trainer'), per_device_train_batch_size=len(ANSWERS), use_cpu=True, bf16=False,
        report_to='none', max_length=None, gradient_checkpointing=False, **options,
    )  # fmt: skip


def assert_same(ours, theirs):
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-4)
    largest = max(np.abs(value).max() for value in theirs[1].values())
    for name, value in theirs[1].items():
        close(ours[1][name], value, 1e-3, 1e-3 * largest)


def test_a_step_of_sft(models, tmp_path):
    records = [dict(zip(('prompt', 'completion'), turns(question, good), strict=True)) for question, good, _ in ANSWERS]
    model = read_theirs(models / 'policy')
    trainer = trl.SFTTrainer(
        model, args=settings(trl.SFTConfig, tmp_path), train_dataset=datasets.Dataset.from_list(records),
        processing_class=transformers.AutoTokenizer.from_pretrained(models / 'tokenizer'),
    )  # fmt: skip
    theirs = their_step(trainer, model, tmp_path / 'gradients')
    records = [{'messages': record['prompt'] + record['completion']} for record in records]
    assert_same(our_step(models, tmp_path, 'conversations', 'sft', records), theirs)


@pytest.mark.parametrize(('kind', 'theirs_kind'), [('dpo', 'sigmoid'), ('ipo', 'ipo')])
def test_a_step_of_dpo(models, tmp_path, kind, theirs_kind):
    records = []
    for question, good, bad in ANSWERS:
        (prompt, chosen), (_, rejected) = turns(question, good), turns(question, bad)
        records.append({'prompt': prompt, 'chosen': chosen, 'rejected': rejected})
    model = read_theirs(models / 'policy')
    trainer = trl.DPOTrainer(
        model, ref_model=read_theirs(models / 'reference'),
        args=settings(trl.DPOConfig, tmp_path, beta=0.3, loss_type=[theirs_kind]),
        train_dataset=datasets.Dataset.from_list(records),
        processing_class=transformers.AutoTokenizer.from_pretrained(models / 'tokenizer'),
    )  # fmt: skip
    theirs = their_step(trainer, model, tmp_path / 'gradients')
    options = {'kind': kind, 'beta': 0.3}
    assert_same(our_step(models, tmp_path, 'pairs', 'preference', records, options), theirs)
