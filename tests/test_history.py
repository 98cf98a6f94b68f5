"""The page of all versions of an output folder."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from birdtune.errors import InputError
from birdtune.reporting import history
from birdtune.runtime.files import write_json


def add(
    output: Path, number: int, recordings: dict[str, int], *, accuracy: float = 0.8, ci: list[float] | None = None,
    promoted: bool = True, reason: str = "no gate was set", accepted: float | None = 0.9,
    gate: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    record: dict[str, Any] = {
        "format": 2, "done": {}, "results": {}, "stages": {}, "weights_sha256": None, "verdict": "good",
        "first_started": f"2026-0{number}-01T03:00:00Z", "finished": "2026-09-09T09:00:00Z",
    }  # fmt: skip
    rows = [{"class": name, "support": 2, "train_recordings": n - 4} for name, n in recordings.items()]
    clip = {"accuracy": accuracy, "accuracy_ci": ci, "macro_ap": accuracy - 0.1, "macro_ap_ci": ci}
    part = {"per_class": rows, "clip": clip, "ood": accepted and {"accepted": accepted}}
    decide(output, number, promoted=promoted, reason=reason)
    for folder in ("logs", "reports"):
        (output / folder / str(number)).mkdir(parents=True)
    write_json(output / "logs" / str(number) / "run.json", record)
    write_json(output / "reports" / str(number) / "metrics.json", {"val": part, "test": part, "gate": gate})


def decide(output: Path, number: int, *, promoted: bool, reason: str) -> None:
    """Put a model into service, or take it back, as a run does."""
    folder = output / "model/birdtune" / str(number)
    if promoted:
        folder.mkdir(parents=True)
        write_json(folder / "model.json", {})
    else:
        shutil.rmtree(folder, ignore_errors=True)
    history.note(output, number, promoted=promoted, reason=reason)


def words(output: Path) -> str:
    return " ".join(re.sub("<[^>]+>", " ", history.write_history(output).read_text("utf-8")).split())


def test_each_version_says_what_it_was_and_how_the_data_changed(tmp_path: Path) -> None:
    add(tmp_path, 1, {"robin": 50, "wren": 50}, ci=[0.7, 0.9])
    add(tmp_path, 2, {"robin": 50, "wren": 50, "dunnock": 25}, promoted=False, reason="worse", accepted=0.7)
    (tmp_path / "logs/3").mkdir()  # under way
    first, second = history.versions(tmp_path)
    assert first.scores["accuracy"] == (0.8, 0.7, 0.9) and first.shift is None and first.moved == ()
    assert second.recordings == {"robin": 50, "wren": 50, "dunnock": 25}
    assert second.moved[0] == ("dunnock", 0.0, 0.2) and second.shift == pytest.approx(0.2)
    assert second.unknown == pytest.approx(0.3) and second.scores["accuracy"] == (0.8, None, None)


def test_the_page_names_the_version_in_service_and_escapes_names(tmp_path: Path) -> None:
    add(tmp_path, 1, {"robin": 50, "wren": 50}, ci=[0.7, 0.9])
    gate = {"title": "version 1", "rejected": 0.25}
    add(tmp_path, 2, {"robin": 60, "<b>wren": 50}, promoted=False, reason="not better: score 0.800 → 0.790", gate=gate)
    text = words(tmp_path)
    page = (tmp_path / history.PAGE).read_text("utf-8")
    assert "Version 1 is in service, of 2 versions" in text
    assert "2 not promoted Not better: score 0.800 → 0.790. " in text
    assert "50.0 % of the recordings would have to change class" in text
    assert "Version 1, in service then, rejected 25.0 % of the test recordings that it has not learnt from" in text
    assert text.count("in service then") == 1
    assert "&lt;b&gt;wren 0.0 → 45.5 %" in page and "<b>wren" not in page
    assert 'href="reports/2/report.html"' in page


def test_a_version_that_was_taken_back_was_in_service_and_dates_are_those_of_training_and_decisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = iter(["2026-01-02", "2026-02-02", "2026-02-10", "2026-02-11", "2026-03-02"])
    monkeypatch.setattr(history, "clock", lambda: next(days))
    add(tmp_path, 1, {"robin": 50, "wren": 50})
    add(tmp_path, 2, {"robin": 50, "wren": 50}, promoted=False, reason="worse")
    decide(tmp_path, 2, promoted=False, reason="worse by another figure")  # a later start with the same decision
    decide(tmp_path, 2, promoted=True, reason="no gate was set")
    decide(tmp_path, 2, promoted=False, reason="still worse")
    add(tmp_path, 3, {"robin": 50, "wren": 50}, promoted=False, reason="-")
    text = words(tmp_path)
    assert "Version 1 is in service, of 3 versions" in text
    assert "2 2026-02-01 03:00 was good" in text and "1 2026-01-01 03:00 now good" in text
    assert "3 2026-03-01 03:00 never good" in text and "2026-09-09" not in text
    decisions = "2026-02-11 2 not promoted Still worse. 2026-02-10 2 promoted No gate was set. "
    assert decisions + "2026-02-02 2 not promoted Worse. 2026-01-02 1 promoted No gate was set." in text


def test_a_table_of_decisions_that_somebody_broke_is_refused(tmp_path: Path) -> None:
    (tmp_path / history.TABLE).write_text("date,version,promoted,reason\n2026-01-01,one,yes,x\n")
    with pytest.raises(InputError, match=r"history\.csv: expected the columns date, version, promoted, reason"):
        history.note(tmp_path, 2, promoted=True, reason="x")
