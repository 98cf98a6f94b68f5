"""Processes of a job wait for each other: all call one of them, which answers when all have called.

    called (one) ◀─ call (each other) ─▶ the address of each, by its number

In Python, where a signal or the end of a child interrupts the wait; TensorFlow's own waits for none.
"""

import contextlib
import json
import socket
import time
from collections.abc import Callable
from typing import Any

from birdtune.errors import ProcessLostError

_POLL_S, _HELLO_S = 0.5, 5.0
_LONGEST_LINE = 1 << 16


def called(
    n: int, own: int, job: str, port: int, patience_s: float, check: Callable[[], None], hint: str
) -> dict[int, str]:
    """Wait until the `n - 1` others have called; the address of each of the `n`, by its number.

    Args:
        own: the number of this process.
        job: what all of them say; who says something else is none of them.
        check: called again and again; raises what ends the wait.
        hint: what to do where they do not come.

    Raises:
        ProcessLostError: they did not come in time.
    """
    until, own_host = time.monotonic() + patience_s, ""
    callers: dict[int, socket.socket] = {}
    hosts: dict[int, str] = {}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("", port)))
        server.settimeout(_POLL_S)
        while len(callers) < n - 1:
            _require_time(until, check, f"{len(callers) + 1} of {n} came", hint)
            with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # whoever else may call
                caller, address = server.accept()
                stack.enter_context(caller)
                said = _read(caller, time.monotonic() + _HELLO_S, check)
                number = int(said["number"])
                if said["job"] == job and 0 <= number < n and number != own:
                    callers[number], hosts[number], own_host = caller, address[0], caller.getsockname()[0]
        hosts[own] = own_host
        for caller in callers.values():
            # Who does not hear it is missed later. They hang up first: else the port would not be free at once.
            with contextlib.suppress(OSError):
                caller.sendall(json.dumps(hosts).encode() + b"\n")
                caller.settimeout(_HELLO_S)
                caller.recv(1)
    return hosts


def call(
    host: str, own: int, job: str, port: int, patience_s: float, check: Callable[[], None], hint: str
) -> dict[int, str]:
    """Call until there is an answer; args and returns as `called`.

    Raises:
        ProcessLostError: there is none in time.
    """
    until = time.monotonic() + patience_s
    while True:
        _require_time(until, check, f"{host} does not answer on port {port}", hint)
        with contextlib.suppress(OSError, ValueError), socket.create_connection((host, port), _POLL_S) as connection:
            connection.sendall(json.dumps({"job": job, "number": own}).encode() + b"\n")
            return {int(number): str(address) for number, address in _read(connection, until, check).items()}
        time.sleep(_POLL_S)


def _read(connection: socket.socket, until: float, check: Callable[[], None]) -> dict[str, Any]:
    """One line, an object. Raises OSError, ValueError: it does not come, or is none."""
    connection.settimeout(_POLL_S)
    line = b""
    while not line.endswith(b"\n"):
        check()
        if time.monotonic() > until or len(line) > _LONGEST_LINE:
            raise OSError("no answer")
        with contextlib.suppress(TimeoutError):
            more = connection.recv(4096)
            if not more:
                raise OSError("hung up")
            line += more
    found = json.loads(line)
    if not isinstance(found, dict):
        raise ValueError("no object")
    return found


def _require_time(until: float, check: Callable[[], None], why: str, hint: str) -> None:
    check()
    if time.monotonic() > until:
        raise ProcessLostError(f"the processes of this job did not meet: {why}. {hint} Run again.")
