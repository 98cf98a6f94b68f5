"""One job at a time in an output folder, on one machine or on many that share it.

    with alone_in(output, journal): ...    nobody else works there; else BusyError says who does

    output/.lock          locked by flock(2) where the file system can; never holds anything
    output/.holder.json   who works here (holder.py); taken away at the end

The record decides. It gets its name by link(2), which of several starters lets one through, on NFS too; its time
of change is renewed as a sign of life. The lock is evidence: the system takes it from a process that ends, however
that ends. A job that was taken for dead (a laptop that slept, a paused container) finds another's record in the
place of its own, and ends: what is on the disk is whole at any moment.
"""

import contextlib
import errno
import fcntl
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from birdtune.errors import EXIT_PASSING, BusyError, InputError, PassingError, shown
from birdtune.runtime.events import Journal, duration, tell
from birdtune.runtime.files import make_folder, write_bytes
from birdtune.runtime.holder import Found, Holder, Verdict, judge, look, myself
from birdtune.runtime.storage import UNFINISHED, storage_faults

LOCK_NAME = ".lock"
RECORD_NAME = ".holder.json"

_BEAT_S = 10.0
# Without evidence, a job is dead when no sign of life came for this long. It must be longer than a network file
# system may remember a time of change (NFS: 60 s) and the slowest beat.
_DEAD_AFTER_S = 90.0
# Some servers (NFS 3) keep the lock of a machine that is gone. As long as it is held, it is evidence of a life.
_FORGOTTEN_AFTER_S = 900.0
# A lock whose record names a dead job, or nobody: its process is just ending, or another has just begun.
_PATIENCE_S = 2.0
_POLL_S = 0.1
# Where the lock says nothing, starters that had no link(2) to part them look again after this time.
_SETTLE_S = 1.0
# What flock gives where there are no locks; EBADF: NFS, for a file that may not be written; EACCES: SMB.
_NO_LOCKS = frozenset(
    {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EBADF, errno.EACCES, errno.EPERM}
)


@contextlib.contextmanager
def alone_in(output: Path, journal: Journal) -> Iterator[None]:
    """Keep other jobs out of an output folder for as long as the block lasts.

    Raises:
        BusyError: another job works there.
        InputError: the folder cannot be written.
        PassingError: the storage fails.
    """
    make_folder(output)
    claim = _Claim(output)
    try:
        with storage_faults(output):
            before = claim.take()
        if before:
            journal.warn(before)
        yield
    finally:
        claim.release()


