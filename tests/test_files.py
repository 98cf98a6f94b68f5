"""runtime.files and runtime.storage: whole or not at all, refusals in words, tables that come back."""

import contextlib
import csv
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import ordinary_folder

from birdtune.errors import BirdtuneError, InputError, RetryableError
from birdtune.runtime import files
from birdtune.runtime.files import (
    file_sha256,
    growing_csv,
    make_folder,
    new_folder,
    read_csv,
    read_json,
    remove_unfinished,
    temporary_folder,
    try_to_write,
    value_sha256,
    write_bytes,
    write_csv,
    write_json,
    write_text,
)
from birdtune.runtime.storage import (
    free_bytes,
    need_space,
    read_error,
    size_text,
    storage_faults,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- files --------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "one")
    write_text(path, "two ü")
    assert path.read_bytes() == "two ü".encode()
    assert names(tmp_path) == ["a.txt"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RetryableError, match="disk is full"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_file_reaches_the_disk_before_its_name_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened = []
    fsync, replace = os.fsync, Path.replace

    def note_sync(descriptor: int) -> None:
        happened.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def note_rename(self: Path, target: Path) -> Path:
        happened.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_rename)
    write_bytes(tmp_path / "a", b"x")
    assert happened == ["file", "rename", "folder"]
    happened.clear()
    write_bytes(tmp_path / "a", b"y", durable=False)
    assert happened == ["rename"], "whole or not at all still, but nobody waits for the disk"
    happened.clear()
    with new_folder(tmp_path / "b") as folder:
        (folder / "below").mkdir()
        (folder / "below" / "one").touch()
    assert happened == ["file", "folder", "folder", "rename", "folder"]
    happened.clear()
    make_folder(tmp_path / "c" / "d")
    assert happened == ["folder", "folder"]


def test_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "x")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_text_that_utf8_cannot_hold_becomes_an_escape(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "x\udcffy")
    assert (tmp_path / "a").read_text() == r"x\udcffy"


def test_hashes_are_of_the_content(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000  # more than one block
    (tmp_path / "a").write_bytes(content)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    assert value_sha256({"b": 1, "a": [1.5, None]}) == value_sha256({"a": [1.5, None], "b": 1})
    assert value_sha256({"a": 1}) != value_sha256({"a": 2})


# ---- folders ------------------------------------------------------------------------------------


def test_a_new_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "below" / "model") as folder:
        (folder / "one").touch()
        assert names(tmp_path / "below") == [".unfinished-model"]
    assert names(tmp_path / "below") == ["model"]
    assert names(tmp_path / "below" / "model") == ["one"]


def test_a_new_folder_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    with pytest.raises(RuntimeError), new_folder(tmp_path / "model") as folder:
        (folder / "new").touch()
        raise RuntimeError
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["old"]


def test_a_new_folder_replaces_the_old_and_what_a_killed_run_left(tmp_path: Path) -> None:
    for name in ("model", ".unfinished-model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").touch()
    with new_folder(tmp_path / "model") as folder:
        (folder / "new").touch()
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["new"]


def test_a_file_where_a_folder_is_needed_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    for path in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(InputError, match="is a file where a folder is needed"):
            make_folder(path)
    assert make_folder(tmp_path / "x/y") == make_folder(tmp_path / "x/y")


