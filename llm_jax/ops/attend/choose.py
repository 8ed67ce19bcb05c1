"""Choice of the attention kernel for a platform and layer, with the reason."""

from typing import NamedTuple

from llm_jax.config import parts
from llm_jax.config.schema import ConfigError, Model
from llm_jax.ops.attend import splash

# A kernel, the platform that has it, and what that is called.
PLATFORMS = {'splash': ('tpu', 'TPU'), 'cudnn': ('cuda', 'NVIDIA GPU')}
# cuDNN's widest head on GPUs before Hopper, and what its width must be a multiple of.
CUDNN_HEAD, CUDNN_MULTIPLE = 128, 8


class Need(NamedTuple):
    """Features that a layer needs of a kernel.

    Attributes:
      key: width of queries and keys.
      value: width of values.
      softcap: of the scores; 0 for none.
      sinks: whether heads have sinks.
      slopes: whether scores fall with distance (ALiBi).
    """

    key: int
    value: int
    softcap: float
    sinks: bool
    slopes: bool


def declared(config: Model) -> Need:
    """Features that the parts of a layer declare."""
    dims = parts.attention(config).head_dims(config)
    slopes = parts.position(config).slopes(config, config.n_heads)
    return Need(dims.key, dims.value, config.attention_softcap, config.attention_sinks, slopes is not None)


def choose_kernel(
    config: Model, *, platform: str, length: int, context: int = 1, cached: bool = False, dropout: bool = True,
    need: Need | None = None,
) -> tuple[str, str]:  # fmt: skip
    """The kernel of a layer's attention, and the reason in words.

    Args:
      config: of the layer.
      platform: what the program is compiled for, as `mesh.platform` says.
      length: tokens of a row.
      context: devices that a row is split over.
      cached: whether keys are those of a cache, as in decoding.
      dropout: whether `model.dropout` is at work, that is, in training.
      need: of the arrays at hand; None takes what the layer's parts declare.

    Returns:
      ('xla' | 'splash' | 'cudnn', why)

    Raises:
      ConfigError: `model.attention_kernel` names one that cannot do what is asked, and it says what it lacks.
    """
    asked, need = config.attention_kernel, need or declared(config)
    if cached:
        return 'xla', 'decoding reads a cache, which the fused kernels do not'
    if asked == 'xla':
        return 'xla', 'model.attention_kernel asks for it'
    if asked == 'auto':
        name = next((name for name, (has, _) in PLATFORMS.items() if platform == has), None)
        if name is None:
            return 'xla', f'there is no fused kernel for {platform or "a mesh without devices"}'
        missing = _missing(name, config, need, length, context, dropout)
        return ('xla', f'{name} has no {missing}') if missing else (name, f'the fastest on {PLATFORMS[name][1]}')
    has, machine = PLATFORMS[asked]
    if platform not in ('', has):
        raise ConfigError(
            f'model.attention_kernel = {asked!r} runs on {machine}, and this is {platform}; use "auto" or "xla"'
        )
    if missing := _missing(asked, config, need, length, context, dropout):
        raise ConfigError(f'model.attention_kernel = {asked!r} has no {missing}; change that, or use "auto" or "xla"')
    return asked, 'model.attention_kernel asks for it'


def _missing(name: str, config: Model, need: Need, length: int, context: int, dropout: bool) -> str:
    """Reasons against a kernel, in words; empty if there are none."""
    lacks = []
    if dropout and config.dropout:
        lacks.append(f'dropout of weights (model.dropout = {config.dropout})')
    if need.slopes:
        lacks.append('ALiBi (model.position)')
    if name == 'splash':
        if context > 1 and config.context_attention == 'ring':
            lacks.append('ring (model.context_attention)')
        run = length // (2 * context) if context > 1 else length
        if not splash.block(run):
            whole = f'runs of {run} tokens' if context > 1 else f'rows of {run} tokens'
            lacks.append(f'{whole} (they must be a multiple of {splash.LANES})')
    if name == 'cudnn':
        if context > 1:
            lacks.append(f'rows that are split over devices (mesh.context = {context})')
        if config.dtype != 'bfloat16':
            lacks.append(f'{config.dtype} (model.dtype)')
        if need.softcap:
            lacks.append(f'soft-cap (model.attention_softcap = {need.softcap})')
        if need.sinks:
            lacks.append('sinks (model.attention_sinks)')
        if need.key != need.value:
            lacks.append(f'values of another width than keys ({need.value} and {need.key})')
        if need.key > CUDNN_HEAD or need.key % CUDNN_MULTIPLE:
            lacks.append(f'heads of width {need.key} (at most {CUDNN_HEAD}, a multiple of {CUDNN_MULTIPLE})')
        if length % 2:
            lacks.append(f'rows of an odd length ({length})')
    return ' and no '.join(lacks)


def kernels(config: Model, *, platform: str, length: int, context: int = 1) -> dict[str, str]:
    """Kernel -> why, for all layers of a model in training.

    Raises:
      ConfigError: as `choose_kernel` does.
    """
    layers = dict.fromkeys(config.layer(i) for i in range(config.n_layers))
    chosen = {}
    for layer in layers:
        name, why = choose_kernel(layer, platform=platform, length=length, context=context)
        if why not in chosen.setdefault(name, []):
            chosen[name].append(why)
    return {name: '; '.join(reasons) for name, reasons in chosen.items()}
