"""Several processes as one job: starting together, and ending together.

JAX's coordination service joins the processes. What it does not do is end a job well: a
process that raises leaves the others waiting inside a collective, and one that dies ends
them by an abort in C++ after its heartbeats time out. So each process keeps a connection to
the first one. When one closes without a farewell, that process is gone: the system tells
within milliseconds, and all others end with one line that names it. A machine that vanishes
without closing anything is noticed by JAX's heartbeats (`mesh.heartbeat_timeout`).
"""

import atexit
from collections.abc import Iterator
import contextlib
import hashlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from typing import Any, TextIO

import jax

from llm_jax import config as config_lib
from llm_jax.config import schema
from llm_jax.config.schema import Config, ConfigError

# What a job that lost a process ends with: "temporary failure, try again" in sysexits.h.
TRY_AGAIN = 75
# A process that is told of another's error may be about to report the same one: seconds to do so.
_GRACE = 4.0
# A failed collective and the end of its cause are reported by different threads: seconds apart at most.
_SETTLE = 2.0
# A day, in milliseconds.
_FOREVER = 24 * 3600 * 1000
# Where the first process listens, in the key-value store of the coordination service.
_ADDRESS = 'llm_jax/lifeline'


@contextlib.contextmanager
def job(config: Config) -> Iterator[None]:
    """The processes of this experiment, started together, of one mind, and ending together.

    Raises:
      ConfigError: from `start` and `check_alike`.
    """
    start(config.mesh)
    check_alike(config)
    with Together(config.mesh.start_timeout):
        yield


def start(config: schema.Mesh) -> None:
    """Joins the other processes of this job, where the config asks for it.

    Cloud TPU, GKE (a JobSet's index and coordinator, through JAX's Kubernetes support) and
    Slurm are recognised by JAX; elsewhere set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES
    and JAX_PROCESS_ID. A job that is not complete after `mesh.start_timeout` seconds
    ends this process with one line that names the address.

    Raises:
      ConfigError: several processes are wanted, and nothing says which.
    """
    if not config.distributed or jax.distributed.is_initialized():
        return
    where = {}
    if 'JAX_COORDINATOR_ADDRESS' in os.environ:
        numbers = [os.environ.get(name, '') for name in ('JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')]
        if not all(number.isdigit() for number in numbers):
            raise ConfigError(
                f'JAX_COORDINATOR_ADDRESS is set, but JAX_NUM_PROCESSES = {numbers[0]!r} and '
                f'JAX_PROCESS_ID = {numbers[1]!r}: set them to the number of processes and to the index of this one'
            )
        address, n, index = os.environ['JAX_COORDINATOR_ADDRESS'], int(numbers[0]), int(numbers[1])
        if index >= n or ':' not in address:
            raise ConfigError(
                f'JAX_COORDINATOR_ADDRESS = {address!r}, JAX_NUM_PROCESSES = {n} and JAX_PROCESS_ID = {index}: the '
                'address is HOST:PORT of process 0, and indices count from 0'
            )
        where = {'coordinator_address': address, 'num_processes': n, 'process_id': index}
    # JAX aborts in C++ when its own time is over: this timer comes first, with a message that helps.
    timer = threading.Timer(config.start_timeout, _not_started, [where, config.start_timeout])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            **where,
            initialization_timeout=config.start_timeout + 60,
            heartbeat_timeout_seconds=config.heartbeat_timeout,
        )
    except ValueError as error:
        raise ConfigError(
            f'mesh.distributed = True, but this is no Cloud TPU, GKE or Slurm job that JAX knows ({error}). Set '
            'JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or mesh.distributed=False'
        ) from error
    finally:
        timer.cancel()


def _not_started(where: dict[str, Any], seconds: float) -> None:
    address = where.get('coordinator_address', 'the coordinator that the cluster names')
    if where.get('process_id') == 0:
        text = f'not all of {where["num_processes"]} processes joined process 0 at {address} within {seconds:.0f} s'
        fix = 'see whether the others run, and reach this address'
    else:
        text = f'{address} did not answer, or not all processes joined it, within {seconds:.0f} s'
        fix = 'see whether process 0 runs, and its port is open to this host'
    _end(f'{text}; {fix}, or raise mesh.start_timeout', TRY_AGAIN)


