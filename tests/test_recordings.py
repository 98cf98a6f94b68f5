"""birdtune.data.scan: every file that is found is used, or has a reason why not."""

import contextlib
import json
import os
import shutil
import signal
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import (
    codes,
    cut,
    ordinary_folder,
    quiet,
    recording,
    scan_and_select,
    tone,
    without_processes,
    write_sound,
)

from birdtune.audio import decode
from birdtune.audio.faults import SoundError
from birdtune.data import file_index as file_indexes
from birdtune.data import scan as recordings
from birdtune.data.file_index import Examined, FileIndex, examine_all, identify
from birdtune.data.scan import (
    PROBLEM_COLUMNS,
    Listing,
    Problem,
    SoundFile,
    refuse_crashes,
    refuse_remnant,
    scan,
    unchanged,
)
from birdtune.data.selection import books, check_enough, class_names
from birdtune.errors import InputError, Interrupted, RetryableError
from birdtune.runtime.signals import Interrupts
from birdtune.settings import AudioSettings


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    without_processes(monkeypatch)


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def found(folder: Path) -> list[str]:
    return [file.name for file in scan(folder).files]


# ---- scanning -----------------------------------------------------------------------------------


def test_sounds_are_found_at_any_depth_and_the_first_folder_is_the_class(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.symlink_to("real")
    touch(*(tmp_path / "real" / name for name in ("B/night.wav/x.wav", "A/2021/May/y.FLAC", "A/z.mp3", "A/B/x.ogg")))
    (data / "Empty").mkdir()
    listing = scan(data)
    assert [(file.name, file.label) for file in listing.files] == [
        ("A/2021/May/y.FLAC", "A"), ("A/B/x.ogg", "A"), ("A/z.mp3", "A"), ("B/night.wav/x.wav", "B"),
    ]  # fmt: skip
    assert listing.folders == ["A", "B", "Empty"]
    assert listing.problems == []


def test_the_order_does_not_depend_on_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "cab":
        touch(*(tmp_path / name / f"{k}.wav" for k in "312"))
    expected = scan(tmp_path)
    entries = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(sorted(entries(self), reverse=True)))
    assert scan(tmp_path) == expected
    assert [file.name for file in expected.files][:4] == ["a/1.wav", "a/2.wav", "a/3.wav", "b/1.wav"]


def test_what_is_not_sound_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "is_installed", lambda: False)
    touch(
        tmp_path / "A/ok.wav", tmp_path / "A/.hidden.wav", tmp_path / "A/.folder/x.wav", tmp_path / "A/notes.txt",
        tmp_path / "A/noending", tmp_path / "A/song.m4a", tmp_path / "A/video.MP4", tmp_path / "stray.wav",
        tmp_path / "readme.txt", tmp_path / ".DS_Store", tmp_path / ".git/config",
    )  # fmt: skip
    os.mkfifo(tmp_path / "A/pipe.wav")
    listing = scan(tmp_path)
    assert [file.name for file in listing.files] == ["A/ok.wav"]
    assert codes(listing.problems) == {
        "A/.hidden.wav": "hidden", "A/.folder": "hidden", ".DS_Store": "hidden", ".git": "hidden",
        "A/notes.txt": "metadata", "A/noending": "not-audio", "A/song.m4a": "unsupported-format",
        "A/video.MP4": "unsupported-format", "stray.wav": "outside-class", "readme.txt": "metadata",
        "A/pipe.wav": "not-a-file",
    }  # fmt: skip
    assert listing.folders == ["A"]


def test_folders_that_cannot_be_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such folder.*--data"):
        scan(tmp_path / "missing")
    touch(tmp_path / "file", tmp_path / "flat/one.wav")
    with pytest.raises(InputError, match="is a file"):
        scan(tmp_path / "file")
    with pytest.raises(InputError, match="holds no class folders"):
        scan(tmp_path / "flat")


def test_links_are_followed_inside_the_data_only(tmp_path: Path) -> None:
    data = tmp_path / "data"
    touch(data / "A/real.wav", data / "B/x.wav", tmp_path / "out.wav", tmp_path / "outside/x.wav")
    links = {
        "A/link.wav": "real.wav", "A/out.wav": tmp_path / "out.wav", "A/outside": tmp_path / "outside",
        "A/broken.wav": "nothing.wav", "A/self.wav": "self.wav", "A/loop": "../A", "A/top": "..",
        "A/above": tmp_path, "B/sub": "../A/night",
    }  # fmt: skip
    touch(data / "A/night/deep.wav")
    for name, target in links.items():
        (data / name).symlink_to(target)
    listing = scan(data)
    assert [file.name for file in listing.files] == [
        "A/link.wav", "A/night/deep.wav", "A/real.wav", "B/x.wav",
    ]  # fmt: skip
    assert codes(listing.problems) == {
        "A/out.wav": "link-outside", "A/outside": "link-outside", "A/broken.wav": "link-broken",
        "A/self.wav": "link-loop", "A/loop": "link-loop", "A/top": "link-loop", "A/above": "link-outside",
        "B/sub": "link-again",
    }  # fmt: skip


