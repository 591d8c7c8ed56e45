"""The load generator itself: it must see what fails, or its zero would prove nothing."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.eventually import eventually
from tests.support.load import load


class Flaky(http.server.BaseHTTPRequestHandler):
    """Answers well, badly, not as JSON, or not at all, by the path."""

    protocol_version = "HTTP/1.1"
    served = 0

    def do_GET(self) -> None:
        type(self).served += 1
        if self.path == "/cut":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        if self.path == "/slow":
            time.sleep(0.2)
        body = b'{"broken' if self.path == "/torn" else b"{}"
        self.send_response(503 if self.path == "/busy" else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        return


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Flaky) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("path", "reason"), [("/cut", ""), ("/busy", "503"), ("/torn", "JSONDecodeError")], ids=["cut", "busy", "torn"]
)
def test_every_kind_of_failure_is_recorded(server: http.server.ThreadingHTTPServer, path: str, reason: str) -> None:
    before = Flaky.served
    with load(f"http://127.0.0.1:{server.server_port}", ["/good", path], clients=2, pause_s=0) as running:
        eventually(lambda: Flaky.served > before + 40, "some requests were served")
        report = running.stop()
    failed = {failure.path for failure in report.failures}
    assert failed == {path}
    assert all(reason in failure.reason for failure in report.failures)
    assert report.requests == len(report.failures) + len(report.latencies_ms)
    assert len(report.latencies_ms) > 0


def test_a_slow_answer_is_a_latency_and_a_gone_server_a_failure(server: http.server.ThreadingHTTPServer) -> None:
    before = Flaky.served
    with load(f"http://127.0.0.1:{server.server_port}", ["/slow"], clients=2) as running:
        eventually(lambda: Flaky.served > before + 4, "some requests were served")
        server.shutdown()
        server.server_close()
        time.sleep(0.5)
        report = running.stop()
    assert report.quantile_ms(0.5) >= 200
    assert any("Connect" in failure.reason for failure in report.failures)
