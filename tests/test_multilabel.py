"""Several classes a recording, and labels with times, through the whole job on the reduced network."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from makers import StopAt
from sklearn.metrics import average_precision_score
from test_job import record, run, settings

from birdtune.data import dataset as gather
from birdtune.data.dataset import Dataset
from birdtune.errors import InputError, Interrupted
from birdtune.models.registry import BACKBONES
from birdtune.pipeline import label_check
from birdtune.pipeline import run as job
from birdtune.runtime.files import read_csv, read_json
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.training import embeddings, probes

pytestmark = pytest.mark.usefixtures("in_one_process")

PITCH_HZ = {"Apus": 900, "Bubo": 1800, "Corvus": 3600}
COMBINED = [("Apus",), ("Bubo",), ("Corvus",), ("Apus", "Bubo"), ("Bubo", "Corvus")]


def sound(spans: list[tuple[str, float, float]], seconds: float, seed: int) -> npt.NDArray[np.float64]:
    """Noise with a tone of each class from one time to another."""
    t = np.arange(round(seconds * 16_000)) / 16_000
    made = 0.02 * np.random.default_rng(seed).standard_normal(t.size)
    for name, start, end in spans:
        made += 0.3 * np.sin(2 * np.pi * (PITCH_HZ[name] + 5 * (seed % 7)) * t) * ((t >= start) & (t < end))
    return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders, some of two classes: seven sources each."""
    data = tmp_path_factory.mktemp("several") / "data"
    for number, classes in enumerate(COMBINED):
        folder = data / ",".join(classes)
        folder.mkdir(parents=True)
        for k in range(7):
            made = sound([(name, 0, 2) for name in classes], 2.0, 10 * number + k)
            soundfile.write(folder / f"rec-{number + 3}{k:03d}.wav", made, 16_000)
    return data


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve recordings of fourteen seconds without folders, and a table of when each class is in them."""
    data = tmp_path_factory.mktemp("timed") / "data"
    data.mkdir()
    rows = ["recording,start_s,end_s,label"]
    for k in range(12):
        present = [(n, name) for n, name in enumerate(PITCH_HZ) if (k + n) % 3]  # two of three
        spans = [(name, (4 * n + k) % 12 * 1.0, (4 * n + k) % 12 + 2.0) for n, name in present]
        soundfile.write(data / f"site{k:02d}.wav", sound(spans, 14.0, k), 16_000)
        rows += [f"site{k:02d}.wav,{start},{end},{name}" for name, start, end in spans]
    (data / "labels.csv").write_text("\n".join(rows) + "\n")
    return data


def _validation_windows_choose_the_best_epoch(dataset: Dataset, output: Path) -> None:
    """The best epoch's figure, and the window view of the report, are those of windows with targets of their own."""
    history, found = read_json(output / "logs/1/history.json"), scores_of(output, "val")
    start_s = found["window_start_s"]
    targets, known = dataset.targets(dataset.part("val")).of(found["window_recording"], start_s, start_s + 0.96)
    ap = np.mean([
        average_precision_score(targets[known[:, c] > 0, c], found["window_scores"][known[:, c] > 0, c])
        for c in range(len(PITCH_HZ)) if targets[:, c].any()
    ])  # fmt: skip
    best = max(history["epochs"], key=lambda row: round((row["val_accuracy"] + row["val_macro_ap"]) / 2, 4))
    chosen = history["epochs"][history["best_epoch"] - 1]
    assert history["best_epoch_by"] == "windows" and chosen["val_accuracy"] == best["val_accuracy"]
    assert chosen["val_macro_ap"] == pytest.approx(ap, abs=0.02), "of windows; calibration keeps their order"
    window = read_json(output / "reports/1/metrics.json")["val"]["window"]
    assert window["macro_ap"] == pytest.approx(ap, abs=1e-6)
    of_recording = found["targets"][found["window_recording"]]
    assert (found["window_targets"] != (of_recording > 0)).mean() > 0.2, "the recording's classes are in few windows"
    assert read_json(output / "reports/1/label_issues.json")["with_times"] == 12, "not checked, and said"
    assert "those of 12 recordings" in (output / "logs/1/run.log").read_text()
    assert "average precision of the validation windows; majority baseline" in (output / "logs/1/run.log").read_text()
    log = (output / "logs/1/run.log").read_text()
    assert "  val window accuracy 0." in log and "  val window AP 0." in log and " val accuracy" not in log
    assert "  val window mAP " in log and "  val mAP" not in log and "majority baseline" in log
    assert [row["of"] for row in read_json(output / "reports/1/metrics.json")["val"]["headline"]] == ["windows"] * 2
    page = (output / "reports/1/report.html").read_text()
    assert "<dd>12</dd>" in page, "a recording of two classes counts once"
    assert "by its windows: labels have times" in page and "majority baseline of windows" in page


