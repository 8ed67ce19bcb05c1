"""Corpora compared by what they teach the same model."""

import json

import numpy as np

from llm_jax.lab import compare_data
from llm_jax.report import comparison


def test_means_and_standard_errors_of_a_comparison(tmp_path):
    values = np.array([[[1.0, 2.0, 3.0]], [[1.5, 1.5, 1.5]]])
    result = compare_data.Comparison(['raw', 'clean'], ['wiki'], 1000, values)
    table = comparison.tabulate(result.numbers)
    assert table.lines == [['corpus', 'wiki'], ['raw', '2.0000 ± 0.5774'], ['clean', '1.5000 ± 0.0000']]
    page = comparison.write(tmp_path, result.numbers, command='compare_data')
    assert '2.0000 ± 0.5774' in page.read_text() and '<svg' in page.read_text()
    assert json.loads((tmp_path / 'compare_data.json').read_text())['bits_per_byte'] == values.tolist()
