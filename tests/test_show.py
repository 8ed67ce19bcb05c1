"""A model by numbers, and the tables that `show` prints."""

import io

import jax
import numpy as np
import pytest
import rich.console
from tiny import LLAMA, VARIANTS, on_mesh, random_params, tiny_config, tiny_model

from llm_jax.config.schema import ConfigError
from llm_jax.nn.transformer import init_params
from llm_jax.report import show
from llm_jax.report.model import summarise


@pytest.mark.parametrize('name', ['window', 'mla', 'moe, groups, shared', 'first layers dense'])
def test_parameters_are_those_of_the_model_and_lie_where_it_puts_them(name):
    config = tiny_config(**(LLAMA | VARIANTS[name]), mesh__fsdp=2, mesh__tensor=2)
    summary = summarise(config, 4, 64)
    model = tiny_model(config)
    with on_mesh((1, 2, 2)):
        params = jax.jit(lambda: init_params(model, jax.random.key(0)))()
    leaves = {tuple(k.key for k in path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}
    assert {p.path: p.shape for p in summary.parameters} == {path: x.shape for path, x in leaves.items()}
    assert {p.path: p.part for p in summary.parameters} == {
        path: x.addressable_shards[0].data.shape for path, x in leaves.items()
    }
    assert summary.counts.total == sum(x.size for x in jax.tree.leaves(random_params(model)))


def test_cache_bytes():
    grouped = summarise(tiny_config(**LLAMA, dtype='bfloat16'), 1, 64)
    assert grouped.cache_bytes_per_token == 2 * 2 * 2 * 8 * 2  # layers, k and v, heads, width, bytes
    latent = summarise(tiny_config(attention='mla', model__mla__kv_rank=12, model__mla__d_rope=4), 1, 64)
    assert latent.cache_bytes_per_token == 2 * (12 + 4) * 4


def test_the_tree_adds_up():
    summary = summarise(tiny_config(**LLAMA, mesh__fsdp=-1), 4, 64)
    text = io.StringIO()
    rich.console.Console(file=text, width=160).print(show.model_tree(summary))
    lines = {line.split()[0]: line for line in text.getvalue().splitlines() if line.split()}
    attention = 2 * (2 * 32 * 32 + 2 * 32 * 16)  # q and out, k and v of half as many heads; 2 layers
    assert f'{attention / 1000:.3g} k' in lines['attention']
    assert '2×4×8×32' in lines['out'] or '2×4×8×32' in text.getvalue()
    assert f'({summary.counts.total:,})' in text.getvalue()
    assert 'data 1 × fsdp 4 × tensor 1' in text.getvalue()
    assert np.isclose(summary.flops_per_token, 6 * summary.counts.matmul + 12 * 2 * 32 * 16)


def test_a_mesh_that_does_not_fit_is_refused_here_too():
    with pytest.raises(ConfigError, match='does not fit 3 device'):
        summarise(tiny_config(mesh__fsdp=2), 3, 64)
