"""birdtune.serving.predict: recordings through a model, whatever state the files are in."""

import csv
import math
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from makers import Here

from birdtune.audio.decode import examine, read
from birdtune.audio.logmel import VGGISH, YAMNET, LogMel, log_mel
from birdtune.errors import CheckpointError, InputError, Interrupted, UsageError
from birdtune.evaluation.calibration import Calibration, Scale
from birdtune.evaluation.decision import Thresholds
from birdtune.models.head_kinds import Pooling
from birdtune.serving import inference, predict
from birdtune.serving.inference import Unused
from birdtune.serving.predict import embed_files, predict_files
from birdtune.serving.sounds import find_sounds
from birdtune.settings import AudioSettings

RATE_HZ = 16_000


@pytest.fixture(autouse=True)
def _no_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real_process" not in request.fixturenames:
        monkeypatch.setattr(inference, "Isolated", Here)


def write_sound(
    path: Path, seconds: float, *, seed: int = 0, rate_hz: int = RATE_HZ, channels: int = 1
) -> Path:
    """Noise that swells, so that no two windows are alike."""
    noise = np.random.default_rng(seed).normal(size=(int(seconds * rate_hz), channels)) * 0.05
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise * np.linspace(0.2, 1.0, len(noise))[:, None], rate_hz, subtype="PCM_16")
    return path


def mean_bands(features: Any) -> Any:
    """A model that can be checked by hand: the mean of each band over the window. [n, 96, 64] → [n, 64]"""
    return features.mean(axis=1)


def frames_in(path: Path) -> Any:
    """All log-mel frames of a sound, the last filled up. [n, 64]"""
    return np.concatenate(list(VGGISH.rows_of([read(path, rate_hz=RATE_HZ)])))


def mean_bands_of(frames: Any, first_frames: list[int]) -> Any:
    return np.stack([frames[first : first + 96].mean(axis=0) for first in first_frames])


def embedded(files: list[Path], out: Path, model: Callable[[Any], Any] = mean_bands, **settings: Any) -> Any:
    outcome = embed_files(files, model, out, front_end=VGGISH, **settings)
    with np.load(out, allow_pickle=False) as archive:
        return outcome, {name: archive[name] for name in archive.files}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class Ears:
    """A classifier whose scores are the levels of the bands 10, 20, 30 …, from 0 to 1."""

    def __init__(self, *classes: str) -> None:
        self.classes = classes
        self.front_end = VGGISH

    def scores(self, features: Any) -> tuple[Any, Any]:
        levels = mean_bands(features)[:, 10 : 10 * len(self.classes) + 1 : 10]
        return 1 / (1 + np.exp(-levels)), mean_bands(features)

    pooling = Pooling()

    def in_sequence(self, embeddings: Any, recording: Any) -> Any:
        raise AssertionError

    def attend(self, embeddings: Any) -> Any:
        return np.zeros(len(embeddings), np.float32)


# ---- embeddings ---------------------------------------------------------------------------------


def test_every_window_of_every_file_is_embedded_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sound(tmp_path / "b.wav", 3.5)
    write_sound(tmp_path / "dir" / "a.flac", 2.0, seed=1, rate_hz=44_100, channels=2)
    monkeypatch.chdir(tmp_path)
    outcome, made = embedded([Path("b.wav"), Path("dir/a.flac")], Path("new/x.npz"))
    assert outcome == predict.Outcome(files=2, windows=7, problems=())
    assert made["end_s"].tolist() == pytest.approx([0.96, 1.92, 2.88, 3.49, 0.96, 1.92, 1.99])
    assert made["embeddings"].dtype == made["start_s"].dtype == np.float32
    assert made["recording"].tolist() == ["b.wav"] * 4 + ["dir/a.flac"] * 3
    assert made["start_s"].tolist() == pytest.approx([0, 0.96, 1.92, 2.53, 0, 0.96, 1.03])
    wanted = [
        mean_bands_of(frames_in(Path("b.wav")), [0, 96, 192, 253]),
        mean_bands_of(frames_in(Path("dir/a.flac")), [0, 96, 103]),
    ]
    np.testing.assert_allclose(made["embeddings"], np.concatenate(wanted), atol=1e-6)


# 48: windows overlap; 250: sound between them is skipped; 600: more than the front end gives at once.
@pytest.mark.parametrize(
    ("hop", "first_frames"),
    [(48, [*range(0, 1101, 48), 1103]), (250, [0, 250, 500, 750, 1000, 1103]), (600, [0, 600, 1103])],
)
def test_windows_begin_every_hop_and_the_last_ends_with_the_sound(
    tmp_path: Path, hop: int, first_frames: list[int]
) -> None:
    path = write_sound(tmp_path / "a.wav", 12.0)  # 1199 frames
    _, made = embedded([path], tmp_path / "x.npz", hop_s=hop and hop / 100)
    assert made["start_s"].tolist() == pytest.approx([first / 100 for first in first_frames])
    np.testing.assert_allclose(
        made["embeddings"], mean_bands_of(frames_in(path), first_frames), atol=1e-6
    )


@pytest.mark.parametrize("seconds", [0.01, 0.4, 0.97])
def test_a_sound_shorter_than_a_window_is_filled_up_with_zeros(tmp_path: Path, seconds: float) -> None:
    path = write_sound(tmp_path / "a.wav", seconds)
    _, made = embedded([path], tmp_path / "x.npz")
    filled = np.zeros(15_600, np.float32)
    filled[: int(seconds * RATE_HZ)] = read(path, rate_hz=RATE_HZ)
    assert made["start_s"].tolist() == [0]
    np.testing.assert_allclose(made["embeddings"], mean_bands_of(log_mel(filled), [0]), atol=1e-6)


