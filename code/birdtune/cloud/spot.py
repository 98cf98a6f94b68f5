"""The notice that EC2 gives a spot instance two minutes before it takes it away.

    instance metadata (IMDSv2) ─▶ SIGTERM to this process, which saves, publishes, and ends with 143
"""

import contextlib
import json
import os
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

from birdtune.runtime.log import Journal

# AWS_EC2_METADATA_SERVICE_ENDPOINT is the variable by which Amazon's own tools are pointed elsewhere.
_ENDPOINT = "http://169.254.169.254"
_EVERY_S, _TIMEOUT_S, _TOKEN_S = 5.0, 2.0, 21_600


@contextlib.contextmanager
def watched(journal: Journal, every_s: float = _EVERY_S) -> Iterator[None]:
    """Stop this process by SIGTERM when its instance is about to end; elsewhere than on EC2 nothing happens."""
    stop = threading.Event()
    thread = threading.Thread(target=_watch, args=(journal, every_s, stop), name="spot", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()


def _watch(journal: Journal, every_s: float, stop: threading.Event) -> None:
    endpoint = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", _ENDPOINT).rstrip("/")
    failures, is_ec2 = 0, False
    while not stop.is_set():
        try:
            action = _action(endpoint)
            is_ec2 = True
        except OSError:
            failures += 1
            if failures == 3 and not is_ec2:
                return
            action = None
        if action is not None:
            journal.warn(f"EC2 takes this spot instance away ({action}): saving and stopping.")
            os.kill(os.getpid(), signal.SIGTERM)
            return
        stop.wait(every_s)


def _action(endpoint: str) -> str | None:
    """What EC2 is about to do with the instance, and when; None: nothing. Raises OSError: it does not answer."""
    token = _answer(f"{endpoint}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_S)}, "PUT")
    try:
        text = _answer(f"{endpoint}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token}, "GET")
    except urllib.error.HTTPError as fault:
        if fault.code == 404:
            return None
        raise
    try:
        found = json.loads(text)
        return f"{found['action']} at {found['time']}"
    except (ValueError, KeyError, TypeError):
        return "in two minutes"


def _answer(url: str, headers: dict[str, str], method: str) -> str:
    # No proxy is asked: the address is the machine's own.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, headers=headers, method=method), timeout=_TIMEOUT_S) as answer:
        return str(answer.read(10_000).decode("utf-8", "replace"))
