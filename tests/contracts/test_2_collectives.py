"""What moves between devices in one step, counted in the compiled program: nobody adds a transfer unnoticed.

The model has two layers, scanned, so each transfer of a layer counts once; with stages, one layer on each. Layers have
seven matrices; with the embedding and the head that makes nine.
"""

import collections
import re

import jax
import pytest
from tiny import LLAMA, on_mesh, packed_tokens, place, tiny_config, tiny_training

KINDS = ('all-gather', 'reduce-scatter', 'all-reduce', 'collective-permute', 'all-to-all')
SEQUENCE = {'mesh__rules__residual_length': ('context', 'tensor')}
EXPERTS = {'feed_forward': 'moe', 'model__moe__n_experts': 4, 'model__moe__dispatch': 'all_to_all'}
CASES = {
    # Nine weights are gathered, seven of them again in the backward pass. Gradients are summed together, and each
    # device keeps its part (of that XLA makes a reduce-scatter for GPU, for TPU where it can, for CPU never).
    'fsdp': ({'fsdp': 8}, {}, (16, 0, 3, 0, 0)),
    # In slices, the head is gathered before the first, and its gradient scattered after the last: no more than whole.
    'fsdp, slices of the loss': ({'fsdp': 8}, {'train__loss_chunk': 8}, (16, 1, 3, 0, 0)),
    'fsdp, tensor, slices of the loss': ({'fsdp': 4, 'tensor': 2}, {'train__loss_chunk': 8}, (16, 1, 13, 0, 0)),
    # After each pair of products their parts are added up, and backwards before each of five.
    'fsdp, tensor': ({'fsdp': 4, 'tensor': 2}, {}, (16, 0, 13, 0, 0)),
    # Where rows are split, gradients are scattered; so are the same sums, and the residual stream is gathered.
    'fsdp, tensor, sequence': ({'fsdp': 4, 'tensor': 2}, SEQUENCE, (24, 16, 10, 0, 0)),
    # Keys and values are gathered together, once, and their gradients scattered, once.
    'fsdp, context': ({'fsdp': 2, 'context': 4}, {}, (17, 9, 5, 0, 0)),
    'context': ({'context': 8}, {}, (1, 1, 2, 0, 0)),
    # Forwards, keys and values are passed on three times; backwards with their gradients, which also go home.
    'fsdp, context, ring': ({'fsdp': 2, 'context': 4}, {'context_attention': 'ring'}, (16, 8, 5, 10, 0)),
    # Of a window that reaches into the neighbouring chunk, only two neighbours are visited.
    'context, ring, window': ({'context': 8}, {'context_attention': 'ring', 'window': 2}, (0, 0, 2, 7, 0)),
    # A stage does each micro-batch's forward pass twice, and so gathers a layer's weights three times: seven more. (3
    # to 5 gathers are of positions and segments.) Six permutes are the pipeline's own. Nothing is gathered where
    # arrays enter or leave the stages.
    'stage, fsdp, tensor': ({'stage': 2, 'fsdp': 2, 'tensor': 2}, {}, (27, 0, 20, 6, 0)),
    'stage, fsdp, tensor, sequence': ({'stage': 2, 'fsdp': 2, 'tensor': 2}, SEQUENCE, (28, 17, 15, 6, 0)),
    'stage, context, tensor, sequence': ({'stage': 2, 'context': 2, 'tensor': 2}, SEQUENCE, (13, 10, 13, 6, 0)),
    # Keys and values twice as well.
    'stage, context': ({'stage': 2, 'context': 4}, {}, (5, 1, 5, 6, 0)),
    'stage, context, ring': ({'stage': 2, 'context': 4}, {'context_attention': 'ring'}, (3, 0, 5, 16, 0)),
    # Rows go to their experts and back: a first round and the others' loop, each forwards and backwards (8), and there
    # once more in the others' (1), which the backward pass does again. Their weights go there, and gradients of them
    # back (5), and the numbers of rows (1). A stage does the first round's forward pass again (3).
    'expert': ({'fsdp': 4, 'expert': 2}, EXPERTS, (16, 3, 11, 0, 15)),
    'stage, expert': ({'stage': 2, 'fsdp': 2, 'expert': 2}, EXPERTS, (33, 3, 14, 6, 18)),
}  # fmt: skip
# From jax 0.12 on XLA joins the sums of scalars (norms, metrics) that a step with stages takes into fewer all-reduces.
FEWER_ALL_REDUCES = {
    'stage, fsdp, tensor': 3,
    'stage, fsdp, tensor, sequence': 1,
    'stage, context, tensor, sequence': 1,
    'stage, expert': 1,
}


@pytest.mark.parametrize('name', CASES)
def test_collectives_of_a_step(name):
    sizes, overrides, expected = CASES[name]
    config = tiny_config(**LLAMA | {'train__loss_chunk': 10**6, 'optimizer__clip': 0.0} | overrides)
    with on_mesh(sizes):
        step, state = tiny_training(config)
        text = step.lower(state, place(packed_tokens(8), config)).compile().as_text()
    if jax.__version_info__ >= (0, 12):
        gathers, scatters, reduces, *rest = expected
        expected = (gathers, scatters, reduces - FEWER_ALL_REDUCES.get(name, 0), *rest)
    found = collections.Counter(re.findall(rf' ({"|".join(KINDS)})(?:-start)?\(', text))
    assert {kind: found[kind] for kind in KINDS} == dict(zip(KINDS, expected, strict=True))