@pytest.mark.parametrize("hop", [None, 1, 48, 300])
@pytest.mark.parametrize("n_samples", [15_601, 16_000, 30_400, 30_961, 100_003])
def test_the_very_end_of_a_recording_is_scored(tmp_path: Path, n_samples: int, hop: int | None) -> None:
    path = write_sound(tmp_path / "a.wav", n_samples / RATE_HZ)
    quiet, rate_hz = soundfile.read(path)
    soundfile.write(tmp_path / "b.wav", np.append(quiet[:-100], quiet[-100:] + 0.5), rate_hz, subtype="PCM_16")
    files = [path, tmp_path / "b.wav"]
    one, other = (embedded([path], tmp_path / "x.npz", hop_s=hop and hop / 100)[1]["embeddings"] for path in files)
    assert np.abs(one[-1] - other[-1]).max() > 0.01


def test_channels_that_cancel_each_other_are_scored_and_each_channel_may_have_its_row(tmp_path: Path) -> None:
    left, right = (read(write_sound(tmp_path / f"{seed}.wav", 2.0, seed=seed), rate_hz=RATE_HZ) for seed in (1, 2))
    soundfile.write(tmp_path / "inverted.wav", np.stack([left, -left], 1), RATE_HZ)
    soundfile.write(tmp_path / "other.wav", np.stack([left, right], 1), RATE_HZ)
    paths = [tmp_path / name for name in ("inverted.wav", "other.wav", "1.wav")]
    _, best = embedded(paths, tmp_path / "best.npz")
    count = len(best["recording"]) // 3
    assert np.array_equal(best["embeddings"][:count], best["embeddings"][-count:])
    _, each = embedded(paths, tmp_path / "each.npz", sound=AudioSettings(channels="each"))
    names = ("inverted.wav#1", "inverted.wav#2", "other.wav#1", "other.wav#2", "1.wav")
    assert each["recording"].tolist() == [str(tmp_path / name) for name in names for _ in range(count)]
    assert np.array_equal(each["embeddings"][2 * count : 3 * count], best["embeddings"][-count:])


def test_the_model_is_given_full_batches_across_files(tmp_path: Path) -> None:
    sizes: list[int] = []

    def model(features: Any) -> Any:
        assert features.dtype == np.float32
        sizes.append(len(features))
        return features.mean(axis=1)

    for number in range(5):
        write_sound(tmp_path / "in" / f"{number}.wav", 1.9, seed=number)
    _, made = embedded([tmp_path / "in"], tmp_path / "x.npz", model, batch_size=4)
    assert sizes == [4, 4, 2]
    _, one_by_one = embedded([tmp_path / "in"], tmp_path / "y.npz", batch_size=1)
    np.testing.assert_allclose(made["embeddings"], one_by_one["embeddings"], atol=1e-6)
    assert made["recording"].tolist() == one_by_one["recording"].tolist()


