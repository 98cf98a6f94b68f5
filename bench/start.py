"""How long people wait before anything happens.

`--help`, `check` on 1,000 files, the first training step ─▶ seconds from the start of the process
"""

import os
import sys

from bench.frames import make_clips
from bench.harness import Line, Measure, Result, Settings, birdtune, figure, interleaved

CHECKED_FILES, TRAINED_FILES = 1_000, 40
TARGETS_S = {"help": 0.5, "check": 3.0, "step": 20.0}


def measure(settings: Settings) -> Result:
    """Each from the start of a fresh process to its end; training ends with its first update."""
    rounds = 1 if settings.quick else 7
    n_checked = 20 if settings.quick else CHECKED_FILES
    data, output = settings.folder / "data", settings.folder / "output"
    make_clips(data, n_checked, 16_000, 1, settings.seed, seconds=1.0)
    places = ("--data", str(data), "--output", str(output), "--model.checkpoint", "none")
    check = birdtune("check", *places)
    first_check_s = check()
    seconds = interleaved({"help": birdtune("--help"), "check": check}, rounds=rounds)
    seconds["step"] = _first_steps(settings, 1 if settings.quick else 3)
    notes = {
        "help": "",
        "check": f"the first time, with every file decoded: {figure(first_check_s)}",
        "step": "`run` until the first update: frames that are there, VGGish from scratch, batch 32",
    }
    what = {
        "help": "`--help`",
        "check": f"`check` on {n_checked:,} files that were heard before",
        "step": "the first training step",
    }
    return Result("start", [_line(what[name], values, name, notes[name]) for name, values in seconds.items()],
                  {**seconds, "first check": first_check_s})  # fmt: skip


def _line(what: str, values: list[float], name: str, note: str) -> Line:
    found = Measure(what, values)
    return Line(
        what, found.text(), "", None, f"≤ {TARGETS_S[name]:g} s", found.median <= TARGETS_S[name], note
    )


def _first_steps(settings: Settings, rounds: int) -> list[float]:
    data, output = settings.folder / "songs", settings.folder / "trained"
    make_clips(data, TRAINED_FILES, 16_000, 1, settings.seed, seconds=2.0 if settings.quick else 10.0)
    places = ["--data", str(data), "--output", str(output)]
    birdtune("prepare", *places)()
    backbone = "vggish-small" if settings.quick else "vggish"
    job = [*places, "--model.checkpoint", "none", "--model.backbone", backbone]
    seconds = interleaved({"step": birdtune("run", *job, module="bench.start")}, rounds=rounds, warmups=0)
    return seconds["step"]


def run_until_the_first_step(arguments: list[str]) -> None:
    """birdtune's own command, but it ends when the first update is counted."""
    from birdtune import cli
    from birdtune.runtime import log

    advance = log.Progress.advance

    def count(self: log.Progress, n: int = 1, note: str = "") -> None:
        if self._what.startswith("epoch"):
            os._exit(0)
        advance(self, n, note)

    log.Progress.advance = count  # type: ignore[method-assign]
    sys.exit(cli.main(arguments) or "no step was taken")


if __name__ == "__main__":
    run_until_the_first_step(sys.argv[1:])
