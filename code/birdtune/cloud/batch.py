"""A multi-node job of AWS Batch: its nodes meet, and each gets the TF_CONFIG that says which of them it is.

    AWS_BATCH_JOB_* ─▶ meet ─▶ TF_CONFIG

TensorFlow wants the addresses of all nodes, and Batch tells the others that of the main node alone. So they call there:
the main node sees where each call comes from, and answers with all addresses once all have called.
"""

import contextlib
import json
import socket
import time
from collections.abc import Mapping
from typing import Any

from birdtune.errors import ProcessLostError, SettingsError, shown
from birdtune.runtime.log import Journal
from birdtune.runtime.rank import Cluster
from birdtune.runtime.signals import Interrupts

_PREFIX = "AWS_BATCH_JOB_"
# Of the meeting, and of TensorFlow (further processes of a node take the ports behind it).
MEETING_PORT, PORT = 2221, 2222
# Nodes may start long after one another.
_PATIENCE_S, _POLL_S = 1800.0, 1.0
_LONGEST_LINE = 1 << 16


def is_here(environment: Mapping[str, str]) -> bool:
    """Whether this is one of several nodes of a job, and nobody has said yet which."""
    return environment.get(f"{_PREFIX}NUM_NODES", "1") != "1" and not environment.get("TF_CONFIG")


def meet(
    environment: Mapping[str, str], journal: Journal, interrupts: Interrupts, port: int = MEETING_PORT,
    patience_s: float = _PATIENCE_S,
) -> dict[str, str]:
    """Wait for all nodes. Returns TF_CONFIG, in which the main node comes first.

    Raises:
        SettingsError: Batch's variables are not what its documentation says.
        ProcessLostError: not all nodes came in time.
        Interrupted: on a signal.
    """  # fmt: skip
    try:
        names = ("NUM_NODES", "NODE_INDEX", "MAIN_NODE_INDEX")
        n, node, main = (int(environment[f"{_PREFIX}{name}"]) for name in names)
        host = "" if node == main else environment[f"{_PREFIX}MAIN_NODE_PRIVATE_IPV4_ADDRESS"]
    except (KeyError, ValueError) as fault:
        raise SettingsError(
            f"{_PREFIX}NUM_NODES says that this job has several nodes, and another variable of Batch is missing or no "
            f"number ({shown(fault)}). In a job of one node, unset it."
        ) from fault
    # Of an attempt after another, the nodes are the same.
    job = environment.get(f"{_PREFIX}ID", "").partition("#")[0]
    journal.say(f"node {node} of {n}: waiting for the others")
    until = time.monotonic() + patience_s
    if node == main:
        hosts = _called(n, job, port, until, interrupts)
    else:
        hosts = _call(host, {"job": job, "node": node}, port, until, interrupts)
    order = [main, *(number for number in range(n) if number != main)]
    found = Cluster(tuple(f"{hosts[str(number)]}:{PORT}" for number in order), order.index(node))
    return found.environment()


def _called(n: int, job: str, port: int, until: float, interrupts: Interrupts) -> dict[str, str]:
    """The main node: the address of each node, by its number, once all have called."""
    hosts: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("", port)))
        server.settimeout(_POLL_S)
        callers: dict[str, socket.socket] = {}
        while len(callers) < n - 1:
            _require_time(until, interrupts, f"{len(callers) + 1} of {n} nodes came")
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # whoever else may call
                caller, address = server.accept()
                stack.enter_context(caller)
                said = _read(caller, time.monotonic() + 5 * _POLL_S, interrupts)
                if said["job"] == job and 0 <= int(said["node"]) < n:
                    callers[str(int(said["node"]))] = caller
                    hosts[str(int(said["node"]))] = address[0]
                    own = caller.getsockname()[0]
        (main,) = {str(number) for number in range(n)} - set(callers)
        hosts[main] = own
        for caller in callers.values():
            with contextlib.suppress(OSError):  # it is missed when all connect
                caller.sendall(json.dumps(hosts).encode() + b"\n")
    return hosts


def _call(host: str, hello: Mapping[str, Any], port: int, until: float, interrupts: Interrupts) -> dict[str, str]:
    """Another node: call the main node until it answers."""
    while True:
        _require_time(until, interrupts, f"the main node, {host}, does not answer on port {port}")
        with contextlib.suppress(OSError, ValueError), socket.create_connection((host, port), _POLL_S) as connection:
            connection.sendall(json.dumps(hello).encode() + b"\n")
            return {str(number): str(address) for number, address in _read(connection, until, interrupts).items()}
        time.sleep(_POLL_S)


def _read(connection: socket.socket, until: float, interrupts: Interrupts) -> dict[str, Any]:
    """One line, an object. Raises OSError, ValueError: it does not come, or is none."""
    connection.settimeout(_POLL_S)
    line = b""
    while not line.endswith(b"\n"):
        interrupts.check()
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


def _require_time(until: float, interrupts: Interrupts, why: str) -> None:
    interrupts.check()
    if time.monotonic() > until:
        raise ProcessLostError(
            f"the nodes of this job did not meet: {why}. Their security group must let them reach each other on ports "
            f"{MEETING_PORT} and {PORT}. Run again."
        )
