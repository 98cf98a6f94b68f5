"""Who works in an output folder, and whether they still do.

    look(.holder.json) ─▶ Found (Holder, last sign of life) ─▶ judge ─▶ at work | dead, and how that is known | unknown

Evidence first: the machine that a job ran on knows whether its process is there. Only of a job on another machine,
or where this one does not say (an odd /proc, another container), the time since its last sign of life decides.
"""

import contextlib
import os
import re
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from birdtune.errors import shown
from birdtune.runtime.events import clock

# File systems of which only one kernel can have a file: what another boot of a kernel wrote there is past.
# All others (nfs, cifs, fuse, 9p, virtiofs, lustre, ...) may be shared between machines.
_LOCAL = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "bcachefs", "tmpfs", "overlay", "vfat", "exfat", "ntfs3"}
)  # fmt: skip
_LONGEST_RECORD_BYTES = 1 << 16
_LARGEST_PID = 1 << 22  # Linux, PID_MAX_LIMIT
# What Docker and Podman mount over /etc/hostname and others lies in a folder named after the container.
_CONTAINER = re.compile(r"containers/([0-9a-f]{12})[0-9a-f]{52}/")


class Holder(BaseModel):
    """What a job writes about itself. None: this system does not say."""

    model_config = ConfigDict(frozen=True, strict=True)

    token: str = Field(max_length=64)  # random: no two starts have the same
    host: str = Field(max_length=255)
    container: str | None = Field(max_length=64)
    pid: int = Field(gt=0, le=_LARGEST_PID)  # as seen in its namespace
    since: str = Field(max_length=32)  # UTC
    command: str = Field(max_length=32)
    boot: str | None  # of the kernel, new at each start of the machine
    namespace: str | None  # in which the pid counts
    process_start: int | None  # clock ticks after boot: pids are used again
    flock: bool  # whether it holds the lock of the lock file
    filesystem: str | None
    device: int
    folder: int  # inode of the output folder
    lock: int  # inode of the lock file

    @property
    def local(self) -> bool:
        """Whether it sees the folder on a file system that no other machine can have."""
        return self.filesystem in _LOCAL

    @property
    def place(self) -> tuple[int, int]:
        """Which folder of this machine it is, by whatever path."""
        return self.device, self.folder

    def __str__(self) -> str:
        container = f" (container {shown(self.container)})" if self.container else ""
        return (
            f"`birdtune {shown(self.command)}` on host {shown(self.host)}{container}, process {self.pid}, "
            f"since {shown(self.since)}"
        )


def myself(token: str, folder: Path, lock: int, *, flock: bool) -> Holder:
    """What there is to say about this process.

    Args:
        folder: the output folder.
        lock: descriptor of its lock file.
        flock: whether this process holds its lock.
    """
    there = folder.stat()
    mounts = _mounts()
    process = _process(os.getpid())
    return Holder(
        token=token,
        host=shown(socket.gethostname())[:255],
        container=_container(mounts),
        pid=os.getpid(),
        since=clock(),
        command=shown(sys.argv[1] if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else "run")[:32],
        boot=_system("/proc/sys/kernel/random/boot_id"),
        namespace=_namespace(),
        process_start=process[1] if process else None,
        flock=flock,
        filesystem=_filesystem(there.st_dev, mounts),
        device=there.st_dev,
        folder=there.st_ino,
        lock=os.fstat(lock).st_ino,
    )


@dataclass(frozen=True)
class Found:
    """A record as it was found."""

    raw: bytes
    holder: Holder | None  # None: damaged, or it cannot be read
    seen: float  # last sign of life by the file system's clock, seconds


def look(path: Path) -> Found | None:
    """Read a record; None if there is none.

    It is opened, not only looked at: on NFS that is what asks the server.

    Raises:
        OSError: the storage fails.
    """
    try:
        # Whatever stands there under this name, it is not waited for, and not followed elsewhere.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError:
        return Found(b"", None, path.lstat().st_mtime)
    try:
        seen = os.fstat(descriptor).st_mtime
        try:
            raw = os.read(descriptor, _LONGEST_RECORD_BYTES)
        except IsADirectoryError:
            raw = b""
    finally:
        os.close(descriptor)
    try:
        return Found(raw, Holder.model_validate_json(raw), seen)
    except ValueError:
        return Found(raw, None, seen)


@dataclass(frozen=True)
class Verdict:
    """Whether a job is at work: `dead` says how it is known that it is not; else it is, if `certain`."""

    dead: str = ""
    certain: bool = False


def judge(holder: Holder | None, me: Holder) -> Verdict:
    """What can be known without regard to time. Without evidence, neither dead nor certain."""
    if holder is None:
        # Who wrote it would have the lock, too, if still at work.
        return Verdict("its record is damaged") if me.flock and me.local else Verdict()
    this_boot = holder.boot is not None and holder.boot == me.boot
    if holder.local and me.local and None not in (holder.boot, me.boot):
        if not this_boot:
            return Verdict("it ran before this machine was last started")
        if holder.place != me.place:
            return Verdict("its record came here with a copy of the folder")
    if not this_boot:
        return Verdict()
    # The same device is the same mount; two mounts, as containers may have of a bucket, know two locks.
    same_lock = (holder.place, holder.lock) == (me.place, me.lock)
    if holder.flock and me.flock and same_lock:
        return Verdict("the system has taken its lock back")
    if holder.namespace is not None and holder.namespace == me.namespace:
        alive = _is_alive(holder.pid, holder.process_start)
        if alive is not None:
            return Verdict(certain=True) if alive else Verdict("its process has ended")
    return Verdict()


def _is_alive(pid: int, start: int | None) -> bool | None:
    """Whether a process is there; None where /proc does not say whether it is the one that began at `start`."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is there, and another user's
    process = _process(pid)
    if process is None or start is None:
        return None
    # A zombie is a process that ended, and whose parent has not asked yet.
    return process[1] == start and process[0] not in ("Z", "X")


def _process(pid: int) -> tuple[str, int] | None:
    """State and start of a process, proc_pid_stat(5); None where /proc hides it or is another namespace's."""
    try:
        if str(Path("/proc/self").readlink()) != str(os.getpid()):
            return None
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
        fields = text[text.rindex(")") :].split()  # the name before it may hold anything
        return fields[1], int(fields[20])
    except (OSError, ValueError, IndexError):
        return None


def _namespace() -> str | None:
    with contextlib.suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return None


def _system(path: str) -> str | None:
    with contextlib.suppress(OSError):
        return Path(path).read_text("utf-8", "replace").strip() or None
    return None


def _mounts() -> list[list[str]]:
    """proc_pid_mountinfo(5): [.., .., device, root, mount point, ..., "-", type, ...] of each mount."""
    lines = (_system("/proc/self/mountinfo") or "").splitlines()
    return [fields for line in lines if "-" in (fields := line.split())[6:-1]]


def _filesystem(device: int, mounts: list[list[str]]) -> str | None:
    name = f"{os.major(device)}:{os.minor(device)}"
    return next((fields[fields.index("-", 6) + 1] for fields in mounts if fields[2] == name), None)


def _container(mounts: list[list[str]]) -> str | None:
    return next((match[1] for fields in mounts if (match := _CONTAINER.search(fields[3]))), None)
