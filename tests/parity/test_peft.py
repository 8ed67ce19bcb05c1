"""Adapters against PEFT on Hugging Face's models: the same logits from the same files, both ways."""

import jax
import numpy as np
import pytest
from test_against_transformers import Pair, close, read_theirs

from llm_jax.adapt import lora
from llm_jax.interop import peft as ours

torch = pytest.importorskip('torch')
peft = pytest.importorskip('peft')

# Family -> options of LoraConfig. Tensors of one matrix and of several, torch's layout and GPT-2's, latents.
CASES = {
    'llama.grouped_llama3_rope': {
        'target_modules': 'all-linear', 'rank_pattern': {'q_proj': 6}, 'alpha_pattern': {'down_proj': 5},
    },
    'llama.attention_biased_dynamic_rope': {
        'target_modules': ['q_proj', 'v_proj', 'lm_head', 'embed_tokens'], 'use_rslora': True,
    },
    'gpt2.tied': {'target_modules': ['c_attn', 'attn.c_proj', 'c_fc'], 'fan_in_fan_out': True},
    'gpt2.untied_exact_wide': {'target_modules': ['c_attn', 'mlp.c_proj'], 'fan_in_fan_out': True, 'use_dora': True},
    'gpt_neox.partial': {'target_modules': 'all-linear'},
    'phi3.window': {'target_modules': 'all-linear', 'use_dora': True},
    'qwen3.wide_heads': {'target_modules': ['q_proj', 'o_proj'], 'layers_to_transform': [0, 2]},
    'deepseek_v3.grouped_yarn': {'target_modules': ['kv_a_proj_with_mqa', 'kv_b_proj', 'q_b_proj', 'o_proj']},
    'mixtral.grouped': {'target_modules': ['k_proj', 'o_proj']},
}  # fmt: skip


def randomise(model):
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if 'lora_' in name:
            noise = 0.1 * torch.randn_like(parameter)
            parameter.data = parameter.data + noise if 'magnitude' in name else noise


def logits_of(theirs, tokens):
    with torch.no_grad():
        return theirs(torch.tensor(tokens), use_cache=False).logits.numpy()


def our_logits(model, params, tokens):
    return jax.jit(lambda params: model.apply({'params': params}, tokens))(params)


@pytest.mark.parametrize('name', CASES)
def test_both_ways(name, tmp_path):
    pair = Pair(name, tmp_path)
    config = peft.LoraConfig(r=4, lora_alpha=7, task_type='CAUSAL_LM', **CASES[name])
    theirs = peft.get_peft_model(pair.theirs, config)
    randomise(theirs)
    theirs.eval().save_pretrained(tmp_path / 'theirs_adapter')
    wanted = logits_of(theirs, pair.tokens_BL)

    model, adapters = ours.load(tmp_path / 'theirs_adapter', pair.model, pair.params)
    params = lora.attach(pair.params, adapters)
    got = our_logits(model, params, pair.tokens_BL)
    close(got, wanted, 1e-4)
    base = pair.apply(pair.tokens_BL)
    assert np.abs(base - got).max() > 100 * np.abs(got - wanted).max()
    close(our_logits(*lora.merge(model, params), pair.tokens_BL), wanted, 1e-4)

    # Of our own making: what was read has one A for several matrices, these have one each.
    noise = np.random.default_rng(0)
    draw = lambda x: x + 0.1 * noise.standard_normal(x.shape).astype(np.float32)
    params = lora.attach(pair.params, jax.tree.map(draw, adapters))
    ours.save(model, params, tmp_path / 'ours_adapter', family=pair.name)
    again = peft.PeftModel.from_pretrained(read_theirs(pair.directory), tmp_path / 'ours_adapter').eval()
    close(our_logits(model, params, pair.tokens_BL), logits_of(again, pair.tokens_BL), 1e-4)
    # And from our file to the same adapters' product.
    model, adapters = ours.load(tmp_path / 'ours_adapter', pair.model, pair.params)
    close(our_logits(model, lora.attach(pair.params, adapters), pair.tokens_BL), logits_of(again, pair.tokens_BL), 1e-4)
