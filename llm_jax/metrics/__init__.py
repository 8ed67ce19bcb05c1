"""What a run measures of itself: means, FLOPs, speed, and where the numbers go."""

from llm_jax.metrics.chips import measure_peak_flops, mfu, peak_flops
from llm_jax.metrics.console import Console
from llm_jax.metrics.flops import embedding_count, flops_per_token, matmul_count, parameter_count
from llm_jax.metrics.means import Mean, add, fetch, mean_of, value
from llm_jax.metrics.writers import JsonlWriter, MultiWriter, TensorBoardWriter, Writer, read_jsonl

__all__ = [
    'Console',
    'JsonlWriter',
    'Mean',
    'MultiWriter',
    'TensorBoardWriter',
    'Writer',
    'add',
    'embedding_count',
    'fetch',
    'flops_per_token',
    'matmul_count',
    'mean_of',
    'measure_peak_flops',
    'mfu',
    'parameter_count',
    'peak_flops',
    'read_jsonl',
    'value',
]
