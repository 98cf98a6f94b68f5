"""A server on loopback for tests of `collect`: what it gives, and how it fails, by path."""

import http.server
import io
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import soundfile
from makers import tone

from birdtune.cli import main
from birdtune.runtime.files import read_csv

# Of one request: what is answered in place of the file.
Fault = Callable[["http.server.BaseHTTPRequestHandler", bytes], None]


def sound(seed: int = 0, seconds: float = 1.0) -> bytes:
    """A recording that no other seed has, as the bytes of a WAV."""
    file = io.BytesIO()
    soundfile.write(file, tone(seconds, 8000, seed=seed), 8000, format="WAV", subtype="PCM_16")
    return file.getvalue()


def status(code: int, **headers: str) -> Fault:
    """Answer a status with headers (`_` for `-`) and no body."""

    def answer(request: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
        request.send_response(code)
        for name, value in {"Content_Length": "0", **headers}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()

    return answer


def half(request: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
    """Promise all and give half."""
    request.send_response(200)
    request.send_header("Content-Length", str(len(content)))
    request.send_header("ETag", '"v1"')
    request.end_headers()
    request.wfile.write(content[: len(content) // 2])


def endless(request: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
    """Promise nothing, and never stop."""
    request.send_response(200)
    request.end_headers()
    while True:
        request.wfile.write(bytes(1 << 16))


@dataclass
class Site:
    """The server.

    Attributes:
        files: path → content.
        faults: path → what happens to its next requests, in this order; then the file is given.
        always: path → what happens to each request.
        seen: (path with query, Range) of every request.
    """

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=lambda: defaultdict(list))
    always: dict[str, Fault] = field(default_factory=dict)
    seen: list[tuple[str, str]] = field(default_factory=list)
    logins: set[str] = field(default_factory=set)
    closing: threading.Event = field(default_factory=threading.Event)

    def hang(self, request: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
        """Never answer."""
        self.closing.wait(60)

    def asked_for(self, path: str) -> int:
        """How many requests there were."""
        return sum(urlsplit(url).path == path for url, _ in self.seen)


class _Handler(http.server.BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        path, wanted = urlsplit(self.path).path, self.headers.get("Range", "")
        self.site.seen.append((self.path, wanted))
        self.site.logins |= {self.headers["Authorization"]} - {None}
        content = self.site.files.get(path)
        if self.site.faults[path]:
            self.site.faults[path].pop(0)(self, content or b"")
        elif path in self.site.always:
            self.site.always[path](self, content or b"")
        elif content is None:
            status(404)(self, b"")
        else:
            first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.send_header("ETag", '"v1"')
            self.send_header("Content-Length", str(len(content) - first))
            self.end_headers()
            self.wfile.write(content[first:])

    def log_message(self, *args: object) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args: object) -> None:
        pass  # whoever hung up complains


@contextmanager
def serving(site: Site | None = None) -> Iterator[Site]:
    """A server that gives what its Site says."""
    site = site or Site()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": site}))
    site.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield site
    finally:
        site.closing.set()
        server.shutdown()
        server.server_close()


QUICK = {"collect.pause-s": 0, "collect.timeout-s": 5}


def run(*arguments: str, **settings: Any) -> int:
    """The command `collect` without pauses; its exit code."""
    given = QUICK | {f"collect.{name.replace('_', '-')}": value for name, value in settings.items()}
    return main(["collect", *arguments, *(part for name, value in given.items() for part in (f"--{name}", str(value)))])


def rows(folder: Path, name: str = "collected.csv") -> dict[str, dict[str, str]]:
    """The rows of a table of a collected folder, by recording."""
    return {row["recording"]: row for row in read_csv(folder / name)}


def reasons(folder: Path) -> dict[str, str]:
    """The reason of each recording that is not there."""
    return {name: row["reason"] for name, row in rows(folder).items() if row["status"] != "collected"}
