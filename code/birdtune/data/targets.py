"""Labels and windows → what a network is trained to answer.

    labels of recordings [R] ─▶ targets_of ─▶ Targets.of(recording, start_s, end_s) ─▶ targets [n, C], known [n, C]
                                          └─▶ WindowTargets.of(windows, shift)

A label without times holds for the whole recording, and a recording that has only such labels is known for all
classes. In a recording with times, somebody marked where the annotated classes are: a window that overlaps none of
their labels is a negative of these classes, and nothing is known of the others. In a recording of which parts were
reviewed and no more, nothing is known beside these.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from birdtune.data.labels import IGNORED, Label, class_names_of
from birdtune.settings import LabelSettings

Ints = npt.NDArray[np.int64]
Array = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Seconds = npt.NDArray[np.float64]

_ALL, _MARKED, _NONE = range(3)
BLOCK = 8192  # windows at a time, where all are counted


@dataclass(frozen=True)
class WindowRule:
    """Which windows are of the class of a label with times.

    Attributes:
        min_overlap: a window is of the class if they share at least this much of the shorter of both: half a long song
            fills the window, and half of a short call is enough to recognise it. If they share less, nobody knows
            whether the class can be recognised in the window, and the loss leaves it out.
        by_centre: it is of the classes at its centre instead, and nothing is left out.
        negative: whether the annotated classes are absent beside their labels; else, annotators marked only some of
            their calls, and nobody knows.
    """

    min_overlap: float = 0.5
    by_centre: bool = False
    negative: bool = True

    @classmethod
    def of(cls, settings: LabelSettings) -> "WindowRule":
        """As the settings have it."""
        return cls(settings.min_overlap, settings.window_rule == "centre", settings.unlabelled == "negative")

    def holds(self, start_s: Seconds, end_s: Seconds, from_s: Seconds, to_s: Seconds) -> tuple[Bools, Bools]:
        """Whether windows are of labels, and whether that is left open. [n] each

        Args:
            start_s, end_s: [n] of each window.
            from_s, to_s: [n] of the label beside it.
        """
        if self.by_centre:
            centre = (start_s + end_s) / 2
            is_in = (from_s <= centre) & (centre < to_s)
            return is_in, np.zeros_like(is_in)
        overlap = np.minimum(end_s, to_s) - np.maximum(start_s, from_s)
        is_in = overlap >= self.min_overlap * np.minimum(end_s - start_s, to_s - from_s)
        return is_in, (overlap > 0) & ~is_in


def annotated_classes(labels: Iterable[Sequence[Label]]) -> frozenset[str]:
    """The classes that have labels with times: those that annotators mark wherever they occur."""
    return frozenset(name for some in labels for name in class_names_of(label for label in some if label.is_annotation))


@dataclass(frozen=True, eq=False)
class Listed:
    """Labels of recordings, those of one after those of another.

    Attributes:
        first, count: [R] which labels are of each recording.
        column, weight: [L] of each label.
    """

    first: Ints
    count: Ints
    column: Ints
    weight: Array

    @classmethod
    def of(cls, count: Ints, column: npt.ArrayLike, weight: npt.ArrayLike) -> "Listed":
        """Labels in the order of their recordings, of which each has so many."""
        return cls(np.cumsum(count) - count, count, np.asarray(column, np.int64), np.asarray(weight, np.float32))

    def beside(self, recording: Ints) -> tuple[Ints, Ints]:
        """Each of some recordings [n] beside each of its labels: positions among the n, and labels."""
        counts = self.count[recording]
        row = np.repeat(np.arange(len(recording)), counts)
        return row, np.arange(row.size) - np.repeat(np.cumsum(counts) - counts - self.first[recording], counts)

    def some(self, chosen: npt.NDArray[np.integer]) -> "Listed":
        """Those of some of the recordings, in this order."""
        return replace(self, first=self.first[chosen], count=self.count[chosen])


@dataclass(frozen=True, eq=False)
class Targets:
    """The labels of some recordings as arrays.

    Labels alone are kept: a million recordings of 2,000 classes have a million labels, and 2e9 targets.

    Attributes:
        whole: labels without times, one of each class of a recording.
        beyond: [R] which of the classes without such a label are known: _ALL, those that are _MARKED, or _NONE.
        timed: labels with times; column -1: something that is not to be learnt.
        start_s, end_s: [L] of each label with times.
        absent: [L] whether it says that its class is not there.
        rule: which windows are of their classes.
        marked: [C] whether each class is marked wherever it occurs.
        is_negative: [C] whether each class is that of sound without any of the others.
    """

    whole: Listed
    beyond: npt.NDArray[np.int8]
    timed: Listed
    start_s: Seconds
    end_s: Seconds
    absent: Bools
    rule: WindowRule
    marked: Bools
    is_negative: Bools

    def __len__(self) -> int:
        return len(self.beyond)

    @property
    def n_classes(self) -> int:
        """C"""
        return len(self.marked)

    @property
    def have_times(self) -> bool:
        """Whether any label has times: windows of one recording may then have different targets."""
        return bool(self.timed.count.any())

    def of(self, recording: Ints, start_s: npt.ArrayLike, end_s: npt.ArrayLike) -> tuple[Array, Array]:
        """Targets of some windows.

        Args:
            recording: [n] which recording each is cut from.
            start_s, end_s: [n] seconds in that recording.

        Returns:
            targets: [n, C] 1 where the class is in the window;
            known: [n, C] how much that counts in a loss: 1, or the weight of the label; 0 where nobody knows.
        """
        targets, known = self._of_whole(recording)
        row, label = self.timed.beside(recording)
        if not row.size:
            return targets, known
        columns = self.timed.column[label]
        start, end = (np.asarray(values, np.float64)[row] for values in (start_s, end_s))
        is_in, partly = self.rule.holds(start, end, self.start_s[label], self.end_s[label])
        ignored = columns < 0
        # Where somebody marked that nothing is there, the marked classes are absent, also if not all is annotated.
        silent = is_in & ~ignored & self.is_negative[columns]
        known[row[silent]] = np.maximum(known[row[silent]], self.marked)
        known[row[ignored & (is_in | partly)]] = 0.0
        absent = self.absent[label]
        partly &= ~ignored & ~absent
        known[row[partly], columns[partly]] = 0.0
        inside = is_in & absent
        targets[row[inside], columns[inside]], known[row[inside], columns[inside]] = 0.0, 1.0
        is_in &= ~ignored & ~absent
        row, column, weight = row[is_in], columns[is_in], self.timed.weight[label[is_in]]
        known[row, column] = 0.0  # of several labels of one class, the largest weight counts
        np.maximum.at(known, (row, column), weight)
        targets[row[weight > 0], column[weight > 0]] = 1.0
        return targets, known

    def of_recordings(self) -> tuple[Array, Array]:
        """Which classes each recording holds anywhere, and whether that is known. [R, C] each"""
        everything = np.arange(len(self))
        targets, known = self._of_whole(everything)
        known = (known > 0).astype(np.float32)
        row, label = self.timed.beside(everything)
        column, weight = self.timed.column[label], self.timed.weight[label]
        # Of a whole recording, the rest says whether a class is in it, also where some of it is not to be learnt.
        unsure = (column >= 0) & ~self.absent[label]  # a class that is absent from a part may be in another
        known[row[unsure], column[unsure]] = 0.0
        is_in = (column >= 0) & (weight > 0)
        targets[row[is_in], column[is_in]] = known[row[is_in], column[is_in]] = 1.0
        return targets, known

    def positive(self) -> csr_array:
        """Which classes each recording holds anywhere, as `of_recordings`, and in the memory of its labels. [R, C]"""
        everything = np.arange(len(self))
        found = []
        for labels in (self.whole, self.timed):
            row, label = labels.beside(everything)
            is_in = (labels.column[label] >= 0) & (labels.weight[label] > 0)
            found.append(row[is_in] * self.n_classes + labels.column[label[is_in]])
        row, column = np.divmod(np.unique(np.concatenate(found)), self.n_classes)
        return csr_array((np.ones(row.size, np.bool_), (row, column)), (len(self), self.n_classes))

    def _of_whole(self, recording: Ints) -> tuple[Array, Array]:
        """Targets by labels without times, and how much these count. [n, C] each"""
        of_all = np.ones_like(self.marked)
        known = np.stack([of_all, self.marked, ~of_all]).astype(np.float32)[self.beyond[recording]]
        targets = np.zeros(known.shape, np.float32)
        row, label = self.whole.beside(recording)
        column, weight = self.whole.column[label], self.whole.weight[label]
        targets[row, column], known[row, column] = weight > 0, weight
        return targets, known

    def some(self, chosen: npt.NDArray[np.integer]) -> "Targets":
        """Those of some of the recordings, in this order."""
        return replace(
            self, whole=self.whole.some(chosen), beyond=self.beyond[chosen], timed=self.timed.some(chosen)
        )


def targets_of(
    labels: Sequence[Sequence[Label]],
    classes: Sequence[str],
    annotated: Iterable[str] | None = None,
    *,
    rule: WindowRule | None = None,
    negative: Iterable[str] = (),
) -> Targets:
    """The labels of some recordings as arrays; labels of other classes say nothing.

    Args:
        labels: [R] labels of each recording.
        classes: [C] names.
        annotated: classes that are marked wherever they occur in recordings with times; None: `annotated_classes`.
        rule: which windows are of their classes; None: as without settings.
        negative: those of the classes that are of sound without the others.
    """
    rule = rule or WindowRule()
    column = {name: position for position, name in enumerate(classes)}
    column[IGNORED] = -1
    marked = annotated_classes(labels) if annotated is None else annotated
    marked_columns = [column[name] for name in marked if name in column]
    is_marked, is_negative = np.zeros(len(classes), np.bool_), np.zeros(len(classes), np.bool_)
    is_marked[marked_columns] = True
    is_negative[[column[name] for name in negative if name in column]] = True
    beyond = np.full(len(labels), _ALL, np.int8)
    n_whole, n_timed = np.zeros((2, len(labels)), np.int64)
    whole: list[tuple[int, float]] = []
    timed: list[tuple[float, ...]] = []
    for number, some in enumerate(labels):
        own = [label for label in some if label.class_name in column]
        with_times = [label for label in own if label.has_times]
        annotated_here = {label.class_name for label in own if label.is_annotation}
        if some and all(label.is_reviewed for label in some):
            beyond[number] = _NONE
        elif any(label.is_annotation for label in some):
            beyond[number] = _MARKED if rule.negative else _NONE
        # Where a class is labelled with times as well, these say more.
        without_times = {
            column[label.class_name]: label.weight
            for label in own
            if label.class_name != IGNORED and not label.has_times and label.class_name not in annotated_here
        }
        whole += without_times.items()
        timed += [
            (column[label.class_name], label.weight, label.start_s, label.end_s, label.is_absent)
            for label in with_times
        ]
        n_whole[number], n_timed[number] = len(without_times), len(with_times)
    columns, weights = np.array(whole, np.float64).reshape(-1, 2).T
    timed_columns, timed_weights, start_s, end_s, absent = np.array(timed, np.float64).reshape(-1, 5).T
    return Targets(
        Listed.of(n_whole, columns, weights), beyond, Listed.of(n_timed, timed_columns, timed_weights), start_s, end_s,
        absent > 0, rule, is_marked, is_negative,
    )


class Placed(Protocol):
    """Windows of recordings, as `batches.Windows`."""

    recording: Ints  # [windows]

    def __len__(self) -> int: ...

    def seconds(self, windows: Ints, shift: Ints | None = None) -> tuple[npt.NDArray[np.float64], ...]:
        """Start and end of some windows, moved as `windows` moves them. [n] each"""
        ...


@dataclass(frozen=True, eq=False)
class WindowTargets:
    """What each window is trained to answer.

    Attributes:
        kind: "softmax" or "sigmoid": where a window keeps only a share of its label, softmax spreads the rest over
            all classes, and sigmoid leaves it out.
        kept: share of its labels that each keeps, above 0 (label refinement), [windows], or [windows, C] where
            recordings have several classes; None: all of them. A window that only weighed less would learn nothing, and
            the mean over its recording would pay for that.
    """

    labels: Targets
    windows: Placed
    kind: str = "softmax"
    kept: Array | None = None

    def of(self, windows: Ints, shift: Ints | None = None) -> tuple[Array, Array]:
        """As `Targets.of`, of some windows moved by `shift`. [n, C] each"""
        start_s, end_s = self.windows.seconds(windows, shift)
        targets, known = self.labels.of(self.windows.recording[windows], start_s, end_s)
        if self.kept is not None:
            kept = self.kept[windows].reshape(len(windows), -1)  # [n, 1 or C]
            rest = (1 - kept) / np.float32(self.labels.n_classes) if self.kind == "softmax" else np.float32(0.0)
            targets = np.asarray(kept * targets + rest, np.float32)
        return targets, known

    def all(self) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Which classes each window holds, and where that is known. [windows, C] each"""
        found = [(targets > 0, known > 0) for _, targets, known in self.blocks()]
        targets, known = (np.concatenate(each) for each in zip(*found, strict=True))
        return targets, known

    def blocks(self) -> Iterator[tuple[Ints, Array, Array]]:
        """All windows with their targets and what is known, so many at a time that memory does not matter."""
        for start in range(0, len(self.windows), BLOCK):
            windows = np.arange(start, min(start + BLOCK, len(self.windows)))
            yield windows, *self.of(windows)
