"""Is anybody there? Answered quickly, whatever the network does."""

import http.server
import socket
import threading
import time

import pytest

from curlora_lab.loggers.connection import fault_of


@pytest.fixture
def server():
    """Start a server that answers every request with a status; gives its address."""
    running = []

    def start(status):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.send_header("Location", "http://127.0.0.1:9/nowhere")
                self.end_headers()

            def log_message(self, *args):
                pass

        made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        running.append(made)
        threading.Thread(target=made.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{made.server_address[1]}"

    yield start
    for made in running:
        made.shutdown()
        made.server_close()


@pytest.mark.parametrize("status", [200, 302, 401, 404])
def test_any_answer_is_an_answer(server, status):
    assert fault_of(server(status)) is None


@pytest.mark.parametrize("status", [500, 503])
def test_a_server_error_is_named(server, status):
    assert f"HTTP {status}" in fault_of(server(status))


def test_nobody_listening():
    assert "refused" in fault_of("http://127.0.0.1:9")


def test_a_server_that_never_answers_costs_the_timeout_and_no_more():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        fault = fault_of(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.3)
        assert fault is not None
        assert time.monotonic() - began < 2


def test_no_address_at_all():
    assert fault_of("not an address") is not None


def test_a_given_proxy_is_asked_instead(server):
    proxy = server(200)
    assert fault_of("http://127.0.0.1:9", proxies={"http": proxy}) is None