# ---- faults of the storage ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "error", "words"),
    [
        (errno.ENOSPC, RetryableError, r"disk is full while writing a song \(14 MB needed, .* free\).*Free some space"),
        (errno.EDQUOT, RetryableError, r"quota is used up while writing a song \(14 MB needed\)"),
        (errno.EIO, RetryableError, "storage failed .*while writing a song"),
        (errno.ESTALE, RetryableError, "Run again"), (errno.ENOTCONN, RetryableError, "storage failed"),
        (errno.EROFS, InputError, "cannot be written"), (errno.EACCES, InputError, "--user"),
        (errno.EPERM, InputError, "uid"), (errno.EFBIG, InputError, "ulimit"),
        (errno.ENAMETOOLONG, InputError, "no such name"),
    ],
)  # fmt: skip
def test_faults_of_the_storage_say_what_to_do(
    tmp_path: Path, number: int, error: type[Exception], words: str
) -> None:
    with (
        pytest.raises(error, match=words) as caught,
        storage_faults(tmp_path / "no" / "such", "a song", lambda: 14_000_000),
    ):
        raise OSError(number, os.strerror(number), str(tmp_path / "the\nfile"))
    assert r"the\nfile" in str(caught.value)


class SafetensorError(Exception):
    """As the library raises it."""

    __module__ = "safetensors._safetensors_rust"


class ResourceExhaustedError(Exception):
    """As TensorFlow raises it, for want of space and of memory alike."""

    __module__ = "tensorflow.python.framework.errors_impl"


def test_what_libraries_raise_in_place_of_the_systems_errors_is_understood(tmp_path: Path) -> None:
    for fault in (
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        ResourceExhaustedError("{{function_node SaveV2}} out/variables/part-0; No space left on device"),
    ):
        with pytest.raises(RetryableError, match="x: the disk is full"), storage_faults(tmp_path / "x"):
            raise fault
    with pytest.raises(ResourceExhaustedError), storage_faults(tmp_path):
        raise ResourceExhaustedError("OOM when allocating tensor with shape[32,64]")


def test_a_temporary_name_is_not_told(tmp_path: Path) -> None:
    caught: pytest.ExceptionInfo[BirdtuneError]
    with pytest.raises(InputError) as caught, storage_faults(tmp_path / "run.json"):
        raise PermissionError(errno.EACCES, "no", str(tmp_path / ".unfinished-ab12"))
    assert str(caught.value).startswith(f"{tmp_path}/run.json: cannot be written")
    with pytest.raises(RetryableError) as caught, storage_faults(tmp_path / "model" / ".unfinished-1" / "x.csv"):
        raise OSError(errno.ENOSPC, "full")
    assert str(caught.value).startswith(f"{tmp_path}/model: the disk is full")


def test_other_faults_stay_what_they_are(tmp_path: Path) -> None:
    for place, verb in ((tmp_path / "x", "written"), (tmp_path / "missing", "read")):
        with pytest.raises(FileNotFoundError), storage_faults(place, verb=verb):
            (tmp_path / "missing").read_bytes()
    with pytest.raises(RetryableError, match="as it was"), storage_faults(tmp_path):
        raise RetryableError("as it was")


def test_a_folder_that_was_removed_meanwhile_is_told(tmp_path: Path) -> None:
    with pytest.raises(RetryableError, match=r"out: is gone.*Run again"):
        write_text(tmp_path / "out" / "a.txt", "x")
    with pytest.raises(RetryableError, match="state: is gone"), storage_faults(tmp_path / "state"):
        (tmp_path / "state").touch()
        (tmp_path / "state").unlink()
        (tmp_path / "state").stat()
    with pytest.raises(RetryableError, match=r"out: is gone"), storage_faults(tmp_path / "out" / "checkpoints"):
        os.open(tmp_path / "out", os.O_RDONLY)
    with pytest.raises(RetryableError, match=r"out/cache: is gone"), storage_faults(tmp_path / "out", verb="used"):
        (tmp_path / "out" / "cache" / "a.txt").read_bytes()


def test_a_refusal_that_nobody_met_is_no_defect_unless_nothing_is_named(tmp_path: Path) -> None:
    def command() -> contextlib.AbstractContextManager[None]:
        return storage_faults(tmp_path, verb="used")

    with pytest.raises(InputError, match=r"x: cannot be used \(Permission denied\).*rights"), command():
        raise PermissionError(errno.EACCES, "no", "x")
    with pytest.raises(RetryableError, match=f"{tmp_path}: the disk is full"), command():
        raise OSError(errno.ENOSPC, "full")
    with pytest.raises(PermissionError), command():
        raise PermissionError(errno.EPERM, "to whom was this signal sent?")