def test_folders_that_all_link_to_each_other_are_read_once_each(tmp_path: Path) -> None:
    # Along every way through them that is no loop, these would be 10**18 folders.
    names = [f"c{number:02}" for number in range(20)]
    for name in names:
        touch(tmp_path / name / "a.wav")
        for other in names:
            if other != name:
                (tmp_path / name / f"to-{other}").symlink_to(f"../{other}")
    listing = scan(tmp_path)
    assert [file.name for file in listing.files] == [f"{name}/a.wav" for name in names]
    assert len(listing.problems) == 20 * 19
    assert {problem.problem for problem in listing.problems} == {"link-again"}
    assert listing.problems[0].detail == "leads to the folder c01, which is read as such"


def test_a_folder_that_only_links_lead_to_is_read_once_by_the_first(tmp_path: Path) -> None:
    touch(tmp_path / ".store/night/a.wav", tmp_path / ".store/b.wav", tmp_path / "B/c.wav")
    (tmp_path / ".store/night/up").symlink_to("..")
    for name, target in {"B/one": "../.store/night", "B/two": "../.store/night", "B/up": "../.store"}.items():
        (tmp_path / name).symlink_to(target)
    listing = scan(tmp_path)
    assert [file.name for file in listing.files] == ["B/c.wav", "B/one/a.wav", "B/up/b.wav"]
    assert codes(listing.problems) == {
        ".store": "hidden", "B/two": "link-again", "B/up/night": "link-again", "B/one/up": "link-loop",
    }  # fmt: skip


def test_a_class_folder_may_be_a_link_but_not_to_another_class(tmp_path: Path) -> None:
    touch(tmp_path / "A/a.wav", tmp_path / ".store/b.wav")
    (tmp_path / "Also_A").symlink_to("A")
    (tmp_path / "B").symlink_to(".store")
    (tmp_path / "Round").symlink_to(".")
    listing = scan(tmp_path)
    assert [(file.name, file.label) for file in listing.files] == [("A/a.wav", "A"), ("B/b.wav", "B")]
    assert codes(listing.problems) == {".store": "hidden", "Also_A": "link-again", "Round": "link-loop"}
    assert listing.folders == ["A", "Also_A", "B", "Round"]