def test_a_model_may_return_a_view_of_what_it_was_given(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", 4.7)
    _, made = embedded([path], tmp_path / "x.npz", lambda features: features[:, 0], batch_size=2)
    frames = log_mel(read(path, rate_hz=RATE_HZ))
    np.testing.assert_allclose(made["embeddings"], frames[[0, 96, 192, 288, 373]], atol=1e-6)


def test_the_windows_of_a_long_sound_are_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", RATE_HZ, 1, "PCM_16") as file:
        for _ in range(20):
            file.write(np.random.default_rng(0).normal(size=60 * RATE_HZ) * 0.1)
    tracemalloc.start()
    outcome, _ = embedded([path], tmp_path / "x.npz", lambda features: features[:, 0, :2], batch_size=16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert outcome.windows == 1250  # 31 MB of windows, 77 MB of samples
    assert peak < 15e6


# ---- files that cannot be used ------------------------------------------------------------------


def spoilt_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """One file of each kind that cannot be used, with the problem it has."""
    whole = write_sound(folder / "whole.wav", 30.0).read_bytes()
    contents = {
        "empty.wav": (b"", "empty"),
        "text.wav": (b"no sound at all" * 99, "not-audio"),
        "truncated.wav": (whole[: len(whole) // 40], "truncated"),
    }
    made = {}
    for name, (content, problem) in contents.items():
        (folder / name).write_bytes(content)
        made[name] = (folder / name, problem)
    soundfile.write(folder / "silent.wav", np.zeros(RATE_HZ), RATE_HZ)
    soundfile.write(folder / "nan.wav", np.array([0.5, np.nan, 0.5]), RATE_HZ, subtype="FLOAT")
    (folder / "whole.wav").unlink()
    return made | {
        "silent.wav": (folder / "silent.wav", "silent"),
        "nan.wav": (folder / "nan.wav", "not-finite"),
        "missing.wav": (folder / "missing.wav", "unreadable"),
    }


@pytest.mark.parametrize("batch_size", [1, 64])
def test_files_that_cannot_be_used_are_named_and_the_others_go_on(tmp_path: Path, batch_size: int) -> None:
    spoilt = spoilt_files(tmp_path)
    first, last = write_sound(tmp_path / "first.wav", 0.97), write_sound(tmp_path / "last.wav", 0.97, seed=1)
    files = [first, *(path for path, _ in spoilt.values()), last]
    outcome, made = embedded(files, tmp_path / "x.npz", batch_size=batch_size)
    assert made["recording"].tolist() == [str(first), str(last)]
    assert {(Path(unused.name).name, unused.problem) for unused in outcome.problems} == {
        (name, problem) for name, (_, problem) in spoilt.items()
    }
    assert all(unused.detail for unused in outcome.problems)
    np.testing.assert_allclose(made["embeddings"][1:], mean_bands_of(frames_in(last), [0]), atol=1e-6)


def test_a_sound_longer_than_allowed_is_not_used(tmp_path: Path) -> None:
    outcome, _ = embedded([write_sound(tmp_path / "a.wav", 2.0)], tmp_path / "x.npz", longest_s=1.5)
    assert [unused.problem for unused in outcome.problems] == ["too-long"]


def test_when_nothing_can_be_used_the_tables_are_empty(tmp_path: Path) -> None:
    outcome, made = embedded([tmp_path / "no.wav"], tmp_path / "x.npz")
    assert (outcome.files, outcome.windows, len(outcome.problems)) == (0, 0, 1)
    assert (made["embeddings"].shape, made["recording"].shape, made["start_s"].shape) == ((0, 0), (0,), (0,))
    predict_files([tmp_path / "no.wav"], Ears("a", "b"), tmp_path / "p.csv", windows_out=tmp_path / "q.csv")
    (row,) = rows_of(tmp_path / "p.csv")
    assert (Path(row["file"]).name, row["problem"][:11], row["decision"]) == ("no.wav", "unreadable:", "")
    assert rows_of(tmp_path / "q.csv") == []


def test_names_are_made_safe_to_show(tmp_path: Path) -> None:
    write_sound(tmp_path / "a\x1b[2J ä.wav", 0.9)
    (tmp_path / "z\n.wav").write_bytes(b"")
    outcome, made = embedded([tmp_path], tmp_path / "x.npz")
    assert made["recording"].tolist() == [f"{tmp_path}/a\\x1b[2J ä.wav"]
    assert [unused.name for unused in outcome.problems] == [f"{tmp_path}/z\\n.wav"]


@pytest.mark.parametrize("name", [b"b\xff.wav", b"b.raw", b"b"])
def test_a_name_that_the_decoder_does_not_like_does_not_end_the_work(tmp_path: Path, name: bytes) -> None:
    odd = tmp_path / os.fsdecode(name)
    write_sound(tmp_path / "a.wav", 0.9).rename(odd)
    write_sound(tmp_path / "c.wav", 0.9)
    outcome, made = embedded([odd, tmp_path / "c.wav"], tmp_path / "x.npz")
    assert f"{tmp_path}/c.wav" in made["recording"]
    told = [*made["recording"], *(unused.name for unused in outcome.problems)]
    assert len(told) == 2
    assert f"{tmp_path}/{name.decode('utf-8', 'surrogateescape')}".replace("\udcff", "\\udcff") in told


def test_the_next_batch_is_decoded_while_the_model_computes_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [write_sound(tmp_path / f"{number}.wav", 0.9) for number in range(6)]  # a window each
    cut: list[str] = []
    is_ahead, counts = threading.Event(), []

    class Noting(inference.Cutter):
        def pieces(self, path: Path) -> Iterator[Any]:
            cut.append(path.name)
            if len(cut) == 4:
                is_ahead.set()
            return super().pieces(path)

    def model(windows: Any) -> Any:
        if not counts:
            assert is_ahead.wait(10), "the decoder waits for the model"
            time.sleep(0.1)
        counts.append(len(cut))
        return mean_bands(windows)

    monkeypatch.setattr(predict, "Cutter", Noting)
    _, made = embedded(files, tmp_path / "x.npz", model, batch_size=2)
    assert made["recording"].tolist() == [str(path) for path in files]
    assert counts[0] == 4


class _Deadly(inference.Cutter):
    """Dies on files of some names, as a fault in a decoder's C code would end it."""

    def pieces(self, path: Path) -> Iterator[Any]:
        if path.name.startswith("start"):
            os.kill(os.getpid(), signal.SIGSEGV)
        for number, piece in enumerate(super().pieces(path)):
            if path.name.startswith("middle") and number == 2:
                os.abort()
            yield piece


@pytest.mark.usefixtures("real_process")
def test_a_file_that_kills_the_decoder_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "Cutter", _Deadly)
    names = ["a.wav", "middle.wav", "start.wav", "z.wav"]
    files = [write_sound(tmp_path / name, 3.8, seed=seed) for seed, name in enumerate(names)]
    (tmp_path / "text.wav").write_text("no sound")
    outcome, made = embedded([*files, tmp_path / "text.wav"], tmp_path / "x.npz", batch_size=2)
    assert [(Path(unused.name).name, unused.problem) for unused in outcome.problems] == [
        ("middle.wav", "crash"), ("start.wav", "crash"), ("text.wav", "not-audio"),
    ]  # fmt: skip
    assert made["recording"].tolist() == [str(files[0])] * 4 + [str(files[3])] * 4
    np.testing.assert_allclose(
        made["embeddings"][4:], mean_bands_of(frames_in(files[3]), [0, 96, 192, 283]), atol=1e-6
    )


@pytest.fixture
def real_process() -> None:
    """Marks tests in which the decoder has its process."""


# ---- which files --------------------------------------------------------------------------------


def test_folders_are_walked_for_sounds_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b/2.WAV", "b/1.wav", "a.flac", "b/.hidden.wav", ".trash/x.wav", "b/notes.txt", "b/c/z.mp3"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = find_sounds([tmp_path])
    names = ("a.flac", "b/1.wav", "b/2.WAV", "b/c/z.mp3", "b/notes.txt")
    assert found[:4] == [tmp_path / name for name in names[:4]]
    assert [Path(item.name).name for item in found if isinstance(item, Unused)] == ["notes.txt"]


def test_a_file_given_twice_is_used_once_and_one_given_by_name_has_any_ending(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"x")
    (tmp_path / "odd").write_bytes(b"x")
    found = find_sounds([tmp_path / "odd", tmp_path / "a.wav", tmp_path])
    assert found == [tmp_path / "odd", tmp_path / "a.wav"]


def test_what_is_passed_over_in_a_folder_is_named_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "h.wav").write_bytes(b"x")
    (tmp_path / "a" / "phone.M4A").write_bytes(b"x")
    (tmp_path / "a" / "gone.wav").symlink_to("nowhere.wav")
    os.mkfifo(tmp_path / "a" / "pipe.wav")  # to open it would be to wait for ever
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "linked").symlink_to(tmp_path / "b")
    found = find_sounds([tmp_path / "no.wav", tmp_path / "a", tmp_path / "b"])
    problems = [("", "") if isinstance(each, Path) else (Path(each.name).name, each.problem) for each in found]
    assert problems == [
        ("no.wav", "unreadable"), ("gone.wav", "unreadable"), ("", ""), ("linked", "not-a-file"), ("", ""),
        ("pipe.wav", "not-a-file"),
        ("b", "not-audio"),
    ]  # fmt: skip
    # The decoder will say what it is.
    assert [found[2], found[4]] == [tmp_path / "a" / "h.wav", tmp_path / "a" / "phone.M4A"]


# ---- predictions --------------------------------------------------------------------------------


def test_predictions_give_a_row_for_each_file(tmp_path: Path) -> None:
    ears = Ears("tit", "crow", "owl", "=wren")
    paths = [write_sound(tmp_path / "a.wav", 2.5), write_sound(tmp_path / "b.wav", 0.5, seed=1)]
    outcome = predict_files(paths, ears, tmp_path / "p.csv", batch_size=2)
    assert outcome == predict.Outcome(files=2, windows=4, problems=())
    rows = rows_of(tmp_path / "p.csv")
    assert list(rows[0]) == [
        "file", "duration_s", "windows", "decision", "class", "score", "class_2", "score_2", "class_3", "score_3",
        "peak_s",
        "ood_score", "problem", "score:tit", "score:crow", "score:owl", "score:=wren",
    ]  # fmt: skip
    frames = frames_in(paths[0])
    starts = np.array([0, 96, 153])
    scores = ears.scores(np.stack([frames[start : start + 96] for start in starts]))[0]
    mean = scores.mean(axis=0)
    ranked = np.argsort(-mean)
    row = rows[0]
    assert (row["file"], row["duration_s"], row["windows"]) == (str(paths[0]), "2.5", "3")
    assert [row["class"], row["class_2"], row["class_3"]] == [
        ears.classes[column] for column in ranked[:3]
    ]
    assert [float(row[f"score:{name}"]) for name in ears.classes] == pytest.approx(mean.tolist(), abs=1e-6)
    assert float(row["score_2"]) == pytest.approx(mean[ranked[1]], abs=1e-6)
    assert float(row["peak_s"]) == pytest.approx(starts[scores[:, ranked[0]].argmax()] / 100)
    assert (rows[1]["duration_s"], rows[1]["windows"], rows[1]["peak_s"]) == ("0.5", "1", "0.0")


def test_peak_s_is_where_the_best_class_has_its_highest_score(tmp_path: Path) -> None:
    class Late:
        weights = np.ones(4, np.float32)
        classes = ("a", "b")
        front_end = VGGISH

        def scores(self, features: Any) -> tuple[Any, Any]:
            assert len(features) == 4
            return np.array([[0.9, 0.1], [0.1, 0.6], [0.1, 0.95], [0.2, 0.8]], np.float32), None

        pooling = Pooling()

        def in_sequence(self, embeddings: Any, recording: Any) -> Any:
            raise AssertionError

        def attend(self, embeddings: Any) -> Any:
            return np.log(self.weights)

    predict_files([write_sound(tmp_path / "a.wav", 3.8)], Late(), tmp_path / "p.csv")
    (row,) = rows_of(tmp_path / "p.csv")
    assert (row["class"], row["score"], row["peak_s"]) == ("b", "0.6125", "1.92")
    assert "class_3" not in row
    Late.weights = np.float32([7, 1, 1, 1])  # by attention the first window counts as much as seven of the others
    predict_files([write_sound(tmp_path / "a.wav", 3.8)], Late(), tmp_path / "p.csv")
    (row,) = rows_of(tmp_path / "p.csv")
    assert (row["class"], row["score"], row["peak_s"]) == ("a", "0.67", "0.0")


def test_answers_pass_their_thresholds_and_background_is_none(tmp_path: Path) -> None:
    class Heard:
        classes = ("background", "owl", "tit")
        front_end = VGGISH

        def scores(self, features: Any) -> tuple[Any, Any]:
            return np.array([[0.5, 0.1, 0.4], [0.5, 0.3, 0.2]], np.float32), features[:, 0]

        pooling = Pooling()

        def in_sequence(self, embeddings: Any, recording: Any) -> Any:
            raise AssertionError

        def attend(self, embeddings: Any) -> Any:
            return np.zeros(len(embeddings), np.float32)

    thresholds = Thresholds((float("inf"), 0.2, 0.35), ("background", "class", "class"), "", "")
    # Means 0.5, 0.2, 0.3; squared and made to sum to one again: 0.658, 0.105, 0.237.
    calibration = Calibration("softmax", Scale(), Scale(2.0))
    sound = write_sound(tmp_path / "a.wav", 1.9)
    predict_files(
        [sound], Heard(), tmp_path / "p.csv", windows_out=tmp_path / "q.csv", thresholds=thresholds,
        calibration=calibration,
    )  # fmt: skip
    (row,) = rows_of(tmp_path / "p.csv")
    assert (row["decision"], row["class"], row["class_2"]) == ("unknown", "tit", "owl")
    assert float(row["score:background"]) == pytest.approx(0.25 / 0.38, abs=1e-6)
    assert [each["decision"] for each in rows_of(tmp_path / "q.csv")] == ["tit", "owl"]
    predict_files([sound], Heard(), tmp_path / "p.csv", thresholds=thresholds)
    (row,) = rows_of(tmp_path / "p.csv")
    assert (row["decision"], row["class"], row["score"]) == ("owl", "tit", "0.3")  # only the owl's passes


def test_what_is_out_of_distribution_is_rejected_as_unknown_and_says_so(tmp_path: Path) -> None:
    class Levels:
        classes = ("owl", "tit")
        front_end = VGGISH

        def scores(self, features: Any) -> tuple[Any, Any]:
            return np.full((len(features), 2), [0.8, 0.2], np.float32), features.mean(axis=1)

        pooling = Pooling()

        def in_sequence(self, embeddings: Any, recording: Any) -> Any:
            raise AssertionError

        def attend(self, embeddings: Any) -> Any:
            return np.zeros(len(embeddings), np.float32)

    silent_end = write_sound(tmp_path / "a.wav", 2.0)
    noise, rate_hz = soundfile.read(silent_end)
    soundfile.write(silent_end, np.append(noise, np.zeros(20 * rate_hz)), rate_hz, subtype="PCM_16")
    paths = [silent_end, write_sound(tmp_path / "b.wav", 3.0, seed=1)]
    pooled: list[Any] = []

    def ood_score(means: Any) -> Any:
        pooled.append(means)
        return np.array([1.01 if len(pooled) == 1 else 1.0])

    thresholds = Thresholds((0.5, 0.5), ("class", "class"), "", "")
    given: dict[str, Any] = {"thresholds": thresholds, "batch_size": 4}
    predict_files(paths, Levels(), tmp_path / "p.csv", ood_score=ood_score, **given)
    rows = rows_of(tmp_path / "p.csv")
    assert [(row["decision"], row["class"], row["ood_score"]) for row in rows] == [
        ("unknown", "owl", "1.01"),
        ("owl", "owl", "1.0"),
    ]
    frames = frames_in(silent_end)
    features = np.stack([frames[start : start + 96] for start in VGGISH.starts(len(frames))])
    mean = np.average(features.mean(axis=1), axis=0, weights=VGGISH.held(features))
    np.testing.assert_allclose(pooled[0], mean[None], atol=1e-4)  # silence is left out
    predict_files(paths, Levels(), tmp_path / "q.csv", **given)  # a model that cannot tell
    assert [(row["decision"], row["ood_score"]) for row in rows_of(tmp_path / "q.csv")] == [("owl", "")] * 2


def test_windows_give_a_row_each_when_asked_for(tmp_path: Path) -> None:
    paths = [write_sound(tmp_path / "a.wav", 2.5), write_sound(tmp_path / "b.wav", 0.5, seed=1)]
    ears = Ears("tit", "crow")
    predict_files(paths, ears, tmp_path / "p.csv", windows_out=tmp_path / "q.csv", hop_s=0.48)
    rows = rows_of(tmp_path / "q.csv")
    assert list(rows[0]) == ["file", "start_s", "end_s", "decision", "class", "score", "class_2", "score_2"]
    assert [(Path(row["file"]).name, row["start_s"], row["end_s"]) for row in rows] == [
        ("a.wav", "0.0", "0.975"),
        ("a.wav", "0.48", "1.455"),
        ("a.wav", "0.96", "1.935"),
        ("a.wav", "1.44", "2.415"),
        ("a.wav", "1.53", "2.5"),
        ("b.wav", "0.0", "0.5"),
    ]
    frames = log_mel(read(paths[0], rate_hz=RATE_HZ))
    scores = ears.scores(frames[None, 48:144])[0][0]
    assert float(rows[1]["score"]) == pytest.approx(scores.max(), abs=1e-6)
    assert rows[1]["class"] == ears.classes[scores.argmax()]
    assert len(rows_of(tmp_path / "p.csv")) == 2


def test_a_truncated_file_leaves_no_decision_though_its_windows_were_scored(tmp_path: Path) -> None:
    path, _ = spoilt_files(tmp_path)["truncated.wav"]
    outcome = predict_files(
        [path], Ears("a", "b"), tmp_path / "p.csv", windows_out=tmp_path / "q.csv", batch_size=2
    )
    assert [unused.problem for unused in outcome.problems] == ["truncated"]
    assert outcome.windows == 0
    (row,) = rows_of(tmp_path / "p.csv")
    assert row["problem"].startswith("truncated: ") and not any(row[name] for name in ("windows", "class", "score:a"))
    assert rows_of(tmp_path / "q.csv") == []


SURE = Thresholds((0.0, 0.0, 0.0), ("class", "class", "class"), "", "")


def test_files_that_could_not_be_used_have_their_row_and_silence_is_rejected_as_unknown(tmp_path: Path) -> None:
    spoilt = spoilt_files(tmp_path)
    write_sound(tmp_path / "a.wav", 1.5)
    write_sound(tmp_path / "z.wav", 1.5)
    names = sorted(["a.wav", *spoilt, "z.wav"], reverse=True)
    files = [tmp_path / name for name in names]
    outcome = predict_files(files, Ears("a", "b", "c"), tmp_path / "p.csv", batch_size=1, thresholds=SURE)
    rows = rows_of(tmp_path / "p.csv")
    assert [row["file"] for row in rows] == [str(path) for path in files]  # joins what the user has
    told = {unused.name: f"{unused.problem}: {unused.detail}" for unused in outcome.problems}
    assert [row["problem"] for row in rows] == [told.get(row["file"], "") for row in rows]
    answers = {Path(row["file"]).name: row["decision"] for row in rows if row["decision"]}
    assert answers.keys() == {"a.wav", "z.wav", "silent.wav"} and answers["silent.wav"] == "unknown" != answers["a.wav"]
    # A tone that 16 kHz cannot hold: loud to the recorder, nothing to the model.
    tone = 0.5 * np.sin(2 * np.pi * 40_000 * np.arange(192_000) / 192_000) * np.hanning(192_000)
    soundfile.write(tmp_path / "bat.wav", tone, 192_000)
    assert not predict_files([tmp_path / "bat.wav"], Ears("a", "b", "c"), tmp_path / "p.csv", thresholds=SURE).problems
    (row,) = rows_of(tmp_path / "p.csv")
    assert (row["decision"], row["class"], row["problem"][:7]) == ("unknown", "", "silent:")


# ---- long recordings, window by window ----------------------------------------------------------


def changing(path: Path, seconds: int, spec: LogMel = VGGISH) -> Path:
    """Noise whose colour and level change all the time."""
    rng = np.random.default_rng(3)
    parts = [np.cumsum(rng.normal(size=8000)) * rng.uniform(0.0003, 0.003) if rng.random() < 0.5 else
             rng.normal(size=8000) * rng.uniform(0.001, 0.1) for _ in range(2 * seconds)]  # fmt: skip
    soundfile.write(path, np.clip(np.concatenate(parts), -1, 1), RATE_HZ, subtype="FLOAT")
    return path


class Attentive(Ears):
    """To whom loud windows count more."""

    def __init__(self, front_end: LogMel) -> None:
        super().__init__("a", "b", "c")
        self.front_end = front_end

    pooling = Pooling()

    def in_sequence(self, embeddings: Any, recording: Any) -> Any:
        raise AssertionError

    def attend(self, embeddings: Any) -> Any:
        return embeddings.mean(axis=1)


# On the hop's grid and off it; the file ends 1.2 s after the second window.
@pytest.mark.parametrize(
    ("front_end", "window_s"), [(VGGISH, 4.8), (VGGISH, 5.0), (YAMNET, 2.4), (YAMNET, 5.0), (YAMNET, 0.96)]
)
def test_a_segment_is_scored_as_the_recording_cut_out_of_it(
    tmp_path: Path, front_end: LogMel, window_s: float
) -> None:
    path = changing(tmp_path / "long.wav", 20)
    waveform = read(path, rate_hz=RATE_HZ)[: round((2 * window_s + 1.2) * RATE_HZ)]
    if window_s < 1.2:
        waveform = waveform[: round(3 * window_s * RATE_HZ) + 160]  # so little is no window of its own
    soundfile.write(path, waveform, RATE_HZ, subtype="FLOAT")
    cuts = []
    for number, begin in enumerate((0.0, window_s, 2 * window_s)):
        cuts.append(tmp_path / f"{number}.wav")
        end = round((begin + window_s) * RATE_HZ) if number < 2 else len(waveform)
        cut = waveform[round(begin * RATE_HZ) : end]
        soundfile.write(cuts[-1], cut, RATE_HZ, subtype="FLOAT")
    asked: dict[str, Any] = {
        "calibration": Calibration("softmax", Scale(), Scale(2.0)),
        "thresholds": Thresholds((0.4, 0.4, 0.4), ("class", "class", "class"), "", ""),
        "ood_score": lambda pooled: np.abs(pooled).mean(axis=1) / 3,
        "batch_size": 7,
    }
    ears = Attentive(front_end)
    outcome = predict_files(
        [path], ears, tmp_path / "w.csv", segment_s=window_s, windows_out=tmp_path / "q.csv", **asked
    )
    predict_files(cuts, ears, tmp_path / "p.csv", **asked)
    found, wanted = rows_of(tmp_path / "w.csv"), rows_of(tmp_path / "p.csv")
    assert list(found[0])[:5] == ["file", "start_s", "end_s", "windows", "decision"]
    assert [row["file"] for row in found] == [str(path)] * 3
    end_s = len(waveform) / RATE_HZ
    whole = [(0.0, window_s), (window_s, 2 * window_s), (2 * window_s, end_s)]
    assert [(float(row["start_s"]), float(row["end_s"])) for row in found] == [
        (pytest.approx(begin, abs=0.006), pytest.approx(end, abs=0.001)) for begin, end in whole
    ]
    for row, cut, (begin_s, _) in zip(found, wanted, whole, strict=True):
        for name in cut.keys() - {"file", "duration_s", "peak_s"}:
            try:
                assert float(row[name]) == pytest.approx(float(cut[name]), abs=2e-4), name
            except ValueError:
                assert row[name] == cut[name], name
        assert float(row["peak_s"]) == pytest.approx(begin_s + float(cut["peak_s"]), abs=0.011)
    assert len({row["ood_score"] for row in found}) == 3
    assert outcome == predict.Outcome(1, sum(int(row["windows"]) for row in found), ())
    assert len(rows_of(tmp_path / "q.csv")) == outcome.windows


def test_a_segment_begins_and_ends_with_a_window_and_a_shorter_rest_begins_earlier(tmp_path: Path) -> None:
    files = [write_sound(tmp_path / "a.wav", 7.3), write_sound(tmp_path / "b.wav", 0.5, seed=1)]
    predict_files(files, Ears("a", "b"), tmp_path / "p.csv", segment_s=2.5, windows_out=tmp_path / "q.csv")
    assert [(row["start_s"], row["end_s"], row["windows"]) for row in rows_of(tmp_path / "p.csv")] == [
        ("0.0", "2.5", "3"), ("2.5", "5.0", "3"), ("5.0", "7.3", "3"), ("0.0", "0.5", "1"),
    ]  # fmt: skip
    starts = [float(row["start_s"]) for row in rows_of(tmp_path / "q.csv")]
    assert starts == [0.0, 0.96, 1.53, 2.5, 3.46, 4.03, 5.0, 5.96, 6.33, 0.0]
    write_sound(files[0], 6.9)
    predict_files(files[:1], Ears("a", "b"), tmp_path / "p.csv", segment_s=6.0)
    assert [(row["start_s"], row["end_s"], row["windows"]) for row in rows_of(tmp_path / "p.csv")] == [
        ("0.0", "6.0", "7"), ("5.93", "6.9", "1"),
    ]  # fmt: skip
    assert not predict_files(files[:1], Ears("a", "b"), tmp_path / "p.csv", segment_s=6.0, calibration_clip_s=0.1).long


@pytest.mark.parametrize("front_end", [VGGISH, YAMNET], ids=lambda spec: spec.name)
@pytest.mark.parametrize(("window_s", "left"), [(0.96, 161), (0.96, 5000), (2.0, 300), (2.0, 15_359), (5.0, 8000)])
def test_the_rest_behind_the_last_segment_is_scored_with_what_is_before_it(
    tmp_path: Path, front_end: LogMel, window_s: float, left: int
) -> None:
    n_samples = 2 * round(window_s * RATE_HZ) + left
    path = changing(tmp_path / "a.wav", 12)
    waveform = read(path, rate_hz=RATE_HZ)[:n_samples]
    soundfile.write(path, waveform, RATE_HZ, subtype="FLOAT")
    ears = Attentive(front_end)
    predict_files([path], ears, tmp_path / "w.csv", segment_s=window_s)
    *_, row = rows_of(tmp_path / "w.csv")
    begin = round(float(row["start_s"]) * RATE_HZ)
    assert 0 <= begin - (n_samples - 15_600) < 160
    assert float(row["end_s"]) == pytest.approx(n_samples / RATE_HZ, abs=0.001)
    soundfile.write(tmp_path / "b.wav", waveform[begin:], RATE_HZ, subtype="FLOAT")
    predict_files([tmp_path / "b.wav"], ears, tmp_path / "p.csv")
    (cut,) = rows_of(tmp_path / "p.csv")
    assert row["windows"] == cut["windows"] == "1"
    assert float(row["score:a"]) == pytest.approx(float(cut["score:a"]), abs=2e-4)


def test_a_silent_segment_is_rejected_as_unknown_and_what_came_before_a_break_stands(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sound = np.concatenate([rng.normal(size=4 * RATE_HZ) * 0.1, np.zeros(4 * RATE_HZ)])
    soundfile.write(tmp_path / "a.wav", np.tile(sound, 2), RATE_HZ, subtype="PCM_16")
    predict_files([tmp_path / "a.wav"], Ears("a", "b", "c"), tmp_path / "p.csv", segment_s=4.0, thresholds=SURE)
    rows = rows_of(tmp_path / "p.csv")
    assert [row["decision"] == "unknown" for row in rows] == [False, True, False, True]
    assert rows[1]["problem"].startswith("silent: ") and not rows[1]["class"] and not rows[2]["problem"]

    broken = tmp_path / "b.wav"
    soundfile.write(broken, np.append(np.tile(sound[: 4 * RATE_HZ], 3), np.nan), RATE_HZ, subtype="FLOAT")
    outcome = predict_files([broken], Ears("a", "b", "c"), tmp_path / "p.csv", segment_s=1.0)
    *rows, last = rows_of(tmp_path / "p.csv")
    assert [row["start_s"] for row in [*rows, last]] == [f"{second}.0" for second in range(12)]
    assert not any(row["problem"] for row in rows) and last["problem"].startswith("not-finite: ")
    assert (outcome.files, outcome.in_part, outcome.unused) == (1, 1, 0)


def test_each_segment_of_a_silent_file_is_rejected_as_unknown_and_it_is_no_problem(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(round(5.5 * RATE_HZ)), RATE_HZ)
    write_sound(tmp_path / "b.wav", 2.0)
    files = [tmp_path / "a.wav", tmp_path / "b.wav"]
    outcome = predict_files(files, Ears("a", "b", "c"), tmp_path / "p.csv", segment_s=2.0, thresholds=SURE)
    *rows, last = rows_of(tmp_path / "p.csv")
    assert [(row["start_s"], row["end_s"], row["decision"]) for row in rows] == [
        ("0.0", "2.0", "unknown"), ("2.0", "4.0", "unknown"), ("4.0", "5.5", "unknown"),
    ]  # fmt: skip
    assert Path(last["file"]).name == "b.wav" and last["decision"] != "unknown"
    assert (outcome.files, outcome.problems, outcome.silent) == (2, (), 0)


@pytest.mark.parametrize("ending", ["wav", "aiff", "flac"])
def test_of_a_file_that_is_cut_short_all_that_is_there_is_reported(tmp_path: Path, ending: str) -> None:
    samples, _ = soundfile.read(write_sound(tmp_path / "whole.wav", 30.0), dtype="int16")
    cut = tmp_path / f"cut.{ending}"
    soundfile.write(cut, samples, RATE_HZ)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    n = round(examine(cut).duration_s * RATE_HZ)
    assert n / RATE_HZ == pytest.approx(15.0, abs=1.0)
    # As of a file that ends there.
    soundfile.write(tmp_path / "same.wav", samples[:n], RATE_HZ)
    for window_s in (None, 2.0):
        rows = {}
        for path in (cut, tmp_path / "same.wav"):
            outcome = predict_files([path], Ears("a", "b"), tmp_path / "p.csv", segment_s=window_s)
            assert (outcome.files, outcome.in_part, outcome.unused) == (1, path == cut, 0)
            rows[path] = rows_of(tmp_path / "p.csv")
        of_cut, of_same = rows.values()
        assert of_cut[-1]["problem"].startswith("truncated: ") and " of 30.00 s " in of_cut[-1]["problem"]
        assert not any(row["problem"] for row in [*of_cut[:-1], *of_same])
        alone = {"file": "", "problem": ""}
        assert [row | alone for row in of_cut] == [row | alone for row in of_same]
    outcome, arrays = embedded([cut], tmp_path / "x.npz")
    assert (outcome.files, outcome.in_part) == (1, 1)
    assert np.array_equal(
        arrays["embeddings"], embedded([tmp_path / "same.wav"], tmp_path / "x.npz")[1]["embeddings"]
    )


def test_a_header_that_was_repaired_is_remarked_and_the_file_is_whole(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", 3.0)
    content = path.read_bytes()
    path.write_bytes(content[:40] + bytes(4) + content[44:])
    outcome = predict_files([path], Ears("a", "b"), tmp_path / "p.csv")
    (row,) = rows_of(tmp_path / "p.csv")
    assert (row["duration_s"], row["problem"][:10]) == ("3.0", "repaired: ")
    assert (outcome.files, outcome.in_part, outcome.unused, len(outcome.problems)) == (1, 0, 0, 1)
    refusing = AudioSettings(truncated="refuse")
    assert predict_files([path], Ears("a", "b"), tmp_path / "p.csv", sound=refusing).files == 1
    path.write_bytes(content[:-9_000])
    assert predict_files([path], Ears("a", "b"), tmp_path / "p.csv", sound=refusing).unused == 1


def test_windows_of_a_long_sound_are_written_as_they_come(tmp_path: Path) -> None:
    class Many(Ears):
        def scores(self, features: Any) -> tuple[Any, Any]:
            return np.full((len(features), 400), 0.123456, np.float32), features[:, 0]

    path, sizes = write_sound(tmp_path / "long.wav", 60.0), []

    def check() -> None:
        sizes.extend(entry.stat().st_size for entry in tmp_path.glob(".unfinished*"))

    many = Many(*(f"class {number}" for number in range(400)))
    predict_files([path], many, tmp_path / "p.csv", segment_s=1.92, batch_size=4, check=check)
    assert (tmp_path / "p.csv").stat().st_size > 100_000
    assert sizes == sorted(sizes) and len(set(sizes)) > 8 and max(sizes) > 80_000


def test_files_far_longer_than_what_the_model_was_calibrated_on_are_counted(tmp_path: Path) -> None:
    files = [write_sound(tmp_path / f"{seconds}.wav", seconds) for seconds in (1.0, 6.0, 6.1, 9.0)]
    for calibration_clip_s, n_long in ((2.0, 2), (0.3, 4), (4.0, 0), (None, 0)):
        found = predict_files(files, Ears("a", "b"), tmp_path / "p.csv", calibration_clip_s=calibration_clip_s)
        assert found.long == n_long


@pytest.mark.parametrize("window_s", [0.0, -5.0, 0.95, math.nan, math.inf])
def test_a_window_that_cannot_be_is_refused(tmp_path: Path, window_s: float) -> None:
    with pytest.raises(UsageError, match=r"--window .*: expected at least 0\.96 s, a window of the model\.$"):
        predict_files([write_sound(tmp_path / "a.wav", 1.0)], Ears("a"), tmp_path / "p.csv", segment_s=window_s)


# ---- stopping and refusing ----------------------------------------------------------------------


def test_a_stop_that_the_last_batch_swallowed_writes_nothing(tmp_path: Path) -> None:
    stopped = []

    def model(features: Any) -> Any:
        stopped.append(True)
        return mean_bands(features)

    def check() -> None:
        if stopped:
            raise Interrupted(15)

    path = write_sound(tmp_path / "a.wav", 1.0)
    with pytest.raises(Interrupted):
        embed_files([path], model, tmp_path / "x.npz", front_end=VGGISH, check=check)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.wav"]


def test_a_stop_between_batches_writes_nothing(tmp_path: Path) -> None:
    calls = 0

    def stop_at_the_third() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Interrupted(15)

    path = write_sound(tmp_path / "a.wav", 9.0)
    with pytest.raises(Interrupted):
        embed_files([path], mean_bands, tmp_path / "x.npz", front_end=VGGISH, batch_size=2, check=stop_at_the_third)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.wav"]


def test_a_place_that_cannot_be_written_is_found_out_before_the_work(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", 1.0)

    def model(features: Any) -> Any:
        raise AssertionError("the model was run")

    with pytest.raises(InputError, match="is a file where a folder is needed"):
        embed_files([path], model, path / "x.npz", front_end=VGGISH)


def test_a_model_that_gives_nan_is_refused(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", 1.0)
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        embed_files([path], lambda features: np.full((len(features), 4), np.nan), tmp_path / "x.npz", front_end=VGGISH)


@pytest.mark.parametrize("settings", [{"hop_s": 0.0}, {"batch_size": 0}])
def test_settings_that_cannot_be_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected more than 0"):
        embed_files([], mean_bands, tmp_path / "x.npz", front_end=VGGISH, **settings)


def test_importing_it_does_not_import_tensorflow() -> None:
    program = "import sys, birdtune.serving.predict; sys.exit('tensorflow' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(predict.__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", program], env=environment).returncode == 0


def test_it_needs_neither_scikit_learn_nor_the_side_of_training() -> None:
    # TensorFlow is loaded without it; tf-slim, which loads it, is left to the export for TensorFlow 1.
    program = (
        "import sys; from birdtune.runtime.tensorflow_import import load_tensorflow; load_tensorflow()\n"
        "import birdtune.pipeline.predict, gc\n"
        "loaded = any(name.startswith(('sklearn', 'birdtune.data.dataset')) for name in sys.modules)\n"
        "sys.exit(loaded or not gc.isenabled())"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(predict.__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", program], env=environment).returncode == 0
