"""The job, end to end and in one process: what it leaves, what it skips, where it goes on.

On the reduced network and sounds of two seconds; the one thing stood in for is the signal that stops it.
"""

import csv
import json
import pickle
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from makers import StopAt, with_processes

from birdtune import cli
from birdtune.config import Config
from birdtune.errors import CheckpointError, DivergedError, InputError, Interrupted, SettingsError
from birdtune.pipeline import embed as embedding
from birdtune.pipeline import label_check, slim
from birdtune.pipeline import predict as prediction
from birdtune.pipeline import run as job
from birdtune.runtime import configure
from birdtune.runtime.files import read_csv, read_json, write_json
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.training.job import Job

pytestmark = pytest.mark.usefixtures("in_one_process")

Captured = pytest.CaptureFixture[str]

CLASSES = {"Apus_apus": 900, "Bubo_bubo": 1800, "Corvus_corax": 3600}
SOURCES = 7


def write_data(folder: Path, sources: range = range(SOURCES)) -> Path:
    """Three classes that differ in pitch; two slices of each source."""
    rng = np.random.default_rng(sources.start)
    for number, (name, pitch_hz) in enumerate(CLASSES.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for source in sources:
            for part in range(2):
                t = np.arange(32_000) / 16_000
                tone = 0.3 * np.sin(2 * np.pi * (pitch_hz + 10 * source) * t) + 0.02 * rng.standard_normal(
                    t.size
                )
                soundfile.write(folder / name / f"{name}-{number + 3}{source:03d}_{part}.wav", tone, 16_000)
    return folder


def settings(data: Path, output: Path, **changes: Any) -> Config:
    flags = {
        "data": data, "input": data.parent, "output": output, "model.backbone": "vggish-small",
        "model.checkpoint": "none", "train.epochs": 3, "train.batch-size": 16, "train.learning-rate": 1e-3,
        "model.dropout": 0.2, "train.jit": False, "evaluate.bootstrap": 50, "prepare.workers": 1,
    }  # fmt: skip
    given = {name.replace("__", ".").replace("_", "-"): value for name, value in changes.items()}
    return configure.load({**flags, **given}, {})


def run(settings: Config, interrupts: Interrupts | None = None, until: str = "report") -> int:
    journal = Journal(quiet=True)
    try:
        return job.run(settings, journal, interrupts or Interrupts(), until=until)
    finally:
        journal.close()


def record(output: Path) -> dict[str, Any]:
    found = read_json(output / "run.json")
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_data(tmp_path_factory.mktemp("input") / "data")
    (folder / "Apus_apus" / "cut.wav").write_bytes(b"RIFF")
    (folder.parent / "bird_id_map.json").write_text('{"Apus_apus": 41, "Bubo_bubo": 7}')
    return folder


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one whole run."""
    output = tmp_path_factory.mktemp("output")
    assert run(settings(data, output)) == 0
    return output


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    return Path(shutil.copytree(done, tmp_path / "output"))


def mtimes(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()
    }


def weights_of_the_best(output: Path) -> str:
    """The file of the weights that were kept, as `mtimes` names it."""
    best = read_json(output / "logs/1/history.json")["best_epoch"]
    return f"checkpoints/1/epoch-{best:04d}-step-000000/weights.safetensors"


def test_without_settings_what_goes_on_from_a_run_takes_its_settings(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", "--output", str(copy)]) == 0
    said = capsys.readouterr().out
    assert "no settings are given, so they are those of version 1" in said and "nothing to do" in said
    assert record(copy)["version"] == 1 and record(copy)["settings"]["train.epochs"] == 3


# ---- what it leaves -----------------------------------------------------------------------------


def test_run_json_says_how_it_went(done: Path) -> None:
    found = record(done)
    assert (found["status"], found["exit_code"], found["version"], found["stage"]) == ("done", 0, 1, "done")
    assert list(found["stages"]) == ["prepare", "train", "evaluate", "export", "report"]
    assert all(seconds > 0 for seconds in found["stages"].values())
    assert len(found["weights_sha256"]) == 64
    assert found["precision"] in ("float32", "mixed_bfloat16")
    assert found["settings"]["train.epochs"] == 3
    assert read_json(done / "logs" / "1" / "run.json") == found


def test_figures_are_there_beside_the_baseline(done: Path) -> None:
    figures = read_json(done / "reports" / "1" / "metrics.json")
    test = figures["test"]
    assert test["clip"]["accuracy"] > 0.9 > test["majority_baseline"] == pytest.approx(1 / 3)
    assert 0 <= test["clip"]["macro_ap"] <= 1
    assert test["n_recordings"] == 2 * test["n_sources"]
    assert figures["val"]["n_recordings"] > 0
    assert figures["weights_sha256"] == record(done)["weights_sha256"]


def test_everything_that_the_readme_names_is_there(done: Path) -> None:
    for name in (
        "reports/1/report.html", "reports/1/per_class.csv", "reports/1/predictions.csv", "reports/1/confusion.csv",
        "reports/1/problems.csv", "reports/1/config.yaml", "reports/1/classes.csv", "problems.csv", "split.csv",
        "reports/1/label_issues.csv", "reports/1/embedding_map.csv",
        "model/birdtune/1/saved_model.pb", "model/birdtune/1/labels.csv", "model/birdtune/1/train_id_list.pickle",
        "model/birdtune/1/model.json", "model/birdtune/1/README.md", "model/birdtune/1/croissant.json",
        "model/birdtune/1/split.csv", "logs/1/run.log", "logs/1/events.jsonl",
        "logs/1/history.json", "split.json",
    ):  # fmt: skip
        assert (done / name).is_file(), name
    assert list((done / "logs/1/tensorboard").glob("events.out.tfevents.*"))
    assert not list(done.rglob(".unfinished-*"))


def test_the_metrics_of_a_sagemaker_job_are_once_an_epoch_in_the_log(done: Path) -> None:
    job = read_json(Path(__file__).parents[1] / "deploy/sagemaker/training-job.json")
    epochs, log = read_json(done / "logs/1/history.json")["epochs"], (done / "logs/1/run.log").read_text("utf-8")
    figures = {"train:loss": "train_loss", "validation:loss": "val_loss", "validation:accuracy": "val_accuracy"}
    for metric in job["AlgorithmSpecification"]["MetricDefinitions"]:
        found = [float(text) for text in re.findall(metric["Regex"], log)]
        expected = [row[figures[metric["Name"]]] for row in epochs]
        assert found == pytest.approx(expected, abs=1e-3), metric


def test_files_found_are_files_used_and_problems_and_the_broken_file_is_named(done: Path) -> None:
    (problem,) = read_csv(done / "problems.csv")
    assert problem["recording"] == "Apus_apus/cut.wav" and problem["used"] == "no"
    assert len(read_csv(done / "split.csv")) + 1 == 3 * SOURCES * 2 + 1


def test_no_source_stands_on_two_sides(done: Path) -> None:
    sides: dict[str, set[str]] = {}
    for row in read_csv(done / "split.csv"):
        sides.setdefault(row["group"], set()).add(row["split"])
    assert len(sides) == 3 * SOURCES
    assert all(len(found) == 1 for found in sides.values())


def test_the_model_knows_its_columns_and_ids(done: Path) -> None:
    with (done / "model/birdtune/1/labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["column"], row["class"], row["external_id"]) for row in rows] == [
        ("0", "Apus_apus", "41"), ("1", "Bubo_bubo", "7"), ("2", "Corvus_corax", ""),
    ]  # fmt: skip
    figures, facts = read_json(done / "reports/1/metrics.json"), read_json(done / "model/birdtune/1/model.json")
    assert {key: facts[key] for key in ("calibration", "thresholds")} == {
        key: figures[key] for key in ("calibration", "thresholds")
    }
    assert [row["threshold"] for row in rows] == [
        str(row["threshold"]) for row in figures["thresholds"]["classes"]
    ]
    assert len(figures["false_alarms"]["noise"]) == 5
    assert pickle.loads((done / "model/birdtune/1/train_id_list.pickle").read_bytes()) == sorted(CLASSES)


def test_events_tell_the_stages_from_the_first(done: Path) -> None:
    events = [json.loads(line) for line in (done / "logs/1/events.jsonl").read_text().splitlines()]
    begun = [event["stage"] for event in events if event["event"] == "stage" and event["state"] == "begin"]
    assert begun == ["prepare", "train", "evaluate", "export", "report"]
    assert [event["epoch"] for event in events if event["event"] == "epoch"] == [1, 2, 3]
    assert events[-1]["event"] == "end" and events[-1]["exit_code"] == 0


# ---- what it skips ------------------------------------------------------------------------------


def test_unchanged_there_is_nothing_to_do(data: Path, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = mtimes(copy)
    job.run(settings(data, copy), Journal(), Interrupts())
    assert "nothing to do" in capsys.readouterr().out
    changed = {name for name, time in mtimes(copy).items() if before.get(name) != time}
    # The copy's shards have times of their own, and were read once more.
    changed = {name for name in changed if not name.endswith("whole.json")}
    assert changed <= {"run.json", "logs/1/run.json", "problems.csv", "split.csv", "sources.csv"}
    assert record(copy)["weights_sha256"] and record(copy)["exit_code"] == 0


def test_a_lost_report_is_made_again_and_nothing_else(data: Path, copy: Path) -> None:
    before = mtimes(copy)
    (copy / "reports/1/report.html").unlink()
    run(settings(data, copy))
    after = mtimes(copy)
    assert (copy / "reports/1/report.html").is_file()
    for name in (
        "model/birdtune/1/saved_model.pb",
        weights_of_the_best(copy),
        "reports/1/metrics.json",
    ):
        assert after[name] == before[name], name


def test_damaged_results_are_made_again_as_they_were(data: Path, copy: Path) -> None:
    names = ("reports/1/metrics.json", "reports/1/scores-test.npz", "model/birdtune/1/labels.csv",
        "logs/1/history.json")
    variables = "model/birdtune/1/variables/variables.data-00000-of-00001"
    before = {name: (copy / name).read_bytes() for name in names}
    for name in (*names, variables):
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2 :] = b"\0" * 20
        (copy / name).write_bytes(content)
    run(settings(data, copy))
    assert record(copy)["exit_code"] == 0 and record(copy)["version"] == 1
    after = {name: (copy / name).read_bytes() for name in names}
    assert {name for name in names if after[name] != before[name]} <= {"reports/1/scores-test.npz"}  # has its time
    assert (copy / variables).stat().st_size > 1000


def test_other_intervals_need_no_other_training(data: Path, copy: Path) -> None:
    before = mtimes(copy)
    run(settings(data, copy, evaluate__bootstrap=60), until="evaluate")
    after = mtimes(copy)
    assert after[weights_of_the_best(copy)] == before[weights_of_the_best(copy)]
    assert after["reports/1/metrics.json"] > before["reports/1/metrics.json"]
    assert record(copy)["version"] == 1


def test_deleted_checkpoints_are_no_reason_to_train_again(data: Path, copy: Path) -> None:
    shutil.rmtree(copy / "checkpoints")
    before = mtimes(copy)
    run(settings(data, copy))
    assert mtimes(copy)["model/birdtune/1/saved_model.pb"] == before["model/birdtune/1/saved_model.pb"]
    assert not (copy / "checkpoints").exists()


def test_labels_are_checked_before_the_warnings_which_speak_of_them(
    data: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"recording": "a", "class": "b", "suggested": "c", "split": "test"}
    issues = {"reason": "", "scored": 9, "rows": [row] * 3}
    monkeypatch.setattr(
        label_check, "check_labels", lambda *given: write_json(given[3] / label_check.FACTS_NAME, issues)
    )
    run(settings(data, copy, evaluate__bootstrap=60), until="evaluate")
    assert "label-issues" in [row["code"] for row in record(copy)["warnings"]]


@pytest.mark.parametrize("harm", ["gone", "flip"])
def test_lost_weights_that_are_needed_are_trained_again(
    data: Path, done: Path, copy: Path, harm: str
) -> None:
    victim = copy / weights_of_the_best(copy)
    if harm == "gone":
        shutil.rmtree(victim.parent)
    else:
        content = bytearray(victim.read_bytes())
        content[-1] ^= 1
        victim.write_bytes(content)
    run(settings(data, copy, evaluate__bootstrap=60), until="evaluate")
    assert record(copy)["exit_code"] == 0
    assert record(copy)["weights_sha256"] == record(done)["weights_sha256"]
    assert (copy / weights_of_the_best(copy)).is_file()


def test_where_no_checkpoint_is_whole_training_begins_from_the_first_weights(
    data: Path, done: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = []
    monkeypatch.setattr("birdtune.training.train.load_first_weights", lambda *arguments: first.append(arguments))
    for state in copy.glob("checkpoints/1/*/state.json"):
        state.write_text("{}")
    run(settings(data, copy, evaluate__bootstrap=60), until="evaluate")
    assert len(first) == 1
    assert record(copy)["weights_sha256"] == record(done)["weights_sha256"]


def test_another_split_seed_later_is_said_and_changes_nothing(
    data: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (copy / "split.csv").read_bytes()
    job.run(settings(data, copy, split__seed=7), Journal(), Interrupts(), until="prepare")
    assert "settings of the split have changed" in capsys.readouterr().out
    assert (copy / "split.csv").read_bytes() == before


def test_other_sources_need_another_evaluation_and_no_other_training(
    data: Path, copy: Path, tmp_path: Path
) -> None:
    file = tmp_path / "split.csv"
    shutil.copy(copy / "split.csv", file)
    assert run(settings(data, copy, split__file=str(file)), until="evaluate") == 0
    before = mtimes(copy)
    assert read_json(copy / "reports/1/metrics.json")["test"]["n_sources"] == 3
    assert run(settings(data, copy, split__file=str(file), split__group_regex=r"_(\d)")) == 0
    changed = {name for name, at in mtimes(copy).items() if before.get(name) != at}
    assert {"split.csv", "reports/1/metrics.json", "reports/1/report.html"} <= changed
    assert not any(name.startswith(("checkpoints", "logs/1/history", "cache/frames")) for name in changed)
    assert {row["group"] for row in read_csv(copy / "split.csv")} == {"0", "1"}
    assert read_json(copy / "reports/1/metrics.json")["test"]["n_sources"] == 2


def test_new_data_make_the_next_version_and_keep_the_split(data: Path, copy: Path, tmp_path: Path) -> None:
    more = Path(shutil.copytree(data, tmp_path / "more" / "data"))
    before = {row["recording"]: row["split"] for row in read_csv(copy / "split.csv")}
    write_data(more, range(SOURCES, SOURCES + 2))
    run(settings(more, copy, train__epochs=1), until="export")
    assert record(copy)["version"] == 2
    assert (copy / "model/birdtune/1/saved_model.pb").is_file() and (
        copy / "model/birdtune/2/saved_model.pb"
    ).is_file()
    after = {row["recording"]: row["split"] for row in read_csv(copy / "split.csv")}
    assert len(after) == len(before) + 3 * 2 * 2
    assert {name: after[name] for name in before} == before


def test_an_output_folder_of_an_earlier_birdtune_is_refused(data: Path, copy: Path) -> None:
    written = read_json(copy / "run.json")
    del written["format"]
    (copy / "run.json").write_text(json.dumps(written))
    before = mtimes(copy)
    with pytest.raises(InputError, match=r"run\.json: was written by an earlier birdtune"):
        run(settings(data, copy))
    assert mtimes(copy) == before


def test_stages_can_be_asked_for_one_by_one(data: Path, tmp_path: Path) -> None:
    chosen = settings(data, tmp_path, train__epochs=1)
    run(chosen, until="prepare")
    assert (tmp_path / "split.csv").is_file() and not (tmp_path / "checkpoints").exists()
    run(chosen, until="train")
    assert (tmp_path / "checkpoints/1").is_dir() and not (tmp_path / "reports").exists()
    run(chosen, until="evaluate")
    assert (tmp_path / "reports/1/metrics.json").is_file() and not (tmp_path / "model").exists()


# ---- where it goes on ---------------------------------------------------------------------------


def stopped_at_every(data: Path, output: Path, looks: Iterator[int]) -> int:
    """Run, stop at the given numbers of looks, run again, until it ends; returns how often it was stopped."""
    stops = 0
    for n in looks:
        try:
            run(settings(data, output), StopAt(n), until="evaluate")
        except Interrupted:
            stops += 1
            assert record(output)["status"] == "interrupted" and record(output)["exit_code"] == 143
            continue
        return stops
    raise AssertionError("it never ended")


def test_however_often_it_is_stopped_the_weights_are_the_same(data: Path, done: Path, tmp_path: Path) -> None:
    stops = stopped_at_every(data, tmp_path, iter([20, 48, 50, 52, 60, 10_000]))
    assert stops >= 3
    assert record(tmp_path)["weights_sha256"] == record(done)["weights_sha256"]
    assert record(tmp_path)["version"] == 1
    both = [read_json(folder / "reports/1/metrics.json")["test"] for folder in (done, tmp_path)]
    assert both[0] == both[1]


def test_a_stage_that_swallowed_a_stop_does_not_count_as_done(
    data: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from birdtune.pipeline import stages

    stop, write = StopAt(100_000), stages.report

    def stopped(job: Job) -> list[Path]:
        written = write(job)
        stop.left = 1
        return written

    (copy / "reports/1/report.html").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(stages, "report", stopped)
        with pytest.raises(Interrupted):
            run(settings(data, copy), stop)
    assert record(copy)["status"] == "interrupted"
    before = mtimes(copy)
    run(settings(data, copy))
    assert mtimes(copy)["reports/1/report.html"] > before["reports/1/report.html"]


def test_two_workers_and_another_place_make_the_same_weights(
    data: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_processes(monkeypatch)
    elsewhere = Path(shutil.copytree(data, tmp_path / "elsewhere" / "data"))
    run(settings(elsewhere, tmp_path / "out", prepare__workers=2), until="train")
    assert record(tmp_path / "out")["weights_sha256"] == record(done)["weights_sha256"]


def test_another_seed_makes_other_weights(data: Path, done: Path, tmp_path: Path) -> None:
    run(settings(data, tmp_path, train__seed=2), until="train")
    assert record(tmp_path)["weights_sha256"] != record(done)["weights_sha256"]


# ---- what stops it ------------------------------------------------------------------------------


def test_without_a_checkpoint_it_says_where_to_get_one(data: Path, tmp_path: Path) -> None:
    chosen = settings(data, tmp_path / "out", model__checkpoint=None)
    with pytest.raises(CheckpointError, match=r"vggish_model\.ckpt.*Download.*--model\.checkpoint none"):
        run(chosen)
    assert record(tmp_path / "out")["exit_code"] == 42


def test_scores_that_are_not_finite_stop_training_as_a_divergence(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that one last update made too large: the losses were finite, the scores are not."""
    infinite = np.full((64, 3), np.nan, np.float32), np.zeros((64, 128), np.float32)
    monkeypatch.setattr("birdtune.training.train.make_scorer", lambda classifier, embed: lambda features: infinite)
    with pytest.raises(DivergedError, match=r"scores of \d+ of \d+ windows are NaN.*--train\.learning-rate"):
        run(settings(data, tmp_path, train__epochs=1), until="train")
    found = record(tmp_path)
    assert (found["exit_code"], found["verdict"]) == (42, "none")
    assert [row["code"] for row in found["warnings"]] == ["diverged"]


def test_a_fault_is_in_run_json(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        run(settings(tmp_path / "input" / "data", tmp_path / "out"))
    found = record(tmp_path / "out")
    assert (found["status"], found["exit_code"], found["stage"]) == ("failed", 42, "prepare")
    assert "no such folder" in found["error"]


# ---- the model in use ---------------------------------------------------------------------------


def test_predictions_of_the_exported_model(data: Path, done: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "predictions.csv"
    owl, broken = data / "Bubo_bubo" / "Bubo_bubo-4000_0.wav", data / "Apus_apus" / "cut.wav"
    silent = tmp_path / "silent.wav"
    soundfile.write(silent, np.zeros(32_000), 16_000)
    given = [broken, owl, silent]
    assert prediction.predict(settings(data, done), None, given, out, None, Journal(), Interrupts()) == 0
    rows = read_csv(out)
    assert [(row["file"], row["class"], row["problem"].split(":")[0]) for row in rows] == [
        (str(broken), "", "not-audio"), (str(owl), "Bubo_bubo", ""), (str(silent), "", "silent"),
    ]  # fmt: skip
    said = capsys.readouterr().out
    assert "--window" not in said
    # Each file that was given is counted once.
    assert f"{out}: 3 windows of 1 files, 1 silent, 1 not used" in said
    assert f"  not used: {broken}: not-audio" in said and f"  silent: {silent}: silent" in said
    assert rows[2]["decision"] == "unknown"
    (tmp_path / "cut.wav").write_bytes(owl.read_bytes()[:50_000])
    given = [broken, tmp_path / "cut.wav", owl]
    assert prediction.predict(settings(data, done), None, given, out, None, Journal(), Interrupts(), window_s=0.96) == 0
    said = capsys.readouterr().out
    assert "windows of 2 files (1 of them in part), 1 not used" in said and "  used in part: " in said
    # Of what is silent the answer is known: nothing is wrong.
    assert prediction.predict(settings(data, done), None, [silent], out, None, Journal(), Interrupts()) == 0
    with pytest.raises(InputError, match="None of the files"):
        embedding.embed(settings(data, done), None, [silent], tmp_path / "x.npz", Journal(), Interrupts())


def test_detections_are_written_as_tables_and_a_second_command_goes_on_where_the_first_was(
    data: Path, done: Path, tmp_path: Path, capsys: Captured
) -> None:
    from birdtune.pipeline import detect, detection_model
    from birdtune.pipeline.detection_model import Asked

    parts = [np.zeros(16_000), soundfile.read(data / "Bubo_bubo/Bubo_bubo-4001_0.wav")[0], np.zeros(16_000)]
    night = tmp_path / "in/20240517_043000.wav"
    night.parent.mkdir()
    soundfile.write(night, np.concatenate(parts), 16_000)
    (tmp_path / "in/text.wav").write_text("no sound")
    out = tmp_path / "out"
    chosen = settings(data, done)

    def run(kind: str, *names: str, **more: Any) -> str:
        asked = Asked([tmp_path / name for name in names or ("in",)], out, kind, None, more.pop("species", None))
        wanted = chosen.model_copy(update={"detect": chosen.detect.model_copy(update={"unknown": True, **more})})
        assert detect.detect(wanted, asked, Journal(), Interrupts()) == 0
        return capsys.readouterr().out

    said = run("csv")
    assert f"not used: {tmp_path}/in/text.wav: not-audio" in said
    assert "in 1 recording (" in said and "; 1 not used" in said and "scored before" not in said
    rows = read_csv(out / "20240517_043000.birdtune.csv")
    # Others may be there as well: what so small a network makes of a call depends on the processor that trained it.
    surest = max(rows, key=lambda row: float(row["score"]))
    assert surest["class"] == "Bubo_bubo" and 0 < float(surest["start_s"]) < 2
    assert surest["start_time"].startswith("2024-05-17T04:30:0")
    # Another format and one table are made of what is known; what is new is scored.
    shutil.copy(data / "Corvus_corax/Corvus_corax-5001_1.wav", tmp_path / "in/new.wav")
    assert "1 were scored before" in run("audacity", one_table=True)
    lines = (out / "detections.txt").read_text().splitlines()
    assert {line.split("\t")[2] for line in lines} >= {"Bubo_bubo"}
    said = run("csv", beside=True)
    assert "2 were scored before" in said and (tmp_path / "in/new.birdtune.csv").exists()
    said = run("csv")
    assert "2 tables among the recordings are left alone" in said and "; 1 not used" in said
    said = run("csv", "in", "out")
    assert "8 tables among the recordings are left alone" in said and "; 1 not used" in said
    # Other settings are another answer.
    assert "scored before" not in run("csv", on=0.99)
    (tmp_path / "list.txt").write_text("Corvus corax\nDodo\n")
    said = run("csv", on=0.01, species=tmp_path / "list.txt")
    assert "detections of 1 of the classes only" in said and "1 name on it is no class of the model: Dodo" in said
    assert {row["class"] for row in read_csv(out / "20240517_043000.birdtune.csv")} <= {"Corvus_corax"}
    with pytest.raises(InputError, match="None of the files"):
        run("csv", "in/text.wav")
    # Where all is known, the model is not opened; what is not there needs none either.
    wanted = read_csv(out / "20240517_043000.birdtune.csv")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(detection_model, "load_tensorflow", None)
        names = ("in/20240517_043000.wav", "in/new.wav", "in/gone.wav")
        said = run("raven", *names, on=0.01, species=tmp_path / "list.txt")
        assert "2 were scored before; 1 not used" in said and ", 3 classes" in said
        _, *lines = (out / "20240517_043000.birdtune.selections.txt").read_text().splitlines()
        assert [line.split("\t")[3] for line in lines] == [f"{float(row['start_s']):.3f}" for row in wanted]
        assert {tuple(line.split("\t")[5:7]) for line in lines} == {("125", "7500")}
        (tmp_path / "list.txt").write_text("Apus apus\n")
        with pytest.raises(TypeError):  # another list is another answer
            run("raven", *names, on=0.01, species=tmp_path / "list.txt")
    with pytest.raises(SettingsError, match=r"detect\.off 0.9 is above"):
        run("csv", on=0.5, off=0.9)


def test_detections_in_a_recording_that_was_stopped_in_the_middle_are_those_of_one_that_was_not(
    data: Path, done: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    from birdtune.pipeline import detect
    from birdtune.pipeline.detection_model import Asked
    from birdtune.serving import detection_ledger

    call = soundfile.read(data / "Bubo_bubo/Bubo_bubo-4001_0.wav")[0]
    night = tmp_path / "night.wav"
    soundfile.write(night, np.concatenate([np.zeros(30 * 16_000), call, np.zeros(60 * 16_000), call]), 16_000)

    def run(out: Path) -> list[dict[str, str]]:
        config = settings(data, done)
        config = config.model_copy(update={"detect": config.detect.model_copy(update={"unknown": True})})
        assert detect.detect(config, Asked([night], out, "csv", None, None), Journal(), Interrupts()) == 0
        return read_csv(out / "night.birdtune.csv")

    straight = run(tmp_path / "straight")
    assert straight and "goes on" not in capsys.readouterr().out
    monkeypatch.setattr(detection_ledger, "_KEPT_EACH_S", 0.0)
    keep = detection_ledger.Ledger.keep_part
    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):

        def keep_and_stop(*given: Any) -> None:
            keep(*given)
            raise KeyboardInterrupt

        patched.setattr(detection_ledger.Ledger, "keep_part", keep_and_stop)
        run(tmp_path / "stopped")
    assert run(tmp_path / "stopped") == straight
    assert "night.wav: goes on after 128 windows" in capsys.readouterr().out
    assert not (tmp_path / "stopped" / detection_ledger.PART_NAME).exists()


def test_of_a_long_recording_the_windows_tell_what_is_where_and_whoever_asks_for_one_row_hears_of_them(
    data: Path, done: Path, tmp_path: Path, capsys: Captured
) -> None:
    parts = ["Bubo_bubo/Bubo_bubo-4001_0.wav", None, "Corvus_corax/Corvus_corax-5001_1.wav", None]
    sounds = [np.zeros(32_000) if part is None else soundfile.read(data / part)[0] for part in parts]
    soundfile.write(tmp_path / "long.wav", np.concatenate(sounds), 16_000)
    asked = (settings(data, done), None, [tmp_path / "long.wav"], tmp_path / "p.csv", None, Journal(), Interrupts())
    assert prediction.predict(*asked) == 0
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "--window" in line]
    assert said.startswith("1 file is more than 3 times longer") and "(median 2 s)" in said
    assert said.endswith("its row is about all of it. `--window 1` scores each window.")
    assert prediction.predict(*asked, window_s=2.0) == 0
    assert "--window" not in capsys.readouterr().out
    rows = read_csv(tmp_path / "p.csv")
    assert [(row["start_s"], row["end_s"], row["class"]) for row in rows] == [
        ("0.0", "2.0", "Bubo_bubo"), ("2.0", "4.0", ""), ("4.0", "6.0", "Corvus_corax"), ("6.0", "8.0", ""),
    ]  # fmt: skip
    assert rows[1]["decision"] == rows[3]["decision"] == "unknown"
    facts = read_json(done / "model/birdtune/1/model.json")
    assert facts["calibration_clip_s"] == 2.0
    older = tmp_path / "older"  # a model that was exported before that was noted
    shutil.copytree(done / "model/birdtune/1", older)
    (older / "model.json").write_text(json.dumps({key: facts[key] for key in facts if key != "calibration_clip_s"}))
    assert prediction.predict(asked[0], older, *asked[2:]) == 0
    assert "--window" not in capsys.readouterr().out


def test_embeddings_of_the_trained_model(data: Path, done: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.npz"
    chosen = settings(data, done, model__checkpoint="of the backbone, not of the model")
    embedding.embed(chosen, None, [data / "Bubo_bubo"], out, Journal(quiet=True), Interrupts())
    with np.load(out) as found:
        assert found["embeddings"].shape == (3 * SOURCES * 2, 128) and found["embeddings"].dtype == np.float32
        assert found["recording"].shape == found["start_s"].shape == (3 * SOURCES * 2,)
        np.testing.assert_allclose(np.unique(found["start_s"]), [0, 0.96, 1.03], atol=0.011)


def test_embeddings_of_a_checkpoint_of_our_own_are_those_of_its_model(
    data: Path, done: Path, tmp_path: Path
) -> None:
    chosen, files = settings(data, done), [data / "Apus_apus" / "Apus_apus-3000_0.wav"]
    own = (done / weights_of_the_best(done)).parent
    for source, out in ((None, "model.npz"), (own, "own.npz")):
        embedding.embed(chosen, source, files, tmp_path / out, Journal(quiet=True), Interrupts())
    with np.load(tmp_path / "model.npz") as model, np.load(tmp_path / "own.npz") as checkpoint:
        np.testing.assert_allclose(model["embeddings"], checkpoint["embeddings"], atol=1e-4)


@pytest.mark.parametrize("command", ["predict", "embed"])
def test_a_model_that_is_none_is_reported_by_the_name_of_its_flag(
    data: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "model.json").write_text("{}")
    for name in ("nowhere", "damaged"):
        given = [command, str(data), "--model", name, "--output", str(done), "--out", "x"]
        assert cli.main(given) == 42
        assert capsys.readouterr().err.startswith(f"birdtune: error: --model {name}: ")


def test_nothing_but_broken_files_is_an_error(data: Path, done: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="None of the files"):
        prediction.predict(
            settings(data, done),
            None,
            [data / "Apus_apus" / "cut.wav"],
            tmp_path / "p.csv",
            None,
            Journal(quiet=True),
            Interrupts(),
        )


def test_the_slim_export_of_a_run(data: Path, copy: Path) -> None:
    slim.export_slim_model(settings(data, copy), Journal(quiet=True))
    assert (copy / "slim/1/saved_model/1/saved_model.pb").is_file()
    assert (copy / "slim/1/model.ckpt.index").is_file()
    assert pickle.loads((copy / "slim/1/train_id_list.pickle").read_bytes()) == sorted(CLASSES)
