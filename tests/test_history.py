"""The page of all versions of an output folder."""

import re
from pathlib import Path
from typing import Any

import pytest

from birdtune.reporting import history
from birdtune.runtime.files import write_json


def add(
    output: Path, number: int, recordings: dict[str, int], *, accuracy: float = 0.8, ci: list[float] | None = None,
    promoted: bool | None = True, reason: str = "no gate was set", accepted: float | None = 0.9,
) -> None:  # fmt: skip
    record: dict[str, Any] = {
        "format": 2, "done": {}, "results": {}, "stages": {}, "weights_sha256": None, "promoted": promoted,
        "gate": {"reason": reason, "champion": None}, "verdict": "good", "finished": f"2026-0{number}-01T03:00:00Z",
    }  # fmt: skip
    rows = [{"class": name, "support": 2, "train_recordings": n - 4} for name, n in recordings.items()]
    clip = {"accuracy": accuracy, "accuracy_ci": ci, "macro_ap": accuracy - 0.1, "macro_ap_ci": ci}
    part = {"per_class": rows, "clip": clip, "ood": accepted and {"accepted": accepted}}
    for folder in ("logs", "reports"):
        (output / folder / str(number)).mkdir(parents=True)
    write_json(output / "logs" / str(number) / "run.json", record)
    write_json(output / "reports" / str(number) / "metrics.json", {"val": part, "test": part})


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
    add(tmp_path, 2, {"robin": 60, "<b>wren": 50}, promoted=False, reason="not better: score 0.800 → 0.790")
    text = " ".join(re.sub("<[^>]+>", " ", history.write_history(tmp_path).read_text("utf-8")).split())
    page = (tmp_path / history.PAGE).read_text("utf-8")
    assert "Version 1 is in service, of 2 versions" in text
    assert "Version 2, not promoted Not better: score 0.800 → 0.790. " in text
    assert "50.0 % of the recordings would have to change class" in text
    assert "&lt;b&gt;wren 0.0 → 45.5 %" in page and "<b>wren" not in page
    assert 'href="reports/2/report.html"' in page