def _end(message: str, code: int) -> None:
    """Ends the process whatever its other threads wait for."""
    print(f'error: {message}', file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)


def check_alike(config: Config) -> None:
    """Compares what each process was started with.

    Raises:
      ConfigError: on every process, naming the one whose config or number of devices
        differs from the first process's, and how.
    """
    if jax.process_count() == 1:
        return
    values = _flat(config_lib.to_dict(config))
    mine = {'host': socket.gethostname(), 'devices': jax.local_device_count(), 'config': values}
    store, i = _store(), jax.process_index()
    # The digest is compared by all; only where it differs is the whole of it fetched.
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    store.key_value_set(f'llm_jax/alike/{i}', json.dumps({**mine, 'config': digest}))
    store.key_value_set(f'llm_jax/config/{i}', json.dumps(values))
    wait = config.mesh.start_timeout * 1000
    told = [json.loads(store.blocking_key_value_get(f'llm_jax/alike/{k}', wait)) for k in range(jax.process_count())]
    for k, other in enumerate(told):
        who = f'process {k} on {other["host"]}'
        if other['devices'] != told[0]['devices']:
            raise ConfigError(
                f'{who} has {other["devices"]} device(s), process 0 on {told[0]["host"]} has {told[0]["devices"]}: '
                'every process needs the same number; compare the machines and their visible devices'
            )
        if other['config'] != told[0]['config']:
            one, two = (json.loads(store.blocking_key_value_get(f'llm_jax/config/{n}', wait)) for n in (0, k))
            differ = [
                f'{f}: {one.get(f)!r} -> {two.get(f)!r}' for f in sorted({*one, *two}) if one.get(f) != two.get(f)
            ]
            raise ConfigError(
                f'{who} was started with another config than process 0 ({"; ".join(differ[:5])}); '
                'give every process the same experiment file and overrides'
            )


def meet(what: str) -> None:
    """Returns when every process of the job has come here; `what` has a name of its own each time.

    To be called after compiling what moves data between processes: gloo, the transport of
    CPUs, gives up when a peer comes to their first exchange over 30 s late, and compiling takes each
    host its own time. There is no limit to waiting here: a process that ends is noticed.
    """
    if jax.process_count() > 1:
        _store().wait_at_barrier(f'llm_jax/{what}', _FOREVER)


