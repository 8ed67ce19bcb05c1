"""Every value, gradient and trap of a directory of fixtures; LLM_JAX_FIXTURES names another of the same form.

The tests are in the modules that are imported here, by what they are about.
"""

import pytest

pytest.register_assert_rewrite(
    'fixture_files', 'fixture_losses', 'fixture_policies', 'fixture_traps', 'fixture_adapters'
)

from fixture_adapters import *  # noqa: E402, F403
from fixture_files import *  # noqa: E402, F403
from fixture_files import only_with_fixtures  # noqa: E402
from fixture_losses import *  # noqa: E402, F403
from fixture_policies import *  # noqa: E402, F403
from fixture_traps import *  # noqa: E402, F403

pytestmark = only_with_fixtures
