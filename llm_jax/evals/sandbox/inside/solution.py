"""The process of a solution: runs its program, then answers calls of its functions; it knows no test.

Requests (name, positional, keywords) come on descriptor 0, answers go to descriptor 1. Both are moved away before the
program runs, which finds its standard input at its end and its standard output at /dev/null.
"""

import os
import sys
import types

# Beside this file in the sandbox, whose interpreter looks nowhere but in its own library.
sys.path.insert(0, '/program')
from wire import MAX_BYTES, decode, encode, receive, send  # noqa: E402

del sys.path[0], sys.modules['wire']


def main():
    requests, answers = os.dup(0), os.dup(1)
    null = os.open('/dev/null', os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    module = types.ModuleType('solution')
    sys.modules['solution'] = module  # where dataclasses look for it
    kept = []

    def keep(value):
        kept.append(value)
        return len(kept) - 1

    def answer(kind, *values):
        try:
            data = encode((kind, *values), keep)
        except BaseException as e:  # whatever an object of the program does while it is read
            data = encode(('error', type(e).__name__, _text(e)))
        if len(data) > MAX_BYTES:
            data = encode(('error', 'Unsendable', 'the value is too large'))
        send(answers, data)

    try:
        with open('/program/solution.py', encoding='utf-8', errors='surrogatepass') as file:
            source = file.read()
        exec(compile(source, '/program/solution.py', 'exec'), module.__dict__)
    except BaseException as e:  # SystemExit as well: the program never came to its end
        answer('failed', type(e).__name__, _text(e))
        return
    answer('ready')
    while (data := receive(requests)) is not None:
        name, positional, keywords = decode(data, kept)
        try:
            value = module.__dict__[name](*positional, **keywords)
        except BaseException as e:  # is the answer
            answer('error', type(e).__name__, _text(e))
        else:
            answer('value', value)


def _text(error):
    try:
        return str(error)[:500]
    except BaseException as e:  # an error of the program whose text is an error
        return type(e).__name__


if __name__ == '__main__':
    main()
