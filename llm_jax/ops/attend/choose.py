"""Which kernel computes attention where, and why."""

from llm_jax.config.schema import ConfigError, Model
from llm_jax.ops.attend import splash

# A kernel, the platform that has it, and what that is called.
PLATFORMS = {'splash': ('tpu', 'TPU'), 'cudnn': ('cuda', 'NVIDIA GPU')}
# cuDNN's widest head on GPUs before Hopper, and what its width must be a multiple of.
CUDNN_HEAD, CUDNN_MULTIPLE = 128, 8


def choose_kernel(
    config: Model, *, platform: str, length: int, context: int = 1, cached: bool = False, dropout: bool = True
) -> tuple[str, str]:
    """The kernel of a layer's attention, and the reason in words.

    Args:
      config: of the layer.
      platform: what the program is compiled for, as `mesh.platform` says.
      length: tokens of a row.
      context: devices that a row is split over.
      cached: whether keys are those of a cache, as in decoding.
      dropout: whether `model.dropout` is at work, that is, in training.

    Returns:
      ('xla' | 'splash' | 'cudnn', why)

    Raises:
      ConfigError: `model.attention_kernel` names one that cannot do what is asked, and it says what it lacks.
    """
    asked = config.attention_kernel
    if cached:
        return 'xla', 'decoding reads a cache, which the fused kernels do not'
    if asked == 'xla':
        return 'xla', 'model.attention_kernel asks for it'
    if asked == 'auto':
        name = next((name for name, (has, _) in PLATFORMS.items() if platform == has), None)
        if name is None:
            return 'xla', f'there is no fused kernel for {platform or "a mesh without devices"}'
        missing = _missing(name, config, length, context, dropout)
        return ('xla', f'{name} has no {missing}') if missing else (name, f'the fastest on {PLATFORMS[name][1]}')
    has, machine = PLATFORMS[asked]
    if platform not in ('', has):
        raise ConfigError(
            f'model.attention_kernel = {asked!r} runs on {machine}, and this is {platform}; use "auto" or "xla"'
        )
    if missing := _missing(asked, config, length, context, dropout):
        raise ConfigError(f'model.attention_kernel = {asked!r} has no {missing}; change that, or use "auto" or "xla"')
    return asked, 'model.attention_kernel asks for it'


def _missing(name: str, config: Model, length: int, context: int, dropout: bool) -> str:
    """What a kernel would need and does not have, in words; empty if nothing."""
    mla = config.attention == 'mla'
    key = config.mla.d_nope + config.mla.d_rope if mla else config.head_size
    value = config.mla.d_value if mla else config.head_size
    lacks = []
    if dropout and config.dropout:
        lacks.append(f'dropout of weights (model.dropout = {config.dropout})')
    if config.position == 'alibi':
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
        if config.attention_softcap:
            lacks.append(f'soft-cap (model.attention_softcap = {config.attention_softcap})')
        if config.attention_sinks:
            lacks.append('sinks (model.attention_sinks)')
        if key != value:
            lacks.append(f'values of another width than keys ({value} and {key})')
        if key > CUDNN_HEAD or key % CUDNN_MULTIPLE:
            lacks.append(f'heads of width {key} (at most {CUDNN_HEAD}, a multiple of {CUDNN_MULTIPLE})')
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
