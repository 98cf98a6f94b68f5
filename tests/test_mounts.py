"""runtime.mounts: what a folder lies on."""

from collections.abc import Callable
from pathlib import Path

import pytest
from makers import Said

from birdtune.errors import InputError
from birdtune.runtime import mounts
from birdtune.runtime.lock import alone_in
from birdtune.runtime.log import Journal

SHARED = """22 1 254:0 / / rw - ext4 /dev/vda rw
40 22 0:41 / {0}/a\\040b rw - ext4 x rw
41 22 0:41 / {0}/shared rw,relatime shared:1 - nfs4 server:/ rw
42 41 0:42 / {0}/shared/local rw - xfs x rw
odd
"""


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the system's table of mounts be a text."""
    monkeypatch.setattr(mounts, "_MOUNTS", tmp_path / "mountinfo")
    return lambda text: (tmp_path / "mountinfo").write_text(text, "utf-8") and None


def test_a_file_system_is_shared_unless_one_kernel_alone_can_mount_it(
    tmp_path: Path, mounted: Callable[[str], None]
) -> None:
    for name in ("shared/local/deep", "shared/other"):
        (tmp_path / name).mkdir(parents=True)
    mounted(SHARED.format(tmp_path))
    assert [mounts.is_shared(tmp_path / name) for name in ("", "shared", "shared/other", "shared/local/deep")] == [
        False, True, True, False,
    ]  # fmt: skip
    mounted("")
    assert mounts.is_shared(tmp_path)


def test_an_output_that_can_rename_nothing_is_refused(tmp_path: Path, mounted: Callable[[str], None]) -> None:
    mounted(f"41 22 0:41 / {tmp_path}/out rw - fuse mountpoint-s3 rw\n")
    refused = pytest.raises(InputError, match=r"lies on Mountpoint for Amazon S3.*--output s3://BUCKET")
    with refused, alone_in(tmp_path / "out", Journal(quiet=True)):
        pass
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "root, is_lost",
    [(f"/var/lib/docker/volumes/{'0a' * 32}/_data", True), ("/volumes/models/_data", False), ("/", False)],
)
def test_a_volume_that_docker_removes_is_warned_of(
    tmp_path: Path, mounted: Callable[[str], None], root: str, is_lost: bool
) -> None:
    mounted(f"41 22 0:41 {root} {tmp_path} rw - ext4 /dev/vda rw\n")
    said = Said()
    mounts.warn_of_anonymous_volume(tmp_path / "output", said)
    assert ["docker run --rm" in line for line in said.lines] == [True] * is_lost
