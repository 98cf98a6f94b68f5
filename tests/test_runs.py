"""The record of a run, its number, and what makes a run another one."""

import json
import re
import shutil
from pathlib import Path

import pytest

import birdtune
from birdtune.config import Config
from birdtune.errors import CheckpointError, InputError, RetryableError
from birdtune.runtime import fingerprints, runs
from birdtune.runtime.configure import load
from birdtune.runtime.fingerprints import checkpoint_digest, fingerprint, stage_fingerprint
from birdtune.runtime.log import Journal
from birdtune.runtime.runs import STAGES, Run


def config_of(output: Path, **settings: object) -> Config:
    flags = {name.replace("__", ".").replace("_", "-"): value for name, value in settings.items()}
    return load({"output": str(output), "model.checkpoint": "none", **flags}, {}, job_yaml=False)


def start(output: Path, fingerprint: str = "f") -> Run:
    run = Run(config_of(output), Journal(quiet=True))
    run.take_version(fingerprint)
    run.save()
    return run


def record(output: Path) -> dict[str, object]:
    found = json.loads((output / "run.json").read_text("utf-8"))
    assert isinstance(found, dict)
    return found


# ---- storage that refuses -----------------------------------------------------------------------


def test_room_is_kept_for_the_last_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(tmp_path)
    assert (tmp_path / ".reserve").stat().st_size == 65_536
    real, seen = runs.write_json, []

    def note(path: Path, value: object) -> None:
        seen.append((tmp_path / ".reserve").exists())
        real(path, value)

    monkeypatch.setattr(runs, "write_json", note)
    run.save()
    run.end("failed", 75, "the disk is full")
    assert seen == [True, True, False, False]
    assert record(tmp_path)["error"] == "the disk is full"


def test_the_last_word_is_written_even_where_the_log_cannot_be(tmp_path: Path) -> None:
    run = start(tmp_path)
    run.logs.mkdir(exist_ok=True)
    (run.logs / "events.jsonl").symlink_to("/dev/full")
    run.journal.write_to(run.logs)
    with pytest.raises(RetryableError, match=r"events\.jsonl: the disk is full"):
        run.end("failed", 42, "something else")
    run.journal.close()
    assert (record(tmp_path)["status"], record(tmp_path)["error"]) == ("failed", "something else")


def test_an_output_folder_that_was_removed_is_not_made_again(tmp_path: Path) -> None:
    run = start(tmp_path / "output")
    shutil.rmtree(tmp_path / "output")
    for act in (run.save, lambda: run.end("failed", 75)):
        with pytest.raises(RetryableError, match="output: is gone"):
            act()
    assert not (tmp_path / "output").exists()


def test_a_checkpoint_that_vanished_is_reported_before_it_is_counted(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not there any more"):
        checkpoint_digest(tmp_path / "gone.ckpt")


# ---- other ranks -------------------------------------------------------------------------------


def test_a_rank_above_0_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(tmp_path / "output")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}')
    run = Run(config_of(tmp_path / "output"), Journal(quiet=True))
    assert run.take_version("g") is False and run.version == 2
    run.journal.write_to(run.logs)
    with run.stage("train"):
        run.save()
    run.done("train", "t", [])
    run.end("done", 0)
    runs.clear_unfinished(tmp_path / "output")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


# ---- numbers ------------------------------------------------------------------------------------


def test_the_first_run_is_number_one(tmp_path: Path) -> None:
    run = Run(config_of(tmp_path), Journal(quiet=True))
    assert run.take_version("f") is False
    assert run.version == 1
    assert run.logs == tmp_path / "logs" / "1"
    assert run.checkpoints == tmp_path / "checkpoints" / "1"
    assert run.reports == tmp_path / "reports" / "1"
    assert run.model == tmp_path / "model" / "birdtune" / "1"


def test_a_damaged_record_is_stood_in_for_by_the_last_start_s(tmp_path: Path) -> None:
    start(tmp_path)
    (tmp_path / "logs/1/run.json").write_text("{")
    run = Run(config_of(tmp_path), Journal(quiet=True))
    assert run.take_version("f") is True
    assert run.version == 1


def test_a_version_that_cannot_be_gone_on_with_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start(tmp_path)
    for name in ("logs/1/run.json", "run.json"):
        (tmp_path / name).unlink()
    run = Run(config_of(tmp_path), Journal())
    assert run.take_version("f") is False
    assert run.version == 2
    assert "logs/1/run.json is missing or damaged" in capsys.readouterr().out


def test_the_same_data_and_settings_go_on_under_the_same_number(tmp_path: Path) -> None:
    start(tmp_path)
    run = Run(config_of(tmp_path), Journal(quiet=True))
    assert run.take_version("f") is True
    assert run.version == 1


