"""birdtune.data.dataset: from folders to what can be trained on, and every file accounted for."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from makers import cut, quiet, tone, without_processes, write_sound

from birdtune.audio.decode import read
from birdtune.audio.logmel import VGGISH, log_mel
from birdtune.config import Config
from birdtune.data import dataset as gather
from birdtune.data import file_index as file_indexes
from birdtune.data import frame_worker, frames
from birdtune.data.batches import Windows
from birdtune.data.dataset import Dataset
from birdtune.data.frames import FrameStore
from birdtune.data.targets import WindowTargets
from birdtune.errors import InputError, SettingsError
from birdtune.runtime.files import read_csv, read_json
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.settings import AudioSettings, TrainSettings

CLASSES = ("Erithacus_rubecula", "Parus_major", "Turdus_merula")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An input folder with three classes of four sources, two seconds each."""
    without_processes(monkeypatch)
    for c, label in enumerate(CLASSES):
        for k in range(4):
            write_sound(tmp_path / f"input/data/{label}/{label}-{c}{k}_1.wav", tone(2.0, seed=10 * c + k))
    return tmp_path


def config(place: Path, **sections: Any) -> Config:
    return Config(input=place / "input", output=place / "output", **sections)


def prepare(place: Path, journal: Journal | None = None, **sections: Any) -> tuple[Dataset, FrameStore]:
    try:
        return gather.prepare(config(place, **sections), VGGISH, journal or quiet(), Interrupts())
    finally:
        end_worker()


def end_worker() -> None:
    """Close the shard of a worker that worked in this process; others close it by ending."""
    frame_worker.close_shard()


def inspect(place: Path, *, writable: bool = True, **sections: Any) -> Dataset:
    (place / "output").mkdir(exist_ok=True)
    return gather.inspect(config(place, **sections), VGGISH, quiet(), Interrupts(), writable=writable, faults=[])


def problems_csv(place: Path) -> dict[str, str]:
    return {row["recording"]: row["problem"] for row in read_csv(place / "output/problems.csv")}


def test_each_channel_is_a_recording_of_the_same_source(place: Path) -> None:
    for c, label in enumerate(CLASSES):
        for k in range(8):
            stereo = tone(2.0, channels=2, frequency_hz=900 + 40 * k, seed=100 + 10 * c + k)
            write_sound(place / f"input/data/{label}/wood {c}{k}.wav", stereo)
    each = AudioSettings(channels="each")
    dataset, store = prepare(place, audio=each)
    names = {recording.name for recording in dataset.recordings}
    assert len(names) == 12 + 2 * 24
    assert {"Parus_major/wood 13.wav#1", "Parus_major/wood 13.wav#2", "Parus_major/Parus_major-10_1.wav"} <= names
    for recording in dataset.recordings:
        path, _, channel = recording.name.partition("#")
        assert dataset.places[recording.name] == dataset.places[path + ("#1" if channel else "")]
        samples, _ = soundfile.read(recording.path, always_2d=True)
        path = write_sound(place / "alone.wav", samples[:, recording.channel or 0], subtype="FLOAT")
        alone = read(path, rate_hz=16_000)
        assert np.allclose(store.rows(recording.content)[:190], log_mel(alone)[:190], atol=0.01)
    inspected = inspect(place, audio=each)
    assert {recording.name for recording in inspected.recordings} == names
    assert prepare(place, audio=each)[0].digest() == dataset.digest()
    assert len(prepare(place)[0].recordings) == 36


def test_channels_of_damaged_and_silent_files_are_all_accounted_for(place: Path) -> None:
    stereo = tone(2.0, channels=2)
    stereo[:, 1] = 0
    write_sound(place / "input/data/Parus_major/half.wav", stereo)
    (place / "input/data/Parus_major/none.wav").write_bytes(b"no sound at all")
    dataset = inspect(place, audio=AudioSettings(channels="each"))
    assert problems_csv(place) == {"Parus_major/half.wav#2": "silent", "Parus_major/none.wav": "not-audio"}
    assert dataset.books()["found"] == 12 + 3


def test_folders_become_a_data_set_that_can_be_trained_on(place: Path) -> None:
    dataset, store = prepare(place)
    assert dataset.classes == CLASSES
    assert len(dataset.recordings) == 12
    assert [dataset.counts(dataset.part(side)) for side in ("train", "val", "test")] == [[2] * 3, [1] * 3, [1] * 3]
    assert dataset.books() == {"found": 12, "used": 12, "left_out": {}}
    train = dataset.part("train")
    windows = Windows(store, [record.content for record in train], 96)
    column = WindowTargets(dataset.targets(train), windows).of(np.arange(len(windows)))[0].argmax(axis=1)
    assert column.tolist() == [*[0] * 6, *[1] * 6, *[2] * 6]
    assert {row["split"] for row in read_csv(place / "output/split.csv")} == {"train", "val", "test"}
    assert problems_csv(place) == {}


