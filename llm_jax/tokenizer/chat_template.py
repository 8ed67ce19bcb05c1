"""The chat templates that a tokenizer comes with, in the files where Hugging Face libraries keep them."""

from collections.abc import Mapping
import os
from typing import Any

from etils import epath

from llm_jax.config.schema import ConfigError

DEFAULT = 'default'
FILE_NAME = 'chat_template.jinja'
# Templates of other names than 'default', such as tool_use.jinja.
DIRECTORY = 'additional_chat_templates'
FIELD = 'chat_template'


def read(directory: epath.Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Reads the chat templates of a tokenizer's directory.

    Args:
      directory: with chat_template.jinja or additional_chat_templates/NAME.jinja, which come first.
      config: the content of tokenizer_config.json: its "chat_template" is one template, or a list of named ones.

    Returns:
      name -> Jinja source; the one without a name is 'default'. Empty if there is none.

    Raises:
      ConfigError: a file that is no UTF-8, or a field of another form.
    """
    files = {DEFAULT: directory / FILE_NAME}
    if (directory / DIRECTORY).is_dir():
        files |= {file.name.removesuffix('.jinja'): file for file in sorted((directory / DIRECTORY).glob('*.jinja'))}
    found = {name: _text(file) for name, file in files.items() if file.exists()}
    return found or from_config(config)


def from_config(config: Mapping[str, Any]) -> dict[str, str]:
    """The templates in the "chat_template" of a tokenizer_config.json; see `read`."""
    value = config.get(FIELD)
    if value is None:
        return {}
    if isinstance(value, str):
        return {DEFAULT: value}
    if isinstance(value, list) and all(isinstance(one, Mapping) for one in value):
        value = {one.get('name'): one.get('template') for one in value}
    if isinstance(value, Mapping) and all(isinstance(text, str) for pair in value.items() for text in pair):
        return dict(value)
    raise ConfigError(
        f'"{FIELD}" of tokenizer_config.json is neither a text nor a list of {{"name": ..., "template": ...}}; '
        'correct that file'
    )


def write(directory: str | os.PathLike, templates: Mapping[str, str]) -> None:
    """Writes templates so that `read`, and `transformers`, finds them.

    Raises:
      ConfigError: a name that no file can have.
    """
    directory = epath.Path(directory)
    for name in templates:
        if not name or name.startswith('.') or {'/', '\\', '\0'} & set(name):
            raise ConfigError(f'a chat template is called {name!r}, which cannot be the name of a file; rename it')
    for name, source in templates.items():
        file = directory / FILE_NAME if name == DEFAULT else directory / DIRECTORY / f'{name}.jinja'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(source.encode())


def _text(file: epath.Path) -> str:
    try:
        return file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f'{file.name} is no UTF-8 text: {error}; copy the file again') from error
