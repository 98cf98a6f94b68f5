"""One job at a time in an output folder, on one machine or on several that share it.

    with alone_in(output, journal): ...    no other job works there; else BusyError says which one does

    output/.lock        flock(2), where one kernel alone has the file system: it goes with its process
    output/.lease       a file that is renewed, where several machines may share it; it expires with its job
    output/.lock.json   who works here: command, host, process, since when

Of a distributed job the chief alone locks and writes.
"""

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import filelock
from filelock import BaseFileLock, FileLock, SoftFileLease

from birdtune.errors import EXIT_RETRY, BusyError, shown
from birdtune.runtime import mounts
from birdtune.runtime.files import make_folder, read_json, write_json
from birdtune.runtime.log import Journal, clock, print_error
from birdtune.runtime.rank import is_chief
from birdtune.runtime.storage import storage_faults

LOCK_NAME, LEASE_NAME, OWNER_NAME = ".lock", ".lease", ".lock.json"

# A process that was killed may take this long to end and give up its lock.
PATIENCE_S = 2.0
# All jobs must agree on the first. It must exceed the time for which NFS may cache a time of change (60 s).
LEASE_S, RENEWAL_S = 75.0, 10.0

_NO_FLOCK = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL})


@contextlib.contextmanager
def alone_in(output: Path, journal: Journal) -> Iterator[None]:
    """Keep other jobs out of an output folder while the block lasts.

    Raises:
        BusyError: another job works there.
        InputError: the folder cannot be written.
        RetryableError: the storage fails.
    """
    if not is_chief():
        yield
        return
    mounts.refuse_without_renaming(output)
    make_folder(output)
    owner = output / OWNER_NAME
    with storage_faults(output):
        lock = _acquire(output, journal)
    try:
        if owner.exists():
            journal.warn(f"The last job here ended without finishing: {_owner(output)}. Continuing in its place.")
        write_json(owner, myself(), durable=False)
        yield
    finally:
        # Of storage that is gone, the first error is the one to report.
        with contextlib.suppress(OSError):
            owner.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            lock.release()


def _acquire(output: Path, journal: Journal) -> BaseFileLock:
    """Take the lock of a folder, or its lease. Raises BusyError or OSError."""
    if not mounts.is_shared(output):
        # Any user may lock it; the rights of the folder decide who works here.
        lock = FileLock(output / LOCK_NAME, mode=0o666, fallback_to_soft=False)
        try:
            lock.acquire(timeout=PATIENCE_S)
            return lock
        except filelock.Timeout as fault:
            raise _busy(output) from fault
        except OSError as fault:
            if fault.errno not in _NO_FLOCK:
                raise
    return _acquire_lease(output, journal)


def _acquire_lease(output: Path, journal: Journal) -> BaseFileLock:
    path = output / LEASE_NAME
    lease = SoftFileLease(
        path, lease_duration=LEASE_S, heartbeat_interval=RENEWAL_S, on_compromise=lambda _: _give_up(output)
    )
    with contextlib.suppress(filelock.Timeout):
        lease.acquire(blocking=False)
        return lease
    journal.say(
        f"note: {shown(output)} belongs to another job: {_owner(output)}. "
        f"Waiting up to {LEASE_S:.0f} s for a sign of life from it"
    )
    before = _renewed(path)
    try:
        # Once the other job renews its lease, there is nothing to wait for.
        lease.acquire(timeout=LEASE_S + RENEWAL_S, cancel_check=lambda: _renewed(path) != before, poll_interval=0.5)
    except filelock.Timeout as fault:
        raise _busy(output) from fault
    return lease


def _renewed(path: Path) -> float | None:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return None


def _give_up(output: Path) -> None:
    """End a job that lost its lease: asleep, paused, or cut off from its storage; another may have begun."""
    print_error(
        f"error: {shown(output)}: this job lost its lock: it did not run, or its storage was away, for a while, and "
        f"another may work here now: {_owner(output)}. What was finished is safe. Run again to continue."
    )
    os._exit(EXIT_RETRY)


def _busy(output: Path) -> BusyError:
    owner = _owner(output)
    return BusyError(
        f"{shown(output)}: another job is working in this folder: {owner}. Wait for it, or give another --output.",
        owner,
    )


def _owner(output: Path) -> str:
    return who(read_json(output / OWNER_NAME))


def myself() -> dict[str, str | int]:
    """What a lock says of the job that holds it."""
    named = len(sys.argv) > 1 and not sys.argv[1].startswith("-")
    return {
        "command": sys.argv[1] if named else "run",
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": clock(),
    }


def who(found: object) -> str:
    """The job that left a record, in words."""
    if not isinstance(found, dict):
        return "it left no readable record"
    command, host, pid, since = (shown(str(found.get(key))[:80]) for key in ("command", "host", "pid", "since"))
    return f"`birdtune {command}` on host {host}, process {pid}, since {since}"