@pytest.mark.parametrize(
    ("number", "error", "words"),
    [(errno.EIO, RetryableError, "storage failed"), (errno.EACCES, InputError, "cannot be read")],
)
def test_faults_of_reading_are_told(tmp_path: Path, number: int, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words), storage_faults(tmp_path, verb="read"):
        raise OSError(number, os.strerror(number), "x")
    assert isinstance(read_error(OSError(number, "why"), tmp_path, "x: no."), error)


def test_what_has_no_room_is_not_begun(tmp_path: Path) -> None:
    free = free_bytes(tmp_path / "not" / "yet")
    assert free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
    need_space(tmp_path, 1, "a song")
    with pytest.raises(RetryableError, match=r"too full for a song \(1,000,000,000 GB needed, .* free\)"):
        need_space(tmp_path / "not" / "yet", 10**18, "a song")
    with (
        pytest.raises(RetryableError, match="too full for a song"),
        new_folder(tmp_path / "song", what="a song", needed=10**18),
    ):
        pytest.fail("begun")
    assert names(tmp_path) == []


def test_a_file_system_that_knows_no_sizes_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(total=0, used=0, free=0))
    assert free_bytes(tmp_path) is None
    need_space(tmp_path, 10**18, "a song")


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(13, "13 bytes"), (4_096, "4.1 kB"), (13_900_000, "14 MB"), (3.5e9, "3.5 GB"), (0, "0 bytes")],
)
def test_sizes_are_said_as_people_say_them(n_bytes: float, text: str) -> None:
    assert size_text(n_bytes) == text


def test_a_temporary_folder_is_gone_at_the_end_and_its_lack_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with temporary_folder("slim") as room:
        (room / "a").touch()
        assert room.parent == tmp_path and room.name.startswith("birdtune-slim-")
    assert names(tmp_path) == []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    for place, kind in ((tmp_path, RetryableError), (tmp_path / "missing", InputError)):
        monkeypatch.setenv("TMPDIR", str(place))
        with pytest.raises(kind, match=f"{place}: no temporary folder .*TMPDIR"), temporary_folder("slim"):
            pytest.fail("made")


def test_what_killed_runs_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / ".unfinished-a").touch()
    (tmp_path / ".unfinished-b").mkdir()
    (tmp_path / ".unfinished-b" / "x").touch()
    (tmp_path / ".unfinished-c").symlink_to(tmp_path / "kept")
    remove_unfinished(tmp_path)
    remove_unfinished(tmp_path / "missing")
    assert names(tmp_path) == ["kept"]


def test_a_folder_that_was_being_replaced_when_the_run_was_killed_gets_its_name_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "model"
    with new_folder(place) as building:
        (building / "first").touch()

    real = Path.replace

    def killed(self: Path, target: Path) -> None:
        if self.name == ".unfinished-model":
            raise KeyboardInterrupt
        real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt), new_folder(place):
            pass
    assert not place.exists()
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["model"] and names(place) == ["first"]
    (tmp_path / ".unfinished-model.old").mkdir()
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["model"] and names(place) == ["first"]


def test_a_folder_that_must_not_be_written_is_told() -> None:
    with ordinary_folder() as folder:
        (folder / "output").mkdir(mode=0o555)
        with pytest.raises(InputError, match="cannot be written"):
            write_text(folder / "output" / "a", "x")
        with pytest.raises(InputError, match="cannot be written"):
            make_folder(folder / "output" / "a")
        with pytest.raises(InputError, match="cannot be written"), new_folder(folder / "output" / "a"):
            pass


@pytest.mark.parametrize(
    ("number", "passes"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)]
)
def test_a_file_system_that_cannot_sync_folders_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, passes: bool
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(os, "fsync", refuse)
    if passes:
        files.sync_folder(tmp_path)
    else:
        with pytest.raises(OSError, match="no"):
            files.sync_folder(tmp_path)


