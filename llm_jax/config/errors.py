"""The one kind of error that a user can put right, and the type of a field that names a part."""

from collections.abc import Callable

# A part of the model or the recipe: a name the library knows, 'package.module:Name', or a callable.
Part = str | Callable


class ConfigError(ValueError):
    """A mistake in what the user asked for; the message says what and how to fix it."""
