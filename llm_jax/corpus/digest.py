"""Hashes that name what depends on some values."""

import hashlib
import json
from typing import Any


def digest(*items: Any) -> str:
    """Hashes JSON values to 16 hexadecimal digits; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(items, sort_keys=True).encode()).hexdigest()[:16]