class _Claim:
    """One job's claim to a folder."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._lock, self._record = output / LOCK_NAME, output / RECORD_NAME
        self._token = uuid.uuid4().hex
        self._own, self._aside = (output / f"{UNFINISHED}{name}-{self._token}" for name in ("holder", "dead"))
        self._descriptor: int | None = None
        self._stderr: int | None = None
        self._raw = b""
        self._ended = threading.Event()
        self._pulse = threading.Thread(target=self._beat_on, name="sign of life", daemon=True)

    def take(self) -> str:
        """Take the folder. Returns what is to be told of a dead job that had it, or nothing."""
        me = self._try_lock()
        self._raw = me.model_dump_json(indent=2).encode() + b"\n"
        told = ""
        found = look(self._record)
        if found is not None:
            told = self._dead(found, me)
            self._clear_away(found)
        self._put()
        if not (me.flock and me.local):
            time.sleep(_SETTLE_S)
        if other := self._beat():
            raise self._busy(other, Verdict())
        with contextlib.suppress(OSError):  # there may be none
            self._stderr = os.dup(2)
        self._pulse.start()
        return told

    def release(self) -> None:
        """Give the folder back; however far `take` came."""
        self._ended.set()
        if self._pulse.is_alive():
            self._pulse.join(_PATIENCE_S)
        # A disk that is gone has no record to take away, and the first fault is the one to tell.
        with contextlib.suppress(OSError):
            found = look(self._record)
            if self._raw and found is not None and found.raw == self._raw:
                self._record.unlink()
        _remove(self._own)
        _remove(self._aside)
        for descriptor in (self._descriptor, self._stderr):
            if descriptor is not None:
                os.close(descriptor)
        self._descriptor = self._stderr = None

    # ---- the lock

    def _try_lock(self) -> Holder:
        """This process as a holder, with the lock or where there are none.

        Raises:
            BusyError: another process has it.
        """
        patience = time.monotonic() + _PATIENCE_S
        while True:
            self._open()
            assert self._descriptor is not None
            held = _flock(self._descriptor)
            me = myself(self._token, self._output, self._descriptor, flock=bool(held))
            if held is not None:
                return me
            found = look(self._record)
            if found and found.holder and not judge(found.holder, me).dead:
                here = me.local or (me.boot is not None and me.boot == found.holder.boot)
                if here or self._age_s(found) <= _FORGOTTEN_AFTER_S:
                    raise self._busy(found, Verdict(certain=here), _FORGOTTEN_AFTER_S)
                # Its machine is gone, and the server does not know it. A new lock file is free.
                self._lock.unlink(missing_ok=True)
            elif time.monotonic() > patience:
                raise self._busy(None, Verdict(certain=True))
            else:
                time.sleep(_POLL_S)

    def _open(self) -> None:
        """Open the lock file, anew because it may have been replaced."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        try:
            self._descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except (PermissionError, IsADirectoryError):
            if not os.path.lexists(self._lock):
                raise
            # Most likely another user's, who worked here before; to be locked it need not be written.
            try:
                self._descriptor = os.open(self._lock, os.O_RDONLY | os.O_NOFOLLOW)
            except PermissionError as fault:
                raise InputError(
                    f"{shown(self._lock)}: cannot be opened by this user (uid {os.geteuid()}); it belongs to uid "
                    f"{self._lock.lstat().st_uid}. Run as that user, mend its rights, or give another --output."
                ) from fault

    # ---- the record

    def _dead(self, found: Found, me: Holder) -> str:
        """What is to be told of the dead job whose record was found.

        Raises:
            BusyError: it is not dead, or not known to be.
        """
        verdict = judge(found.holder, me)
        how = verdict.dead
        if not how and not verdict.certain and (age_s := self._age_s(found)) > _DEAD_AFTER_S:
            how = f"no sign of life for {duration(age_s)}"
        if not how:
            raise self._busy(found, verdict)
        return f"The job that had this folder is dead ({how}): {_who(found)}. Going on in its place."

    def _age_s(self, found: Found) -> float:
        """Seconds since the last sign of life, by the clock that stamped it: the file system's, not this machine's."""
        with tempfile.TemporaryFile(dir=self._output) as probe:
            # A time that has not come yet, from before the clock was set right, is no sign of life either.
            return abs(os.fstat(probe.fileno()).st_mtime - found.seen)

    def _clear_away(self, dead: Found) -> None:
        """Take a dead job's record out of the way. Raises BusyError if another starter was faster."""
        try:
            self._record.rename(self._aside)
        except FileNotFoundError:
            return
        moved = look(self._aside)
        if moved is not None and moved.raw != dead.raw:
            # This is not the record that was read, but that of a job which took its place since.
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                _place(self._aside, self._record)
            raise self._busy(moved, Verdict())
        _remove(self._aside)

    def _put(self) -> None:
        """Put this job's record in its place, unless one stands there."""
        # Who has the folder takes away what is unfinished, so that it may be gone in the middle.
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            write_bytes(self._own, self._raw)
            self._own.chmod(0o644)  # whatever the umask: others must be able to read who is here
            _place(self._own, self._record)
        _remove(self._own)

    def _beat(self) -> Found | None:
        """Give a sign of life. Returns the record of the job that took the folder, if one did."""
        found = look(self._record)
        if found is None:
            self._put()
            found = look(self._record)
        if found is None or found.raw == self._raw:
            with contextlib.suppress(FileNotFoundError):
                _touch(self._record, self._raw)
            return None
        if found.holder is None:
            write_bytes(self._record, self._raw)  # no job writes such a thing
            return None
        return found

    def _beat_on(self) -> None:
        """In a thread of its own: signs of life, until this job ends or another has taken its place."""
        while not self._ended.wait(_BEAT_S):
            other = None
            # What is wrong with the storage the main thread meets by itself.
            with contextlib.suppress(OSError, InputError, PassingError):
                other = self._beat()
            if other is not None and not self._ended.is_set():
                tell(
                    f"error: {shown(self._output)}: this job gave no sign of life for a while (asleep, paused, or "
                    f"without its storage), and another has taken its place: {_who(other)}. What was finished is safe.",
                    self._stderr,
                )
                os._exit(EXIT_PASSING)

    def _busy(self, found: Found | None, verdict: Verdict, limit_s: float | None = None) -> BusyError:
        """The error that says who is at work here, and when the folder is free if that job is dead after all."""
        who, free = _who(found), ""
        # A disk on which nothing can be made, as on a full one, does not tell its time.
        with contextlib.suppress(OSError):
            if found is not None:
                age_s = self._age_s(found)
                who += f"; last sign of life {duration(age_s)} ago"
                left_s = max(0.0, (limit_s or _DEAD_AFTER_S) - age_s)
                free = f" If that job is dead, the folder is free in {duration(left_s)}."
        text = f"{shown(self._output)}: another job is working in this folder: {who}."
        text += " Wait for it, or give another --output."
        return BusyError(text if verdict.certain else text + free, who)


def _who(found: Found | None) -> str:
    holder = found.holder if found is not None else None
    return str(holder) if holder is not None else "it left no readable record"


def _flock(descriptor: int) -> bool | None:
    """True: locked. None: another has it. False: this file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError as fault:
        if fault.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _place(own: Path, path: Path) -> None:
    """Give a file a second name, or a new one where files have only one. FileExistsError if it is taken."""
    try:
        path.hardlink_to(own)
    except FileExistsError:
        raise
    except OSError as fault:
        # No links here (vfat, SMB, buckets).
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from fault
        own.rename(path)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _touch(path: Path, content: bytes) -> None:
    """Renew the time of change by the file system's own clock, of this very file and no other."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        if os.read(descriptor, len(content) + 1) != content:
            return
        before = os.fstat(descriptor).st_mtime_ns
        with contextlib.suppress(OSError):
            os.utime(descriptor)
        if os.fstat(descriptor).st_mtime_ns == before:
            os.pwrite(descriptor, content, 0)  # some (blobfuse) take no times, but notice what is written
    finally:
        os.close(descriptor)
