"""Stopping cleanly when asked to: SIGTERM, SIGINT, or a cloud's notice that the machine will go."""

from collections.abc import Callable
import os
import pathlib
import signal
import socket
import threading
import types
import urllib.error
import urllib.request

import jax
from jax.experimental import multihost_utils

# https://cloud.google.com/compute/docs/metadata/predefined-metadata-keys: 'maintenance-event' is NONE until a
# minute before the machine stops, 'preempted' is FALSE until a spot machine has half a minute left.
_METADATA = 'metadata.google.internal'
# What kind of machine this is, by its firmware.
_PRODUCT = pathlib.Path('/sys/class/dmi/id/product_name')
_NOTICES = {'maintenance-event': 'TERMINATE_ON_HOST_MAINTENANCE', 'preempted': 'TRUE'}
_POLL_SECONDS = 5.0


class Stopped(BaseException):
    """A signal came while there was nothing to save yet; no `except Exception` holds it up."""


class Interrupt:
    """While active, signals are noted instead of ending the process.

    Every host must stop after the same step, or the others would wait for it forever;
    with several, JAX's coordination service agrees on the step. A cloud's notice becomes a
    SIGTERM to this process, so that there is one way to stop.

    Attributes:
      signal: name of the signal that came, '' before one.
      waits_for: what a signal has to wait for ('the step is compiled'); '' where it is obeyed at once.
      say: prints a line. A signal is told of at once, by a thread: the main thread may be within XLA.
    """

    def __init__(self, *, watch_preemption: bool = False, starting: bool = False, say: Callable[[str], None] = print):
        """Args:
        watch_preemption: asks the metadata server of Google's cloud, where this is such a machine.
        starting: whether a signal ends everything with `Stopped`, until `begin`; of one process alone.
        say: see the attribute.
        """
        self.signal, self.waits_for, self.say = '', '', say
        self._watch_preemption, self._starting = watch_preemption, starting
        self._before: dict[int, object] = {}
        self._over = threading.Event()

    def __enter__(self) -> 'Interrupt':
        for number in (signal.SIGTERM, signal.SIGINT):
            # The coordination service listens for SIGTERM itself.
            if jax.process_count() == 1 or number == signal.SIGINT:
                self._before[number] = signal.signal(number, self._note)
        ours, wakeup = socket.socketpair()
        wakeup.setblocking(False)
        self._sockets = ours, wakeup
        self._wakeup_before = signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._announce, args=(ours,), daemon=True).start()
        if self._watch_preemption:
            server = os.environ.get('GCE_METADATA_HOST')  # as Google's own libraries name it
            if server or (_PRODUCT.exists() and 'Google' in _PRODUCT.read_text()):
                address = f'http://{server or _METADATA}'
                threading.Thread(target=watch, args=(address, self._noticed, self._over), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        signal.set_wakeup_fd(self._wakeup_before)
        self._sockets[1].close()  # which ends the thread that reads
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def begin(self) -> None:
        """From here on there is something to save: signals are noted, and the loop asks.

        Raises:
          Stopped: one came before.
        """
        self._starting = False
        if self.signal and jax.process_count() == 1:
            raise Stopped

    def _announce(self, ours: socket.socket) -> None:
        with ours:
            while numbers := ours.recv(64):
                for number in numbers:
                    if number in self._before and self.waits_for:
                        self.say(f'{signal.Signals(number).name}: stopping as soon as {self.waits_for}')

    def _note(self, number: int, _: types.FrameType | None) -> None:
        if number == signal.SIGINT and (self.signal or self._starting):
            raise KeyboardInterrupt  # asked twice, or with nothing to lose
        self.signal = self.signal or signal.Signals(number).name
        if jax.process_count() > 1:  # only a SIGTERM is passed on to the other hosts
            os.kill(os.getpid(), signal.SIGTERM)
        elif self._starting:
            raise Stopped

    def _noticed(self, name: str) -> None:
        self.signal = f'{name} notice'
        os.kill(os.getpid(), signal.SIGTERM)

    def asked(self, step: int) -> bool:
        """Whether to stop after this step; the same answer on every host."""
        if jax.process_count() == 1:
            return bool(self.signal)
        reached = multihost_utils.reached_preemption_sync_point(step)
        self.signal = self.signal or ('SIGTERM' if reached else '')
        return reached

    def asked_here(self) -> bool:
        """Whether to stop in the middle of something; never with several hosts, which would have to agree where."""
        return jax.process_count() == 1 and bool(self.signal)


def watch(address: str, noticed: Callable[[str], None], over: threading.Event, seconds: float = _POLL_SECONDS) -> None:
    """Asks a metadata server until it says that this machine will stop, once, or `over` is set.

    Returns at once where there is no such server, or it does not know of notices.
    """
    answered = False
    # Never through a proxy: the address belongs to the machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        for key, bad in _NOTICES.items():
            request = urllib.request.Request(
                f'{address}/computeMetadata/v1/instance/{key}', headers={'Metadata-Flavor': 'Google'}
            )
            try:
                with opener.open(request, timeout=5) as answer:
                    value, answered = answer.read().decode().strip(), True
            except urllib.error.HTTPError as error:
                if error.code < 500 and error.code != 429:
                    return  # a server that knows no such key
                continue  # busy: the next round asks again
            except OSError:
                if not answered:
                    return
                continue
            if value == bad:
                noticed(key)
                return
        if over.wait(seconds):
            return