def test_hearing_gives_the_same_data_set_as_preparing(place: Path) -> None:
    cut(write_sound(place / "input/data/Parus_major/cut.ogg", tone(9.0)), 0.7)
    heard = inspect(place)
    assert problems_csv(place) == {"Parus_major/cut.ogg": "truncated"}
    assert not (place / "output/split.csv").exists()
    assert not list((place / "output/cache").glob("vggish*"))
    assert prepare(place)[0] == heard


def test_hearing_a_place_that_cannot_be_written_leaves_nothing(place: Path) -> None:
    heard = inspect(place, writable=False)
    assert len(heard.recordings) == 12
    assert list((place / "output").iterdir()) == []


def test_a_second_preparation_decodes_nothing_and_gives_the_same(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = prepare(place)
    monkeypatch.setattr(frames, "run_tasks", lambda *arguments, **how: pytest.fail("something was decoded"))
    monkeypatch.setattr(file_indexes, "file_sha256", lambda path: pytest.fail("something was read"))
    second, store = prepare(place)
    assert second == first
    assert second.digest() == first.digest()
    assert len(store) == 12


def test_damaged_frames_are_made_again_and_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, store = prepare(place)
    (shard,) = store.folder.glob("shard-*")
    with shard.open("r+b") as file:
        file.write(b"\x00\x00")
    _, store = prepare(place, Journal())
    assert "1 recording had damaged frames" in capsys.readouterr().out
    assert store.verify(store.contents()) == []
    assert len(store) == 12


def test_damage_that_no_file_time_tells_is_found_before_computing(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, store = prepare(place)
    assert gather.recheck(config(place), dataset, store, quiet(), Interrupts()) == (dataset, store)
    (shard,) = store.folder.glob("shard-*")
    with shard.open("r+b") as file:
        file.write(b"\x00\x00")
    # As a rotting disk leaves them; no program can set a file's time of change.
    monkeypatch.setattr(FrameStore, "_stamps", FrameStore._known_whole)
    same, store = prepare(place)
    assert len(store) == 12, "nobody noticed yet"
    again, mended = gather.recheck(config(place), same, store, quiet(), Interrupts())
    end_worker()
    assert again == dataset
    assert mended is not store
    assert mended.verify(mended.contents()) == []
    assert len(mended) == 12


def test_shards_of_killed_runs_are_deleted(place: Path) -> None:
    _, store = prepare(place)
    orphan = store.folder / "shard-0-0.rows"
    orphan.write_bytes(bytes(999))
    dataset, _ = prepare(place)
    assert not orphan.exists()
    assert len(dataset.recordings) == 12


def test_the_digest_changes_with_anything_that_training_sees(place: Path) -> None:
    base, _ = prepare(place)
    places = dict(base.places)
    name = base.recordings[0].name
    places[name] = dataclasses.replace(places[name], split="other")
    others = [
        dataclasses.replace(base, places=places),
        dataclasses.replace(base, recordings=base.recordings[1:]),
        dataclasses.replace(base, classes=(*base.classes, "x")),
        dataclasses.replace(base, spec=dataclasses.replace(base.spec, low_hz=1.0)),
        dataclasses.replace(
            base, recordings=[dataclasses.replace(base.recordings[0], content="x"), *base.recordings[1:]]
        ),
    ]
    assert len({dataset.digest() for dataset in [base, *others]}) == 6
    places[name] = dataclasses.replace(base.places[name], group="other")
    regrouped = dataclasses.replace(base, places=places)
    assert regrouped.digest() == base.digest()
    assert regrouped.digest(sources=True) != base.digest(sources=True)
    assert dataclasses.replace(base, notices=["x"], problems=[], class_ids={"a": 1}).digest() == base.digest()


def test_classes_without_a_usable_recording_are_said_and_left_out(place: Path) -> None:
    (place / "input/data/Empty").mkdir()
    write_sound(place / "input/data/Silent/a.wav", tone() * 0)
    dataset, _ = prepare(place)
    assert dataset.classes == CLASSES
    assert "Class folders without a usable recording, left out: \"Empty\", \"Silent\"." in dataset.notices
    assert dataset.books()["left_out"] == {"silent": 1}


def test_class_folders_that_only_seem_to_differ_are_said(place: Path) -> None:
    for k, name in enumerate(("parus major", "Gr\u00fcnling", "Gru\u0308nling")):
        write_sound(place / f"input/data/{name}/{k}.wav", tone(2.0, seed=90 + k))
    dataset, _ = prepare(place)
    assert set(dataset.classes) == {*CLASSES, "parus major", "Gr\u00fcnling"}
    assert len([recording for recording in dataset.recordings if recording.label == "Gr\u00fcnling"]) == 2
    said = " ".join(dataset.notices)
    assert "they count as one class: \"Gr\u00fcnling\"." in said
    assert 'kept apart: "Parus_major" and "parus major". If they are the same bird' in said


def test_too_little_data_is_refused_with_its_problems_told(place: Path) -> None:
    for label in CLASSES[:2]:
        shutil.rmtree(place / "input/data" / label)
    (place / "input/data/Parus_major").mkdir()
    (place / "input/data/Parus_major/a.wav").touch()
    with pytest.raises(InputError, match=r"only one class .*Not used: 1 empty;"):
        prepare(place)
    assert problems_csv(place) == {"Parus_major/a.wav": "empty"}


def test_no_data_folder_is_refused(place: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        prepare(place, data=place / "elsewhere")


def test_a_pattern_that_is_none_is_refused_before_the_long_work(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "fill", lambda *arguments, **how: pytest.fail("the long work"))
    with pytest.raises(SettingsError, match="group-regex"):
        prepare(place, split={"group_regex": "("})


def test_a_map_that_cannot_be_read_is_refused_before_the_long_work(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "fill", lambda *arguments, **how: pytest.fail("the long work"))
    (place / "input/bird_id_map.json").write_text("[]")
    with pytest.raises(InputError, match="expected a mapping"):
        prepare(place)


def test_ids_come_from_the_map_and_what_does_not_match_is_said(place: Path) -> None:
    (place / "input/bird_id_map.csv").write_text("name,id\nParus_major,70\nTurdus_merula,abc\nCorvus_corax,1\n")
    dataset, _ = prepare(place)
    assert dataset.class_ids == {"Parus_major": 70, "Turdus_merula": "abc", "Corvus_corax": 1}
    assert "Not in the label map, so without an external id: Erithacus_rubecula." in dataset.notices
    assert "In the label map, but without recordings: Corvus_corax." in dataset.notices


def test_many_names_in_a_notice_are_cut_short(place: Path) -> None:
    lines = "".join(f"Bird_{k:02},{k}\n" for k in range(20))
    (place / "input/bird_id_map.csv").write_text("name,id\n" + lines)
    notice = next(notice for notice in prepare(place)[0].notices if "without recordings" in notice)
    assert notice.endswith("Bird_07 and 12 more.")


def test_another_map_can_be_named(place: Path) -> None:
    (place / "input/bird_id_map.csv").write_text("name,id\nParus_major,1\n")
    (place / "other.json").write_text('{"Parus_major": 2}')
    dataset, _ = prepare(place, labels={"map": str(place / "other.json")})
    assert dataset.class_ids == {"Parus_major": 2}


def test_a_run_without_a_map_says_so(place: Path) -> None:
    assert "No label map: classes have no external ids." in prepare(place)[0].notices


def test_what_a_split_file_does_not_list_is_a_problem(place: Path) -> None:
    (place / "split.csv").write_text(
        "recording,split\n" + "".join(
            f"{label}/{label}-{c}{k}_1.wav,{side}\n"
            for c, label in enumerate(CLASSES) for k, side in enumerate(("train", "val", "test"))
        )
    )  # fmt: skip
    dataset, _ = prepare(place, split={"file": str(place / "split.csv")})
    assert dataset.books() == {"found": 12, "used": 9, "left_out": {"not-in-split": 3}}
    assert set(problems_csv(place).values()) == {"not-in-split"}
    assert [len(dataset.part(side)) for side in ("train", "val", "test")] == [3, 3, 3]


def test_a_split_file_that_leaves_one_class_is_refused(place: Path) -> None:
    (place / "split.csv").write_text("recording,split\nParus_major-10_1.wav,train\nParus_major-11_1.wav,test\n")
    with pytest.raises(InputError, match=r"only one class.*10 not-in-split"):
        prepare(place, split={"file": str(place / "split.csv")})
    assert len(problems_csv(place)) == 10


def test_a_later_run_extends_the_split(place: Path) -> None:
    first, _ = prepare(place)
    write_sound(place / "input/data/Parus_major/Parus_major-99_1.wav", tone(2.0, seed=99))
    (place / "input/data/Turdus_merula/Turdus_merula-20_1.wav").unlink()
    second, _ = prepare(place)
    common = set(first.places) & set(second.places)
    assert len(common) == 11
    assert {name: second.places[name] for name in common} == {name: first.places[name] for name in common}
    assert len(read_csv(place / "output/split.csv")) == 13, "what is gone keeps its place"


def test_a_copy_in_another_format_takes_the_side_of_the_recording_that_it_stands_for(place: Path) -> None:
    first, _ = prepare(place)
    for recording in first.recordings:
        samples, rate_hz = soundfile.read(recording.path, dtype="int16")
        write_sound(recording.path.with_name(f"A{recording.path.stem}.flac"), samples, rate_hz)
    second, _ = prepare(place)
    assert [recording.path.suffix for recording in second.recordings] == [".flac"] * 12
    for recording in second.recordings:
        (name,) = recording.copies
        assert second.places[recording.name].split == first.places[name].split


def test_short_sounds_can_be_skipped_without_decoding_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sound(place / "input/data/Parus_major/short.wav", tone(0.5, seed=77))
    assert len(prepare(place)[0].recordings) == 13
    monkeypatch.setattr(frames, "run_tasks", lambda *arguments, **how: pytest.fail("something was decoded"))
    dataset, _ = prepare(place, audio={"short_clips": "skip"})
    assert dataset.books()["left_out"] == {"too-short": 1}


def test_a_limit_that_is_raised_lets_long_sounds_in(place: Path) -> None:
    write_sound(place / "input/data/Parus_major/long.wav", tone(9.0, seed=77))
    limited, _ = prepare(place, audio={"max_hours": 5 / 3600})
    assert limited.books()["left_out"] == {"too-long": 1}
    assert prepare(place)[0].books()["left_out"] == {}
    assert prepare(place, audio={"max_hours": 5 / 3600})[0].books()["left_out"] == {"too-long": 1}


def test_the_resampler_is_heeded(place: Path) -> None:
    write_sound(place / "input/data/Parus_major/other.wav", tone(2.0, 22_050), 22_050)
    _, soxr_store = prepare(place)
    dataset, resampy_store = prepare(place, audio={"resampler": "resampy"})
    assert soxr_store.folder != resampy_store.folder
    (content,) = [record.content for record in dataset.recordings if record.name.endswith("other.wav")]
    difference = soxr_store.rows(content) - resampy_store.rows(content)
    assert 0 < abs(difference.astype(float)).mean() < 0.05
    assert set(read_json(place / "output/cache/ledger.json")["facts"]) == {
        AudioSettings(resampler="soxr").cache_key, AudioSettings(resampler="resampy").cache_key
    }  # fmt: skip


def test_nothing_of_the_data_side_brings_tensorflow() -> None:
    program = (
        "import sys; import birdtune.data.dataset, birdtune.data.batches\n"
        "print([name for name in ('tensorflow', 'keras', 'numba', 'matplotlib', 'sklearn') if name in sys.modules])"
    )
    code = Path(gather.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(code)},
    )  # fmt: skip
    assert done.stdout == "[]\n"


def test_a_check_hears_on_when_the_map_cannot_be_read(place: Path) -> None:
    (place / "input/bird_id_map.json").write_text("[]")
    (place / "output").mkdir()
    faults: list[str] = []
    dataset = gather.inspect(
        config(place), VGGISH, quiet(), Interrupts(), writable=True, faults=faults
    )
    assert len(dataset.recordings) == 12
    assert len(faults) == 1
    assert "expected a mapping" in faults[0]


def test_classes_below_a_floor_are_named_and_left_out_if_wanted(place: Path) -> None:
    write_sound(place / "input/data/Rara_avis/Rara_avis-9_1.wav", tone(2.0, seed=99))
    # Two recordings of three windows are trained on in each of the others, and one of the rare one.
    kept, _ = prepare(place, train=TrainSettings(min_samples_per_class=6))
    assert "Rara_avis" in kept.classes
    assert [line for line in kept.notices if "Rara_avis (3); their windows come more often" in line]
    assert not [line for line in kept.notices if "differ only in case" in line]
    dataset, _ = prepare(place, train=TrainSettings(min_samples_per_class=6, min_samples_action="leave-out"))
    assert dataset.classes == CLASSES
    assert dataset.books() == {"found": 13, "used": 12, "left_out": {"rare-class": 1}}
    assert problems_csv(place) == {"Rara_avis/Rara_avis-9_1.wav": "rare-class"}
    assert not [line for line in dataset.notices if "without a usable recording" in line]


def test_weights_of_recordings_are_part_of_what_is_trained_on(place: Path) -> None:
    plain, _ = prepare(place)
    name = plain.recordings[0].name
    (place / "input/quality.csv").write_text(f"recording,weight\n{name},0.25\n")
    weighed, _ = prepare(place)
    assert weighed.weights == {name: 0.25}
    assert weighed.digest() != plain.digest()
    (place / "input/quality.csv").write_text(f"recording,weight\n{name},1\n")
    assert prepare(place)[0].digest() == plain.digest()
    (place / "input/quality.csv").write_text(f"recording,weight\n{name},much\n")
    faults: list[str] = []
    gather.inspect(config(place), VGGISH, quiet(), Interrupts(), writable=True, faults=faults)
    assert len(faults) == 1 and "much" in faults[0], "check tells it with everything else"


# ---- background ---------------------------------------------------------------------------------


def test_sound_of_no_class_becomes_the_background_class(place: Path) -> None:
    for k in range(4):
        write_sound(place / f"input/background/night/b{k}.wav", tone(2.0, seed=900 + k))
    dataset = inspect(place)
    assert dataset.classes == (*CLASSES, "background") and dataset.background == ("background",)
    names = [record.name for record in dataset.recordings if record.label == "background"]
    assert names == [f"background/night/b{k}.wav" for k in range(4)]
    sides = {dataset.places[name].split for name in names}
    assert sides == {"train", "val", "test"}  # split as any other class: a part is held out
    assert dataset.digest() != inspect(place, background=place / "input/data/Parus_major").digest()


def test_a_background_folder_joins_the_background_class_of_the_data(place: Path) -> None:
    write_sound(place / "input/data/Background/night/b0.wav", tone(2.0, seed=900))
    write_sound(place / "elsewhere/background/night/b0.wav", tone(2.0, seed=901))
    write_sound(place / "elsewhere/background/b1.wav", tone(2.0, seed=902))
    (place / "elsewhere/background/letter.txt").write_text("no sound")
    dataset = inspect(place, background=place / "elsewhere/background")
    assert dataset.background == ("Background",)
    names = [record.name for record in dataset.recordings if record.label == "Background"]
    assert names == ["Background/night/b0.wav", "background/b1.wav", "background/night/b0.wav"]
    assert {p.recording: p.problem for p in dataset.problems} == {"background/letter.txt": "metadata"}
    same = inspect(place, background=place / "elsewhere/background/night")
    (place / "elsewhere/background/night").rename(place / "elsewhere/Background")
    dataset = inspect(place, background=place / "elsewhere/Background")
    names = [record.name for record in dataset.recordings if record.label == "Background"]
    assert names == ["Background+/b0.wav", "Background/night/b0.wav"]  # each name once
    assert len(same.recordings) == len(dataset.recordings)


def test_names_of_background_classes_are_a_setting(place: Path) -> None:
    dataset = inspect(place, labels={"negative_classes": "parus_MAJOR, nothing"})
    assert dataset.background == ("Parus_major",)
    with pytest.raises(InputError, match="all classes with usable recordings are background"):
        inspect(place, labels={"negative_classes": ",".join(CLASSES)})
    write_sound(place / "input/background/b.wav", tone(2.0, seed=900))
    assert inspect(place, labels={"negative_classes": "Wind"}).background == ("Wind",)
    with pytest.raises(SettingsError, match=r"--labels\.negative-classes names no class"):
        inspect(place, labels={"negative_classes": " , "})
    with pytest.raises(InputError, match="there is no such folder"):
        inspect(place, background=place / "missing")


@pytest.mark.parametrize("name", ["unknown", "Unknown", " UNKNOWN"])
def test_a_class_that_is_called_unknown_is_refused_before_the_long_work_unless_it_is_background(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(4):
        write_sound(place / f"input/data/{name}/n{k}.wav", tone(2.0, seed=900 + k))
    faults: list[str] = []
    chosen = config(place, labels={"negative_classes": "background"})
    (place / "output").mkdir()
    heard = gather.inspect(chosen, VGGISH, quiet(), Interrupts(), writable=True, faults=faults)
    assert len(heard.recordings) == 16 and len(faults) == 1  # a check hears on
    told = f"data: there is a class {name}, and `unknown` is what predictions say where no class is recognised"
    assert told in faults[0]
    (given,) = re.findall(r"Rename its folder; or, .*: --labels\.negative-classes '(.*)'\.$", faults[0])
    dataset, _ = prepare(place, labels={"negative_classes": given})
    assert dataset.background == (name,)
    monkeypatch.setattr(frames, "fill", lambda *arguments, **how: pytest.fail("something was decoded"))
    with pytest.raises(SettingsError, match="there is a class"):
        prepare(place, labels={"negative_classes": "background"})