# ---- JSON ---------------------------------------------------------------------------------------


def test_json_comes_back(tmp_path: Path) -> None:
    value = {"name": "Grün", "list": [1, 2.5, None, True]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert "Grün" in (tmp_path / "a.json").read_text("utf-8")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"{'a': 1}"])
def test_damaged_json_of_our_own_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    assert read_json(tmp_path / "a.json") is None
    (tmp_path / "a.json").write_bytes(content)
    assert read_json(tmp_path / "a.json") is None
    assert read_json(tmp_path / "a.json" / "b.json") is None


def test_json_without_a_standard_number_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert names(tmp_path) == []


# ---- CSV ----------------------------------------------------------------------------------------


def test_names_stand_in_tables_as_they_are_and_what_looks_like_a_formula_is_quoted(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    names = ["=1+1", "+x", "-Turdus merula", "@x", "\tx", "plain", "a=b", "'-x", "x ", ""]
    write_csv(path, ["name", "number"], [{"name": text, "number": -1.5} for text in names])
    with path.open(newline="", encoding="utf-8") as file:
        raw = list(csv.reader(file))  # as any program reads it
    assert [row[0] for row in raw[1:]] == names
    lines = path.read_text("utf-8").splitlines()
    assert lines[1:8] == ['"=1+1",-1.5', '"+x",-1.5', '"-Turdus merula",-1.5', '"@x",-1.5', '"\tx",-1.5', "plain,-1.5",
                          "a=b,-1.5"]  # fmt: skip
    assert [row["name"] for row in read_csv(path)] == names


def test_a_growing_table_is_the_same_and_takes_its_place_only_when_it_is_whole(tmp_path: Path) -> None:
    rows = [{"name": text, "number": number} for number, text in enumerate(["=1", "a\nb", "ä\udcff", "plain"])]
    write_csv(tmp_path / "a.csv", ["name", "number"], rows)
    (tmp_path / "b.csv").write_text("earlier")
    with growing_csv(tmp_path / "b.csv", ["name", "number"]) as add:
        for row in rows:
            add(row)
        assert (tmp_path / "b.csv").read_text() == "earlier"
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()
    with pytest.raises(KeyboardInterrupt), growing_csv(tmp_path / "b.csv", ["name", "number"]) as add:
        add(rows[0])
        raise KeyboardInterrupt
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()
    assert sorted(names(tmp_path)) == ["a.csv", "b.csv"]


def test_apostrophes_of_a_name_itself_are_kept(tmp_path: Path) -> None:
    names = ["'", "''", "'a", "'=x", "''=x", "=x", "'-", "a'=x"]
    write_csv(tmp_path / "a.csv", ["name"], [{"name": name} for name in names])
    assert [row["name"] for row in read_csv(tmp_path / "a.csv")] == names


def test_nothing_is_an_empty_cell_and_an_unknown_column_a_defect(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", ["a", "b"], [{"a": None, "b": 0}])
    assert (tmp_path / "a.csv").read_bytes() == b"a,b\n,0\n"
    with pytest.raises(ValueError, match="unknown columns"):
        write_csv(tmp_path / "a.csv", ["a"], [{"c": 1}])


CELL = st.text(st.characters(codec="utf-8") | st.sampled_from("'=+-@\t\r\n;,\""), max_size=12)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.lists(st.tuples(CELL, CELL), max_size=4))
def test_tables_come_back_as_they_went(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "cells.csv"
    rows = [{"recording": a, "split": b} for a, b in cells]
    write_csv(path, ["recording", "split"], rows)
    assert read_csv(path) == rows


@pytest.mark.parametrize(
    "text",
    [
        "recording,split\nA/x y.wav,train\n", "\ufeffrecording,split\r\nA/x y.wav,train\r\n",
        "recording;split\nA/x y.wav;train\n", "recording\tsplit\nA/x y.wav\ttrain\n",
        ' recording , split \n"A/x y.wav",train\n',
        "recording,split,\nA/x y.wav,train,\n", "recording,split\nA/x y.wav,train,,\n",
        "recording,split\nA/x y.wav,train",
        "sep=;\r\nrecording;split\r\nA/x y.wav;train\r\n", '"sep=\t"\nrecording\tsplit\nA/x y.wav\ttrain\n',
        "sep=,\nrecording,split\n\"A/x y.wav\",train\n",
    ],
)  # fmt: skip
def test_tables_from_people_are_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text, "utf-8")
    (row,) = read_csv(tmp_path / "a.csv")
    assert (row["recording"], row["split"]) == ("A/x y.wav", "train")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_tables_in_utf_16_are_read_by_their_mark(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.csv").write_bytes("\ufeffrecording\tlabel\r\na.wav\tMöwe\r\n".encode(encoding))
    assert read_csv(tmp_path / "a.csv") == [{"recording": "a.wav", "label": "Möwe"}]


def test_missing_cells_are_empty(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("recording,split\nA/x.wav\n")
    assert read_csv(tmp_path / "a.csv") == [{"recording": "A/x.wav", "split": ""}]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a,b\n1,2\n3,4,5\n", "row 3: has more cells"), (b"a\n\xe9\n", r"not UTF-8 text \(byte 2\)"),
        ("recording,label\nr.wav,Möwe\n".encode("cp1252"), r"row 2: is not UTF-8 .*'Möwe', if it is Wind"),
        ("recording,label\n".encode("utf-16-le"), "is UTF-16 without a mark"),
        (b"\xff\xfea\0b", "UTF-16 that breaks off"),
        (b'a\n"' + b"x" * 200_000, "not a CSV table"),
        (b"recording,split, split ,,\nx,train,test\n", "two columns are named split"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_told(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(InputError, match=words):
        read_csv(tmp_path / "a.csv")


def test_a_table_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.csv", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_csv(path)


def test_a_table_larger_than_allowed_is_told_by_what_it_should_be(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"name,id\n" * 100)
    with pytest.raises(InputError, match="800 bytes are too many for a label map"):
        read_csv(tmp_path / "a.csv", most_bytes=799, what="a label map")


def test_json_nested_without_end_counts_as_damaged(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" * 100_000)
    assert read_json(tmp_path / "a.json") is None


def test_json_of_names_holds_them_exactly(tmp_path: Path) -> None:
    # The file index's keys are paths, and these may hold bytes that are no UTF-8.
    name = os.fsdecode(b"\xff.wav")
    write_text(tmp_path / "a.json", json.dumps({name: 1}))
    assert read_json(tmp_path / "a.json") == {name: 1}


def test_whether_a_folder_can_be_written_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try_to_write(tmp_path / "new")
    assert names(tmp_path / "new") == []
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **how: open("/dev/full", "wb"))  # noqa: PTH123, SIM115
    with pytest.raises(RetryableError, match=rf"{tmp_path}: the disk is full \(66 kB needed"):
        try_to_write(tmp_path)


# ---- something else in our place ----------------------------------------------------------------


def test_a_folder_or_a_pipe_in_the_place_of_our_own_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "sound")
    with pytest.raises(InputError, match=r"folder: birdtune keeps something of its own in this place.*Move it away"):
        read_json(tmp_path / "folder")
    with pytest.raises(InputError, match=r"folder: birdtune keeps something of its own in this place.*Move it away"):
        write_json(tmp_path / "folder", {})
    with pytest.raises(InputError, match="pipe: is a pipe or a device"):
        read_json(tmp_path / "pipe")
    with pytest.raises(InputError, match="sound: is a pipe or a device"):
        file_sha256(tmp_path / "sound")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "pipe", "sound"]
