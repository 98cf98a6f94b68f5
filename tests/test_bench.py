"""The measurements: that they measure what they say, and that RESULTS.md holds nothing but results.

How fast anything is, no test asserts: it depends on the machine and on who else uses it.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bench import __main__ as command
from bench import harness, learning, results
from bench.harness import ON_REAL_SOUND, PARTS, Child, Line, Measure, Result, Settings, interleaved, judged

ROOT = Path(__file__).parents[1]


def a_result(**changes: object) -> dict[str, object]:
    lines = [vars(Line("sound", "1 ms", "theirs: 2 ms", 2.0, "≥ 1×", True, "a | b"))]
    return {
        "part": "frames", "lines": lines, "details": {}, "command": "./entrypoint.sh bench frames", "seconds": 1.0,
        "date": "2026-01-31", "quick": False, "machine": "a machine", "versions": {"python": "3.11.2"}, "commit": "abc",
    } | changes  # fmt: skip


def count_turns(limit: int) -> object:
    """For a Child: how many cores and threads it has, and which turn this is."""
    turns = iter(range(limit))
    return lambda: [len(os.sched_getaffinity(0)), os.environ.get("OMP_NUM_THREADS"), next(turns)]


def test_candidates_take_turns_and_each_is_first_as_often_as_the_others() -> None:
    calls: list[str] = []
    seconds = interleaved({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=3, warmups=0)
    assert calls == [*"abc", *"bca", *"cab"]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3, "c": 3}
    assert all(value >= 0 for values in seconds.values() for value in values)


def test_warming_up_does_not_count_and_preparing_a_turn_is_not_timed() -> None:
    calls: list[str] = []
    seconds = interleaved(
        {"a": lambda: calls.append("turn")}, rounds=2, warmups=3, before=lambda name: calls.append(name)
    )
    assert calls == ["a", "turn"] * 5
    assert len(seconds["a"]) == 2


def test_a_child_measures_itself_with_the_cores_it_is_given() -> None:
    with Child(
        "test_bench:count_turns", 9, cores=1, environment={"PYTHONPATH": os.pathsep.join(sys.path)}
    ) as child:
        seconds = interleaved({"child": child}, rounds=2)
        assert len(seconds["child"]) == 2
        assert child.value == [1, "1", 2]


def test_a_child_that_fails_is_not_taken_for_a_fast_one(capfd: pytest.CaptureFixture[str]) -> None:
    with (
        Child("test_bench:count_turns", 0, environment={"PYTHONPATH": os.pathsep.join(sys.path)}) as child,
        pytest.raises(RuntimeError, match="count_turns"),
    ):
        child()
    assert "StopIteration" in capfd.readouterr().err


def test_a_measure_is_a_median_with_the_spread_of_its_middle_half() -> None:
    measure = Measure("ours", [1.0, 2.0, 3.0, 4.0, 100.0], per="clip")
    assert measure.median == 3.0
    assert measure.quartiles == (2.0, 4.0)
    assert measure.text() == "3 s a clip ± 33%"
    assert Measure("few", [0.002, 0.001]).quartiles == (0.001, 0.002)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.00431, "s", "4.31 ms"), (12.0, "s", "12 s"), (0.0000123, "s", "12.3 µs"), (1234.5, "MB", "1,234 MB")],
)
def test_figures_have_three_digits_and_a_fitting_unit(value: float, unit: str, text: str) -> None:
    assert harness.figure(value, unit) == text


def test_a_ratio_above_one_means_that_birdtune_is_faster() -> None:
    ours, theirs = Measure("birdtune", [1.0]), Measure("theirs", [3.0])
    assert (judged("x", ours, theirs, at_least=2).ratio, judged("x", ours, theirs, at_least=2).reached) == (
        3,
        True,
    )
    assert judged("x", ours, theirs, at_least=4).reached is False
    assert judged("x", theirs, ours, at_most=1.4, inverse=True).reached is False
    assert judged("x", theirs, ours, at_most=3, inverse=True).target == "≤ 3×"
    assert judged("x", ours, theirs).reached is None


def test_without_its_peer_a_line_has_neither_ratio_nor_judgement() -> None:
    line = judged("x", Measure("birdtune", [1.0]), None, at_least=2)
    assert (line.beside, line.ratio, line.reached) == ("not installed", None, None)


def test_a_part_replaces_its_own_result_and_keeps_those_of_the_others(tmp_path: Path) -> None:
    for part, quick in (("unchanged", False), ("frames", True), ("frames", False)):
        results.keep(tmp_path, a_result(part=part, quick=quick))
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["frames.json", "unchanged.json"]
    text = (tmp_path / "RESULTS.md").read_text("utf-8")
    assert text == results.render(results.read(tmp_path))
    assert text.index("## Sound → frames") < text.index("## Unchanged input, again")
    assert "| sound | 1 ms | theirs: 2 ms | 2.00× | ≥ 1× | yes | a \\| b |" in text
    assert "the figures mean nothing" not in text


def test_a_second_run_names_the_ratios_of_the_first(tmp_path: Path) -> None:
    for ratio in (2.0, 2.5):
        result = a_result()
        results.keep(tmp_path, {**result, "lines": [{**line, "ratio": ratio} for line in result["lines"]]})
    text = (tmp_path / "RESULTS.md").read_text("utf-8")
    assert "| 2.50× (2.00×) |" in text
    assert "none by more than 25%" in text.replace("\n", " ")


def test_the_tiniest_form_says_that_its_figures_mean_nothing() -> None:
    assert "the figures mean nothing" in results.render([a_result(quick=True)])


def test_results_md_is_what_the_kept_results_render_to() -> None:
    kept = results.read(ROOT / "bench")
    if not kept:
        pytest.skip("no results are kept yet")
    assert (ROOT / "bench" / "RESULTS.md").read_text("utf-8") == results.render(kept)
    assert not any(result["quick"] for result in kept)


def test_one_part_that_fails_does_not_cost_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(part: str, settings: Settings) -> dict[str, object]:
        assert settings.quick
        assert list(settings.folder.iterdir()) == []
        if part == "frames":
            raise ValueError("a broken part")
        return a_result(part=part)

    monkeypatch.setattr(command, "run_part", measure)
    monkeypatch.setattr(command, "PARTS", ("frames", "linear"))
    assert command.main(["--quick", "--into", str(tmp_path)]) == 1
    assert [result["part"] for result in results.read(tmp_path)] == ["linear"]
    assert results.read(tmp_path)[0]["command"] == "./entrypoint.sh bench linear --quick"
    assert "a broken part" in capsys.readouterr().err


def test_an_unknown_part_is_refused_with_those_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "PARTS", ("frames", "linear"))
    with pytest.raises(SystemExit, match="2"):
        command.main(["nonsense"])
    assert "frames, linear" in capsys.readouterr().err


def test_results_tell_the_machine_the_versions_and_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = Result("frames", [], {"raw": [1.0]})
    module = SimpleNamespace(measure=lambda settings: stand_in)
    monkeypatch.setattr(harness.importlib, "import_module", lambda name: module)
    kept = harness.run_part("frames", Settings(True, 0, tmp_path))
    assert json.loads(json.dumps(kept))["details"] == {"raw": [1.0]}
    assert f"{len(os.sched_getaffinity(0))} cores" in kept["machine"]
    assert {"python", "numpy", "soxr"} <= set(kept["versions"])
    assert re.fullmatch(r"([0-9a-f]{12}\+?)?", kept["commit"])


def test_the_package_does_not_know_the_bench() -> None:
    for path in (ROOT / "code").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) bench\b", path.read_text("utf-8"), re.MULTILINE), path


# One that measures whole commands stands for all; of the parts about learning one, for the others train for minutes.
@pytest.mark.parametrize(
    "part",
    [
        pytest.param(part, marks=[] if part == "unchanged" else pytest.mark.long)
        for part in (*(part for part in PARTS if part not in ON_REAL_SOUND), "learn_noisy")
    ],
)
def test_each_part_runs_in_its_tiniest_form(part: str, tmp_path: Path) -> None:
    if part in ON_REAL_SOUND and not (ROOT.parent / "shared" / "data" / "esc10").is_dir():
        pytest.skip("ESC-10 is not here")
    done = subprocess.run(
        [sys.executable, "-m", "bench", part, "--quick", "--into", str(tmp_path / "here")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'code'}", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (kept,) = results.read(tmp_path / "here")
    lines = [Line(**line) for line in kept["lines"]]
    assert lines
    assert all(line == replace(line, what=line.what.strip()) and line.what and line.figure for line in lines)
    assert list((tmp_path / "here").glob("*")), "and nothing else is left behind"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here"]


def test_what_is_learned_is_measured_apart_and_says_what_sound_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[str] = []
    monkeypatch.setattr(command, "run_part", lambda part, settings: measured.append(part) or a_result(part=part))
    assert command.main(["--quick", "--into", str(tmp_path)]) == 0
    assert measured == [part for part in PARTS if part not in ON_REAL_SOUND]
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match="BENCH_DATA"):
        learning.esc10()


def test_shares_are_means_over_clips_with_an_interval_over_sources() -> None:
    right = np.array([[1.0, 1.0, 0.0, np.nan], [1.0, 0.0, 0.0, np.nan]])
    mean, low, high = learning.shares(right, ("a", "a", "b", "c"))
    assert mean == pytest.approx(0.5)  # of 1, 1/2 and 0; what is not known counts for nothing
    assert (low, high) == (0.0, 0.75)  # only b, or only a
    assert learning.reach("x", (0.5, 0.4, 0.6), at_least=0.5).reached is True
    assert learning.reach("x", (0.5, 0.4, 0.6), at_most=0.4).reached is False
