"""Configuration: the fields (schema), from an experiment file to a validated `Config` (load), the parts that it names
(parts), and what the tools say on the command line (cli). Nothing here imports JAX."""

from llm_jax.config.load import (
    apply_overrides,
    build,
    check,
    default,
    describe,
    freeze_rules,
    from_dict,
    load_experiment,
    steps,
    to_dict,
    validate,
)
from llm_jax.config.schema import Config, ConfigError

__all__ = [
    'Config',
    'ConfigError',
    'apply_overrides',
    'build',
    'check',
    'default',
    'describe',
    'freeze_rules',
    'from_dict',
    'load_experiment',
    'steps',
    'to_dict',
    'validate',
]
