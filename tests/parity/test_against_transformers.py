"""Every family against Hugging Face's implementation of it, on random weights, in both directions."""

import json

from families import CASES, CONTEXT, V, draw
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from llm_jax.generate import decode
from llm_jax.interop import hf, tensors
from llm_jax.nn.transformer import Transformer

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

LENGTH = 29
# Where the documents of a packed row begin.
STARTS = (0, 11, 18)


def close(ours, theirs, most, least=0.0):
    """The largest difference is at most `most` of the largest value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    error = np.abs(ours - theirs).max() / max(np.abs(theirs).max(), least)
    assert error < most, error


class Pair:
    """Both implementations of one model, from one directory."""

    def __init__(self, name, directory):
        self.name, values = name.partition('.')[0], dict(CASES[name])
        values['pad_token_id'] = None  # the row of that token would have no gradient there
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(values.pop('model_type'), **values)
        self.theirs = transformers.AutoModelForCausalLM.from_config(config, attn_implementation='eager').float().eval()
        self.directory = directory / 'theirs'
        self.theirs.save_pretrained(self.directory)
        # Through the files, so that nothing is left at 0 or 1, whatever the parameters are called inside.
        file = self.directory / 'model.safetensors'
        from safetensors.numpy import save_file

        weights = draw({key: value.shape for key, value in load_file(file).items()})
        save_file(weights, file, metadata={'format': 'pt'})
        self.theirs = read_theirs(self.directory)
        self.family, self.config = hf.read_config(self.directory, CONTEXT.get(name))
        self.model = Transformer(self.config.model)
        self.params = hf.load_params(self.directory, self.family, self.config.model)
        rng = np.random.default_rng(1)
        self.tokens_BL = rng.integers(0, V, (2, LENGTH))

    def their_logits(self, tokens_BL):
        with torch.no_grad():
            return self.theirs(torch.tensor(tokens_BL), use_cache=False).logits.numpy()

    def apply(self, *args):
        return jax.jit(lambda params, *args: self.model.apply({'params': params}, *args))(self.params, *args)


def read_theirs(directory):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation='eager', dtype=torch.float32, output_loading_info=True
    )
    assert not any(info[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys')), info
    return model.eval()


@pytest.fixture(scope='module', params=CASES)
def pair(request, tmp_path_factory):
    return Pair(request.param, tmp_path_factory.mktemp('pair'))


def test_logits(pair):
    close(pair.apply(pair.tokens_BL), pair.their_logits(pair.tokens_BL), 1e-4)


def test_packed_documents(pair):
    """Each document of a packed row gives what it gives alone there."""
    starts = np.asarray(STARTS)
    segments_L = np.searchsorted(starts, np.arange(LENGTH), side='right')
    positions_L = np.arange(LENGTH) - starts[segments_L - 1]
    rows = lambda x_L: np.broadcast_to(x_L, pair.tokens_BL.shape)
    ours = np.asarray(pair.apply(pair.tokens_BL, rows(positions_L), rows(segments_L)))
    for start, stop in zip(STARTS, (*STARTS[1:], LENGTH), strict=True):
        close(ours[:, start:stop], pair.their_logits(pair.tokens_BL[:, start:stop]), 1e-4)


def test_cached_decoding(pair):
    """A prompt, then one token at a time."""
    theirs = pair.their_logits(pair.tokens_BL)
    config, B, prompt = pair.config.model, len(pair.tokens_BL), 7
    weights = decode.prepare(pair.model, pair.params)
    step = jax.jit(lambda *args: decode.forward(pair.model, weights, *args))
    caches = decode.empty_caches(config, B, LENGTH)
    positions = lambda start, stop: np.broadcast_to(np.arange(start, stop), (B, stop - start))
    last = lambda i: np.full(B, i)
    logits, caches = step(pair.tokens_BL[:, :prompt], positions(0, prompt), caches, last(prompt - 1))
    close(logits, theirs[:, prompt - 1], 1e-4)
    for i in range(prompt, LENGTH):
        logits, caches = step(pair.tokens_BL[:, i : i + 1], positions(i, i + 1), caches, last(0))
        close(logits, theirs[:, i], 1e-4)


def test_gradients(pair, tmp_path):
    inputs, targets = pair.tokens_BL[:, :-1], pair.tokens_BL[:, 1:]

    def loss(params):
        logits = pair.model.apply({'params': params}, inputs)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)
        return -picked.mean()

    ours = jax.jit(jax.grad(loss))(pair.params)
    wanted = tensors.tensors(pair.config.model, pair.family)
    ours = dict(tensors.values(wanted, ours))
    model = read_theirs(pair.directory)
    logits = model(torch.tensor(inputs), use_cache=False).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten()).backward()
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    model.save_pretrained(tmp_path)  # under the names of the files
    theirs = load_file(tmp_path / 'model.safetensors')
    largest = max(np.abs(value).max() for value in theirs.values())
    for name, value in theirs.items():
        if not name.endswith('e_score_correction_bias'):  # chooses experts, and has no gradient
            close(ours[name], value, 1e-3, 1e-3 * largest)


def test_back_again(pair, tmp_path):
    """The same tensors to the bit, and a directory that loads there."""
    hf.save(pair.config.model, pair.params, tmp_path / 'ours', family=pair.name, max_bytes=20_000)
    written = {}
    for file in (tmp_path / 'ours').glob('*.safetensors'):
        written |= load_file(file)
    theirs = load_file(pair.directory / 'model.safetensors')
    assert written.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(written[name], value, name)
    again = read_theirs(tmp_path / 'ours')
    with torch.no_grad():
        logits = again(torch.tensor(pair.tokens_BL), use_cache=False).logits.numpy()
    np.testing.assert_allclose(logits, pair.their_logits(pair.tokens_BL), rtol=1e-5, atol=1e-6)
    said = json.loads((tmp_path / 'ours' / 'config.json').read_text())
    assert said['model_type'] == pair.family.MODEL_TYPE
