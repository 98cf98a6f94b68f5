"""What a folder lies on: a disk of this machine, one that others share, a bucket, a volume that nobody keeps.

    /proc/self/mountinfo ─▶ mount_of ─▶ Mount
"""

import contextlib
import re
from pathlib import Path
from typing import NamedTuple

from birdtune.errors import InputError, shown
from birdtune.runtime.log import Journal

_MOUNTS = Path("/proc/self/mountinfo")
# File systems that one kernel mounts at a time. All others (nfs, cifs, fuse, 9p, virtiofs, lustre, ...) may be
# shared by machines whose locks do not know of each other.
_LOCAL = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "bcachefs", "tmpfs", "overlay", "vfat", "exfat", "ntfs3"}
)  # fmt: skip
# Docker names a volume that nobody names by 64 digits, and `--rm` removes it.
_ANONYMOUS = re.compile(r".*/volumes/[0-9a-f]{64}/_data")


class Mount(NamedTuple):
    """What is mounted where a folder lies; empty texts where the system does not say.

    Attributes:
        kind: the type of the file system.
        source: what is mounted.
        root: the folder of it that is.
    """

    kind: str = ""
    source: str = ""
    root: str = ""


def mount_of(folder: Path) -> Mount:
    """The innermost mount that a folder lies on."""
    place = f"{folder.resolve()}/"
    deepest, found = "", Mount()
    with contextlib.suppress(OSError, ValueError, IndexError):
        # proc_pid_mountinfo(5): .. .. .. root point ... - type source ...
        for line in _MOUNTS.read_text("utf-8", "replace").splitlines():
            fields = line.split()
            point = fields[4].rstrip("/") + "/"
            if place.startswith(point) and len(point) >= len(deepest):
                dash = fields.index("-", 6)
                deepest, found = point, Mount(fields[dash + 1], fields[dash + 2], fields[3])
    return found


def is_shared(folder: Path) -> bool:
    """Whether other machines may have a folder, too; True where the system does not say."""
    return mount_of(folder).kind not in _LOCAL


def refuse_without_renaming(output: Path) -> None:
    """Refuse an output folder whose files cannot be renamed. Raises InputError."""
    if mount_of(output).source == "mountpoint-s3":
        raise InputError(
            f"{shown(output)}: lies on Mountpoint for Amazon S3, which can neither rename nor change files. Give the "
            "bucket itself (--output s3://BUCKET/KEY), or a disk, NFS or EFS. As an input, Mountpoint serves well."
        )


def warn_of_anonymous_volume(output: Path, journal: Journal) -> None:
    """Say so where what is made will be removed with the container."""
    if _ANONYMOUS.fullmatch(mount_of(output).root):
        journal.warn(
            f"{shown(output)} is a volume without a name: `docker run --rm` removes it with the container, and the "
            'model in it. Mount a folder to keep it: -v "$PWD/output:/model/output".'
        )
