"""What labels with times come to: hours annotated, and which windows are of each class, negatives, or left out.

    Dataset ─▶ lines, for `check`
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from birdtune.audio.front_end import FrontEnd
from birdtune.data import row_books
from birdtune.data.dataset import Dataset
from birdtune.data.labels import IGNORED, Label
from birdtune.data.scan import Recording
from birdtune.data.targets import Ints, Seconds, WindowTargets, annotated_classes

_MOST_CLASSES = 60


@dataclass(eq=False)
class _Planned:
    """The windows that recordings will be cut into, known by their length alone."""

    recording: Ints
    start_s: Seconds
    window_s: float

    @classmethod
    def of(cls, recordings: Sequence[Recording], spec: FrontEnd, hop_s: float | None) -> "_Planned":
        starts = [
            spec.starts(spec.row_count(spec.padded_samples(spec.samples(one.facts.duration_s))), spec.hop(hop_s))
            for one in recordings
        ]
        number = np.repeat(np.arange(len(starts)), [some.size for some in starts])
        first = np.concatenate([np.zeros(0, np.int64), *starts])
        return cls(number.astype(np.int64), first / spec.rows_per_s, spec.window_s)

    def __len__(self) -> int:
        return len(self.recording)

    def seconds(self, windows: Ints, shift: Ints | None = None) -> tuple[Seconds, ...]:
        return self.start_s[windows], self.start_s[windows] + self.window_s


def lines(dataset: Dataset, hop_s: float | None) -> Iterator[str]:
    """Hours annotated, in all and of each class, and the windows that these labels make of all recordings.

    Where detections were reviewed, in how many of them a class is and is not.

    Args:
        hop_s: from one window to the next; None: as the front end says.
    """
    if dataset.rows:
        yield row_books.words(dataset.rows)
    timed = [one for one in dataset.recordings if any(label.is_annotation for label in one.labels)]
    if not timed:
        return
    spans = [(one, label) for one in timed for label in one.labels
             if label.is_annotation and label.class_name != IGNORED and label.weight]  # fmt: skip
    hours = sum(one.facts.duration_s for one in timed) / 3600
    marked_s = sum(_seconds(one, one.labels) for one in timed)
    yield (
        f"annotated: {len(timed):,} of {len(dataset.recordings):,} recordings, {hours:.2f} h, with {len(spans):,} "
        f"labels that take {marked_s / 60:.2f} min"
    )
    counts = _Counts.of(dataset, _Planned.of(dataset.recordings, dataset.spec, hop_s))
    width = min(40, max(len(name) for name in dataset.classes) + 2)
    reviewed = Counter(
        (label.class_name, label.is_absent)
        for one in dataset.recordings for label in one.labels if label.is_reviewed
    )  # fmt: skip
    head = f"{'labels':>8}{'minutes':>9}{'median s':>10}{'windows':>9}{'negatives':>11}{'unknown':>9}"
    head = f"{'yes/no':>10}{head}" if reviewed else head
    yield f"  {'class':<{width}}{head}"
    for column, name in list(enumerate(dataset.classes))[:_MOST_CLASSES]:
        own = [(one, label) for one, label in spans if label.class_name == name]
        minutes = sum(
            _seconds(one, [label for label in one.labels if label.class_name == name]) for one in timed
        ) / 60
        lengths = [min(label.end_s, one.facts.duration_s) - label.start_s for one, label in own]
        median = f"{np.median(lengths):.2f}" if lengths else ""
        decided = f"{reviewed[name, False]:,}/{reviewed[name, True]:,}"
        row = f"  {name[: width - 2]:<{width}}" + (f"{decided:>10}" if reviewed else "")
        row += f"{len(own):>8,}{minutes:>9.2f}{median:>10}{counts.positive[column]:>9,}"
        is_answer = name not in dataset.background
        rest = f"{counts.negative[column]:>11,}{counts.unknown[column]:>9,}" if is_answer else "  never an answer"
        yield row + rest
    if len(dataset.classes) > _MOST_CLASSES:
        yield f"  ... and {len(dataset.classes) - _MOST_CLASSES:,} more classes"
    yield (
        f"  of {counts.windows:,} windows of {dataset.spec.window_s:g} s, {counts.with_class:,} hold a class and "
        f"{counts.without:,} hold none that is annotated, and are negatives; "
        f"{counts.windows - counts.with_class - counts.without:,} are unknown: they share too little with a label, or "
        "nobody annotated there"
    )


@dataclass(eq=False)
class _Counts:
    """Windows, of each class and in all.

    Attributes:
        positive, negative, unknown: [C] of each class, without it, and of which nobody knows.
        with_class: that hold a class which can be an answer.
        without: that hold none of these, and of which that is known for all annotated classes.
    """

    positive: Ints
    negative: Ints
    unknown: Ints
    windows: int
    with_class: int = 0
    without: int = 0

    @classmethod
    def of(cls, dataset: Dataset, windows: _Planned) -> "_Counts":
        positive, negative, unknown = np.zeros((3, len(dataset.classes)), np.int64)
        counts = cls(positive, negative, unknown, len(windows))
        annotated = annotated_classes(one.labels for one in dataset.recordings)
        answers = np.array([name not in dataset.background for name in dataset.classes])
        marked = answers & np.array([name in annotated for name in dataset.classes])
        for _, targets, known in WindowTargets(dataset.targets(dataset.recordings), windows, dataset.output).blocks():
            is_in, is_absent = (targets > 0) & (known > 0), (targets == 0) & (known > 0)  # [n, C]
            counts.positive += is_in.sum(axis=0)
            counts.negative += is_absent.sum(axis=0)
            counts.unknown += (known == 0).sum(axis=0)
            has_class = is_in[:, answers].any(axis=1)
            counts.with_class += int(has_class.sum())
            counts.without += int((~has_class & is_absent[:, marked].all(axis=1)).sum())
        return counts


def _seconds(recording: Recording, labels: Sequence[Label]) -> float:
    """How much of a recording some labels take, what several take counted once."""
    total = end = 0.0
    timed = [label for label in labels if label.is_annotation and label.weight]
    for label in sorted(timed, key=lambda label: label.start_s):
        until = min(label.end_s, recording.facts.duration_s)
        total += max(0.0, until - max(label.start_s, end))
        end = max(end, until)
    return total
