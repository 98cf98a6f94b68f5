"""The gate: a model goes into service only if it is better than the one that is there."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_base_model import StopOnce, settings, write_data
from test_job import record
from test_job import run as run_job

from birdtune.config import Config
from birdtune.errors import InputError, Interrupted
from birdtune.pipeline import comparison, gate
from birdtune.runtime import configure
from birdtune.runtime.files import read_csv, read_json, write_json
from birdtune.runtime.signals import Interrupts

pytestmark = pytest.mark.usefixtures("in_one_process")

OLD = {"Bubo_bubo": 1800, "Corvus_corax": 3600, "Dryocopus_martius": 5200}
NEW = {"Apus_apus": 900}
SOURCES = range(12)
# Nothing moves: as good as guessing.
UNTRAINED = {"train__learning_rate": 1e-12, "train__epochs": 1}


def run(
    data: Path, output: Path, interrupts: Interrupts | None = None, *, until: str = "export", **changes: Any
) -> None:
    given = {"split__test_fraction": 0.3, "evaluate__bootstrap": 200, "train__epochs": 3, **changes}
    assert run_job(settings(data, output, **given), interrupts, until) == 0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("old") / "data", OLD, SOURCES)


@pytest.fixture(scope="module")
def good(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder whose version 1 is good."""
    output = tmp_path_factory.mktemp("good") / "output"
    run(data, output)
    return output


# ---- whole runs ----------------------------------------------------------------------------------


def test_a_first_model_is_promoted_unless_it_is_poor(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path, **UNTRAINED, gate__champion="latest")
    found = record(tmp_path)
    assert found["promoted"] is False and found["gate"]["champion"] is None
    assert found["gate"]["reason"].startswith("the verdict is poor (") and found["verdict"] == "poor"
    assert (tmp_path / "candidates/1/saved_model.pb").is_file() and not (tmp_path / "model").exists()
    run(data, tmp_path, **UNTRAINED)  # somebody wants it all the same
    assert record(tmp_path)["promoted"] is True and record(tmp_path)["outcome"] == "promoted"
    assert (tmp_path / "model/birdtune/1/saved_model.pb").is_file() and not (tmp_path / "candidates/1").exists()