def test_changed_data_or_settings_give_the_next_number(tmp_path: Path) -> None:
    for number, print_of in enumerate(["a", "b", "a"], start=1):
        assert start(tmp_path, print_of).version == number
    assert runs.versions(tmp_path) == [1, 2, 3]


def test_numbers_are_counted_not_spelt(tmp_path: Path) -> None:
    for name in ("2", "10", "x", ".unfinished-11", "\u0663"):
        (tmp_path / "logs" / name).mkdir(parents=True)
    assert runs.versions(tmp_path) == [2, 10]
    assert start(tmp_path).version == 11


@pytest.mark.parametrize("left", ["checkpoints/3", "reports/3", "model/birdtune/3"])
def test_a_number_under_which_anything_is_kept_is_not_lent_to_another_run(tmp_path: Path, left: str) -> None:
    (tmp_path / left).mkdir(parents=True)
    run = Run(config_of(tmp_path), Journal(quiet=True))
    assert run.take_version("f") is False
    assert run.version == 4


@pytest.mark.parametrize(
    ("written", "found"),
    [
        (".*", ""), (".*", "[]"), (".*", "{"), (".*", "null"), ('"done": {}', '"done": []'),
        ('"stages": {}', '"stages": {"train": "long"}'), ('"results": {}', '"results": {}, "precision": "float8"'),
        ('"fingerprint": "f"', '"fingerprint": {"f": 1}'),
    ],
)  # fmt: skip
def test_a_damaged_record_is_not_gone_on_with(tmp_path: Path, written: str, found: str) -> None:
    start(tmp_path)
    path = tmp_path / "logs/1/run.json"
    whole = path.read_text()
    path.write_text(re.sub(written, found, whole, count=1, flags=re.DOTALL))
    assert path.read_text() != whole
    (tmp_path / "run.json").unlink()  # which would stand in for it
    run = Run(config_of(tmp_path), Journal(quiet=True))
    assert run.take_version("f") is False
    assert run.version == 2


def test_a_job_that_is_killed_as_soon_as_it_has_its_number_goes_on_under_it(tmp_path: Path) -> None:
    Run(config_of(tmp_path), Journal(quiet=True)).take_version("f")
    (tmp_path / "logs/.unfinished-2").mkdir()  # and the one before that, which had not come so far
    run = Run(config_of(tmp_path), Journal(quiet=True))
    assert run.take_version("f") is True
    assert run.version == 1


def test_what_killed_jobs_left_half_made_is_removed_and_nothing_else(tmp_path: Path) -> None:
    places = (".", "cache", "cache/vggish", "checkpoints/1", "logs", "logs/1", "model/birdtune", "reports/1", "slim")
    for place in places:
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / ".unfinished-folder").mkdir()
        (tmp_path / place / ".unfinished-folder/file").touch()
        (tmp_path / place / ".unfinished-file").touch()
        (tmp_path / place / "finished").touch()
    somebody = tmp_path / "data/Apus_apus/.unfinished-song.wav"
    somebody.parent.mkdir(parents=True)
    somebody.touch()
    (tmp_path / ".unfinished-link").symlink_to(somebody.parent)
    runs.clear_unfinished(tmp_path)
    assert list(tmp_path.rglob(".unfinished*")) == [somebody]
    assert all((tmp_path / place / "finished").exists() for place in places)


def test_an_output_without_runs_has_no_numbers(tmp_path: Path) -> None:
    assert runs.versions(tmp_path / "nowhere") == []
    (tmp_path / "logs").touch()
    assert runs.versions(tmp_path) == []


# ---- the record ---------------------------------------------------------------------------------


def test_the_record_holds_what_schedulers_read_from_the_beginning(tmp_path: Path) -> None:
    run = Run(config_of(tmp_path), Journal(quiet=True))
    run.save()
    found = record(tmp_path)
    assert found["status"] == "running"
    assert found["birdtune"] == birdtune.__version__
    assert {"version", "exit_code", "stages", "weights_sha256", "stage", "started", "finished"} <= set(found)
    assert found["settings"] == run.config.flat()
    assert "numpy" in found["packages"]  # type: ignore[operator]


def test_the_record_lies_in_the_output_and_beside_the_logs(tmp_path: Path) -> None:
    start(tmp_path)
    assert record(tmp_path) == json.loads((tmp_path / "logs/1/run.json").read_text("utf-8"))
    assert record(tmp_path)["version"] == 1


