"""What a stage takes over from the model that it begins with: shape and tokenizer, where the experiment says none.

So an experiment of post-training names a run, and what is its own. Fields of `config.model` that change the model make
it the experiment's own; it is then compared with the one in `init_from`, not replaced.
"""

import dataclasses

from etils import epath

from llm_jax import config as config_lib
from llm_jax import hub, runs
from llm_jax.config.schema import Config, ConfigError, Model
from llm_jax.data.examples import form_of
from llm_jax.interop import hf
from llm_jax.tokenizer import find

# Fields of `config.model` that are the stage's own: how the model is computed, and what it gets besides.
_OWN = (
    'adapter', 'scores', 'dropout', 'dtype', 'matmul', 'remat', 'scan', 'scan_unroll', 'attention_kernel',
    'context_attention', 'rules', 'pipeline',
)  # fmt: skip


def inherit(config: Config, run_dir: epath.PathLike) -> Config:
    """The config with the model, and for conversations and the like the tokenizer, of what the run begins with.

    Args:
      config: validated.
      run_dir: of the run; one that has begun has its own config, so that `init_from` need not be there any more.

    Raises:
      ConfigError: `init_from` is no model, or has no tokenizer where one is needed.
    """
    lacks_model = not _says_a_model(config.model)
    lacks_tokenizer = not config.data.tokenizer.path and form_of(config.data) != 'documents'
    if not config.init_from or not (lacks_model or lacks_tokenizer):
        return config
    run_dir = epath.Path(run_dir)
    has_begun = runs.has_begun(run_dir)
    source = run_dir if has_begun else epath.Path(hub.fetch_model(config.init_from))
    theirs = hf.read_config(source)[1] if hf.is_hf(source) else runs.read_config(source)
    if lacks_model:
        own = {name: getattr(config.model, name) for name in _OWN}
        if config.model.max_seq_len:
            own['max_seq_len'] = config.model.max_seq_len
        config = dataclasses.replace(config, model=dataclasses.replace(theirs.model, **own))
    if lacks_tokenizer:
        place = source if hf.is_hf(source) else source / 'tokenizer'
        if has_begun:
            tokenizer = theirs.data.tokenizer
        elif find(place) is not None:
            tokenizer = dataclasses.replace(config.data.tokenizer, path=str(place))
        else:
            raise ConfigError(
                f'init_from = {config.init_from!r} comes without a tokenizer; name the one of its model in '
                'data.tokenizer.path'
            )
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=tokenizer))
    config_lib.check(config)
    return config


def _says_a_model(model: Model) -> bool:
    """Whether a field that makes another model is not at its default."""
    default = Model()
    names = (field.name for field in dataclasses.fields(Model) if field.name not in (*_OWN, 'max_seq_len'))
    return any(getattr(model, name) != getattr(default, name) for name in names)
