"""A model of ours as one of lm-eval's, so that its whole suite runs on it:

    import lm_eval
    from llm_jax.evals.lm_eval_adapter import Model

    lm_eval.simple_evaluate(Model('runs/NAME'), tasks=['hellaswag'])

lm_eval is no dependency. Where it asks `loglikelihood_rolling`, BOS is given, never predicted (lm-eval 0.4.13 predicts
it from itself where a tokenizer adds it); all else is as its own models answer.
"""

from collections.abc import Mapping, Sequence
import json
from typing import Any, Protocol

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    raise ImportError(
        'llm_jax.evals.lm_eval_adapter needs lm-eval, which is not installed: pip install "lm-eval>=0.4.9"'
    ) from error

from llm_jax import runs
from llm_jax.evals import encode
from llm_jax.evals.generate import Ask, Generator
from llm_jax.evals.run import Evaluation, begins_with_bos
from llm_jax.evals.score import Scorer, score_all
from llm_jax.evals.sources import Sources
from llm_jax.generate.settings import Sampler

_MAX_NEW_TOKENS = 256  # as lm-eval's models, where a task says nothing


class Instance(Protocol):
    """A request of lm-eval."""

    args: tuple


@register_model('llm_jax')
class Model(LM):
    """A run directory, a Hugging Face directory or 'hf:OWNER/NAME', as lm-eval asks it."""

    def __init__(self, path: str, step: int | None = None, seed: int = 0) -> None:
        """Args:
        path: of the model; see `llm_jax.load`.
        step: of the checkpoint; None takes the newest.
        seed: of texts that are drawn.

        Raises:
          ConfigError: no such model, or one without a tokenizer.
        """
        super().__init__()
        loaded = runs.load(path, None if step is None else int(step))
        self._bos, self._tokenizer, self._seed = begins_with_bos(loaded), loaded.tokenizer, int(seed)
        self._scorer = Scorer(loaded.model, loaded.params)
        self._rolling = Evaluation(loaded, Sources([]))
        self._generator = Generator(loaded, bos=self._bos)

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood, whether each token is the likeliest) of each (context, continuation)."""
        options = {'bos': self._bos, 'max_seq_len': self._scorer.max_seq_len}
        encoded = [encode.encode_pair(self._tokenizer, *request.args, **options) for request in requests]
        # Requests of one context are one item, which the model reads once where it can.
        names: dict[tuple[int, ...], str] = {}
        for one in encoded:
            names.setdefault(one.context, f'request {len(names)}')
        answers = score_all(self._scorer, [[one] for one in encoded], [names[one.context] for one in encoded])
        return [(answer.log_likelihood, answer.is_greedy) for [answer] in answers]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each text, every token once."""
        return self._rolling.roll([request.args[0] for request in requests])

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each context up to a stop string of its own settings."""
        texts = [''] * len(requests)
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        for settings, numbers in groups.items():
            asks = [Ask(requests[number].args[0], number, f'request {number}') for number in numbers]
            found = self._generator.complete(asks, n_samples=1, seed=self._seed, **_read_settings(json.loads(settings)))
            for number, one in zip(numbers, found, strict=True):
                texts[number] = one.samples[0]
        return texts


def _read_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Generator.complete` that lm-eval's generation_kwargs are."""
    stops = settings.get('until') or []
    is_greedy = not settings.get('do_sample', False)
    sampler = Sampler(
        temperature=0.0 if is_greedy else float(settings.get('temperature', 1.0)),
        top_k=0 if is_greedy else int(settings.get('top_k', 0)),
        top_p=1.0 if is_greedy else float(settings.get('top_p', 1.0)),
    )
    most = settings.get('max_gen_toks', settings.get('max_new_tokens', _MAX_NEW_TOKENS))
    stops = [stops] if isinstance(stops, str) else [stop for stop in stops if stop]
    return {'stops': stops, 'max_new_tokens': int(most), 'sampler': sampler}