def test_a_better_model_is_promoted_and_a_new_species_does_not_count_against_the_champion(
    data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    run(data, output, **UNTRAINED, audio__band_limit=6000)  # another front end than the challenger's
    assert record(output)["promoted"] is True  # without a gate, every model is
    more = Path(shutil.copytree(data, tmp_path / "more" / "data"))
    write_data(more, NEW, SOURCES)
    with pytest.raises(Interrupted):  # killed when it is in its place, and that is not recorded yet
        run(more, output, StopOnce(output, "model/birdtune/2/model.json"), gate__champion="latest")
    run(more, output, gate__champion="latest", until="report")
    found, row = record(output), read_json(output / "reports/2/metrics.json")["gate"]
    assert found["promoted"] is True and found["gate"]["reason"].startswith("better than version 1: score 0.")
    assert (output / "model/birdtune/2/saved_model.pb").is_file() and not (output / "candidates/2").exists()
    tested = {r["class"] for r in row["comparison"]["per_class"]}
    assert tested == set(OLD) and row["comparison"]["score"]["difference_ci"][0] > 0
    assert "Promoted" in (output / "reports/2/report.html").read_text()
    assert (output / "logs/2/run.log").read_text().splitlines()[-1].split(" ", 1)[1].startswith("promoted: better")


def test_a_worse_model_becomes_a_candidate_also_when_killed_before_that_is_recorded(
    data: Path, good: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(good, tmp_path / "output"))
    chosen = {**UNTRAINED, "gate__champion": "latest"}
    with pytest.raises(Interrupted):
        run(data, output, StopOnce(output, "candidates/2/model.json"), **chosen)
    assert "export" not in read_json(output / "logs/2/run.json")["done"]
    weights = record(output)["weights_sha256"]
    run(data, output, **chosen, until="report")
    found = record(output)
    assert (found["promoted"], found["exit_code"], found["weights_sha256"]) == (False, 0, weights)
    assert found["gate"]["reason"].startswith("worse than version 1: score ")
    assert found["gate"]["champion"]["version"] == 1
    assert (output / "candidates/2/saved_model.pb").is_file() and not (output / "model/birdtune/2").exists()
    assert not list(output.rglob(".unfinished-*"))
    assert "Not promoted" in (output / "reports/2/report.html").read_text()
    assert "not promoted: worse than version 1" in (output / "logs/2/run.log").read_text().splitlines()[-1]
    assert found["outcome"] == "not-promoted"
    before = (output / "candidates/2/model.json").stat().st_mtime_ns
    run(data, output, **chosen)  # nothing to do
    assert record(output)["outcome"] == "unchanged"
    assert (output / "candidates/2/model.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"--init-from 2: .*Version 2 was not promoted"):
        run(data, output, init_from=2)
    run(data, output, **UNTRAINED)  # the same without a gate: put into service, and nothing trained
    assert record(output)["outcome"] == "promoted"
    assert record(output)["promoted"] is True and record(output)["weights_sha256"] == weights
    assert (output / "model/birdtune/2/saved_model.pb").is_file() and not (output / "candidates/2").exists()


def test_without_shared_test_recordings_it_is_not_promoted_and_says_why(
    data: Path, good: Path, tmp_path: Path
) -> None:
    alone = Path(shutil.copytree(good / "model/birdtune/1", tmp_path / "served" / "1"))
    output = tmp_path / "output"
    run(data, output, gate__champion=str(alone), train__epochs=1)
    found = record(output)
    assert found["promoted"] is False and "the logs of its run are not beside it" in found["gate"]["reason"]
    assert (output / "candidates/1/saved_model.pb").is_file() and not (output / "model").exists()


def test_a_champion_that_is_not_there_is_refused_before_anything_is_computed(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--gate\.champion 3: there is no exported model"):
        run(data, tmp_path, gate__champion=3)
    with pytest.raises(InputError, match=r"--gate\.champion .*there is no model\.json"):
        run(data, tmp_path, gate__champion=str(tmp_path))
    assert not (tmp_path / "cache").exists()


def test_no_model_is_its_own_champion(data: Path, good: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(good, tmp_path / "output"))
    with pytest.raises(InputError, match=r"--gate\.champion 1: version 1 is this run's own model"):
        run(data, output, gate__champion=1)


def test_recordings_that_the_champion_has_learnt_from_do_not_test_it(
    data: Path, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = comparison.served_scores

    def with_ood(*arguments: Any) -> Any:  # models of so few recordings have no OOD score
        found = scored(*arguments)
        assert found is not None
        return replace(found, ood_score=np.arange(len(found.recordings), dtype=np.float32))

    monkeypatch.setattr(comparison, "served_scores", with_ood)
    output = Path(shutil.copytree(good, tmp_path / "output"))
    (output / "split.csv").unlink()
    run(data, output, split__seed=8, gate__champion="latest", gate__margin=0.5, train__epochs=1)
    now = {row["recording"] for row in read_csv(output / "split.csv") if row["split"] == "test"}
    learnt = {row["recording"] for row in read_csv(output / "logs/1/split.csv") if row["split"] != "test"}
    row = read_json(output / "reports/2/metrics.json")["gate"]
    assert row["left_out"] == len(now & learnt) > 0
    assert row["comparison"]["n_recordings"] == len(now - learnt) > 0
    assert row["rejected"] == pytest.approx(1 - 2 / len(now - learnt))  # scores of 0 and 1 are not above the limit


# ---- the rule ------------------------------------------------------------------------------------


def decision(
    tmp_path: Path, low: float, high: float, margin: float = 0.0, warnings: Any = (), **changes: Any
) -> gate.Decision:
    middle = (low + high) / 2
    score = {"before": 0.5, "after": 0.5 + middle, "difference": middle, "difference_ci": [low, high]}
    row = {
        "version": 1, "folder": None, "weights_sha256": "0" * 64, "title": "version 1", "lost_classes": [],
        "strong": ["shortcut"], "reason": "",
        "comparison": {"score": score, "n_recordings": 60, "n_sources": 30, "per_class": []}, **changes,
    }  # fmt: skip
    write_json(tmp_path / "metrics.json", {"gate": row, "warnings": list(warnings)})
    flags = {"gate.champion": "1", "gate.margin": margin, "data": tmp_path / "data", "output": tmp_path / "output"}
    return gate.decide(configure.load(flags, {}), tmp_path, {"promoted": None, "verdict": "fair"})


@pytest.mark.parametrize(
    ("low", "high", "margin", "promoted", "reason"),
    [
        (0.01, 0.2, 0.0, True, "better than version 1"),
        (0.0, 0.2, 0.0, False, "not significantly better than version 1: score"),
        (-0.01, 0.2, 0.02, True, r"no worse by 0\.02 than version 1"),
        (-0.03, 0.2, 0.02, False, r"neither significantly better than version 1 nor surely less than 0\.02 worse"),
        (-0.2, -0.01, 0.0, False, "worse than version 1"),
        (-0.2, -0.1, 0.05, False, "worse than version 1"),
    ],
)
def test_the_lower_end_of_the_interval_decides(
    tmp_path: Path, low: float, high: float, margin: float, promoted: bool, reason: str
) -> None:
    found = decision(tmp_path, low, high, margin)
    assert found.promoted is promoted
    assert re.match(reason, found.reason)


def test_what_keeps_a_better_model_out_of_service(tmp_path: Path) -> None:
    lost = decision(tmp_path, 0.1, 0.2, lost_classes=["Bubo_bubo"])
    assert not lost.promoted and lost.reason == "it does not know 1 class of version 1: Bubo_bubo"
    warnings = [{"code": code, "severity": "strong"} for code in ("shortcut", "collapsed")]
    warned = decision(tmp_path, 0.1, 0.2, warnings=warnings)
    assert not warned.promoted and warned.reason == "strong warnings that version 1 did not have: collapsed"
    none = decision(tmp_path, 0.1, 0.2, comparison=None, reason="there are no test recordings of its classes")
    assert not none.promoted and none.reason == "there are no test recordings of its classes"


@pytest.mark.parametrize(("margin", "promoted"), [(0.0, False), (0.1, False), (0.3, True)])
def test_a_class_that_got_worse_beyond_chance_counts_beyond_the_margin(
    tmp_path: Path, margin: float, promoted: bool
) -> None:
    per_class = [{"class": "Bubo_bubo", "change": "worse", "recall": {"difference": -0.2}}]
    score = {"before": 0.5, "after": 0.6, "difference": 0.1, "difference_ci": [0.05, 0.15]}
    comparison = {"score": score, "n_recordings": 60, "n_sources": 30, "per_class": per_class}
    found = decision(tmp_path, 0, 0, margin, comparison=comparison)
    assert found.promoted is promoted and promoted == ("Bubo_bubo" not in found.reason)


def test_a_single_source_recording_decides_nothing(tmp_path: Path) -> None:
    score = {"before": 0.5, "after": 1.0, "difference": 0.5, "difference_ci": None}
    comparison = {"score": score, "n_recordings": 2, "n_sources": 1, "per_class": []}
    found = decision(tmp_path, 0, 0, comparison=comparison)
    assert not found.promoted and "come from a single source recording" in found.reason


def test_without_a_gate_every_model_is_promoted(tmp_path: Path) -> None:
    assert gate.decide(Config(), tmp_path, {"promoted": None, "verdict": "poor"}).promoted


def test_the_verdict_decides_where_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    warnings = [{"code": "chance", "severity": "strong"}, {"code": "few", "severity": "weak"}]
    write_json(tmp_path / "metrics.json", {"gate": None, "warnings": warnings})
    config = configure.load({"gate.champion": "latest"}, {})
    found = gate.decide(config, tmp_path, {"promoted": None, "verdict": "poor"})
    assert not found.promoted and found.champion is None
    assert found.reason == "the verdict is poor (chance), and there is no model in service to compare it with"
    assert gate.decide(config, tmp_path, {"promoted": None, "verdict": "fair"}) == gate.Decision(
        True, "there was no model in service yet"
    )


def test_a_schedule_takes_back_nothing_that_somebody_promoted(data: Path, good: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(good, tmp_path / "output"))
    run(data, output, **UNTRAINED)  # by leaving out the gate, though it is worse
    model = output / "model/birdtune/2/model.json"
    before = model.stat().st_mtime_ns
    for margin in (0.0, 0.02):
        run(data, output, **UNTRAINED, gate__champion="latest", gate__margin=margin)
        found = record(output)
        assert (found["promoted"], found["outcome"], found["gate"]["champion"]) == (True, "unchanged", None)
        assert model.stat().st_mtime_ns == before
    run(data, output, **UNTRAINED, gate__champion=1)  # who names the champion asks for a decision
    assert record(output)["promoted"] is False and record(output)["outcome"] == "not-promoted"


def test_a_better_model_stays_when_it_is_asked_with_another_margin(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    run(data, output, **UNTRAINED)
    run(data, output, gate__champion="latest", gate__margin=0.9)
    assert record(output)["gate"]["champion"]["version"] == 1
    metrics = (output / "reports/2/metrics.json").stat().st_mtime_ns
    run(data, output, gate__champion="latest")
    assert record(output)["outcome"] == "unchanged" and record(output)["gate"]["champion"]["version"] == 1
    assert (output / "reports/2/metrics.json").stat().st_mtime_ns == metrics
