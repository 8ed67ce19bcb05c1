"""Small experiments for the tests of plans."""

from llm_jax import config as config_lib


def config(**fields):
    """A validated config; `section__field=value` changes a field."""
    made = config_lib.default()
    made.name = 'small'
    made.model.update(vocab_size=512, d_model=128, n_layers=4, n_heads=8)
    made.data.seq_len, made.train.batch_size = 64, 16
    for name, value in fields.items():
        section, _, field = name.partition('__')
        made[section][field] = value
    return config_lib.validate(made)