class Together:
    """While active, no process of the job outlives another.

    An error in one ends all with a line that says which and why; a process that is killed
    ends the others with one that names it. Without other processes it does nothing.
    """

    def __init__(self, timeout: float) -> None:
        """Args: timeout: seconds that the others may take to come here."""
        self._timeout = timeout
        self._peers: dict[int, tuple[socket.socket, TextIO, str]] = {}  # process -> connection, what it says, its host
        self._watchers: list[threading.Thread] = []
        self._ending = self._done = False
        self._lock = threading.Lock()

    def __enter__(self) -> 'Together':
        if jax.process_count() == 1:
            return self
        if jax.process_index() == 0:
            self._listen()
        else:
            self._connect()
        for process, (connection, *_) in self._peers.items():
            connection.settimeout(None)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            watcher = threading.Thread(target=self._watch, args=(process,), daemon=True)
            watcher.start()
            self._watchers.append(watcher)
        return self

    def _listen(self) -> None:
        """Process 0 waits for the others."""
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        with socket.create_server(('', 0), family=family, dualstack_ipv6=both, backlog=1024) as server:
            secret, end = secrets.token_hex(16), time.monotonic() + self._timeout
            _store().key_value_set(_ADDRESS, f'{secret} {_own_address()}:{server.getsockname()[1]}')
            while len(self._peers) < jax.process_count() - 1:
                server.settimeout(max(0.001, end - time.monotonic()))
                try:
                    connection, _ = server.accept()
                    connection.settimeout(10.0)
                    reader = connection.makefile('r')
                    theirs, process, host = reader.readline().split()
                except TimeoutError:
                    if time.monotonic() < end:
                        continue
                    missing = sorted(set(range(1, jax.process_count())) - self._peers.keys())
                    raise ConfigError(
                        f'process(es) {", ".join(map(str, missing))} did not connect to {_own_address()} within '
                        f'{self._timeout:.0f} s; hosts of one job must reach each other on all ports'
                    ) from None
                except ValueError:
                    continue  # not one of ours
                if secrets.compare_digest(theirs, secret):
                    self._peers[int(process)] = connection, reader, host

    def _connect(self) -> None:
        """Every other process makes itself known to process 0."""
        secret, address = _store().blocking_key_value_get(_ADDRESS, int(self._timeout * 1000)).split()
        host, _, port = address.rpartition(':')
        try:
            connection = socket.create_connection((host.strip('[]'), int(port)), timeout=self._timeout)
            connection.sendall(f'{secret} {jax.process_index()} {socket.gethostname()}\n'.encode())
        except OSError as error:
            raise ConfigError(
                f'process {jax.process_index()} cannot reach process 0 at {address} ({error}); hosts of one job '
                'must reach each other on all ports'
            ) from error
        self._peers[0] = connection, connection.makefile('r'), host

    def __exit__(self, kind: type | None, error: BaseException | None, _: Any) -> None:
        if not self._peers:
            return
        if error is None:
            self._done = True
            self._tell({'bye': jax.process_index()})
            return
        if not isinstance(error, (ConfigError, KeyboardInterrupt)):
            # A collective fails because a process is gone: then the thread that saw it go says so, and ends this one.
            time.sleep(_SETTLE)
            if self._ending:
                time.sleep(_GRACE)
        text = (str(error).strip().splitlines() or [''])[0]
        code = 2 if isinstance(error, (ConfigError, OSError)) else 130 if kind is KeyboardInterrupt else 1
        self._tell({'failed': jax.process_index(), 'error': f'{kind.__name__}: {text}'[:500], 'code': code})
        self._done = True
        # JAX would wait for the others at exit. By then the error is printed.
        atexit.register(self._leave, code)

    def _leave(self, code: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        if jax.process_index() == 0:
            # With this process goes the coordination service, and JAX aborts those that still listen to it.
            end = time.monotonic() + 2 * _GRACE
            for watcher in self._watchers:
                watcher.join(max(0.0, end - time.monotonic()))
        os._exit(code)

    def _watch(self, process: int) -> None:
        _, reader, host = self._peers[process]
        while line := _read(reader):
            message = json.loads(line)
            if 'bye' in message:
                return
            if self._done:
                return
            if jax.process_index() == 0:  # the first process is connected to all: it passes news on
                self._tell(message, but=process)
            if 'gone' in message:
                _end(_gone(message['gone'], message['host']), TRY_AGAIN)
            self._ending = True
            time.sleep(_GRACE)
            _end(f'process {message["failed"]} failed: {message["error"]}', message['code'])
        if self._done:
            return
        if jax.process_index() == 0:
            self._tell({'gone': process, 'host': host}, but=process)
        _end(_gone(process, host), TRY_AGAIN)

    def _tell(self, message: dict[str, Any], but: int = -1) -> None:
        data = (json.dumps(message) + '\n').encode()
        with self._lock:
            for process, (connection, *_) in self._peers.items():
                if process != but:
                    try:
                        connection.sendall(data)
                    except OSError:
                        continue  # gone, which its own watcher reports


def _gone(process: int, host: str) -> str:
    return (
        f'process {process} on {host} has ended without a word (killed, out of memory, or its machine is gone), so '
        'this job ends; run the same command on all hosts again to go on from the newest checkpoint'
    )


def _read(reader: TextIO) -> str:
    try:
        return reader.readline()
    except OSError:
        return ''


def _own_address() -> str:
    """This host as the others reach it: the name under which they already reach the coordinator."""
    from jax._src import distributed

    return distributed.global_state.coordinator_address.rpartition(':')[0]


def _store() -> Any:
    """The coordination service's key-value store, which JAX has under no public name."""
    from jax._src import distributed

    return distributed.global_state.client


def _flat(values: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    out = {}
    for key, value in values.items():
        out.update(_flat(value, f'{prefix}{key}.') if isinstance(value, dict) else {f'{prefix}{key}': str(value)})
    return out
