"""The notice of a spot instance, from a stand-in for the metadata of EC2."""

import http.server
import threading
import time
from collections.abc import Iterator

import pytest

from birdtune.cloud import spot
from birdtune.errors import Interrupted
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts

NOTICE = b'{"action": "terminate", "time": "2026-11-30T08:22:00Z"}'


class Metadata(http.server.BaseHTTPRequestHandler):
    """IMDSv2: a token by PUT, without which nothing is told."""

    notice: bytes | None = None
    asked = 0
    away = False

    def do_PUT(self) -> None:
        assert self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self._tell(200 if self.path == "/latest/api/token" else 404, b"TOKEN")

    def do_GET(self) -> None:
        type(self).asked += 1
        if self.away:
            return self._tell(503, b"")
        if self.headers.get("X-aws-ec2-metadata-token") != "TOKEN":
            return self._tell(401, b"")
        known = self.path == "/latest/meta-data/spot/instance-action" and self.notice is not None
        return self._tell(200 if known else 404, self.notice or b"" if known else b"")

    def _tell(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Metadata]]:
    handler = type("Handler", (Metadata,), {})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}/")
    yield handler
    server.shutdown()
    server.server_close()


def wait_for(condition: object) -> None:
    until = time.monotonic() + 60
    while not condition() and time.monotonic() < until:  # type: ignore[operator]
        time.sleep(0.01)


def test_a_notice_stops_the_job_as_a_scheduler_would(
    metadata: type[Metadata], capsys: pytest.CaptureFixture[str]
) -> None:
    interrupts = Interrupts()
    with interrupts.watching(), pytest.raises(Interrupted) as caught, spot.watched(Journal(), every_s=0.02):
        wait_for(lambda: metadata.asked > 2)  # as long as there is none, the job goes on
        metadata.notice = NOTICE
        wait_for(lambda: False)
    assert caught.value.exit_code == 143
    assert "EC2 takes this spot instance away (terminate at 2026-11-30T08:22:00Z)" in capsys.readouterr().out


def test_a_notice_that_cannot_be_read_is_one_all_the_same(metadata: type[Metadata]) -> None:
    metadata.notice = b"hibernate"
    with Interrupts().watching(), pytest.raises(Interrupted), spot.watched(Journal(quiet=True), every_s=0.02):
        wait_for(lambda: False)


def test_a_service_that_is_away_for_a_while_is_asked_on(metadata: type[Metadata]) -> None:
    with Interrupts().watching(), pytest.raises(Interrupted), spot.watched(Journal(quiet=True), every_s=0.02):
        wait_for(lambda: metadata.asked > 1)
        metadata.away = True
        asked = metadata.asked
        wait_for(lambda: metadata.asked > asked + 5)
        metadata.away, metadata.notice = False, NOTICE
        wait_for(lambda: False)


def test_elsewhere_than_on_ec2_nobody_is_asked_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")
    before = threading.active_count()
    with spot.watched(Journal(quiet=True), every_s=0.01):
        wait_for(lambda: threading.active_count() == before)
        assert threading.active_count() == before
