"""birdtune.data.frames: made once, found again by content, and believed only if whole."""

import dataclasses
import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from makers import quiet, tone, without_processes, write_sound

from birdtune.audio.decode import SoundStream, examine, read
from birdtune.audio.faults import SoundError
from birdtune.audio.logmel import VGGISH, LogMel
from birdtune.data import frame_worker, frames, shard_writer, shards
from birdtune.data.file_index import Examined, FileIndex, identify
from birdtune.data.frames import FrameStore, fill
from birdtune.data.scan import SoundFile, scan
from birdtune.errors import InputError, Interrupted, RetryableError
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.workers import Crashed, run_tasks
from birdtune.settings import AudioSettings


def stored_in(path: Path) -> np.ndarray:
    return frames_in(read(path, rate_hz=16_000)).astype(np.float16)


def frames_in(waveform: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """All log-mel frames of a sound, the last filled up. [n, 64]"""
    return np.concatenate(list(VGGISH.rows_of([waveform])))


class Cache:
    """A data folder with its cache and file_index, as one run after another meets them."""

    def __init__(self, folder: Path) -> None:
        self.data, self.cache, self.file_index_path = folder / "data", folder / "cache", folder / "ledger.json"
        self.cache.mkdir()

    def add(self, name: str, seconds: float = 1.0, rate_hz: int = 16_000, *, seed: int = 0) -> Path:
        return write_sound(self.data / name, tone(seconds, rate_hz, seed=seed), rate_hz)

    def run(self, *, workers: int = 1, interrupts: Interrupts | None = None) -> tuple[FrameStore, int]:
        """One run: the store afterwards, and how many recordings were decoded."""
        file_index = FileIndex(self.file_index_path, AudioSettings())
        files = scan(self.data).files
        self.unusable = identify(files, file_index, journal=quiet(), interrupts=Interrupts())
        store = FrameStore(self.cache, VGGISH, AudioSettings())
        store.verify(store.contents())
        stop = interrupts or Interrupts()
        try:
            made = fill(
                store, files, file_index, self.unusable, longest_s=60.0, workers=workers, journal=quiet(),
                interrupts=stop,
            )  # fmt: skip
        finally:
            end_worker()
        return store, made

    def content(self, name: str) -> str:
        return str(FileIndex(self.file_index_path, AudioSettings()).content(self.file(name)))

    def file(self, name: str) -> SoundFile:
        return next(file for file in scan(self.data).files if file.name == name)

    def examined(self, name: str) -> Examined:
        found = FileIndex(self.file_index_path, AudioSettings()).examined(self.content(name))
        assert found is not None
        return found

    def all_frames(self) -> dict[str, bytes]:
        store = FrameStore(self.cache, VGGISH, AudioSettings())
        return {content: store.rows(content).tobytes() for content in store.contents()}

    @property
    def folder(self) -> Path:
        return self.cache / f"vggish-{VGGISH.digest}-f32-{AudioSettings().cache_key}"

    @property
    def shards(self) -> list[Path]:
        return sorted(self.folder.glob("shard-*.rows"))

    @property
    def index(self) -> Path:
        return self.folder / "index.jsonl"


def end_worker() -> None:
    """Close the shard of a worker that worked in this process; others close it by ending."""
    frame_worker.close_shard()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    without_processes(monkeypatch)
    cache = Cache(tmp_path)
    cache.add("A/a.wav", 3.0, seed=1)
    cache.add("A/b.flac", 12.0, 44_100, seed=2)
    cache.add("B/c.ogg", 0.2, 8_000, seed=3)
    return cache


def test_frames_are_those_of_the_whole_sound_as_float16(cache: Cache) -> None:
    store, made = cache.run()
    assert made == 3
    assert len(store) == 3
    for name in ("A/a.wav", "A/b.flac"):
        expected = stored_in(cache.data / name)
        found = store.rows(cache.content(name))
        assert found.dtype == np.dtype("<f2")
        assert np.array_equal(found, expected)


def test_a_short_sound_has_one_patch(cache: Cache) -> None:
    store, _ = cache.run()
    found = store.rows(cache.content("B/c.ogg"))
    assert found.shape == (96, 64)
    assert (found[40:] == np.float16(np.log(0.01))).all()


def test_the_file_index_learns_what_was_decoded(cache: Cache) -> None:
    cache.run()
    assert cache.examined("A/b.flac").facts == examine(cache.data / "A/b.flac")


def test_a_second_run_decodes_what_is_new_only(cache: Cache) -> None:
    cache.run()
    before = cache.all_frames()
    assert cache.run()[1] == 0
    assert len(cache.shards) == 1, "nothing to do makes no shard"
    cache.add("B/new.wav", seed=4)
    shutil.copy(cache.data / "A/a.wav", cache.data / "B/copy of a.wav")
    (cache.data / "A/b.flac").rename(cache.data / "A/renamed.wav")
    store, made = cache.run()
    assert made == 1
    assert len(store) == 4
    assert {content: cache.all_frames()[content] for content in before} == before


def test_a_file_that_changed_has_new_frames(cache: Cache) -> None:
    cache.run()
    old = cache.content("A/a.wav")
    cache.add("A/a.wav", 2.0, seed=9)
    store, made = cache.run()
    assert made == 1
    assert cache.content("A/a.wav") != old
    assert store.entry(cache.content("A/a.wav")).n_rows == 199


def test_the_same_content_is_decoded_once(cache: Cache) -> None:
    for name in ("A/copy.wav", "B/copy.wav"):
        shutil.copy(cache.data / "A/a.wav", cache.data / name)
    assert cache.run()[1] == 3


def test_each_front_end_and_resampler_has_its_folder(tmp_path: Path) -> None:
    other = dataclasses.replace(VGGISH, low_hz=100.0)
    folders = {FrameStore(tmp_path, spec, AudioSettings(resampler=resampler)).folder
               for spec in (VGGISH, other) for resampler in ("soxr", "resampy")}  # fmt: skip
    assert len(folders) == 4
    assert all(folder.name.startswith("vggish-") for folder in folders)


# ---- files that fail ----------------------------------------------------------------------------


def test_a_file_that_fails_leaves_nothing_and_stops_nothing(cache: Cache) -> None:
    # Only at its end it is known that there is nothing in it.
    write_sound(cache.data / "A/aa silent.wav", 0 * tone(30.0))
    (cache.data / "A/ab text.wav").write_text("no sound at all, but some text")
    store, made = cache.run()
    assert made == 5
    assert len(store) == 3
    assert cache.examined("A/aa silent.wav").problem == "silent"
    assert cache.examined("A/ab text.wav").problem == "not-audio"
    frames_there = sum(store.entry(content).n_rows for content in store.contents())
    (shard,) = cache.shards
    assert shard.stat().st_size == frames_there * 64 * 2, "what a failing file began is taken back"
    assert np.array_equal(store.rows(cache.content("A/b.flac")), stored_in(cache.data / "A/b.flac"))
    assert cache.run()[1] == 0, "a broken file is not tried again"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_frames_that_are_not_finite_never_come_into_the_store(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    # The decoder refuses such samples long before; here it is made to let them through.
    monkeypatch.setattr("birdtune.audio.decode._LOUDEST", math.inf)
    write_sound(cache.data / "A/loud.wav", np.float32(3e38) * tone(1.0, seed=7), subtype="FLOAT")
    store, _ = cache.run()
    assert cache.examined("A/loud.wav").problem == "not-finite" and len(store) == 3
    assert all(np.isfinite(store.rows(content)).all() for content in store.contents())


def test_a_file_that_kills_its_decoder_is_named_and_tried_again(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(function: object, tasks: list[object], **how: object) -> object:
        return ((task, Crashed()) for task in tasks)

    with monkeypatch.context() as context:
        context.setattr(frames, "run_tasks", run)
        store, _ = cache.run()
        assert len(store) == 0
    file_index = json.loads(cache.file_index_path.read_text())["facts"][AudioSettings().cache_key]
    assert {entry["problem"] for entry in file_index.values()} == {"crash"}
    # It may have been want of memory: the next run tries once more.
    assert cache.run()[1] == 3


@pytest.mark.parametrize(("number", "error"), [(28, RetryableError), (30, InputError)])
def test_storage_that_refuses_is_told(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception]
) -> None:
    def refuse(self: object, task: object) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr(frame_worker.Maker, "make", refuse)
    with pytest.raises(error):
        cache.run()


def test_a_file_that_changes_before_it_is_decoded_lends_its_name_to_no_other_content(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = cache.data / "A/z copy of a.wav"
    shutil.copy(cache.data / "A/a.wav", copy)
    before, real = cache.file("A/a.wav"), frames.run_tasks

    def run(function: object, tasks: list[frame_worker.Task], **how: object) -> object:
        end_worker()
        if any(task.file.name == "A/a.wav" for task in tasks):
            cache.add("A/a.wav", 1.5, seed=77)
            (cache.data / "A/b.flac").unlink()
        return real(function, tasks, **how)

    monkeypatch.setattr(frames, "run_tasks", run)
    store, made = cache.run()
    assert {name: problem.problem for name, problem in cache.unusable.items()} == {
        "A/a.wav": "changed", "A/b.flac": "vanished",
    }  # fmt: skip
    assert made == 3 and len(store) == 2
    file_index = FileIndex(cache.file_index_path, AudioSettings())
    assert file_index.content(before) == cache.content("A/z copy of a.wav")
    assert np.array_equal(store.rows(str(file_index.content(before))), stored_in(copy))
    # Nothing of it is remembered: the next run takes the files as they are then.
    monkeypatch.setattr(frames, "run_tasks", real)
    store, made = cache.run()
    assert (made, len(store), cache.unusable) == (1, 3, {})


def test_storage_of_the_sound_that_fails_stops_the_work(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    real = LogMel.rows_of

    def fail(spec: LogMel, stream: SoundStream) -> object:
        if stream.path.suffix == ".flac":
            raise SoundError("storage-failed", "the storage failed (Input/output error)")
        return real(spec, stream)

    monkeypatch.setattr(LogMel, "rows_of", fail)
    with pytest.raises(RetryableError, match=r"b\.flac: the storage failed .* 2 files were still to be read"):
        cache.run()
    assert len(FrameStore(cache.cache, VGGISH, AudioSettings())) == 1
    monkeypatch.undo()
    without_processes(monkeypatch)
    assert cache.run()[1] == 2


def test_no_worker_outlives_a_fault(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # processes, as in earnest

    def fail(*arguments: object) -> None:
        raise RetryableError("the storage failed")

    monkeypatch.setattr(frames, "note_examined", fail)
    before = multiprocessing.active_children()  # other tests may keep one
    with pytest.raises(RetryableError, match="the storage failed"):
        cache.run()
    # A worker that waits for more would keep the interpreter from ending.
    assert set(multiprocessing.active_children()) <= set(before)


def test_a_full_disk_says_what_the_rest_needs_and_keeps_what_is_whole(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, sizes = LogMel.rows_of, []

    def fail(spec: LogMel, stream: SoundStream) -> Iterator[object]:
        for block in real(spec, stream):
            yield block
            if stream.path.suffix == ".flac":
                raise OSError(28, "No space left on device")

    monkeypatch.setattr(LogMel, "rows_of", fail)
    monkeypatch.setattr(
        FrameStore, "drop_leftovers", lambda store: sizes.extend(path.stat().st_size for path in cache.shards)
    )
    cache.add("A/d.wav", 25.0, seed=6)
    with pytest.raises(RetryableError, match=r"disk is full while writing features \((\d+) kB needed") as caught:
        cache.run()
    left = sum(path.stat().st_size for path in cache.data.rglob("*.*") if path.name != "a.wav")
    store = FrameStore(cache.cache, VGGISH, AudioSettings())
    (entry,) = map(store.entry, store.contents())
    first = (cache.data / "A/a.wav").stat().st_size
    needed_kb = int(str(caught.value).split(" kB needed")[0].split("(")[1])
    assert needed_kb == round(left * entry.n_rows * 128 / first / 1000)
    assert sizes[-1] == entry.n_rows * 128, "the worker took its part of a recording back"


def test_frames_that_have_no_room_are_not_begun(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = cache.run()
    expected = sum(store.entry(content).n_rows for content in store.contents()) * 128
    shutil.rmtree(cache.folder)
    monkeypatch.setattr("birdtune.runtime.storage.free_bytes", lambda path: expected - 1)
    monkeypatch.setattr(frames, "run_tasks", lambda *arguments, **how: pytest.fail("begun"))
    words = rf"too full for the features of 3 recordings \({round(expected / 1000)} kB needed"
    with pytest.raises(RetryableError, match=words):
        cache.run()
    monkeypatch.setattr("birdtune.runtime.storage.free_bytes", lambda path: expected)
    with pytest.raises(pytest.fail.Exception, match="begun"):
        cache.run()


# ---- damage -------------------------------------------------------------------------------------


def test_damaged_frames_are_found_and_made_again(cache: Cache) -> None:
    store, _ = cache.run()
    before = cache.all_frames()
    entry = store.entry(cache.content("A/b.flac"))
    with (cache.folder / entry.shard).open("r+b") as file:
        file.seek((entry.start + 500) * 128)
        file.write(b"\x00\x01")
    damaged = FrameStore(cache.cache, VGGISH, AudioSettings())
    assert damaged.verify(["unknown", *damaged.contents()]) == [entry.content]
    assert entry.content not in damaged
    assert len(damaged) == 2
    assert cache.run()[1] == 1
    assert cache.all_frames() == before
    again = FrameStore(cache.cache, VGGISH, AudioSettings())
    assert again.verify(again.contents()) == []


def test_a_shard_that_was_shortened_loses_what_it_lacks(cache: Cache) -> None:
    store, _ = cache.run()
    last = max(map(store.entry, store.contents()), key=lambda entry: entry.start)
    with (cache.folder / last.shard).open("r+b") as file:
        file.truncate((last.start + last.n_rows) * 128 - 1)
    assert set(FrameStore(cache.cache, VGGISH, AudioSettings()).contents()) == set(store.contents()) - {last.content}
    assert cache.run()[1] == 1


def test_a_shard_that_is_gone_is_made_again(cache: Cache) -> None:
    cache.run()
    before = cache.all_frames()
    cache.shards[0].unlink()
    assert len(FrameStore(cache.cache, VGGISH, AudioSettings())) == 0
    assert cache.run()[1] == 3
    assert cache.all_frames() == before


def test_a_half_written_line_of_the_index_costs_that_recording_only(cache: Cache) -> None:
    cache.run()
    before = cache.all_frames()
    content = cache.index.read_bytes()
    cache.index.write_bytes(content[:-20])
    assert len(FrameStore(cache.cache, VGGISH, AudioSettings())) == 2
    assert cache.run()[1] == 1
    assert cache.all_frames() == before
    assert cache.run()[1] == 0, "the new line does not hang on the broken one"


def test_a_pipe_in_the_place_of_the_index_is_not_waited_for(cache: Cache) -> None:
    cache.run()
    cache.index.unlink()
    os.mkfifo(cache.index)
    with pytest.raises(InputError, match=r"index\.jsonl: is a pipe or a device"):
        FrameStore(cache.cache, VGGISH, AudioSettings())


@pytest.mark.parametrize(
    "line",
    [b"", b"null", b"[]", b"{}", b"\xff\xfe", b'{"content": "x"}', bytes(50), b'{"content":"x","shard":"s","start":"1",'
     b'"n_rows":1,"crc":0,"facts":{"rate_hz":1,"channels":1,"duration_s":1,"peak_db":0,"format":""}}'],
)  # fmt: skip
def test_rubbish_in_the_index_is_passed_over(cache: Cache, line: bytes) -> None:
    cache.run()
    cache.index.write_bytes(line + b"\n" + cache.index.read_bytes())
    assert len(FrameStore(cache.cache, VGGISH, AudioSettings())) == 3
    assert cache.run()[1] == 0


def test_an_index_without_its_file_index_is_used(cache: Cache) -> None:
    # So a run leaves them that is killed between two savings of the file index.
    cache.run()
    expected = cache.examined("A/b.flac")
    cache.file_index_path.unlink()
    assert cache.run()[1] == 0
    assert cache.examined("A/b.flac") == expected


def test_a_file_index_without_its_frames_makes_them_again(cache: Cache) -> None:
    cache.run()
    before = cache.all_frames()
    shutil.rmtree(cache.cache)
    cache.cache.mkdir()
    assert cache.run()[1] == 3
    assert cache.all_frames() == before


# ---- interruption -------------------------------------------------------------------------------


def test_a_stopped_run_keeps_what_was_finished(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupts = Interrupts()
    real = frames.make

    def make(task: object) -> object:
        made = real(task)
        interrupts._signum = signal.SIGTERM
        return made

    with monkeypatch.context() as context:
        context.setattr(frames, "make", make)
        with pytest.raises(Interrupted):
            cache.run(interrupts=interrupts)
    assert len(FrameStore(cache.cache, VGGISH, AudioSettings())) == 1
    assert cache.run()[1] == 2


def test_shards_that_nothing_points_to_are_deleted(cache: Cache) -> None:
    store, _ = cache.run()
    (cache.folder / "shard-0-1.rows").write_bytes(bytes(1280))
    (cache.folder / "other.txt").touch()
    assert store.drop_leftovers() == 1
    assert len(cache.shards) == 1
    assert (cache.folder / "other.txt").exists()
    assert len(FrameStore(cache.cache, VGGISH, AudioSettings())) == 3


def test_the_end_of_a_shard_that_nothing_points_to_is_cut_off(cache: Cache) -> None:
    store, _ = cache.run()
    (shard,) = cache.shards
    whole, before = shard.read_bytes(), cache.all_frames()
    shard.write_bytes(whole + b"of a killed run")
    assert store.drop_leftovers() == 0
    assert shard.read_bytes() == whole
    assert cache.all_frames() == before


def test_a_full_shard_is_followed_by_another(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_writer, "_SHARD_BYTES", 1000)
    store, _ = cache.run()
    assert len(cache.shards) == 3
    assert np.array_equal(store.rows(cache.content("A/a.wav")), stored_in(cache.data / "A/a.wav"))


def test_a_part_of_a_recording_is_read_alone(cache: Cache) -> None:
    store, _ = cache.run()
    content = cache.content("A/b.flac")
    whole = store.rows(content)
    assert np.array_equal(store.rows(content, 100, 7), whole[100:107])
    assert np.array_equal(store.rows(content, len(whole) - 3, 96), whole[-3:])
    assert store.rows(content, len(whole) + 5, 96).shape == (0, 64)


def test_frames_that_went_away_while_a_job_uses_them_are_told(cache: Cache) -> None:
    store, _ = cache.run()
    longest = max(map(store.entry, store.contents()), key=lambda entry: entry.n_rows)
    with (cache.folder / longest.shard).open("r+b") as file:
        file.truncate((longest.start + 10) * 128)
    with pytest.raises(RetryableError, match=r"1,280 bytes are there where .* Run again"):
        store.rows(longest.content)
    store.close()
    (cache.folder / longest.shard).unlink()
    with pytest.raises(RetryableError, match="No such file"):
        store.rows(longest.content)


def test_more_shards_than_may_be_open_can_be_read(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_writer, "_SHARD_BYTES", 1000)
    monkeypatch.setattr(shards, "_MOST_OPEN", 2)
    store, _ = cache.run()
    before = {content: store.rows(content).tobytes() for content in store.contents()}
    assert len(cache.shards) == 3
    assert {content: store.rows(content).tobytes() for content in before} == before
    assert len(store._open) == 2


# ---- are they still what was written? -----------------------------------------------------------


def flip(path: Path, position: int, *, keep_times: bool) -> None:
    """Change a byte of a file; with `keep_times` as a rotting disk does, which no program can quite."""
    facts = path.stat()
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 64]))
    if keep_times:
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def test_a_shard_that_was_touched_is_read_and_only_what_is_damaged_is_forgotten(cache: Cache) -> None:
    store, _ = cache.run()
    store.note_whole()
    hit = store.entry(cache.content("A/b.flac"))
    flip(cache.shards[0], hit.start * 128 + 5, keep_times=True)
    again = FrameStore(cache.cache, VGGISH, AudioSettings())
    assert again.verify(again.contents(), thorough=False) == [hit.content]
    assert hit.content not in FrameStore(cache.cache, VGGISH, AudioSettings()), "it also left the index"
    assert len(FrameStore(cache.cache, VGGISH, AudioSettings())) == 2
    before = cache.all_frames()
    assert cache.run()[1] == 1
    assert before.items() <= cache.all_frames().items()


def test_shards_known_to_be_whole_are_read_by_a_thorough_look_only(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = cache.run()
    store.note_whole()
    hit = store.entry(cache.content("A/a.wav"))
    flip(cache.shards[0], hit.start * 128, keep_times=True)
    store = FrameStore(cache.cache, VGGISH, AudioSettings())
    # No program can set the time of a file's last change of any kind; a disk that rots leaves it alone.
    monkeypatch.setattr(store, "_stamps", store._known_whole)
    assert store.verify(store.contents(), thorough=False) == []
    assert store.verify(store.contents()) == [hit.content]


def test_a_cheap_look_at_an_unchanged_cache_reads_no_frame(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = cache.run()
    monkeypatch.setattr(FrameStore, "_is_whole", lambda self, content: pytest.fail("read"))
    store.note_whole()
    assert FrameStore(cache.cache, VGGISH, AudioSettings()).verify(store.contents(), thorough=False) == []


def test_any_number_of_workers_makes_the_same_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for workers in (1, 2):
        monkeypatch.setattr(frames, "run_tasks", run_tasks)
        folder = tmp_path / str(workers)
        folder.mkdir()
        cache = Cache(folder)
        for seed in range(6):
            cache.add(f"A/{seed}.wav", 1.5 + seed, 22_050 if seed % 2 else 16_000, seed=seed)
        assert cache.run(workers=workers)[1] == 6
        found.append(cache.all_frames())
        # Here sums may be done by two threads, in another order: the last bit of a half may differ.
        here = frames_in(read(cache.data / "A/3.wav", rate_hz=16_000))
        there = np.frombuffer(found[-1][cache.content("A/3.wav")], "<f2").reshape(-1, 64)
        assert there == pytest.approx(here, abs=0.004)
    assert found[0] == found[1]
    assert len(found[0]) == 6


def test_a_worker_imports_no_more_than_it_needs() -> None:
    code = """
import sys
import birdtune.data.frame_worker, birdtune.runtime.workers
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()} | set(done.stdout.split())
    assert not loaded & {"pydantic", "scipy", "tensorflow", "tqdm", "birdtune.settings"}
