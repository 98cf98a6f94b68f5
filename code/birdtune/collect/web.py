"""HTTP and HTTPS: one address → bytes in a file, politely and within bounds.

    url ─▶ Downloader.fetch ─▶ file | RefusedError

What breaks off goes on where it did, if the server can do that; servers that are busy are given the time they ask
for. Addresses may hold keys, so that none, and no message of the library below, is ever repeated.
"""

import re
import threading
import time
from collections.abc import Mapping
from typing import IO, Final
from urllib.parse import unquote, urlencode, urljoin, urlsplit, urlunsplit

import urllib3
from urllib3.exceptions import (
    HTTPError,
    InvalidHeader,
    NewConnectionError,
    ProtocolError,
    SSLError,
    TimeoutError,
)
from urllib3.util import Retry, Timeout, make_headers

import birdtune
from birdtune.collect.item import Budget, RefusedError
from birdtune.settings import CollectSettings

_BLOCK_BYTES: Final = 1 << 16
_ATTEMPTS: Final = 5
_MOST_REDIRECTS: Final = 5
_LONGEST_PAUSE_S: Final = 120.0
# A server that gives a byte now and then never times out by itself.
_LONGEST_S: Final = 1800.0
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_REFUSED: Final = {401: "forbidden", 403: "forbidden", 404: "not-found", 410: "not-found", 451: "region"}
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")


class _RetryError(Exception):
    """It may go better at once, or after a pause."""

    def __init__(self, reason: str, detail: str = "", pause_s: float = 0.0) -> None:
        self.fault, self.pause_s = RefusedError(reason, detail), pause_s