@pytest.mark.parametrize(
    ("status", "code", "stage"), [("done", 0, "done"), ("failed", 42, "train"), ("interrupted", 143, "train")]
)
def test_the_last_word_is_status_code_and_where_it_stood(
    tmp_path: Path, status: str, code: int, stage: str
) -> None:
    run = start(tmp_path)
    with run.stage("train"):
        pass
    run.end(status, code, None if code == 0 else "why")
    found = record(tmp_path)
    assert (found["status"], found["exit_code"], found["stage"]) == (status, code, stage)
    assert found["error"] == (None if code == 0 else "why")
    assert str(found["finished"]) >= str(found["started"])


def test_the_outcome_is_a_decision_until_a_start_has_ended_with_it_and_unchanged_from_then_on(tmp_path: Path) -> None:
    def outcome(promoted: bool | None, status: str = "done", code: int = 0) -> object:
        run = start(tmp_path)
        assert record(tmp_path)["outcome"] is None, "it is not known while the run works"
        run.record["promoted"] = promoted
        run.end(status, code)
        return record(tmp_path)["outcome"]

    assert outcome(None) is None  # `train`: there is no model yet
    assert outcome(True, "failed", 75) == "failed"  # it was exported, and one of its places could not be written
    assert [outcome(True), outcome(True), outcome(False), outcome(False)] == [
        "promoted", "unchanged", "not-promoted", "unchanged",
    ]  # fmt: skip
    assert outcome(False, "interrupted", 143) == "interrupted"


def test_a_stage_under_way_can_be_read_from_outside(tmp_path: Path) -> None:
    run = start(tmp_path)
    with run.stage("export"):
        assert (record(tmp_path)["stage"], record(tmp_path)["status"]) == ("export", "running")


def test_seconds_of_a_stage_add_up_over_restarts_even_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([1.0, 3.0, 10.0, 14.0, 200.0, 201.5, 300.0, 302.0])
    monkeypatch.setattr("birdtune.runtime.runs.time.monotonic", lambda: next(clock))
    first = Run(config_of(tmp_path), Journal(quiet=True))
    with first.stage("prepare"):  # 1 to 3, before it has a number
        pass
    first.take_version("f")
    with pytest.raises(RuntimeError), first.stage("train"):  # 10 to 14
        raise RuntimeError
    first.save()
    second = Run(config_of(tmp_path), Journal(quiet=True))
    with second.stage("prepare"):  # 200 to 201.5
        pass
    second.take_version("f")
    with second.stage("train"):  # 300 to 302
        pass
    assert second.record["stages"] == {"prepare": 3.5, "train": 6.0}


def test_what_was_done_before_is_known_when_going_on(tmp_path: Path) -> None:
    first = start(tmp_path)
    warning = {"code": "x", "severity": "strong", "text": "t", "advice": "a"}
    first.record.update(weights_sha256="w", precision="float32", verdict="poor", warnings=[warning])
    first.done("train", "t", [])
    second = start(tmp_path)
    assert second.record["done"] == {"train": "t"}
    assert (second.record["weights_sha256"], second.record["precision"]) == ("w", "float32")
    assert (second.record["verdict"], second.record["warnings"]) == ("poor", [warning])
    assert second.record["first_started"] == first.record["started"]


def test_another_run_begins_with_a_clean_record(tmp_path: Path) -> None:
    start(tmp_path, "a").done("train", "t", [])
    other = start(tmp_path, "b")
    assert (other.record["done"], other.record["stages"], other.record["weights_sha256"]) == ({}, {}, None)
    assert (other.record["verdict"], other.record["warnings"]) == (None, [])


def test_a_stage_is_current_only_with_its_inputs_and_its_results(tmp_path: Path) -> None:
    run = start(tmp_path)
    result = tmp_path / "metrics.json"
    assert not run.is_current("evaluate", "e")
    run.done("evaluate", "e", [result])
    assert not run.is_current("evaluate", "e"), "nothing came of it"
    result.touch()
    run.done("evaluate", "e", [result, tmp_path / "not-there"])
    assert run.is_current("evaluate", "e")
    assert not run.is_current("evaluate", "other")
    result.unlink()
    assert not run.is_current("evaluate", "e")


@pytest.mark.parametrize("harmed", ["metrics.json", "model/1/inside/weights"])
def test_a_result_that_was_changed_is_not_current(tmp_path: Path, harmed: str) -> None:
    run = start(tmp_path)
    (tmp_path / "model/1/inside").mkdir(parents=True)
    for name in ("metrics.json", "model/1/inside/weights", "model/1/labels.csv"):
        (tmp_path / name).write_text("1")
    run.done("evaluate", "e", [tmp_path / "metrics.json", tmp_path / "model/1"])
    assert start(tmp_path).is_current("evaluate", "e")
    (tmp_path / "model/1/warm-up").write_text("what somebody puts beside it is theirs")
    assert run.is_current("evaluate", "e")
    (tmp_path / harmed).write_text("2")
    assert not run.is_current("evaluate", "e")


