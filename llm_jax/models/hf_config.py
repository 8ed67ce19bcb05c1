"""Reading and writing config.json of Hugging Face: no key that changes the numbers is passed over."""

from collections.abc import Mapping, Sequence
from typing import Any

from llm_jax.config.schema import ConfigError, Model

# Keys that say nothing about the logits of a forward pass without dropout.
HARMLESS = {
    '_attn_implementation', '_attn_implementation_autoset', '_attn_implementation_internal', '_name_or_path',
    'add_cross_attention', 'architectures', 'attention_dropout', 'attn_pdrop', 'auto_map', 'bad_words_ids',
    'begin_suppress_tokens', 'bos_token_id', 'cache_implementation', 'chunk_size_feed_forward',
    'classifier_dropout', 'cross_attention_hidden_size', 'decoder_start_token_id', 'diversity_penalty', 'do_sample',
    'dtype', 'early_stopping', 'embd_pdrop', 'encoder_no_repeat_ngram_size', 'eos_token_id',
    'exponential_decay_length_penalty', 'finetuning_task', 'forced_bos_token_id', 'forced_eos_token_id',
    'gradient_checkpointing', 'hidden_dropout', 'id2label', 'initializer_range', 'is_decoder', 'is_encoder_decoder',
    'label2id', 'length_penalty', 'max_length', 'min_length', 'model_type', 'no_repeat_ngram_size',
    'num_beam_groups', 'num_beams', 'num_return_sequences', 'output_attentions', 'output_hidden_states',
    'output_router_logits', 'output_scores', 'pad_token_id', 'prefix', 'pretraining_tp', 'problem_type',
    'pruned_heads', 'remove_invalid_values', 'repetition_penalty', 'resid_pdrop', 'return_dict',
    'return_dict_in_generate', 'router_aux_loss_coef', 'sep_token_id', 'summary_activation',
    'summary_first_dropout', 'summary_proj_to_labels', 'summary_type', 'summary_use_proj', 'suppress_tokens',
    'task_specific_params', 'temperature', 'tf_legacy_loss', 'tie_encoder_decoder', 'tokenizer_class', 'top_k',
    'top_p', 'torch_dtype', 'torchscript', 'transformers_version', 'typical_p', 'unsloth_fixed', 'unsloth_version',
    'use_bfloat16', 'use_cache', 'vocab_size',
}  # fmt: skip
_REQUIRED = object()

_COUNT, _NUMBER, _TABLE, _LIST = (
    (int, 'a whole number'),
    ((int, float), 'a number'),
    (dict, 'an object'),
    (list, 'a list'),
)
# Types of values that most models have.
_TYPES = (
    dict.fromkeys(('vocab_size', 'hidden_size', 'num_hidden_layers', 'num_attention_heads', 'num_key_value_heads',
                   'head_dim', 'intermediate_size', 'max_position_embeddings', 'sliding_window', 'n_embd', 'n_layer',
                   'n_head', 'n_positions', 'num_experts_per_tok', 'num_local_experts'), _COUNT)
    | dict.fromkeys(('rms_norm_eps', 'layer_norm_eps', 'layer_norm_epsilon', 'rope_theta', 'partial_rotary_factor'),
                    _NUMBER)
    | dict.fromkeys(('rope_scaling', 'rope_parameters', 'quantization_config'), _TABLE)
    | dict.fromkeys(('layer_types',), _LIST)
)  # fmt: skip

# Feed-forwards by hidden_act, plain and gated.
PLAIN = {
    'gelu_new': 'gelu', 'gelu_pytorch_tanh': 'gelu', 'gelu_fast': 'gelu', 'gelu': 'gelu_exact', 'relu': 'relu',
    'relu2': 'relu2',
}  # fmt: skip
GATED = {'silu': 'swiglu', 'swish': 'swiglu', 'gelu_pytorch_tanh': 'geglu', 'gelu_new': 'geglu', 'gelu': 'geglu_exact'}


