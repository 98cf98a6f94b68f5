"""A real S3 server for tests, and a proxy before it that cuts, delays, damages and throttles."""

import http.client
import http.server
import socketserver
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "eu-west-1"}
BUCKET = "birds"
DELAY_S = 1.0


@dataclass
class Faults:
    """What happens to the next requests: each fault is used up by the requests that match it.

    Attributes:
        rows: [method, text in the path, fault, how often]; faults: a status, "cut", "damage", "delay", "drop".
        seen: (method, path) of every request.
    """

    rows: list[list[Any]] = field(default_factory=list)
    seen: list[tuple[str, str]] = field(default_factory=list)

    def add(self, method: str, text: str, fault: int | str, times: int = 1) -> None:
        """Let the next `times` requests that match meet a fault."""
        self.rows.append([method, text, fault, times])

    def take(self, method: str, path: str) -> int | str | None:
        """The fault of a request."""
        self.seen.append((method, path))
        for row in self.rows:
            if row[3] and row[0] == method and row[1] in path:
                row[3] -= 1
                return row[2]
        return None


_CODES = {
    403: "RequestTimeTooSkewed", 500: "InternalError", 503: "SlowDown", 501: "NotImplemented",
}  # fmt: skip


class _Proxy(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream: tuple[str, int]
    faults: Faults

    def _pass(self) -> None:
        fault = self.faults.take(self.command, self.path)
        body = self._body()
        if fault == "delay":
            time.sleep(DELAY_S)
        if fault == "drop":
            self.close_connection = True
            return
        if isinstance(fault, int):
            self._answer(fault, {}, f"<Error><Code>{_CODES[fault]}</Code><Message>made</Message></Error>".encode())
            return
        if fault == "damage" and self.command == "PUT" and body:
            body = bytes([body[0] ^ 1]) + body[1:]
        connection = http.client.HTTPConnection(*self.upstream, timeout=30)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "transfer-encoding"}
        headers["Content-Length"] = str(len(body))
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        if fault == "damage" and self.command == "GET":
            content = bytes([content[0] ^ 1]) + content[1:]
        if fault == "lost":  # it was done, and nobody hears of it
            self.close_connection = True
            return
        self._answer(answer.status, dict(answer.getheaders()), content, cut=fault == "cut")

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return found

    def _answer(self, status: int, headers: dict[str, str], content: bytes, *, cut: bool = False) -> None:
        self.send_response_only(status)
        length = headers.pop("Content-Length", None) or headers.pop("content-length", None)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True

    def handle_error(self, *args: object) -> None:
        pass  # whoever was cut off complains


@dataclass(frozen=True)
class S3:
    """A server with one bucket, and the proxy before it."""

    endpoint: str
    faults: Faults
    client: Any  # past the proxy

    def put(self, key: str, content: bytes, **more: Any) -> None:
        """Store an object."""
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content, **more)

    def put_folder(self, folder: Path, prefix: str) -> None:
        """Store the files of a folder."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def stored(self, prefix: str = "") -> list[str]:
        """Keys of what is stored."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [row["Key"] for page in pages for row in page.get("Contents", ())]

    def get(self, key: str) -> bytes:
        """An object's bytes."""
        content: bytes = self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return content


@contextmanager
def s3_server() -> Iterator[S3]:
    """A server of S3 on loopback, with an empty bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    upstream = server.get_host_and_port()
    faults = Faults()
    handler = type("Handler", (_Proxy,), {"upstream": upstream, "faults": faults})
    proxy = _Server(("127.0.0.1", 0), handler)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        client = boto3.client(
            "s3", endpoint_url=f"http://{upstream[0]}:{upstream[1]}", region_name=CREDENTIALS["AWS_REGION"],
            aws_access_key_id="key", aws_secret_access_key="secret",
        )  # fmt: skip
        client.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
        yield S3(f"http://127.0.0.1:{proxy.server_address[1]}", faults, client)
    finally:
        proxy.shutdown()
        proxy.server_close()
        # Its state is that of this process, and would outlive it.
        urllib.request.urlopen(
            urllib.request.Request(f"http://{upstream[0]}:{upstream[1]}/moto-api/reset", method="POST"), timeout=30
        ).close()
        server.stop()


def emptied(server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The server with an empty bucket and without faults, and its credentials in the environment."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    for key in server.stored():
        server.client.delete_object(Bucket=BUCKET, Key=key)
    server.faults.rows.clear()
    server.faults.seen.clear()
    return server
