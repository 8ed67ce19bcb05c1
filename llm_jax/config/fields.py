"""What the fields of a configuration are made with: a default, a type, a meaning, a range."""

import dataclasses
from typing import Any, Literal


class Options(dict):
    """Options of a part, by name; never changed, and so hashable."""

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.items())))


Dtype = Literal['float32', 'bfloat16']
# A count of steps, or '300 steps', '2e9 tokens', '1.5 epochs', '5 %'.
Duration = int | str


def field(default: Any, meaning: str, **facts: Any) -> Any:
    """A field of a config section; what it means is shown to users.

    Args:
      default: its value where nobody sets it.
      meaning: one line.
      **facts: what else is true of it: `at_least`, `below`, its range; `per_layer=False`, a
        pattern of layers cannot change it; `parts`, the 'module:TABLE' of the parts that it
        can name. Choices are a `Literal` type.
    """
    metadata = {'meaning': meaning, **facts}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(cls: type, meaning: str) -> Any:
    """A section within a config section."""
    return dataclasses.field(default_factory=cls, metadata={'meaning': meaning})