class Keys:
    """The values of a config.json, and which of them have been looked at."""

    def __init__(self, values: Mapping[str, Any]):
        """Args: values: of config.json.

        Raises:
          ConfigError: one is of another type than every model gives it.
        """
        for name, value in values.items():
            kind = _TYPES.get(name)
            if kind and value is not None and (not isinstance(value, kind[0]) or isinstance(value, bool)):
                raise ConfigError(f'config.json: {name} = {value!r} must be {kind[1]}')
        self.values = dict(values)
        self._seen: set[str] = set()

    def get(self, name: str, default: Any = _REQUIRED) -> Any:
        """A value; null counts as absent.

        Raises:
          ConfigError: it is absent and has no default.
        """
        self._seen.add(name)
        value = self.values.get(name)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise ConfigError(f'config.json has no {name!r}')
        return default

    def nullable(self, name: str, default: Any) -> Any:
        """A value for which null has a meaning of its own; the default is for its absence."""
        self._seen.add(name)
        return self.values.get(name, default)

    def only(self, name: str, *known: Any, default: Any = None) -> Any:
        """A value that has to be one of `known`; the first is the default, unless there is another.

        Raises:
          ConfigError: it is none of them.
        """
        value = self.get(name, known[0] if default is None else default)
        if value not in known:
            raise ConfigError(f'config.json: {name} = {value!r} is not supported; known: {", ".join(map(str, known))}')
        return value

    def choose(self, name: str, known: Mapping[Any, Any], default: Any = None) -> Any:
        """Looks a value up in `known`, whose first entry is the default.

        Raises:
          ConfigError: nothing.
        """
        return known[self.only(name, *known, default=default)]

    def done(self, *harmless: str) -> None:
        """Raises: ConfigError: a key was not looked at, is not switched off and could change the numbers."""
        known = self._seen | HARMLESS | set(harmless)
        unknown = [name for name, value in self.values.items() if name not in known and value not in (None, False)]
        if unknown:
            told = ', '.join(f'{name} = {self.values[name]!r}' for name in sorted(unknown))
            raise ConfigError(
                f'config.json of model_type {self.values.get("model_type")!r} has {told}, which could change the '
                'numbers and is not supported; remove it if it does not'
            )


def sizes(keys: Keys) -> dict[str, Any]:
    """The fields that most decoders since Llama say in the same words."""
    n_heads = keys.get('num_attention_heads')
    n_kv_heads = keys.get('num_key_value_heads', n_heads)
    return {
        'vocab_size': keys.get('vocab_size'),
        'd_model': keys.get('hidden_size'),
        'n_layers': keys.get('num_hidden_layers'),
        'n_heads': n_heads,
        'attention': 'mha' if n_kv_heads == n_heads else 'gqa',
        'n_kv_heads': 0 if n_kv_heads == n_heads else n_kv_heads,
        'd_head': keys.get('head_dim', 0),
        'd_ff': keys.get('intermediate_size'),
        'max_seq_len': keys.get('max_position_embeddings'),
        'norm': 'rmsnorm',
        'norm_eps': keys.get('rms_norm_eps'),
    }


def sizes_to_hf(model: Model) -> dict[str, Any]:
    """The inverse of `sizes`."""
    return {
        'vocab_size': model.vocab_size,
        'hidden_size': model.d_model,
        'num_hidden_layers': model.n_layers,
        'num_attention_heads': model.n_heads,
        'num_key_value_heads': model.kv_heads,
        'head_dim': model.head_size,
        'intermediate_size': model.ff_size,
        'max_position_embeddings': model.max_seq_len,
        'rms_norm_eps': model.norm_eps,
        'tie_word_embeddings': model.tie_embeddings,
    }


def activation(known: Mapping[str, str], part: Any) -> str:
    """The hidden_act of a feed-forward; the first that fits.

    Raises:
      ConfigError: there is none.
    """
    for name, ours in known.items():
        if ours == part:
            return name
    raise ConfigError(
        f'feed-forward {part!r} has no hidden_act there; known: {", ".join(dict.fromkeys(known.values()))}'
    )


# --- Rotary positions ------------------------------------------------------------------

# Rope type -> (our name, their key -> our field). 'su' is what Phi-3 first called "longrope".
_LONG = {'short_factor': 'short_factors', 'long_factor': 'long_factors', 'factor': 'factor',
         'attention_factor': 'attention_factor', 'original_max_position_embeddings': 'original_len'}  # fmt: skip
_ROPES = {
    'default': ('none', {}),
    'linear': ('linear', {'factor': 'factor'}),
    'dynamic': ('dynamic', {'factor': 'factor', 'original_max_position_embeddings': 'original_len'}),
    'yarn': ('yarn', {
        'factor': 'factor', 'original_max_position_embeddings': 'original_len', 'beta_fast': 'beta_fast',
        'beta_slow': 'beta_slow', 'truncate': 'round_betas', 'attention_factor': 'attention_factor',
        'mscale': 'mscale', 'mscale_all_dim': 'mscale_all_dim'}),
    'llama3': ('llama3', {
        'factor': 'factor', 'original_max_position_embeddings': 'original_len',
        'low_freq_factor': 'low_freq_factor', 'high_freq_factor': 'high_freq_factor'}),
    'longrope': ('longrope', _LONG),
    'su': ('longrope', _LONG),
}  # fmt: skip


