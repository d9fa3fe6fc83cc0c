"""The W&B server is not there, is silent, or goes away midway: training loses seconds, not data."""

import contextlib
import socket

import pytest
from tests.faults.wandb_server import MOST, life, serving

pytestmark = pytest.mark.slow  # each waits for real timeouts, in a process of its own


@pytest.fixture
def service():
    """Start a server that answers with a status; gives it with its address as ``url``."""
    with contextlib.ExitStack() as running:
        yield lambda status=200: running.enter_context(serving(status))


def lived(url, folder, **options):
    """A life that came to its end."""
    found = life(url, folder, **options)
    assert found.code == 0, found.output
    assert "done" in found.output
    return found


def test_nobody_listens(tmp_path):
    found = lived("http://127.0.0.1:9", tmp_path / "demo" / "run")
    assert found.mode == "offline"
    assert found.output.count("WARNING") == 1
    assert "wandb sync" in found.output
    assert found.seconds < MOST


def test_a_silent_server(tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        found = lived(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path / "demo" / "run")
    assert found.mode == "offline"
    assert "wandb sync" in found.output
    assert found.seconds < MOST


def test_a_server_in_trouble(tmp_path, service):
    found = lived(service(503).url, tmp_path / "demo" / "run")
    assert found.mode == "offline"
    assert "HTTP 503" in found.output
    assert found.seconds < MOST


def test_a_refused_key(tmp_path, service):
    found = lived(service(401).url, tmp_path / "demo" / "run")
    assert found.mode == "offline"
    assert "401" in found.output
    assert found.seconds < MOST


def test_nobody_is_logged_in(tmp_path, service):
    found = lived(service().url, tmp_path / "demo" / "run", key=None)
    assert found.mode == "offline"
    assert "wandb login" in found.output
    assert found.seconds < MOST


def test_a_server_that_stays(tmp_path, service):
    found = lived(service().url, tmp_path / "demo" / "run")
    assert found.mode == "online"
    assert "WARNING" not in found.output
    assert found.seconds < MOST


def test_a_server_that_goes_away_midway(tmp_path, service):
    server = service()

    found = lived(server.url, tmp_path / "demo" / "run", midway=server.stop)
    assert found.mode == "online"
    assert "wandb sync" in found.output
    assert list((tmp_path / "demo" / "run" / "wandb").glob("run-*/run-*.wandb")), "everything must be on disk"
    assert found.seconds < MOST
