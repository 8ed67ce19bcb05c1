"""The sandbox of this machine, for tests that run programs in it."""

import pytest

from llm_jax.evals.sandbox import Sandbox, SandboxError


@pytest.fixture(scope='session')
def sandbox() -> Sandbox:
    """Skips where the sandbox does not hold, and says why."""
    try:
        return Sandbox()
    except SandboxError as e:
        pytest.skip(str(e))
