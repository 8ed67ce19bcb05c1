"""The process of the tests: runs them, with functions that ask the process of the solution; never runs the solution.

Descriptor 0 brings answers, descriptor 1 takes requests, and the verdict goes to the descriptor whose number is the
argument. Bytes that come from the solution become literals (`wire`), or the test fails.
"""

import builtins
import os
import sys

# Beside this file in the sandbox, whose interpreter looks nowhere but in its own library.
sys.path.insert(0, '/program')
from wire import MAX_BYTES, Malformed, Unsendable, decode, encode, receive, send  # noqa: E402

del sys.path[0], sys.modules['wire']

# Exceptions that a test may expect. Those that end a loop, a generator or the process are not among them: raised where
# a
# test iterates, they would look like the end of the values.
_EXPECTED = {
    name
    for name in dir(builtins)
    if isinstance(getattr(builtins, name), type) and issubclass(getattr(builtins, name), Exception)
} - {'StopIteration', 'StopAsyncIteration', 'BaseExceptionGroup', 'ExceptionGroup'}
_EXPECTED -= {name for name in _EXPECTED if issubclass(getattr(builtins, name), (UnicodeError, Warning))}


class SolutionError(Exception):
    """The solution raised something that no test expects, or answered something that is no answer."""


class Ended(BaseException):
    """The process of the solution has ended, or does not answer as it should: nothing that a test does can pass now."""

    reasons = []

    def __init__(self, reason):
        super().__init__(reason)
        self.reasons.append(reason)


def ask(requests, answers, request):
    """Sends a request, if there is one, and returns the answer's kind and values."""
    if request is not None:
        data = encode(request)
        if len(data) > MAX_BYTES:
            raise Unsendable('the arguments are too large')
        try:
            send(requests, data)
        except BrokenPipeError:
            raise Ended('the process of the solution has ended') from None
    try:
        data = receive(answers)
        answer = None if data is None else decode(data)
    except Malformed as e:
        raise Ended(f'the solution answered what is no literal: {e}') from None
    if data is None:
        raise Ended('the process of the solution has ended')
    if type(answer) is not tuple or not answer or answer[0] not in ('ready', 'value', 'error', 'failed'):
        raise Ended('the solution answered what is no answer')
    return answer


def make_function(name, requests, answers):
    """A function that the solution answers for."""

    def function(*positional, **keywords):
        kind, *values = ask(requests, answers, (name, positional, keywords))
        if kind == 'value' and len(values) == 1:
            return values[0]
        if kind == 'error' and len(values) == 2 and all(type(value) is str for value in values):
            error, text = values
            if error in _EXPECTED:
                raise getattr(builtins, error)(text)
            raise SolutionError(f'{error}: {text}')
        raise Ended('the solution answered what is no answer')

    function.__name__ = function.__qualname__ = name
    return function


def main():
    requests, answers, verdict = os.dup(1), os.dup(0), int(sys.argv[1])
    null = os.open('/dev/null', os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    with open('/program/tests.bin', 'rb') as file:
        names, setup, tests = decode(file.read())

    def report(passed, reason):
        send(verdict, encode((passed, reason[:2000])))
        os._exit(0)

    namespace = {'__name__': 'tests'}
    try:
        kind, *values = ask(None, answers, None)
        if kind != 'ready':
            report(False, 'the program failed: ' + ': '.join(str(value) for value in values if type(value) is str))
        exec(compile(setup, '/program/setup.py', 'exec'), namespace)
        # After the setup, whose functions of these names are stubs.
        namespace |= {name: make_function(name, requests, answers) for name in names}
        exec(compile(tests, '/program/tests.py', 'exec'), namespace)
    except BaseException as e:  # whatever a test raises is its failure
        line = ''
        trace = e.__traceback__
        while trace:
            if trace.tb_frame.f_code.co_filename == '/program/tests.py':
                line = tests.splitlines()[trace.tb_lineno - 1].strip()
            trace = trace.tb_next
        report(False, f'{type(e).__name__}: {e}' + (f' in: {line}' if line else ''))
    report(not Ended.reasons, ''.join(Ended.reasons[:1]))


if __name__ == '__main__':
    main()
