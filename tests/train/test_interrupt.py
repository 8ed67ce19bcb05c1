"""Stopping when a signal or a metadata server says so."""

import http.server
import os
import signal
import threading

import pytest

from llm_jax.train.interrupt import Interrupt, watch


@pytest.fixture
def server():
    """A metadata server; `values` is what it says."""
    values = {'maintenance-event': 'NONE', 'preempted': 'FALSE'}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            key = self.path.removeprefix('/computeMetadata/v1/instance/')
            right = self.headers['Metadata-Flavor'] == 'Google' and key in values
            self.send_response(200 if right else 403)
            self.end_headers()
            self.wfile.write(values.get(key, '').encode())

        def log_message(self, *_):
            pass

    httpd = http.server.ThreadingHTTPServer(('localhost', 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    httpd.values = values
    yield httpd
    httpd.shutdown()
    httpd.server_close()


@pytest.mark.parametrize(
    ('key', 'value'), [('maintenance-event', 'TERMINATE_ON_HOST_MAINTENANCE'), ('preempted', 'TRUE')]
)
def test_a_notice_is_seen_once_it_is_given(server, key, value):
    seen, over = [], threading.Event()
    address = f'http://localhost:{server.server_port}'
    thread = threading.Thread(target=watch, args=(address, seen.append, over, 0.02))
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    assert not seen
    server.values[key] = value
    thread.join(10)
    assert seen == [key]


def test_the_watch_ends_with_the_run_and_where_there_is_no_server(server):
    over = threading.Event()
    over.set()
    watch(f'http://localhost:{server.server_port}', pytest.fail, over, 60.0)
    watch('http://localhost:1', pytest.fail, threading.Event(), 60.0)


def test_a_notice_stops_a_run_as_a_signal_does(server, monkeypatch):
    monkeypatch.setenv('GCE_METADATA_HOST', f'localhost:{server.server_port}')
    server.values['preempted'] = 'TRUE'
    before = signal.getsignal(signal.SIGTERM)
    with Interrupt(watch_preemption=True) as interrupt:
        noticed = threading.Event()
        for _ in range(500):
            if interrupt.asked(1):
                break
            noticed.wait(0.01)
        assert interrupt.asked(1)
        assert interrupt.signal == 'preempted notice'
    assert signal.getsignal(signal.SIGTERM) == before


def test_without_notices_only_signals_stop(server, monkeypatch):
    monkeypatch.setenv('GCE_METADATA_HOST', f'localhost:{server.server_port}')
    server.values['preempted'] = 'TRUE'
    with Interrupt() as interrupt:
        assert not interrupt.asked(1)
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.asked(2)
        assert interrupt.signal == 'SIGINT'
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
