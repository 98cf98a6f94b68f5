"""Disks that fill up, refuse or go away under the command, and data that go away while they are read.

On real file systems of a few megabytes, each of its own for what a stage writes. Where TensorFlow is needed
and the process is not what is tried, the command's own function is called here, which saves loading it again.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers_input import CLASSES, write_good, write_tone
from makers import ordinary_folder

from birdtune import cli
from birdtune.audio.logmel import VGGISH
from birdtune.data.frames import FrameStore
from birdtune.runtime.files import read_csv, read_json
from birdtune.settings import AudioSettings
from birdtune.training.checkpoints import Checkpoints
from tests.faults.helpers_command import QUICK, ROOT, Command, run

pytestmark = pytest.mark.long

CODE = str(ROOT / "code")
MB = 1_000_000
PAGE = 4096
OF_A_CLASS = 8


def mount(*arguments: str | Path) -> bool:
    return subprocess.run(["mount", *map(str, arguments)], check=False, capture_output=True).returncode == 0


def unmount(place: Path) -> None:
    subprocess.run(["umount", "--lazy", str(place)], check=True)


class Disk:
    """A file system of its own at a folder, in memory."""

    def __init__(self, place: Path, n_bytes: int) -> None:
        self.place = place
        self._ballast = place / "ballast"
        place.mkdir(parents=True, exist_ok=True)
        self.mounted = mount("-t", "tmpfs", "-o", f"size={n_bytes}", "none", place)

    def fill(self, leave: int = 0) -> None:
        """Take all space but so many bytes, until `empty`."""
        self._ballast.unlink(missing_ok=True)
        facts = os.statvfs(self.place)
        with self._ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, facts.f_bavail * facts.f_frsize - leave)

    def empty(self) -> None:
        self._ballast.unlink()

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """For as long as the block lasts; also beside files that are open, which keep a remount from being made."""
        assert mount("--bind", self.place, self.place)
        try:
            assert mount("-o", "remount,bind,ro", self.place)
            yield
        finally:
            unmount(self.place)

    def end(self) -> None:
        if self.mounted:
            unmount(self.place)


def can_mount() -> bool:
    place = Path("/tmp") / f"birdtune-mount-{os.getpid()}"
    disk = Disk(place, MB)
    disk.end()
    place.rmdir()
    return disk.mounted


CAN_MOUNT = can_mount()
on_disks = pytest.mark.skipif(not CAN_MOUNT, reason="this user may not mount a file system")


@pytest.mark.skipif(CAN_MOUNT, reason="the tests below do it here")
def test_disks_in_a_namespace_of_our_own(tmp_path: Path) -> None:
    command = ["unshare", "--map-root-user", "--mount", "--propagation", "private"]
    if not shutil.which("unshare") or subprocess.run([*command, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this user may not have namespaces of their own")
    tests = [sys.executable, "-m", "pytest", "-q", "--long", "-p", "no:cacheprovider", f"--basetemp={tmp_path}/inside"]
    tests += [__file__, "-k", "disk_of_its_own"]
    done = subprocess.run([*command, *tests], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0 and "skipped" not in done.stdout.splitlines()[-1], done.stdout


def litter(output: Path) -> list[Path]:
    """What was begun and never finished."""
    return sorted(output.rglob(".unfinished*"))


def arguments(data: Path, output: Path, name: str = "run") -> list[str]:
    """A command line that trains for six epochs of a tenth of a second."""
    return [
        name, f"--data={data}", f"--input={data.parent}", f"--output={output}", *QUICK, "--train.epochs=6",
        "--evaluate.bootstrap=20", "--prepare.workers=1",
    ]  # fmt: skip


def record(output: Path) -> dict[str, Any]:
    found = read_json(output / "run.json")
    assert isinstance(found, dict)
    return found


def check_failed(output: Path, code: int, errors: str, stage: str, words: tuple[str, ...]) -> None:
    """Exactly one line for people, and the same in run.json."""
    (line,) = errors.splitlines()
    for word in words:
        assert word in line, line
    found = record(output)
    assert (found["status"], found["exit_code"], found["stage"]) == ("failed", code, stage)
    assert line == f"birdtune: error: {found['error']}"
    assert litter(output) == []


class Watcher:
    """Does something once a condition holds, beside what goes on."""

    def __init__(self, condition: Callable[[], object], act: Callable[[], object]) -> None:
        self._condition, self._act = condition, act
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.acted = False

    def _watch(self) -> None:
        while not self._ended.wait(0.001):
            if self._condition():
                self._act()
                self.acted = True
                return

    def __enter__(self) -> "Watcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


# ---- the disk fills up --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("input") / "data"
    write_good(folder, recordings=OF_A_CLASS)
    return folder


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a job that nothing disturbs but this: once training begins, the data are gone for good."""
    folder = tmp_path_factory.mktemp("undisturbed")
    copy = shutil.copytree(data, folder / "input" / "data")
    command = Command(arguments(copy, folder / "output"))
    command.wait_until(lambda: command.stage == "train")
    shutil.rmtree(copy)
    assert command.wait() == 0, command.text()
    assert command.errors == []
    return folder / "output"


