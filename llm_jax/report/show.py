"""Tables for the terminal: an experiment's config, and its model as a tree."""

from collections.abc import Sequence

import rich.box
import rich.console
import rich.markup
import rich.table
import rich.tree

from llm_jax import config as config_lib
from llm_jax.config.schema import Config
from llm_jax.dist import mesh as mesh_lib
from llm_jax.metrics import format as fmt
from llm_jax.report.model import Parameter, Summary


def config_table(config: Config) -> rich.table.Table:
    """Every field with its value and meaning; '*' marks what differs from the default."""
    defaults = {name: value for name, value, _ in config_lib.describe(Config())}
    table = rich.table.Table('field', 'value', 'meaning', title=f'{config.name}: * differs from the default', box=None)
    for name, value, meaning in config_lib.describe(config):
        mark = '' if value == defaults[name] else '* '
        table.add_row(mark + name, rich.markup.escape(repr(value)), rich.markup.escape(meaning))
    return table


def model_tree(summary: Summary) -> rich.console.Group:
    """The parameters as a tree of modules, and what they add up to."""
    table = rich.table.Table(box=rich.box.SIMPLE)
    for name in ('parameters', 'shape', 'number', 'role', 'split over', 'on one device'):
        table.add_column(name, no_wrap=True)
    for depth, label, leaves in _walk(summary.parameters):
        name = '  ' * depth + label
        if len(leaves) == 1 and leaves[0].path[-1] == label:
            (leaf,) = leaves
            split = ', '.join('×'.join(axes) if axes else '–' for axes in leaf.split)
            shape, part = ('×'.join(map(str, dims)) for dims in (leaf.shape, leaf.part))
            table.add_row(name, shape, fmt.count(leaf.size), leaf.role, split, part)
        else:
            table.add_row(name, '', fmt.count(sum(leaf.size for leaf in leaves)), '', '', '', style='bold')
    counts, seq_len = summary.counts, summary.config.max_seq_len
    facts = rich.table.Table.grid(padding=(0, 2))
    mesh = mesh_lib.format_sizes(summary.sizes)
    for name, value in (
        ('parameters', f'{fmt.count(counts.total)} ({counts.total:,})'),
        ('active for a token', f'{fmt.count(counts.active)}, {fmt.count(counts.embedding)} of them embeddings'),
        ('FLOPs per token', f'{fmt.count(summary.flops_per_token)} in training, forward and backward'),
        (
            'KV cache',
            f'{fmt.size(summary.cache_bytes_per_token)} per token in {summary.config.dtype}, '
            f'{fmt.size(summary.cache_bytes_per_token * seq_len)} for {seq_len:,} tokens',
        ),
        ('mesh', mesh),
    ):
        facts.add_row(name, value)
    return rich.console.Group(table, facts)


def _walk(leaves: Sequence[Parameter], depth: int = 0) -> list[tuple[int, str, list[Parameter]]]:
    """(depth, name, the leaves under it) of every node, each before its children."""
    rows, names = [], dict.fromkeys(leaf.path[depth] for leaf in leaves)
    for name in names:
        inside = [leaf for leaf in leaves if leaf.path[depth] == name]
        rows.append((depth, name, inside))
        if len(inside[0].path) > depth + 1:
            rows += _walk(inside, depth + 1)
    return rows