def rope(keys: Keys, theta: float = 10_000.0, kind: str | None = None) -> dict[str, Any]:
    """The fields of `model.rope`, from rope_parameters or from the older rope_theta and rope_scaling.

    Args:
      keys: of config.json.
      theta: where it does not say.
      kind: of layer, where rope_parameters differ between kinds.

    Raises:
      ConfigError: an unknown type or key.
    """
    context = keys.get('max_position_embeddings')
    given, older = keys.get('rope_parameters', None), keys.get('rope_scaling', None)
    given = given[kind] if given and kind in given else given
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(f'config.json: rope_parameters has {given!r}, where an object must be')
    if given and older and kind is None:  # the same thing, written for newer and for older releases
        older = {('rope_type' if name == 'type' else name): value for name, value in older.items()}
        if differ := [name for name, value in older.items() if given.get(name) != value]:
            raise ConfigError(
                f'config.json: {differ[0]} is {given.get(differ[0])!r} in rope_parameters and {older[differ[0]]!r} in '
                'rope_scaling, which say the same thing to newer and older releases; remove the wrong one'
            )
    given = dict(given or older or {})
    theta, fraction = keys.get('rope_theta', theta), keys.get('partial_rotary_factor', 1.0)
    out = {
        'theta': float(given.pop('rope_theta', theta)),
        'fraction': float(given.pop('partial_rotary_factor', fraction)),
    }
    kind = given.pop('rope_type', None) or given.get('type', 'default')
    given.pop('type', None)
    if kind not in _ROPES:
        raise ConfigError(f'config.json: rope type {kind!r} is not supported; known: {", ".join(_ROPES)}')
    out['scaling'], known = _ROPES[kind]
    for name in given.keys() - known.keys():
        raise ConfigError(f'config.json: {name!r} of rope type {kind!r} is not supported; known: {", ".join(known)}')
    for name, value in given.items():
        if value is not None:
            out[known[name]] = tuple(value) if isinstance(value, list) else value
    if 'original_max_position_embeddings' in known:
        original = keys.get('original_max_position_embeddings', context)
        # "dynamic" grows past the context of config.json itself.
        out['original_len'] = context if kind == 'dynamic' else out.get('original_len', original)
        out.setdefault('factor', context / out['original_len'])
    return out


def rope_to_hf(model: Model) -> dict[str, Any]:
    """The inverse of `rope`: rope_theta and rope_scaling, which every release reads."""
    ours = model.rope
    out: dict[str, Any] = {'rope_theta': ours.theta, 'rope_scaling': None}
    if ours.scaling == 'none':
        return out
    kinds = {name: (kind, known) for kind, (name, known) in reversed(_ROPES.items()) if kind != 'su'}
    if ours.scaling not in kinds:
        raise ConfigError(f'model.rope.scaling = {ours.scaling!r} has no form there; known: {", ".join(kinds)}')
    kind, known = kinds[ours.scaling]
    values = {theirs: getattr(ours, field) for theirs, field in known.items()}
    if kind != 'dynamic' and 'original_max_position_embeddings' in values:
        values['original_max_position_embeddings'] = original_len(model)
    if kind == 'dynamic':
        del values['original_max_position_embeddings']
    # What is 0 in the config is left to be computed.
    computed = ('attention_factor', 'mscale', 'mscale_all_dim')
    values = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if v or name not in computed}
    return {**out, 'rope_scaling': {'rope_type': kind, **values}}


def original_len(model: Model) -> int:
    """model.rope.original_len, or what 0 stands for."""
    return model.rope.original_len or max(1, round(model.max_seq_len / max(model.rope.factor, 1.0)))


# --- Layers that differ ----------------------------------------------------------------


def pattern(kinds: Sequence[str], fields: Mapping[str, dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """`model.pattern` for a kind of each layer: the shortest that repeats.

    Args:
      kinds: of each layer.
      fields: what each kind changes.

    Raises:
      ConfigError: an unknown kind.
    """
    for kind in kinds:
        if kind not in fields:
            raise ConfigError(f'config.json: layer type {kind!r} is not supported; known: {", ".join(fields)}')
    n = len(kinds)
    size = next(size for size in range(1, n + 1) if all(kinds[i] == kinds[i % size] for i in range(n)))
    return tuple(dict(fields[kind]) for kind in kinds[:size])


def windows(model: Model) -> list[str]:
    """The layer_types of a model."""
    return ['sliding_attention' if model.layer(i).window else 'full_attention' for i in range(model.n_layers)]
