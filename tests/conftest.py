"""Fixtures that several test files share."""

import os
import pathlib

import pytest


@pytest.fixture(scope='session')
def shared_data() -> pathlib.Path:
    """Directory of real test data beside the repository; without it the test is skipped."""
    beside = pathlib.Path(__file__).resolve().parents[2] / 'shared' / 'data'
    path = pathlib.Path(os.environ.get('LLM_JAX_SHARED_DATA', beside))
    if not path.is_dir():
        pytest.skip(f'there is no real test data at {path}')
    return path