class Pace:
    """Pauses between the requests to one host; threads share it.

    Args:
        pause_s: from the beginning of a request to that of the next.
        stop: ends all waiting.
    """

    def __init__(self, pause_s: float, stop: threading.Event) -> None:
        self._pause_s, self._stop = pause_s, stop
        self._next: dict[str, float] = {}
        self._lock = threading.Lock()

    def wait(self, host: str) -> None:
        """Wait for this host's turn. Raises RefusedError: it asked for a long pause, or all is stopped."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next.get(host, 0.0))
            if turn - now > _LONGEST_PAUSE_S:
                raise RefusedError("rate-limited", f"the server asks for a pause of {turn - now:.0f} s")
            self._next[host] = turn + self._pause_s
        self.sleep(turn - now)

    def hold(self, host: str, seconds: float) -> None:
        """Let no request to this host begin for some seconds."""
        with self._lock:
            self._next[host] = max(self._next.get(host, 0.0), time.monotonic() + seconds)

    def sleep(self, seconds: float) -> None:
        """Wait. Raises RefusedError: all is stopped."""
        if self._stop.wait(max(0.0, seconds)):
            raise RefusedError("waiting", "stopped")


class Downloader:
    """Fetches by HTTP and HTTPS.

    Args:
        budget: of all downloads together; None: what is fetched is no recording.
        stop: ends a download at its next block.
    """

    def __init__(self, settings: CollectSettings, pace: Pace, stop: threading.Event, budget: Budget | None) -> None:
        self._settings, self._pace, self._stop, self._budget = settings, pace, stop, budget
        timeout = Timeout(connect=settings.timeout_s, read=settings.timeout_s)
        self._pool = urllib3.PoolManager(maxsize=settings.connections, timeout=timeout, retries=False)

    def fetch(self, url: str, into: IO[bytes], most_bytes: int, query: Mapping[str, str] | None = None) -> None:
        """Write what is at an address into an empty file.

        Raises:
            RefusedError: the server refuses, is away or too slow, or gives more than `most_bytes`.
            BudgetSpentError: all downloads together are too large.
        """
        url = f"{url}?{urlencode(query)}" if query else url
        version, until = "", time.monotonic() + _LONGEST_S
        for attempt in range(_ATTEMPTS):
            try:
                response = self._open(url, into.tell(), version)
                try:
                    version = self._begin(response, into)
                    self._copy(response, into, most_bytes, until)
                finally:
                    response.close()  # not back into the pool: what follows of it is not read
                return
            except _RetryError as fault:
                if attempt == _ATTEMPTS - 1:
                    raise fault.fault from fault
                self._pace.sleep(fault.pause_s or self._settings.pause_s * 2**attempt)

    def _open(self, url: str, at: int, version: str) -> urllib3.BaseHTTPResponse:
        """The answer to a request, behind all redirects."""
        headers = {"Accept-Encoding": "identity", "User-Agent": f"birdtune/{birdtune.__version__} (collect)"}
        if at and version:
            headers |= {"Range": f"bytes={at}-", "If-Range": version}
        for _ in range(_MOST_REDIRECTS + 1):
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise RefusedError("forbidden", f"it leads to an address of {parts.scheme or 'no kind'}, not http(s)")
            self._pace.wait(parts.hostname)
            login, _, host = parts.netloc.rpartition("@")  # for this host, and none that it leads to
            own = headers | (make_headers(basic_auth=unquote(login)) if login else {})
            url = urlunsplit(parts._replace(netloc=host))
            try:
                response = self._pool.request("GET", url, headers=own, redirect=False, preload_content=False)
            except (HTTPError, OSError, ValueError) as fault:
                raise _broken(fault) from fault
            if response.status not in _REDIRECTS:
                self._judge(response, parts.hostname)
                return response
            response.close()
            url = urljoin(url, response.headers.get("Location", ""))
            if parts.scheme == "https" and url.startswith("http:"):
                raise RefusedError("forbidden", "it leads from https to http, which anybody on the way could change")
        raise RefusedError("failed", f"more than {_MOST_REDIRECTS} redirects")

    def _judge(self, response: urllib3.BaseHTTPResponse, host: str) -> None:
        """Raise what an answer means that is not the thing itself."""
        status = response.status
        if status in (200, 206):
            return
        response.close()
        if status in (429, 503):
            pause_s = _retry_after(response.headers.get("Retry-After"))
            if pause_s > _LONGEST_PAUSE_S:
                self._pace.hold(host, pause_s)
                raise RefusedError("rate-limited", f"the server asks for a pause of {pause_s:.0f} s")
            if pause_s:
                self._pace.hold(host, pause_s)
            raise _RetryError("rate-limited" if status == 429 else "server", f"HTTP {status}", pause_s)
        if status in (408, 416, 425) or status >= 500:
            raise _RetryError("server", f"HTTP {status}")
        raise RefusedError(_REFUSED.get(status, "failed"), f"HTTP {status}")

    @staticmethod
    def _begin(response: urllib3.BaseHTTPResponse, into: IO[bytes]) -> str:
        """Go where the answer's bytes belong; returns what names this version of the file, "" for nothing."""
        content_range = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        goes_on = response.status == 206 and content_range and int(content_range[1]) == into.tell()
        if not goes_on:
            into.seek(0)
            into.truncate()
        if response.status == 206 and not goes_on:
            raise _RetryError("server", "it gives another part than was asked for")
        tag = response.headers.get("ETag", "")
        return response.headers.get("Last-Modified", "") if not tag or tag.startswith("W/") else tag

    def _copy(self, response: urllib3.BaseHTTPResponse, into: IO[bytes], most_bytes: int, until: float) -> None:
        length = response.headers.get("Content-Length", "")
        size = into.tell() + int(length) if length.isdecimal() else None
        while True:
            if (size is not None and size > most_bytes) or into.tell() > most_bytes:
                raise RefusedError("too-large", f"more than {most_bytes:,} bytes")
            try:
                block = response.read1(_BLOCK_BYTES, decode_content=False)
            except (HTTPError, OSError) as fault:
                raise _broken(fault) from fault
            if not block:
                return  # all of it: what is promised and does not come is a fault of the library
            if self._stop.is_set():
                raise RefusedError("waiting", "stopped")
            if time.monotonic() > until:
                raise RefusedError("timeout", f"not done after {_LONGEST_S:.0f} s")
            if self._budget is not None:
                self._budget.take(len(block))
            into.write(block)


def _retry_after(value: str | None) -> float:
    """Seconds that a server asks to wait, given as a number or a date; 0: it does not say."""
    try:
        return max(0.0, Retry().parse_retry_after(value)) if value else 0.0
    except (InvalidHeader, ValueError, OverflowError):
        return 0.0


def _broken(fault: Exception) -> _RetryError:
    """What broke, in words without an address."""
    if isinstance(fault, TimeoutError) and not isinstance(fault, NewConnectionError):
        return _RetryError("timeout", "the server does not answer")
    if isinstance(fault, SSLError):
        return _RetryError("network", "the certificate of the server is not valid")
    if isinstance(fault, ProtocolError):
        return _RetryError("cut-off", "the connection broke off")
    return _RetryError("network", f"the server cannot be reached ({type(fault).__name__})")