def test_a_job_whose_data_go_away_after_they_were_read_ends_well(undisturbed: Path) -> None:
    assert (record(undisturbed)["status"], record(undisturbed)["stage"]) == ("done", "done")
    assert "the export is verified with noise" in (undisturbed / "logs/1/run.log").read_text("utf-8")
    assert (undisturbed / "reports/1/report.html").is_file()
    assert litter(undisturbed) == []


def used(folder: Path) -> int:
    """Bytes that a folder takes on a disk."""
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[dict[str, Disk]]:
    """An output folder, and in it a disk of its own for what each stage writes."""
    output = tmp_path / "output"
    made = {"": Disk(output, 4 * MB)}
    made |= {name: Disk(output / name, 80 * MB) for name in ("cache", "checkpoints", "model", "reports")}
    try:
        yield made
    finally:
        for disk in reversed(made.values()):
            disk.end()


@on_disks
def test_whatever_disk_of_its_own_a_stage_fills_up_is_told_and_the_same_command_goes_on(
    data: Path, undisturbed: Path, disks: dict[str, Disk], capsys: pytest.CaptureFixture[str]
) -> None:
    output, weights = disks[""].place, record(undisturbed)["weights_sha256"]

    # Half of the frames.
    disks["cache"].fill(leave=used(undisturbed / "cache") // 2)
    command = run(arguments(data, output))
    assert command.wait() == 75, command.text()
    errors = "\n".join(line.text for line in command.errors)
    check_failed(output, 75, errors, "prepare", ("vggish-", "full while writing features (", "kB needed", "free)"))
    store = FrameStore(output / "cache", VGGISH, AudioSettings())
    n_made = len(store)
    assert 0 < n_made < 3 * OF_A_CLASS and store.verify(store.contents()) == []
    disks["cache"].empty()

    # Less than one more checkpoint, once the first is there.
    one = used(next((undisturbed / "checkpoints/1").iterdir()))
    command = Command(arguments(data, output))
    command.wait_until(lambda: any((output / "checkpoints/1").glob("epoch-0001-*")))
    disks["checkpoints"].fill(leave=one // 2)
    assert command.wait() == 75, command.text()
    assert command.said(f"  {3 * OF_A_CLASS - n_made} recordings decoded, {n_made} were in the cache")
    errors = "\n".join(line.text for line in command.errors)
    words = ("checkpoints/1/epoch-000", "too full for a checkpoint (14 MB needed, ", "MB free)")
    check_failed(output, 75, errors, "train", words)
    saved, complaints = Checkpoints(output / "checkpoints/1", keep=2).newest()
    assert saved is not None and complaints == []
    disks["checkpoints"].empty()

    # Read-only from one moment to the next, while it trains.
    epochs, writable = saved.state.epoch, contextlib.ExitStack()
    later = output / f"checkpoints/1/epoch-{epochs + 1:04d}-step-000000"
    with Watcher(later.exists, lambda: writable.enter_context(disks["checkpoints"].read_only())) as watcher:
        assert cli.main(arguments(data, output)) == 42
    assert watcher.acted
    writable.close()
    words = ("checkpoints/1", "Read-only file system", "while writing a checkpoint", "uid")
    check_failed(output, 42, capsys.readouterr().err, "train", words)

    # Not even the first thing that evaluate writes: what tells strange sounds.
    disks["reports"].fill(leave=PAGE)
    assert cli.main(arguments(data, output)) == 75
    words = ("ood.npz: the disk is full (", " kB free)")
    check_failed(output, 75, capsys.readouterr().err, "evaluate", words)
    assert record(output)["weights_sha256"] == weights

    # All that evaluate writes, not the report; and no model at all.
    page = undisturbed / "reports/1/report.html"
    disks["reports"].fill(leave=used(undisturbed / "reports") - page.stat().st_size // 2)
    disks["model"].fill(leave=MB)
    assert cli.main(arguments(data, output)) == 75
    words = ("model/birdtune/1: the disk is too full for the exported model (", "MB needed, ", " free)")
    check_failed(output, 75, capsys.readouterr().err, "export", words)
    disks["model"].empty()
    assert cli.main(arguments(data, output)) == 75
    words = ("reports/1/report.html: the disk is full (", "kB needed, ", "kB free)")
    check_failed(output, 75, capsys.readouterr().err, "report", words)
    assert (output / "model/birdtune/1/saved_model.pb").is_file()

    disks["reports"].empty()
    command = run(arguments(data, output))
    assert command.wait() == 0 and command.errors == [], command.text()
    assert [line.text for line in command.lines if re.fullmatch(r"\w+:", line.text)] == ["report:"]
    assert (record(output)["status"], record(output)["weights_sha256"]) == ("done", weights)
    assert read_json(output / "reports/1/metrics.json") == read_json(undisturbed / "reports/1/metrics.json")


@on_disks
def test_with_no_room_on_a_disk_of_its_own_check_says_what_run_says(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = Disk(tmp_path / "output", MB)
    try:
        disk.fill()
        for name in ("check", "run"):
            assert cli.main(arguments(data, disk.place, name)) == 75
        said = capsys.readouterr()
        assert "wrong: " in said.out and "the disk is full (66 kB needed, 0 bytes free)" in said.out
        assert f"{3 * OF_A_CLASS} usable" in said.out, "check goes on to look at the data"
        (line,) = said.err.splitlines()
        assert line.startswith("birdtune: error: ") and "the disk is full (" in line
        disk.empty()
        with disk.read_only():
            for name in ("check", "run"):
                assert cli.main(arguments(data, disk.place, name)) == 42
        assert "Read-only file system" in capsys.readouterr().err
    finally:
        disk.end()


def test_an_output_folder_that_is_removed_is_told_and_not_made_again(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    with Watcher((output / "checkpoints/1").exists, lambda: output.rename(tmp_path / "elsewhere")) as watcher:
        assert cli.main(arguments(data, output, "train")) == 75
    assert watcher.acted
    (line,) = capsys.readouterr().err.splitlines()
    assert "is gone" in line and "removed" in line and "Run again" in line


def test_where_nobody_listens_a_check_fails_in_one_line(data: Path, tmp_path: Path) -> None:
    def checked(streams: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "birdtune", *arguments(data, tmp_path / "output", "check")]
        environment = {**os.environ, "PYTHONPATH": CODE}
        script = f'exec "$@" {streams}'
        return subprocess.run(
            ["sh", "-c", script, "sh", *command], check=False, capture_output=True, text=True, env=environment
        )

    full = checked(">/dev/full")
    assert full.returncode == 75
    note, error = full.stderr.splitlines()
    assert note.startswith("birdtune: note: standard output cannot be written (No space left on device)")
    assert error.startswith("birdtune: error: standard output could not be written (No space left on device)")
    assert checked("<&- >&- 2>&-").returncode == 0


# ---- data that go away --------------------------------------------------------------------------


@pytest.fixture
def own_data(data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data, tmp_path / "input" / "data"))


def disturbed(data: Path, output: Path, act: Callable[[], object]) -> Command:
    """`prepare`, disturbed when the files are known by their content and the decoders are starting."""
    command = Command(arguments(data, output, "prepare"))
    command.wait_until((output / "cache/ledger.json").exists)
    act()
    command.wait()
    return command


def test_files_that_vanish_or_change_while_they_are_read_are_counted_and_never_mistaken(
    own_data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    gone, other = own_data / CLASSES[0] / "rec0.wav", own_data / CLASSES[1] / "rec1.wav"
    shutil.copy(other, own_data / CLASSES[1] / "zz copy of rec1.wav")

    def disturb() -> None:
        gone.unlink()
        write_tone(other, 999, seconds=2.0)

    command = disturbed(own_data, output, disturb)
    assert command.wait() == 0 and command.errors == [], command.text()
    problems = {row["recording"]: row for row in read_csv(output / "problems.csv")}
    assert {name: row["problem"] for name, row in problems.items()} == {
        f"{CLASSES[0]}/rec0.wav": "vanished", f"{CLASSES[1]}/rec1.wav": "changed",
    }  # fmt: skip
    assert all(row["used"] == "no" and row["advice"] for row in problems.values())
    split = {row["recording"]: row["content"] for row in read_csv(output / "split.csv")}
    assert len(split) + len(problems) == 3 * OF_A_CLASS + 1
    store = FrameStore(output / "cache", VGGISH, AudioSettings())
    copy = split[f"{CLASSES[1]}/zz copy of rec1.wav"]
    assert store.entry(copy).facts.duration_s == 1.5, "of the copy, not of what took its place"
    again = run(arguments(own_data, output, "prepare"))
    assert again.wait() == 0 and again.said("  1 recording decoded"), again.text()
    assert read_csv(output / "problems.csv") == []


@pytest.mark.parametrize("gone", ["a class", "everything"])
def test_nothing_is_prepared_from_what_is_left_of_data_that_went_away(
    own_data: Path, tmp_path: Path, gone: str
) -> None:
    output, place = tmp_path / "output", own_data / CLASSES[1] if gone == "a class" else own_data
    command = disturbed(own_data, output, lambda: place.rename(tmp_path / "unmounted"))
    assert command.wait() == 75, command.text()
    n_gone = OF_A_CLASS if gone == "a class" else 3 * OF_A_CLASS
    errors = "\n".join(line.text for line in command.errors)
    lost = f"{own_data}: {n_gone} of {3 * OF_A_CLASS} sound files vanished or changed"
    words = (lost, CLASSES[1], "mounted", "run again")
    check_failed(output, 75, errors, "prepare", words)
    assert not (output / "split.csv").exists() and not (output / "problems.csv").exists()
    (tmp_path / "unmounted").rename(place)
    again = run(arguments(own_data, output, "prepare"))
    assert again.wait() == 0, again.text()
    assert len(read_csv(output / "split.csv")) == 3 * OF_A_CLASS


def test_rights_that_are_lost_half_way_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with ordinary_folder() as folder:
        try:
            subprocess.run([sys.executable, "-c", "import numpy, birdtune"], check=True, env={"PYTHONPATH": CODE})
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("this Python lies where ordinary users cannot run it")
        data, output = folder / "input" / "data", folder / "output"
        write_good(data, recordings=3)
        locked = [output / "cache", data / CLASSES[0] / "rec0.wav"]

        def lock() -> None:
            for place in locked:
                place.chmod(0o555 if place.is_dir() else 0)

        try:
            with Watcher((output / "cache/ledger.json").exists, lock) as watcher:
                assert cli.main(arguments(data, output, "prepare")) == 42
            assert watcher.acted
            words = ("cache", "cannot be written (Permission denied)", f"uid {os.geteuid()}", "--user")
            check_failed(output, 42, capsys.readouterr().err, "prepare", words)
        finally:
            locked[0].chmod(0o755)
        assert cli.main(arguments(data, output, "prepare")) == 0
        (row,) = read_csv(output / "problems.csv")
        assert (row["recording"], row["problem"]) == (f"{CLASSES[0]}/rec0.wav", "unreadable")