def test_the_newest_trained_run_is_not_the_newest_run(tmp_path: Path) -> None:
    first = start(tmp_path, "a")
    first.record["classes"] = ["A", "B"]
    first.done("train", "t", [])
    start(tmp_path, "b")
    version, found = runs.newest_trained(tmp_path)
    assert (version, found["fingerprint"]) == (1, "a")


def test_without_a_trained_run_it_is_said_what_to_do(tmp_path: Path) -> None:
    start(tmp_path)
    with pytest.raises(InputError, match=f"^{tmp_path}: no trained model.*Run `./entrypoint.sh run` first"):
        runs.newest_trained(tmp_path)


# ---- fingerprints -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("train__epochs", 7),
        ("train__seed", 7),
        ("train__learning_rate", 0.5),
        ("train__precision", "float32"),
        ("model__backbone", "vggish-small"),
        ("model__freeze", "conv"),
        ("model__head", "mlp"),
        ("model__output", "sigmoid"),
        ("audio__resampler", "resampy"),
    ],
)
def test_what_changes_the_weights_makes_another_run(tmp_path: Path, setting: str, value: object) -> None:
    plain = fingerprint(config_of(tmp_path), "data", None)
    assert fingerprint(config_of(tmp_path, **{setting: value}), "data", None) != plain


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("train__keep_checkpoints", 7),
        ("train__keep_weights", "every-epoch"),
        ("train__checkpoint_minutes", 1),
        ("prepare__workers", 3),
        ("evaluate__bootstrap", 50),
        ("export__name", "other"),
        # These decide which recordings are used, which the data's digest says.
        ("audio__max_hours", 3),
        ("audio__short_clips", "skip"),
        ("split__seed", 3),
        ("split__test_fraction", 0.3),
    ],
)
def test_what_leaves_the_weights_alone_leaves_the_run_alone(tmp_path: Path, setting: str, value: object) -> None:
    plain = fingerprint(config_of(tmp_path), "data", None)
    assert fingerprint(config_of(tmp_path, **{setting: value}), "data", None) == plain


def test_the_place_of_input_and_output_is_nothing_to_the_run(tmp_path: Path) -> None:
    one = fingerprint(config_of(tmp_path, input="a"), "data", None)
    assert fingerprint(config_of(tmp_path / "b", input="c"), "data", None) == one


def test_other_data_first_weights_or_code_make_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path)
    plain = fingerprint(config, "data", None)
    assert fingerprint(config, "more data", None) != plain
    checkpoint = tmp_path / "model.ckpt"
    checkpoint.write_bytes(b"1")
    first = fingerprint(config, "data", checkpoint)
    assert first != plain
    checkpoint.write_bytes(b"2")
    assert fingerprint(config, "data", checkpoint) != first
    monkeypatch.setattr(birdtune, "__version__", "9.9.9")
    assert fingerprint(config, "data", None) != plain


def test_a_checkpoint_is_known_by_content_wherever_it_lies(tmp_path: Path) -> None:
    for name in ("a", "b [2024]"):
        folder = tmp_path / name
        folder.mkdir()
        for ending in ("index", "data-00000-of-00001"):
            (folder / f"model[1].ckpt.{ending}").write_text(ending)
    digests = {
        checkpoint_digest(tmp_path / name / prefix) for name in ("a", "b [2024]") for prefix in ("model[1].ckpt", ".")
    }
    # The prefix and the folder stand for the same files, in the same order.
    assert len(digests) == 1
    (tmp_path / "a" / "model[1].ckpt.data-00000-of-00001").write_text("other")
    assert checkpoint_digest(tmp_path / "a" / "model[1].ckpt") not in digests


def test_a_checkpoint_that_vanishes_is_no_defect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "checkpoint_files", lambda path: [path])
    with pytest.raises(CheckpointError, match="gone: cannot be read"):
        checkpoint_digest(tmp_path / "gone")


def test_a_later_stage_minds_what_came_before_and_its_own_settings_alone(tmp_path: Path) -> None:
    def of(before: str = "t", *more: object, **settings: object) -> str:
        return stage_fingerprint(before, config_of(tmp_path, **settings), "evaluate", *more)

    assert of() == of(train__epochs=3) == of(export__name="x")
    assert len({of(), of("other"), of("t", "more"), of(evaluate__bootstrap=50), of(ood__target_recall=0.5)}) == 5


def test_the_stages_stand_in_the_order_they_are_done() -> None:
    assert STAGES == ("prepare", "train", "evaluate", "export", "report")