def test_a_path_longer_than_the_system_allows_is_reported(tmp_path: Path) -> None:
    # Made from inside, step by step: as a whole such a path can be neither made nor read nor deleted.
    (tmp_path / "A").mkdir()
    descriptor = os.open(tmp_path / "A", os.O_RDONLY)
    for name in ["n" * 255] * 17:
        os.mkdir(name, dir_fd=descriptor)
        below = os.open(name, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(os.open("x.wav", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
    os.close(descriptor)
    (problem,) = scan(tmp_path).problems
    assert (problem.problem, "File name too long" in problem.detail) == ("unreadable", True)


def test_folders_nested_without_end_end(tmp_path: Path) -> None:
    below = tmp_path / "A"
    for _ in range(400):
        below = below / "d"
    below.mkdir(parents=True)
    (below / "x.wav").touch()
    (problem,) = scan(tmp_path).problems
    assert (problem.problem, "deep" in problem.detail) == ("unreadable", True)


ODD_NAMES = {
    b"with space.wav": "with space.wav",
    b"quote'\".wav": "quote'\".wav",
    "Grünling.wav".encode(): "Grünling.wav",
    "夜鶯.wav".encode(): "夜鶯.wav",
    b"<b>&amp;.wav": "<b>&amp;.wav",
    b"new\nline.wav": r"new\nline.wav",
    b"\x1b[31mred.wav": r"\x1b[31mred.wav",
    "\u202evaw.exe.wav".encode(): r"\u202evaw.exe.wav",
    b"latin-\xe9.wav": r"latin-\udce9.wav",
    b"back\\slash.wav": r"back\\slash.wav",
    b"-rf.wav": "-rf.wav",
    b"=1+1.wav": "=1+1.wav",
    b"x" * 251 + b".wav": "x" * 251 + ".wav",
}


def test_any_name_can_be_used_and_shown(tmp_path: Path) -> None:
    folder = tmp_path / "A"
    folder.mkdir()
    for seed, raw in enumerate(ODD_NAMES):
        write_sound(folder / os.fsdecode(raw), seed=seed)
    _, used, problems = scan_and_select(tmp_path)
    assert sorted(record.name for record in used) == sorted(f"A/{name}" for name in ODD_NAMES.values())
    assert problems == []
    assert all(record.name.isprintable() for record in used)


def test_two_files_never_share_a_name_in_the_tables(tmp_path: Path) -> None:
    for name in (b"a\n.wav", b"a\\n.wav", b"a\\\\n.wav", b"\xff.wav", b"\\udcff.wav"):
        touch(tmp_path / "A" / os.fsdecode(name))
    assert len(set(found(tmp_path))) == 5


def test_class_names_are_composed_unicode(tmp_path: Path) -> None:
    touch(tmp_path / "Gru\u0308nling/a.wav", tmp_path / "Wei\nsse/b.wav")
    assert [file.label for file in scan(tmp_path).files] == ["Grünling", r"Wei\nsse"]


def test_folders_and_files_without_rights_are_named() -> None:
    with ordinary_folder() as folder:
        for name in ("ok", "closed", "listed"):
            write_sound(folder / "A" / name / "x.wav", seed=len(name))
        write_sound(folder / "A/secret.wav", seed=9).chmod(0)
        (folder / "A/closed").chmod(0)
        (folder / "A/listed").chmod(0o444)
        try:
            listing, used, problems = scan_and_select(folder)
            with pytest.raises(InputError, match="cannot be listed"):
                scan(folder / "A/closed")
        finally:
            (folder / "A/closed").chmod(0o755)
            (folder / "A/listed").chmod(0o755)
    assert codes(problems) == {
        "A/secret.wav": "unreadable", "A/closed": "unreadable", "A/listed/x.wav": "unreadable",
    }  # fmt: skip
    assert [record.name for record in used] == ["A/ok/x.wav"]
    assert books(used, problems)["found"] == len(listing.files) + 2


# ---- the file index ---------------------------------------------------------------------------------


def sound_file(path: Path) -> SoundFile:
    facts = path.stat()
    return SoundFile(path.name, path, "A", facts.st_size, facts.st_mtime_ns)


def test_a_growing_file_index_is_saved_less_and_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(file_indexes, "write_text", lambda _, text, **how: saved.append(len(json.loads(text)["stats"])))
    file_index = FileIndex(tmp_path / "ledger.json", AudioSettings())
    for number in range(10_000):
        file_index.set_content(SoundFile(f"{number}", tmp_path / f"{number}", "A", 1, 1), f"{number}")
    assert saved[:3] == [500, 1000, 1500], "what a killed run loses is little"
    assert sum(saved) < 6 * 10_000, "and all that is written grows with the files, not with their square"


def test_the_file_index_remembers_between_runs(tmp_path: Path) -> None:
    path = write_sound(tmp_path / os.fsdecode(b"\xff.wav"))  # a name that is no UTF-8
    facts = decode.examine(path)
    file_index = FileIndex(tmp_path / "ledger.json", AudioSettings())
    file_index.set_content(sound_file(path), "c1")
    file_index.set_examined("c1", Examined(facts))
    file_index.set_examined("c2", Examined(None, "silent", "nothing"))
    file_index.save()
    again = FileIndex(tmp_path / "ledger.json", AudioSettings())
    assert again.content(sound_file(path)) == "c1"
    assert again.examined("c1") == Examined(facts)
    assert again.examined("c2") == Examined(None, "silent", "nothing")
    assert again.examined("c3") is None


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav")
    file_index = FileIndex(None, AudioSettings())
    file_index.set_content(sound_file(path), "c1")
    facts = path.stat()
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    assert file_index.content(sound_file(path)) is None
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert file_index.content(sound_file(path)) == "c1"
    with path.open("ab") as file:
        file.write(b"x")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert file_index.content(sound_file(path)) is None


def test_another_file_of_the_same_size_and_time_is_read(tmp_path: Path) -> None:
    # As `rsync -t` puts a mended copy in place, and as folders that change names do.
    for seed, name in enumerate("AB"):
        os.utime(write_sound(tmp_path / name / "1.wav", seed=seed), ns=(10**18, 10**18))
    file_index = FileIndex(None, AudioSettings())
    before = scan(tmp_path).files
    for file in before:
        file_index.set_content(file, f"content of {file.name}")
    assert [file_index.content(file) for file in scan(tmp_path).files] == ["content of A/1.wav", "content of B/1.wav"]
    for old, new in (("A", "X"), ("B", "A"), ("X", "B")):
        (tmp_path / old).rename(tmp_path / new)
    swapped = scan(tmp_path).files
    assert [(file.name, file.size, file.mtime_ns) for file in swapped] == [
        (file.name, file.size, file.mtime_ns) for file in before
    ]
    assert [file_index.content(file) for file in swapped] == [None, None]


def test_much_that_crashed_is_no_reason_to_train_on_the_rest() -> None:
    def crashed(*files: SoundFile) -> list[Problem]:
        return [Problem(file.name, file.label, "crash", "") for file in files]

    short = [SoundFile(f"A/{n}", Path(f"A/{n}"), "A", 10, 0) for n in range(30)]
    short += [SoundFile(f"B/{n}", Path(f"B/{n}"), "B", 10, 0) for n in range(2)]
    long = [SoundFile("A/long", Path("A/long"), "A", 100, 0)]
    folder = Path("data")
    listing = Listing([*short, *long], [], ["A", "B"])
    refuse_crashes(listing, crashed(*short[:2]), folder)
    with pytest.raises(RetryableError, match=r"4 of 33 .*A/0 for one.*--prepare.workers 1"):
        refuse_crashes(listing, crashed(*short[:4]), folder)
    with pytest.raises(RetryableError, match=r"1 of 33 .*24% of the bytes"):
        refuse_crashes(listing, crashed(*long), folder)
    with pytest.raises(RetryableError, match="all of B"):
        refuse_crashes(listing, crashed(*short[-2:]), folder)


@pytest.mark.parametrize("passing", ["too-long", "unreadable", "crash"])
def test_what_may_pass_is_not_believed_in_the_next_run(tmp_path: Path, passing: str) -> None:
    file_index = FileIndex(tmp_path / "ledger.json", AudioSettings())
    file_index.set_examined("c1", Examined(None, passing, ""))
    file_index.set_examined("c2", Examined(None, "corrupt", ""))
    assert file_index.examined("c1") is not None
    file_index.save()
    again = FileIndex(tmp_path / "ledger.json", AudioSettings())
    assert again.examined("c1") is None
    assert again.examined("c2") is not None


def test_each_resampler_has_its_facts(tmp_path: Path) -> None:
    for resampler in ("soxr", "resampy"):
        file_index = FileIndex(tmp_path / "ledger.json", AudioSettings(resampler=resampler))
        assert file_index.examined("c") is None
        file_index.set_examined("c", Examined(None, "silent", resampler))
        file_index.save()
    assert FileIndex(tmp_path / "ledger.json", AudioSettings()).examined("c") == Examined(None, "silent", "soxr")


@pytest.mark.parametrize(
    "content",
    ["", "[]", '"x"', "{", "null", "7", "[" * 100_000, '{"stats": 5}', '{"stats": {"a": 5}}', '{"facts": {"soxr": []}}',
     '{"stats": {"a": [1]}}', '{"facts": {"soxr": {"c": {"duration_s": "many"}}}}',
     '{"facts": {"soxr": {"c": {"problem": "unheard-of", "detail": ""}}}}', '{"facts": {"soxr": {"c": {}}}}'],
)  # fmt: skip
def test_a_damaged_file_index_is_as_good_as_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "ledger.json"
    path.write_text(content)
    file_index = FileIndex(path, AudioSettings())
    file_index.set_examined("c", Examined(None, "silent", ""))
    file_index.save()
    assert json.loads(path.read_text())["facts"][AudioSettings().cache_key]["c"]["problem"] == "silent"


def test_a_second_check_decodes_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sound(tmp_path / "data/A/a.wav", seed=1)
    cut(write_sound(tmp_path / "data/A/b.wav", seed=2), 0.5)
    file_index = tmp_path / "ledger.json"
    first = scan_and_select(tmp_path / "data", FileIndex(file_index, AudioSettings()))

    def refuse(path: Path, **others: object) -> None:
        pytest.fail(f"{path} was read again")

    monkeypatch.setattr(file_indexes, "examine", refuse)
    monkeypatch.setattr(file_indexes, "file_sha256", refuse)
    assert scan_and_select(tmp_path / "data", FileIndex(file_index, AudioSettings())) == first


# ---- identifying and examining ------------------------------------------------------------------


def test_identify_stops_at_a_signal_and_keeps_what_was_read(tmp_path: Path) -> None:
    for k in range(5):
        write_sound(tmp_path / f"data/A/{k}.wav", seed=k)
    interrupts = Interrupts()
    interrupts._signum = signal.SIGTERM
    files = scan(tmp_path / "data").files
    file_index = FileIndex(tmp_path / "ledger.json", AudioSettings())
    identify(files[:2], file_index, journal=quiet(), interrupts=Interrupts())
    with pytest.raises(Interrupted):
        identify(files, file_index, journal=quiet(), interrupts=interrupts)
    again = FileIndex(tmp_path / "ledger.json", AudioSettings())
    assert [again.content(file) is not None for file in files] == [True, True, False, False, False]


def test_the_same_content_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write_sound(tmp_path / "A/a.wav")
    shutil.copy(first, tmp_path / "A/b.wav")
    write_sound(tmp_path / "A/c.wav", seed=1)
    decoded = []
    real = file_indexes.examine

    def note(path: Path, **how: object) -> object:
        decoded.append(path.name)
        return real(path, **how)

    monkeypatch.setattr(file_indexes, "examine", note)
    scan_and_select(tmp_path)
    assert decoded == ["a.wav", "c.wav"]


def test_a_decoder_that_dies_is_a_problem_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sound(tmp_path / "A/a.wav")
    monkeypatch.setattr(
        file_indexes, "run_tasks", lambda function, tasks, **how: ((task, file_indexes.Crashed()) for task in tasks)
    )
    _, used, problems = scan_and_select(tmp_path)
    assert used == []
    assert codes(problems) == {"A/a.wav": "crash"}


def test_examine_all_works_in_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    write_sound(tmp_path / "A/a.wav")
    cut(write_sound(tmp_path / "A/b.wav"), 0.2)
    file_index = FileIndex(None, AudioSettings())
    files = scan(tmp_path).files
    identify(files, file_index, journal=quiet(), interrupts=Interrupts())
    examine_all(files, file_index, {}, longest_s=60.0, workers=1, journal=quiet(), interrupts=Interrupts())
    results = [file_index.examined(str(file_index.content(file))) for file in files]
    assert [result.problem for result in results if result] == ["", "truncated"]


# ---- selecting ----------------------------------------------------------------------------------


def test_copies_within_a_class_count_once(tmp_path: Path) -> None:
    original = write_sound(tmp_path / "A/b.wav")
    for name in ("c.wav", "sub/d.wav", "a.flac"):
        (tmp_path / "A" / name).parent.mkdir(exist_ok=True)
        shutil.copy(original, tmp_path / "A" / name)
    _, used, problems = scan_and_select(tmp_path)
    assert [record.name for record in used] == ["A/a.flac"]
    doubled = [problem for problem in problems if not problem.used]
    assert {problem.recording: problem.problem for problem in doubled} == {
        "A/b.wav": "duplicate-in-class", "A/c.wav": "duplicate-in-class", "A/sub/d.wav": "duplicate-in-class",
    }  # fmt: skip
    assert all("A/a.flac" in problem.detail for problem in doubled)


def test_copies_in_several_classes_are_all_left_out(tmp_path: Path) -> None:
    for name in ("A/a.wav", "A/b.wav", "B/a.wav"):
        write_sound(tmp_path / name, seed=0)
    write_sound(tmp_path / "A/own.wav", seed=1)
    _, used, problems = scan_and_select(tmp_path)
    assert [record.name for record in used] == ["A/own.wav"]
    assert [problem.problem for problem in problems] == ["duplicate-across-classes"] * 3
    (problem,) = [problem for problem in problems if problem.recording == "B/a.wav"]
    assert "also A/a.wav, A/b.wav" in problem.detail


def test_copies_in_several_classes_are_of_all_of_them_where_each_class_is_scored_on_its_own(tmp_path: Path) -> None:
    for name in ("A/a.wav", "A/b.wav", "B/a.wav"):
        write_sound(tmp_path / name, seed=0)
    for name in ("A/c.wav", "Noise/c.wav"):
        write_sound(tmp_path / name, seed=1)
    _, used, problems = scan_and_select(tmp_path, output="sigmoid", background=["Noise"])
    assert [(record.name, record.classes, record.copies) for record in used] == [
        ("A/a.wav", ("A", "B"), ("A/b.wav", "B/a.wav"))
    ]
    assert codes(problems) == {
        "A/b.wav": "duplicate-joined", "B/a.wav": "duplicate-joined",
        "A/c.wav": "duplicate-across-classes", "Noise/c.wav": "duplicate-across-classes",
    }  # fmt: skip


@pytest.mark.parametrize(("shared", "joins"), [(4, False), (5, True)])
def test_a_few_copies_in_several_classes_are_mistakes_and_many_are_meant(
    tmp_path: Path, shared: int, joins: bool
) -> None:
    for k in range(10):
        for folder in ("A", "B") if k < shared else ("A",):
            write_sound(tmp_path / folder / f"{k}.wav", tone(1.0, 8000, seed=k), 8000)
    _, used, problems = scan_and_select(tmp_path, output="auto")
    assert len(used) == (10 if joins else 10 - shared)
    assert set(codes(problems).values()) == {"duplicate-joined" if joins else "duplicate-across-classes"}


WRAPPERS: dict[str, dict[str, Any]] = {
    "a.flac": {}, "deep.wav": {"subtype": "PCM_24"}, "float.wav": {"subtype": "FLOAT"}, "a.aiff": {},
    "deep.flac": {"subtype": "PCM_24"}, "a.w64": {}, "wide.wav": {"format": "WAVEX"},
}  # fmt: skip


@pytest.mark.parametrize("name", [*WRAPPERS, "chunk.wav", "list.wav"])
def test_the_same_sound_in_another_wrapper_is_the_same_recording(tmp_path: Path, name: str) -> None:
    samples = (tone(2.0, seed=3) * 30_000).astype(np.int16)
    plain = write_sound(tmp_path / "A/plain.wav", samples)
    write_sound(tmp_path / "A/own.wav", seed=1)
    other = tmp_path / "B" / name
    if name in WRAPPERS:
        write_sound(other, samples if name != "float.wav" else samples.astype(np.float32) / 32768, **WRAPPERS[name])
    else:
        other.parent.mkdir()
        content = plain.read_bytes()
        chunk = b"guan" + struct.pack("<I", 12) + b"GUANO|Make:x"
        content = content + chunk if name == "chunk.wav" else content[:12] + chunk + content[12:]
        other.write_bytes(content[:4] + struct.pack("<I", len(content) - 8) + content[8:])
    _, used, problems = scan_and_select(tmp_path)
    assert [record.name for record in used] == ["A/own.wav"]
    assert codes(problems) == {"A/plain.wav": "duplicate-across-classes", f"B/{name}": "duplicate-across-classes"}
    shutil.move(other, tmp_path / "A")
    _, used, problems = scan_and_select(tmp_path)
    assert len(used) == 2 and [problem.problem for problem in problems] == ["duplicate-in-class"]
    assert "the same sound in another file as" in problems[0].detail


def test_the_same_numbers_at_another_rate_are_another_sound(tmp_path: Path) -> None:
    write_sound(tmp_path / "A/a.wav", tone(2.0), 16_000)
    write_sound(tmp_path / "B/a.wav", tone(2.0), 32_000)
    assert len(scan_and_select(tmp_path)[1]) == 2


def test_a_broken_copy_is_broken_and_no_duplicate(tmp_path: Path) -> None:
    for name in ("A/a.wav", "B/a.wav"):
        cut(write_sound(tmp_path / name, seed=0), 0.2)
    _, _, problems = scan_and_select(tmp_path)
    assert set(codes(problems).values()) == {"truncated"}


def test_short_sounds_are_padded_or_skipped(tmp_path: Path) -> None:
    write_sound(tmp_path / "A/short.wav", tone(15_599 / 16_000))
    write_sound(tmp_path / "A/whole.wav", tone(15_600 / 16_000))
    assert len(scan_and_select(tmp_path, short="pad")[1]) == 2
    _, used, problems = scan_and_select(tmp_path, short="skip")
    assert [record.name for record in used] == ["A/whole.wav"]
    assert codes(problems) == {"A/short.wav": "too-short"}
    assert "0.975 s" in problems[0].detail


def test_a_lower_limit_of_length_holds_for_what_is_known_already(tmp_path: Path) -> None:
    write_sound(tmp_path / "A/a.wav", tone(3.0))
    file_index = FileIndex(None, AudioSettings())
    assert len(scan_and_select(tmp_path, file_index, longest_s=10.0)[1]) == 1
    _, used, problems = scan_and_select(tmp_path, file_index, longest_s=2.0)
    assert used == []
    assert codes(problems) == {"A/a.wav": "too-long"}


@pytest.mark.parametrize(
    ("content", "name", "remarked"),
    [("a.ogg", "b.wav", True), ("a.wav", "b.ogg", True), ("a.wav", "b.mp3", True), ("a.mp3", "b.flac", True),
     ("a.flac", "b.flac", False), ("a.opus", "b.ogg", False), ("a.wav", "b.bwf", False), ("a.aif", "b.aiff", False),
     ("a.rf64", "b.wav", False), ("a.au", "b.wav", False)],
)  # fmt: skip
def test_a_misleading_name_is_remarked_and_the_file_used(
    tmp_path: Path, content: str, name: str, remarked: bool
) -> None:
    (tmp_path / "A").mkdir()
    write_sound(tmp_path / content).rename(tmp_path / "A" / name)
    _, used, problems = scan_and_select(tmp_path)
    assert [record.name for record in used] == [f"A/{name}"]
    assert [(problem.problem, problem.used) for problem in problems] == [("misnamed", True)] * remarked
    assert books(used, problems) == {"found": 1, "used": 1, "left_out": {}}


def test_the_books_balance_whatever_is_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "is_installed", lambda: False)
    touch(tmp_path / "stray.wav", tmp_path / "A/notes.txt", tmp_path / "A/x.m4a", tmp_path / ".hidden")
    (tmp_path / "Empty").mkdir()
    (tmp_path / "A/empty.wav").touch()
    (tmp_path / "A/text.wav").write_text("no sound at all")
    (tmp_path / "A/broken.wav").symlink_to("nothing")
    os.mkfifo(tmp_path / "B.wav")
    for seed, name in enumerate(["A/1.wav", "A/2.flac", "A/sub/3.ogg", "B/4.mp3", "B/5.wav"]):
        write_sound(tmp_path / name, seed=seed)
    shutil.copy(tmp_path / "A/1.wav", tmp_path / "A/1 copy.wav")
    shutil.copy(tmp_path / "B/5.wav", tmp_path / "A/sub/5.wav")
    cut(write_sound(tmp_path / "B/cut.wav", seed=20), 0.2)
    write_sound(tmp_path / "B/silent.wav", tone() * 0)
    write_sound(tmp_path / "B/short.wav", tone(0.3))
    (tmp_path / "B/named.ogg").write_bytes(write_sound(tmp_path / "B/6.wav", seed=30).read_bytes())
    (tmp_path / "B/6.wav").unlink()
    listing, used, problems = scan_and_select(tmp_path, short="skip")
    entries = sum(1 for path in tmp_path.rglob("*") if not path.is_dir())
    result = books(used, problems)
    assert result == {
        "found": entries,
        "used": 5,
        "left_out": {
            "duplicate-across-classes": 2, "duplicate-in-class": 1, "empty": 1, "hidden": 1, "link-broken": 1,
            "metadata": 1, "not-audio": 1, "not-a-file": 1, "outside-class": 1, "silent": 1, "too-short": 1,
            "truncated": 1, "unsupported-format": 1,
        },
    }  # fmt: skip
    assert result["found"] == result["used"] + sum(result["left_out"].values())
    assert listing.folders == ["A", "B", "Empty"]
    assert class_names(used) == ("A", "B")
    for problem in problems:
        row = problem.row()
        assert tuple(row) == PROBLEM_COLUMNS
        assert row["advice"]


# ---- data that go away, or change ---------------------------------------------------------------


def test_what_is_found_out_is_true_of_the_file_that_was_listed(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "A/a.wav")
    (file,) = scan(tmp_path).files
    with unchanged(file):
        pass
    with pytest.raises(SoundError, match="32,044 bytes when it was listed, then 32,045") as caught, unchanged(file):
        path.write_bytes(path.read_bytes() + b"x")
    assert caught.value.problem == "changed"
    path.write_bytes(path.read_bytes()[:-1])
    os.utime(path, ns=(file.mtime_ns, file.mtime_ns + 1))
    with pytest.raises(SoundError, match="written to") as caught, unchanged(file):
        pytest.fail("begun")
    os.utime(path, ns=(file.mtime_ns, file.mtime_ns))
    with pytest.raises(SoundError) as caught, unchanged(file):
        path.unlink()
        raise SoundError("truncated", "as somebody deletes it")
    assert caught.value.problem == "vanished"
    write_sound(path)
    os.utime(path, ns=(file.mtime_ns, file.mtime_ns))
    with pytest.raises(SoundError) as caught, unchanged(file):
        raise SoundError("truncated", "as it is")
    assert caught.value.problem == "truncated"


def test_a_file_that_changes_while_it_is_identified_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sound(tmp_path / "A/a.wav")
    write_sound(tmp_path / "A/b.wav", seed=1)
    real = file_indexes.file_sha256

    def slowly(path: Path, *others: object) -> str:
        digest = real(path)
        if path.name == "a.wav":
            write_sound(path, tone(2.0))
        return digest

    monkeypatch.setattr(file_indexes, "file_sha256", slowly)
    file_index = FileIndex(None, AudioSettings())
    listing, used, problems = scan_and_select(tmp_path, file_index)
    assert codes(problems) == {"A/a.wav": "changed"}
    assert [record.name for record in used] == ["A/b.wav"]
    assert file_index.content(listing.files[0]) is None
    monkeypatch.undo()
    without_processes(monkeypatch)
    assert len(scan_and_select(tmp_path, file_index)[1]) == 2


def test_a_copy_is_decoded_in_place_of_a_file_that_vanished(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav"):
        write_sound(tmp_path / "A" / name, seed=1)
    file_index = FileIndex(None, AudioSettings())
    files = scan(tmp_path).files
    unusable = identify(files, file_index, journal=quiet(), interrupts=Interrupts())
    (tmp_path / "A/a.wav").unlink()
    examine_all(files, file_index, unusable, longest_s=60.0, workers=1, journal=quiet(), interrupts=Interrupts())
    assert {name: problem.problem for name, problem in unusable.items()} == {"A/a.wav": "vanished"}
    found = file_index.examined(str(file_index.content(files[1])))
    assert found is not None and found.facts is not None


def test_storage_that_fails_stops_the_work_and_says_how_much_was_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        write_sound(tmp_path / f"A/{number}.wav", seed=number)
    real = file_indexes.file_sha256

    def fail(path: Path, *others: object) -> str:
        if path.name == "2.wav":
            raise OSError(5, "Input/output error")
        return real(path)

    monkeypatch.setattr(file_indexes, "file_sha256", fail)
    file_index, files = FileIndex(tmp_path / "ledger.json", AudioSettings()), scan(tmp_path).files
    with pytest.raises(RetryableError, match=r"2\.wav: the storage failed .*Input/output error.* 2 files were still"):
        identify(files, file_index, journal=quiet(), interrupts=Interrupts())
    again = FileIndex(tmp_path / "ledger.json", AudioSettings())
    assert [again.content(file) is not None for file in files] == [True, True, False, False]


@pytest.mark.parametrize("method", ["iterdir", "is_dir", "resolve", "stat"])
def test_a_listing_that_fails_half_way_is_not_taken_for_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    write_sound(tmp_path / "A/a.wav")
    write_sound(tmp_path / "B/b.wav")
    real, place = getattr(Path, method), tmp_path / ("B" if method in ("iterdir", "resolve") else "B/b.wav")

    def fail(self: Path, *arguments: object, **how: object) -> object:
        if self == place:
            raise OSError(116, "Stale file handle")
        return real(self, *arguments, **how)

    monkeypatch.setattr(Path, method, fail)
    with pytest.raises(RetryableError, match=rf"{place}: the storage failed \(Stale.* 1 sound files had been"):
        scan(tmp_path)


def test_what_vanishes_while_the_folder_is_listed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("A/a.wav", "A/b.wav", "B/b.wav"):
        write_sound(tmp_path / name)
    real = Path.is_dir

    def remove(name: str) -> None:
        def note(self: Path) -> bool:
            found = real(self)
            if self == tmp_path / name:
                shutil.rmtree(self) if found else self.unlink()
            return found

        monkeypatch.setattr(Path, "is_dir", note)

    remove("A/a.wav")
    listing = scan(tmp_path)
    assert codes(listing.problems) == {"A/a.wav": "vanished"} and len(listing.files) == 2
    remove("B")
    with pytest.raises(RetryableError, match=r"/B: the folder vanished.*mounted"):
        scan(tmp_path)


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        (["A/00.wav"], None), (["A/00.wav", "A/01.wav"], None),
        (["A/00.wav", "A/01.wav", "A/02.wav"], r"3 of 24 sound files vanished or changed while they were read\. Is"),
        (["B/00.wav", "B/01.wav"], r"2 of 24 sound files .* while they were read, among them all of B\."),
        (["B/00.wav"], None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("how", ["vanished", "changed"])
def test_nothing_is_trained_on_a_remnant(tmp_path: Path, gone: list[str], words: str | None, how: str) -> None:
    touch(*(tmp_path / f"A/{number:02}.wav" for number in range(22)), tmp_path / "B/00.wav", tmp_path / "B/01.wav")
    listing = scan(tmp_path)
    for name in gone if how == "vanished" else []:
        (tmp_path / name).unlink()
    unusable = {name: Problem(name, name[0], how, "") for name in gone}
    unusable["A/21.wav"] = Problem("A/21.wav", "A", "unreadable", "")
    with pytest.raises(RetryableError, match=words) if words else contextlib.nullcontext():
        refuse_remnant(listing, unusable, tmp_path)


def test_less_than_two_classes_are_refused_with_the_reasons(tmp_path: Path) -> None:
    problems = [Problem("A/a", "A", "silent", ""), Problem("A/b", "A", "silent", ""), Problem(".x", "", "hidden", ""),
                Problem("A/c", "A", "misnamed", "", used=True)]  # fmt: skip
    with pytest.raises(InputError, match=r"only one class .* \(.A.\).*folder background/.*Not used: 2 silent;"):
        check_enough([recording("A/c.wav")], tmp_path, problems)
    with pytest.raises(InputError, match=r"no usable recording at all.*Not used: no sound files;"):
        check_enough([], tmp_path, [])
    check_enough([recording("A/a.wav"), recording("B/a.wav")], tmp_path, problems)
