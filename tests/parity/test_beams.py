"""Beam search against Transformers' `generate(num_beams=...)`: tokens, their order and scores."""

from families import CASES, CONTEXT, V, draw
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llm_jax.generate import beam
from llm_jax.generate.beam import Beams
from llm_jax.generate.requests import Finish
from llm_jax.interop import hf
from llm_jax.nn.transformer import Transformer

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

N_NEW = 14


@pytest.fixture(scope='module', params=['llama.grouped_llama3_rope', 'gpt2.tied'])
def pair(request, tmp_path_factory):
    """(their model, ours, its parameters) from one directory of random weights."""
    directory = tmp_path_factory.mktemp(request.param)
    values = dict(CASES[request.param])
    config = transformers.AutoConfig.for_model(values.pop('model_type'), **values)
    transformers.AutoModelForCausalLM.from_config(config).float().save_pretrained(directory)
    file = directory / 'model.safetensors'
    save_file(draw({key: value.shape for key, value in load_file(file).items()}), file, metadata={'format': 'pt'})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation='eager').float().eval()
    family, ours = hf.read_config(directory, CONTEXT.get(request.param))
    return theirs, Transformer(ours.model), hf.load_params(directory, family, ours.model)


@pytest.mark.parametrize('early_stopping', [False, True, 'never'])
def test_as_generate(pair, early_stopping):
    theirs, model, params = pair
    rng = np.random.default_rng(0)
    ended = set()
    for n_beams, penalty, stops in (
        (2, 1.0, [7]), (4, 0.0, [7, 11, 30, 31, 32, 33]), (4, 2.0, range(20, 30)), (5, -0.5, range(40, 55)),
        (3, 1.0, []),
    ):  # fmt: skip
        prompt, stops = rng.integers(0, V, 9).tolist(), list(stops)
        out = theirs.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, 9, dtype=torch.long), max_new_tokens=N_NEW,
            num_beams=n_beams, num_return_sequences=n_beams, length_penalty=penalty, early_stopping=early_stopping,
            eos_token_id=stops or None, pad_token_id=0, do_sample=False, output_scores=True,
            return_dict_in_generate=True, use_cache=True,
        )  # fmt: skip
        beams = Beams(n_beams, length_penalty=penalty, early_stopping=early_stopping, n_return=n_beams)
        (found,) = beam.search(model, params, [prompt], max_new_tokens=N_NEW, beams=beams, stop_ids=stops)
        for one, tokens, indices in zip(found, out.sequences[:, 9:], out.beam_indices, strict=True):
            tokens = tokens[: int((indices >= 0).sum())].tolist()
            is_stopped = tokens[-1] in stops
            ended.add(is_stopped)
            assert one.tokens == (tokens[:-1] if is_stopped else tokens)
            assert one.finish is (Finish.STOP_ID if is_stopped else Finish.LENGTH)
        np.testing.assert_allclose([one.score for one in found], out.sequences_scores.numpy(), rtol=1e-4)
    assert ended == {True, False}
