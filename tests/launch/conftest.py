"""Stand-ins of the clouds."""

import pytest

from tests.stand_ins import Cloud


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)
