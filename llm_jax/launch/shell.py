"""Pieces of shell that the scripts have in common."""

from collections.abc import Iterable
import re

# A function of the shell. $POLL is also the pause between two looks at a queue: one number for all waiting.
AGAIN = """\
# again COMMAND: runs it until it succeeds, at most five times.
again() {
  local left
  for left in 4 3 2 1; do
    if "$@"; then return 0; fi
    echo "failed, $left more: $*" >&2
    sleep "${POLL:-10}"
  done
  "$@"
}"""


def script(title: str, *blocks: str, options: Iterable[str] = ()) -> str:
    """A shell script of blocks with an empty line between them; `options` are comments that a scheduler reads."""
    head = '\n'.join(['#!/usr/bin/env bash', *(f'# {line}' for line in title.splitlines()), *options,
                      'set -euo pipefail'])  # fmt: skip
    return '\n\n'.join([head, *(block.strip('\n') for block in blocks if block)]) + '\n'


def heredoc(text: str, *variables: str) -> str:
    """`text` as a here-document of the shell gives it back, in which just ${NAME} of these variables is filled in."""
    text = text.replace('\\', '\\\\').replace('`', '\\`').replace('$', '\\$')
    for variable in variables:
        text = text.replace(f'\\${{{variable}}}', f'${{{variable}}}')
    return text


def for_kubernetes(command: str) -> str:
    """A command as a pod has to name it: Kubernetes itself replaces $(NAME), and takes $$ for one $."""
    return re.sub(r'\$(?=[$(])', '$$', command)


def run_to_the_end(command: str, finished: str) -> list[str]:
    """Shell, one statement a line: runs the training, passes SIGTERM on to it, and ends with the exit code of both.

    The shell is the container's first process, or a child of it: the kernel and Kubernetes tell only that
    one that the machine will go. Told so, a run saves and ends with 0: only what is finished is done.

    Args:
      command: the training.
      finished: a command that succeeds where the run is finished.
    """
    return [
        f'{command} & pid=$!',
        'trap \'kill -TERM "$pid"\' TERM',
        # A signal ends `wait`, not the training.
        'code=0; wait "$pid" || code=$?',
        'while kill -0 "$pid" 2>/dev/null; do code=0; wait "$pid" || code=$?; done',
        f'if [[ $code == 0 ]]; then {finished} || code=75; fi',
        'exit "$code"',
    ]