def scores_of(output: Path, part: str = "test") -> Any:
    return np.load(output / f"reports/1/scores-{part}.npz")


def test_recordings_of_several_classes_are_trained_scored_and_served_with_each_class_on_its_own(
    folders: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    assert run(settings(folders, output, train__epochs=6, train__learning_rate=3e-3), until="export") == 0
    model = read_json(output / "model/birdtune/1/model.json")
    assert model["scores"] == "sigmoid" and model["classes"] == list(PITCH_HZ)
    assert "scored on its own" in (output / "logs/1/run.log").read_text()
    split = read_csv(output / "split.csv")
    for name in PITCH_HZ:
        assert {row["split"] for row in split if name in row["class"]} == {"train", "val", "test"}
    sides: dict[str, set[str]] = {}
    for row in split:
        sides.setdefault(row["group"], set()).add(row["split"])
    assert all(len(found) == 1 for found in sides.values())
    metrics = read_json(output / "reports/1/metrics.json")
    assert metrics["test"]["clip"]["macro_ap"] > 0.8
    assert metrics["calibration"]["kind"] == "sigmoid"
    assert metrics["shortcuts"]["several"] and metrics["shortcuts"]["reason"] == ""
    assert metrics["ood"]["rests_on"]["left_out"] > 0 and metrics["ood"]["rests_on"]["of_several"] == []
    assert "left out of the OOD statistics" in (output / "logs/1/run.log").read_text()


def test_one_annotated_class_is_enough_where_it_is_absent_elsewhere(timed: Path, tmp_path: Path) -> None:
    data, (name, *_) = shutil.copytree(timed, tmp_path / "in" / "data"), PITCH_HZ
    header, *rows = (data / "labels.csv").read_text().splitlines()
    (data / "labels.csv").write_text("\n".join([header, *(row for row in rows if row.endswith(f",{name}"))]) + "\n")
    output, learnt = tmp_path / "out", {"train__epochs": 6, "train__learning_rate": 3e-3}
    assert run(settings(data, output, **learnt), until="export") == 0
    assert read_json(output / "model/birdtune/1/model.json")["classes"] == [name]
    assert read_json(output / "reports/1/metrics.json")["test"]["window"]["macro_ap"] > 0.8
    with pytest.raises(InputError, match="only one class with usable recordings"):  # nothing says where it is not
        run(settings(data, tmp_path / "none", labels__unlabelled="unknown", **learnt), until="prepare")


def test_losses_of_training_and_of_validation_are_both_means_over_the_classes(
    folders: Path, tmp_path: Path
) -> None:
    """Of weights that do not move, on data of which all parts are alike."""
    output, still = tmp_path / "out", {"train__learning_rate": 1e-30, "model__dropout": 0.0, "train__epochs": 2}
    assert run(settings(folders, output, **still), until="train") == 0
    history = read_json(output / "logs/1/history.json")
    (first, second), said = history["epochs"], (output / "logs/1/run.log").read_text()
    assert first["train_loss"] == pytest.approx(second["train_loss"], rel=1e-3)
    assert first["train_loss"] == pytest.approx(first["val_loss"], rel=0.1)
    assert first["train_loss"] > history["constant_loss"] > 0.5
    assert f"loss {first['train_loss']:.3f}  val loss {first['val_loss']:.3f}" in said


def test_labels_are_checked_refined_and_compared_by_all_classes_of_a_recording(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shutil.copytree(folders, tmp_path / "in" / "data")
    wrong = data / "Apus,Bubo" / "rec-33005.wav"  # named Bubo, and holds Corvus
    soundfile.write(wrong, sound([("Apus", 0, 2), ("Corvus", 0, 2)], 2.0, 77), 16_000)
    config = settings(data, tmp_path / "out", train__label_refinement=True).with_output("sigmoid")
    journal, interrupts = Journal(quiet=True), Interrupts()
    dataset, store = gather.prepare(config, BACKBONES["vggish-small"].front_end, journal, interrupts)
    # Fresh weights stand for a backbone that knows sounds: these differ in pitch alone.
    monkeypatch.setattr(label_check, "no_first_backbone", lambda config: "")

    label_check.check_labels(config, dataset, store, tmp_path, journal, interrupts)
    found = read_json(tmp_path / "label_issues.json")
    own = {(row["class"], row["suggested"]) for row in found["rows"] if row["recording"].endswith(wrong.name)}
    assert own == {("Bubo", ""), ("", "Corvus")} and len(found["rows"]) < 6
    assert found["several"] and found["scored"] == sum(len(recording.classes) for recording in dataset.recordings)

    kept = label_check.kept_shares(config, dataset, store, tmp_path / "kept.npy", journal, interrupts)
    assert kept is not None and kept.shape[1] == 3 and kept.max(axis=0).tolist() == [1, 1, 1]

    _, embedded = embeddings.embed(config, dataset, store, dataset.recordings, journal, interrupts, what="test")
    fold = embeddings.folds(embedded.positive, embedded.groups, 1)
    assert (np.bincount(fold) >= 5).all()
    scores = probes.out_of_fold(probes.Baseline("logistic regression", embedded, config), fold, 3, interrupts)
    right = (scores > 0.5) == embedded.positive
    assert right.mean() > 0.9 and (scores[embedded.positive.sum(axis=1) == 2].sum(axis=1) > 1.5).mean() > 0.8


def test_a_stopped_run_on_several_classes_ends_with_the_same_weights(folders: Path, tmp_path: Path) -> None:
    changes = {"train__epochs": 2, "augment__mixup": 0.5}
    run(settings(folders, tmp_path / "straight", **changes), until="train")
    with pytest.raises(Interrupted):
        run(settings(folders, tmp_path / "stopped", **changes), StopAt(90), until="train")
    run(settings(folders, tmp_path / "stopped", **changes), until="train")
    straight, stopped = (record(tmp_path / name)["weights_sha256"] for name in ("straight", "stopped"))
    assert straight == stopped


def test_windows_with_times_teach_when_each_class_is_in_a_recording(
    timed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets: list[Dataset] = []
    prepare = job.data.prepare
    monkeypatch.setattr(job.data, "prepare", lambda *args: datasets.append((made := prepare(*args))[0]) or made)
    output = tmp_path / "out"
    changes = {"train__epochs": 12, "train__learning_rate": 3e-3, "split__test_fraction": 0.3}
    assert run(settings(timed, output, **changes)) == 0
    dataset = datasets[-1]
    assert dataset.output == "sigmoid" and "24 labels with times in 12 recordings" in "\n".join(dataset.notices)
    _validation_windows_choose_the_best_epoch(dataset, output)
    part = dataset.part("test")
    found = scores_of(output)
    start_s = found["window_start_s"]
    targets, known = dataset.targets(part).of(found["window_recording"], start_s, start_s + 0.96)
    right = (found["window_scores"] > 0.5) == (targets > 0)
    assert right[known > 0].mean() > 0.9
    assert targets[known > 0].mean() < 0.35, "most windows hold a class in none or one"
    answers = read_json(output / "reports/1/metrics.json")["test"]["window_answers"]
    asked = found["window_mask"].any(axis=1)
    nothing = ~(found["window_targets"] & found["window_mask"]).any(axis=1)[asked]
    assert answers["majority"] == "no class" and answers["majority_baseline"] == pytest.approx(nothing.mean())
    events = read_json(output / "reports/1/metrics.json")["test"]["events"]
    rows = (timed / "labels.csv").read_text().splitlines()
    names = {recording.name for recording in part}
    assert events["events"]["events"] == sum(row.partition(",")[0] in names for row in rows)
    assert events["recordings"] == len(part) and events["events"]["f1"] > 0.7 and events["segments"]["f1"] > 0.5
    assert events["hop_s"] == 0.48
    model = read_json(output / "model/birdtune/1/model.json")
    assert model["detection_thresholds"] == read_json(output / "reports/1/metrics.json")["detection_thresholds"]
    assert model["detection_thresholds"]["goal"] == "the highest F1 of events"
    assert f"test events: F1 {100 * events['events']['f1']:.0f} %" in (output / "logs/1/run.log").read_text()
    page = (output / "reports/1/report.html").read_text()
    assert "F1 of events, test" in page and f"F1 of {events['events']['events']} events in 2 test recordings" in page
    assert answers["accuracy"] > answers["majority_baseline"] and answers["windows"] == asked.sum()
    _a_worse_model_is_kept_out_by_segments(timed, output, changes)


def _a_worse_model_is_kept_out_by_segments(timed: Path, output: Path, changes: dict[str, Any]) -> None:
    """Of whole recordings, which hold nearly every class, two models could not be told apart."""
    untrained = changes | {"train__epochs": 1, "train__learning_rate": 1e-12}
    assert run(settings(timed, output, **untrained, gate__champion="latest"), until="export") == 0
    row = read_json(output / "reports/2/metrics.json")["gate"]
    found, said = row["comparison"], (output / "logs/2/run.log").read_text()
    events = read_json(output / "reports/1/metrics.json")["test"]["events"]["events"]["events"]
    assert found["unit"] == "segments" and events < found["n_recordings"] <= 2 * events, "of two seconds, some at once"
    assert found["score"]["before"] > 0.8 > found["score"]["after"]
    assert f"{found['n_recordings']:,} test segments of a second" in said
    assert not record(output)["promoted"], "two sources say little, but surely not that it is better"
