"""What a hundred reviewed detections are worth: a model before and after `run --labels.review`, on soundscapes apart.

    warblers in class folders ─▶ `run` ─▶ `predict` and `review` of soundscapes without labels
    what was laid into them ─▶ answers ─▶ `run --labels.review` ─▶ average precision on other soundscapes

The reviewer is never wrong: a class is there if half of a call is played, or half of what is played is a call. Calls of
the three parts are of recordings apart. BirdNET's weights lie where BENCH_BIRDNET says.
"""

import csv
import shutil
from collections import Counter
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench import learning, made_sets, soundscapes
from bench.certain_calls import certain_windows
from bench.harness import Line, Result, Settings, birdtune
from bench.learn_soundscapes import FLAGS, Truth, backgrounds, mean_ap, scored, write_split
from bench.learning import birdnet
from bench.made_sets import clips_of
from bench.soundscapes import Placed

N_REVIEWED: Final = 100
# Of the recordings of each species; the last two are laid into soundscapes of a minute, so many.
SHARES = {"train": 0.4, "val": 0.15, "review": 0.2, "test": 0.25}
MINUTES = {"review": 20, "test": 60}
# BirdNET knows the species; of a head that begins at random, only the recordings tell.
HEADS = ("published", "random")


def measure(settings: Settings) -> Result:
    """Average precision before and after, by what the head begins from."""
    home, lines = settings.folder, []
    placed = _write(settings)
    for head in HEADS[: 1 if settings.quick else None]:
        output, answers = home / head, home / f"{head}.csv"
        flags = [f"--output={output}", f"--model.checkpoint={birdnet()}", f"--split.file={home / 'split.csv'}", *FLAGS,
                 "--model.output=sigmoid", f"--model.head-weights={head}"]  # fmt: skip
        birdtune("run", f"--data={home / 'clips'}", *flags)()
        found, page = output / "found", output / "review.html"
        birdtune("predict", str(home / "reviewed" / "review"), f"--output={output}", "--format=csv", f"--out={found}",
                 "--detect.on=0.2", "--detect.unknown=true")()  # fmt: skip
        birdtune("review", str(found), f"--output={output}", f"--n={N_REVIEWED}", f"--out={page}")()
        decisions = answer(page, placed["review"], answers)
        birdtune("run", f"--data={home / 'reviewed'}", *flags, f"--labels.review={answers}")()
        lines.append(_line(head, output, home / "test", placed["test"], decisions))
    return Result("learn_review", lines)


def _write(settings: Settings) -> dict[str, list[Placed]]:
    """Class folders, the same with soundscapes to review beside them, and soundscapes to test on."""
    home, placed = settings.folder, {}
    clips = clips_of(learning.place("warblers"))
    stretches = certain_windows(clips, home)
    parts = soundscapes.by_source([clip for clip in clips if clip.path in stretches], SHARES, settings.seed)
    made_sets.lay_out([*parts["train"], *parts["val"]], home / "clips")
    shutil.copytree(home / "clips", home / "reviewed")
    for number, (part, n) in enumerate(MINUTES.items()):
        folder = home / "reviewed" / "review" if part == "review" else home / "test"
        placed[part] = soundscapes.write_soundscapes(
            parts[part], backgrounds(part), folder, part, 2 if settings.quick else n, settings.seed * 10 + number,
            stretches=stretches,
        )  # fmt: skip
    split = {f"{clip.label}/{clip.path.name}": part for part in ("train", "val") for clip in parts[part]}
    write_split(home / "split.csv", split | {f"review/{call.recording}": "train" for call in placed["review"]})
    return placed


class _Cards(HTMLParser):
    """The detections that a page of `review` asks about."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, str]] = []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        given = {name.removeprefix("data-"): value or "" for name, value in attrs}
        if tag == "figure" and given.get("class") == "card":
            self.found.append(given)


def answer(page: Path, placed: Sequence[Placed], out: Path) -> Counter[str]:
    """Decide on each detection as the page's keys do, and save the table that it saves."""
    cards, counts = _Cards(), Counter[str]()
    cards.feed(page.read_text("utf-8"))
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("recording", "start_s", "end_s", "detected", "decision", "label"))
        for card in cards.found:
            there = _there(placed, card["recording"], float(card["start"]), float(card["end"]))
            own = card["detected"]
            decision, label = ("yes", own) if own in there else ("other", there[0]) if there else ("no", "")
            counts[decision] += 1
            writer.writerow((card["recording"], card["start"], card["end"], own, decision, label))
    return counts


def _there(placed: Sequence[Placed], recording: str, start_s: float, end_s: float) -> list[str]:
    """What can be heard in a part of a soundscape."""
    found = []
    for call in placed:
        overlap = min(end_s, call.end_s) - max(start_s, call.start_s)
        if Path(recording).name == call.recording and overlap >= 0.5 * min(end_s - start_s, call.end_s - call.start_s):
            found.append(call.label)
    return found


def _line(head: str, output: Path, test: Path, placed: Sequence[Placed], decisions: Counter[str]) -> Line:
    truths = []
    for version in (1, 2):
        model, given = scored(output, test, "test", version)
        truths.append(Truth(model.classes, model.front_end.window_s, given, placed))
    groups = [one.name for one in truths[0].given for _ in one.start_s]
    positive, absent = truths[0].shares >= 0.5, truths[0].shares <= 0
    tables = [np.concatenate([one.scores for one in truth.given]) for truth in truths]

    def ap(table: Any, rows: Any) -> float:
        return mean_ap(table[rows], positive[rows], (positive | absent)[rows])

    before, after = (learning.drawn(lambda rows, table=table: ap(table, rows), groups) for table in tables)
    gain = learning.drawn(lambda rows: ap(tables[1], rows) - ap(tables[0], rows), groups)
    answers = ", ".join(f"{n} {word}" for word, n in sorted(decisions.items()))
    return Line(
        f"mean AP on windows after {sum(decisions.values())} decisions, head begins {head}", learning.text(after),
        f"before: {learning.text(before)}", note=f"gain {learning.text(gain, sign=True)}, over {len(truths[0].given)} "
        f"soundscapes apart; {answers}",
    )  # fmt: skip
