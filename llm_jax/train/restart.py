"""Running a command again when it ends before it is done: after a crash, or a host that was taken away."""

from collections.abc import Sequence
import os
import signal
import subprocess
import sys
import time

# The child's exit codes that mean more than success: 2 is a mistake of the user, which no restart mends.
_MISTAKE = 2
# "Try again" of sysexits.h: stopped by a signal after saving, or another process of the job is gone.
TRY_AGAIN = 75
# Tells the child to end with TRY_AGAIN, not 0, when it was asked to stop.
SUPERVISED = 'LLM_JAX_SUPERVISED'
_PAUSE = 2.0


def supervise(command: Sequence[str], restarts: int) -> int:
    """Runs `command` until it succeeds, at most `restarts` times more, and returns its exit code.

    Signals that come to this process are passed on, and then nothing is restarted: whoever
    sent them wants an end. The rest (a crash, kill -9, a lost host, a notice that came to the
    child alone) is started again; it goes on from its newest checkpoint.

    Args:
      command: program and arguments.
      restarts: how often to start it again.
    """
    child: subprocess.Popen | None = None
    asked: list[int] = []

    def pass_on(number: int, _: object) -> None:
        asked.append(number)
        if child:
            child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for left in range(restarts, -1, -1):
            # A group of its own: Ctrl-C reaches it once, from here.
            child = subprocess.Popen(command, env={**os.environ, SUPERVISED: '1'}, start_new_session=True)
            for number in asked:
                child.send_signal(number)
            code = child.wait()
            if asked:
                return 0 if code == TRY_AGAIN else code
            if code in (0, _MISTAKE) or not left:
                return code
            how = signal.Signals(-code).name if code < 0 else f'exit code {code}'
            print(f'ended with {how}; starting again, {left - 1} restart(s) left', file=sys.stderr, flush=True)
            time.sleep(_PAUSE)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code
