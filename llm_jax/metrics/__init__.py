"""Measurements of a run: FLOPs, speed, and the writers of the numbers."""

from llm_jax.metrics.chips import measure_peak_flops, mfu, peak_flops
from llm_jax.metrics.console import Console
from llm_jax.metrics.flops import Counts, count, flops_per_token, frozen_flops_per_token
from llm_jax.metrics.writers import JsonlWriter, MultiWriter, TensorBoardWriter, Writer, read_jsonl

__all__ = [
    'Console',
    'Counts',
    'JsonlWriter',
    'MultiWriter',
    'TensorBoardWriter',
    'Writer',
    'count',
    'flops_per_token',
    'frozen_flops_per_token',
    'measure_peak_flops',
    'mfu',
    'peak_flops',
    'read_jsonl',
]
