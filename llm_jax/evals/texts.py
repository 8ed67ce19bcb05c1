"""Bits per byte of held-out texts, which compares models whatever their tokenizers and their data."""

from collections.abc import Mapping, Sequence
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.config.schema import ConfigError
from llm_jax.data import pack
from llm_jax.data.batch import unpack_rows
from llm_jax.data.prepare import read_documents
from llm_jax.runs import Loaded
from llm_jax.train.forward import per_token_nll


@dataclasses.dataclass(frozen=True)
class Score:
    """Scores of a model on some texts.

    Attributes:
      bits_per_byte: all the bits it needs for them, ends of documents too, over their bytes of UTF-8.
      perplexity: of a token; depends on the tokenizer.
      bytes, tokens, documents: how much there was.
    """

    bits_per_byte: float
    perplexity: float
    bytes: int
    tokens: int
    documents: int


def read_texts(specs: Mapping[str, str], max_bytes: int) -> dict[str, list[str]]:
    """The first documents of each source, as many as `max_bytes` of UTF-8 hold; the last is cut.

    Args:
      specs: name -> source, as in `data.sources`, such as 'text:wiki.test.txt'.
      max_bytes: 0 reads all.

    Raises:
      ConfigError: a source that is not there, or that has no text.
    """
    found = {}
    for name, documents in read_documents(specs).items():
        texts: list[str] = []
        left = max_bytes or math.inf
        for text in documents:
            data = text.encode()
            if len(data) > left:
                text = data[: int(left)].decode(errors='ignore')
            texts.append(text)
            left -= len(data)
            if left <= 0:
                break
        if not any(texts):
            raise ConfigError(f'{name} = {specs[name]!r} holds no text')
        found[name] = texts
    return found


def score(loaded: Loaded, texts: Sequence[str], *, seq_len: int = 0, batch_size: int = 16) -> Score:
    """Scores a model's predictions of unseen texts.

    The texts are one stream of documents, cut into rows of L tokens: a token is predicted
    from those before it in its row and document. A longer row leaves a model less in the dark.

    Args:
      loaded: the model with its parameters and its tokenizer.
      texts: documents.
      seq_len: L; 0 takes what the model was trained at.
      batch_size: rows B at a time.

    Raises:
      ConfigError: the run has no tokenizer, or one that changes text, whose bits would be of another text; or a
        loss that is not finite.
    """
    tok = loaded.tokenizer
    if tok is None or not tok.lossless:
        what = 'no tokenizer' if tok is None else 'a tokenizer that changes text'
        raise ConfigError(f'bits per byte need a tokenizer that keeps all of the text, and the run has {what}')
    length, bos_id = seq_len or loaded.config.data.seq_len, tok.bos_id
    packed = pack.pack(
        tok.encode_batch(texts), seq_len=length, bos_id=bos_id, vocab_size=tok.vocab_size, keep_tail=True
    )
    # The rest of the last row is no document's end: -1 is nothing at all.
    rows = [np.where(np.arange(length + 1) < real, row.astype(np.int32), -1) for row, real in packed]
    rows += [np.full(length + 1, -1, np.int32)] * (-len(rows) % batch_size)

    @jax.jit
    def sums(params: dict, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        batch = unpack_rows(tokens, bos_id)
        nll_BL = per_token_nll(loaded.model, params, batch)
        return jnp.sum(nll_BL * batch.loss_weights), jnp.sum(batch.loss_weights)

    batches = np.stack(rows).reshape(-1, batch_size, length + 1)
    parts = np.array([jax.device_get(sums(loaded.params, batch)) for batch in batches], np.float64)
    nll, tokens = parts.sum(0)
    if not math.isfinite(nll):
        raise ConfigError(
            f'the loss of the model is {nll}: its weights hold NaN or infinities, or overflow model.dtype; take '
            'another checkpoint, or model.dtype = float32'
        )
    size = sum(len(text.encode()) for text in texts)
    return Score(nll / math.log(2) / size, math.exp(min(nll / tokens, 700)), size, int(tokens), len(texts))
