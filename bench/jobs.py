"""Whole jobs as people wait for them, and where their time goes.

    ESC-10 on frozen YAMNet ─▶ seconds of `run`, from nothing and after `prepare`; of each stage; of `predict`
    100,000 small files that were checked before ─▶ seconds and memory of `check`
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench import learning, unchanged
from bench.harness import ROOT, Line, Measure, Result, Settings, as_users_have_it, birdtune, interleaved

STAGES = ("prepare", "train", "evaluate", "export", "report")
# A job, one after preparation, the first row of `predict`, `check`: seconds.
JOB_S, AFTER_PREPARE_S, FIRST_ROW_S, CHECK_S = 30.0, 20.0, 3.0, 20.0
_CHECKED = 100_000


def measure(settings: Settings) -> Result:
    """How long jobs take from start to end."""
    return Result("jobs", [*_on_yamnet(settings), *_checked(settings)])


# ---- ESC-10 on YAMNet -------------------------------------------------------------------------------


def _on_yamnet(settings: Settings) -> list[Line]:
    """A job with the backbone frozen, from nothing and after preparation, and `predict` with its model."""
    whole, prepared = settings.folder / "whole", settings.folder / "prepared"
    flags = ("--data", str(learning.esc10()), "--model.backbone", "yamnet", "--model.checkpoint",
             str(learning.yamnet()), "--model.freeze", "all-but-head")  # fmt: skip

    def again(name: str) -> None:
        shutil.rmtree(settings.folder / name, ignore_errors=True)
        if name == prepared.name:
            birdtune("prepare", *flags, "--output", str(prepared))()

    jobs = {place.name: birdtune("run", *flags, "--output", str(place)) for place in (whole, prepared)}
    seconds = interleaved(jobs, rounds=1 if settings.quick else 3, warmups=0, before=again)
    clip = next(learning.esc10().glob("*/*.ogg"))
    predict = birdtune("predict", str(clip), "--output", str(whole), "--out", str(settings.folder / "rows.csv"))
    first_row = interleaved({"predict": predict}, rounds=1 if settings.quick else 7)["predict"]
    what = "ESC-10, YAMNet frozen: from 400 clips of 5 s to a served model and its report"
    return [
        _within(what, seconds[whole.name], JOB_S, stages(whole)),
        _within(f"{what}, after `prepare`", seconds[prepared.name], AFTER_PREPARE_S, stages(prepared)),
        _within("`predict`: from its start to the scores of one recording", first_row, FIRST_ROW_S, ""),
    ]


def stages(output: Path) -> str:
    """Where the time of a job went, by its run.json."""
    took = json.loads((output / "run.json").read_text("utf-8"))["stages"]
    return ", ".join(f"{stage} {took[stage]:.1f} s" for stage in STAGES)


def _within(what: str, seconds: list[float], most_s: float, note: str) -> Line:
    found = Measure(what, seconds)
    return Line(what, found.text(), "", None, f"≤ {most_s:g} s", found.median <= most_s, note)


# ---- many files -------------------------------------------------------------------------------------


def _checked(settings: Settings) -> list[Line]:
    n = 60 if settings.quick else _CHECKED
    data, output = settings.folder / "many", settings.folder / "checked"
    unchanged.make_recordings(data, n, settings.seed)
    arguments = ("check", "--data", str(data), "--output", str(output), "--model.checkpoint", "none")
    first_s = birdtune(*arguments)()
    seconds = interleaved({"check": birdtune(*arguments)}, rounds=1 if settings.quick else 3)["check"]
    note = f"the first time, with every file decoded: {first_s:.0f} s; peak of memory {_peak_mb(arguments):,.0f} MB"
    return [_within(f"`check` on {n:,} files that were checked before", seconds, CHECK_S, note)]


def _peak_mb(arguments: tuple[str, ...]) -> float:
    """The most memory of a command in one process."""
    environment = as_users_have_it({"PYTHONPATH": str(ROOT / "code")})
    command = [sys.executable, "-m", "birdtune", *arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return used.ru_maxrss / 1000

