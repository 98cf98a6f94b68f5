"""birdtune.data.targets: from labels and windows to what a network is trained to answer."""

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from birdtune.data.labels import IGNORED, Label
from birdtune.data.targets import WindowRule, targets_of

CLASSES = ("Owl", "Tit", "Wren")


def rows(labels: list[Label], windows: list[tuple[float, float]], **how: Any) -> tuple[list, list]:
    """Targets of windows of one recording, and what is known of them."""
    starts, ends = np.array(windows, float).T
    targets, known = targets_of([labels], CLASSES, **how).of(np.zeros(len(windows), int), starts, ends)
    return targets.tolist(), known.tolist()


def test_a_label_without_times_holds_in_every_window_and_all_classes_are_known() -> None:
    targets, known = rows([Label("Tit"), Label("Wren", weight=0.5)], [(0, 1), (40, 41)])
    assert targets == [[0, 1, 1]] * 2
    assert known == [[1, 1, 0.5]] * 2


def test_windows_beside_a_label_with_times_are_negatives_of_the_annotated_classes_alone() -> None:
    targets, known = rows([Label("Tit", 10, 12)], [(0, 1), (10, 11), (13, 14)], annotated=["Tit", "Wren"])
    assert targets == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert known == [[0, 1, 1]] * 3, "nobody looked for owls"


def test_what_is_annotated_anywhere_is_known_in_every_recording_with_times() -> None:
    labels = [[Label("Tit", 1, 2)], [Label("Wren", 3, 4)], [Label("Owl")]]
    _, known = targets_of(labels, CLASSES).of(np.arange(3), np.zeros(3), np.ones(3))
    assert known.tolist() == [[0, 1, 1], [0, 1, 1], [1, 1, 1]]


def test_of_a_small_overlap_nobody_knows_what_is_to_be_heard() -> None:
    label = Label("Tit", 10, 20)
    windows = [(8.9, 9.9), (9.4, 10.4), (9.5, 10.5), (19.5, 20.5), (19.6, 20.6), (20, 21)]
    targets, known = rows([label], windows)
    assert [row[1] for row in targets] == [0, 0, 1, 1, 0, 0]
    assert [row[1] for row in known] == [1, 0, 1, 1, 0, 1]


def test_of_a_short_call_half_is_enough() -> None:
    targets, known = rows([Label("Tit", 10, 10.2)], [(9.05, 10.05), (9.15, 10.15), (9, 11)])
    assert [row[1] for row in targets] == [0, 1, 1]
    assert [row[1] for row in known] == [0, 1, 1]


def test_overlapping_labels_are_all_kept_and_the_largest_weight_of_a_class_counts() -> None:
    labels = [Label("Tit", 0, 5, weight=0.3), Label("Tit", 2, 4, weight=0.8), Label("Wren", 3, 9), Label("Tit", 4.9, 6)]
    targets, known = rows(labels, [(0, 1), (3, 4), (4.6, 5.6)])
    assert targets == [[0, 1, 0], [0, 1, 1], [0, 1, 1]]
    assert np.allclose(known, [[0, 0.3, 1], [0, 0.8, 1], [0, 1, 1]])


def test_times_say_more_than_the_folder_of_the_same_class() -> None:
    targets, _ = rows([Label("Tit"), Label("Tit", 2, 3), Label("Owl")], [(0, 1), (2, 3)])
    assert targets == [[1, 0, 0], [1, 1, 0]]


def test_classes_of_recordings_are_those_of_any_label() -> None:
    labels = [[Label("Tit", 1, 2), Label("Wren", 50, 51)], [Label("Owl")], []]
    targets, known = targets_of(labels, CLASSES).of_recordings()
    assert targets.tolist() == [[0, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert known.tolist() == [[0, 1, 1], [1, 1, 1], [1, 1, 1]]


def test_classes_of_recordings_do_not_hang_on_the_rule_for_windows() -> None:
    labels = [[Label("Tit", 1, 2), Label(IGNORED, 3, 4)], [Label("Wren", 1, 2), Label("Owl", 1, 2, weight=0.0)]]
    for rule in (WindowRule(), WindowRule(by_centre=True), WindowRule(min_overlap=1.0)):
        targets, known = targets_of(labels, CLASSES, CLASSES, rule=rule).of_recordings()
        assert targets.tolist() == [[0, 1, 0], [0, 0, 1]] and known.tolist() == [[1, 1, 1], [0, 1, 1]]
    assert targets_of(labels, CLASSES, rule=WindowRule(negative=False)).of_recordings()[1].tolist() == [
        [0, 1, 0], [0, 0, 1],
    ]  # fmt: skip


def test_labels_of_classes_that_are_left_out_still_mark_the_recording_as_annotated() -> None:
    targets, known = rows([Label("Jay", 1, 2)], [(0, 1)], annotated=["Tit"])
    assert (targets, known) == ([[0, 0, 0]], [[0, 1, 0]])


def test_some_of_the_recordings_keep_their_own_labels() -> None:
    whole = targets_of([[Label("Owl", 0, 1)], [Label("Tit", 0, 1), Label("Wren", 2, 3)], [Label("Wren")]], CLASSES)
    some = whole.some(np.array([2, 1]))
    for part in (0, 1):
        assert np.array_equal(
            some.of(np.array([0, 1, 1]), [0, 0, 2], [1, 1, 3])[part],
            whole.of(np.array([2, 1, 1]), [0, 0, 2], [1, 1, 3])[part],
        )


def test_by_the_centre_a_window_is_of_the_class_there_and_nothing_is_left_open() -> None:
    windows = [(8.5, 9.5), (9.4, 10.4), (9.5, 10.5), (11.4, 12.4), (11.6, 12.6)]
    targets, known = rows([Label("Tit", 10, 12)], windows, rule=WindowRule(by_centre=True))
    assert [row[1] for row in targets] == [0, 0, 1, 1, 0]
    assert [row[1] for row in known] == [1] * 5


def test_the_least_overlap_is_as_set() -> None:
    targets, known = rows([Label("Tit", 10, 12)], [(9.1, 10.1), (9.3, 10.3)], rule=WindowRule(min_overlap=0.2))
    assert [row[1] for row in targets] == [0, 1] and [row[1] for row in known] == [0, 1]


def test_in_recordings_annotated_in_part_only_labels_are_known_and_those_of_nothing_are_negatives() -> None:
    labels = [Label("Tit", 10, 12), Label("Wren", 20, 22)]
    windows = [(0, 1), (10, 11), (20, 21)]
    targets, known = rows(labels, windows, rule=WindowRule(negative=False))
    assert targets == [[0, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert known == [[0, 0, 0], [0, 1, 0], [0, 0, 1]]
    _, known = rows(labels, windows, rule=WindowRule(negative=False), negative=["Wren"])
    assert known == [[0, 0, 0], [0, 1, 0], [0, 1, 1]], "nothing is there at 20 s, and so no tit"


def test_of_what_is_ignored_or_somewhere_in_the_background_nobody_knows() -> None:
    labels = [Label("Tit", 10, 12), Label(IGNORED, 11, 14), Label("Wren", weight=0.0)]
    targets, known = rows(labels, [(0, 1), (10, 11), (11, 12), (13, 14)], annotated=CLASSES)
    assert targets == [[0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert known == [[1, 1, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert rows([Label("Tit"), Label("Wren", weight=0.0)], [(0, 1)]) == ([[0, 1, 0]], [[1, 1, 0]])


def reviewed(name: str, start_s: float, end_s: float, weight: float = 1.0) -> Label:
    return Label(name, start_s, end_s, weight=weight, is_reviewed=True)


def test_of_a_recording_that_was_reviewed_only_what_was_decided_is_known() -> None:
    labels = [reviewed("Tit", 10, 12), reviewed("Owl", 20, 22, weight=0.0)]
    windows = [(0, 1), (10, 11), (11.7, 12.7), (20, 21), (21.7, 22.7)]
    targets, known = rows(labels, windows)
    assert targets == [[0, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert known == [[0, 0, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]]
    whole = targets_of([labels], CLASSES).of_recordings()
    assert [each.tolist() for each in whole] == [[[0, 1, 0]], [[0, 1, 0]]]


def test_what_was_reviewed_adds_to_other_labels_and_takes_nothing_from_them() -> None:
    weak = [Label("Tit"), reviewed("Tit", 20, 22, weight=0.0), reviewed("Owl", 30, 32), reviewed("Tit", 40, 42)]
    targets, known = rows(weak, [(0, 1), (20, 21), (30, 31), (40, 41)])
    assert targets == [[0, 1, 0], [0, 0, 0], [1, 1, 0], [0, 1, 0]] and known == [[1, 1, 1]] * 4
    assert targets_of([weak], CLASSES).of_recordings()[1].tolist() == [[1, 1, 1]]
    marked = [Label("Tit", 10, 12), Label(IGNORED, 20, 24), reviewed("Wren", 5, 6), reviewed("Owl", 20, 22, weight=0.0)]
    targets, known = rows(marked, [(0, 1), (5, 6), (10, 11), (20, 21)])
    assert targets == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert known == [[0, 1, 0], [0, 1, 1], [0, 1, 0], [1, 0, 0]], "wrens are marked nowhere else"
    both = [reviewed("Owl", 10, 12), reviewed("Owl", 11, 13, weight=0.0)]
    assert rows(both, [(11, 12)]) == ([[1, 0, 0]], [[1, 0, 0]]), "a call that was heard counts"


@settings(derandomize=True, max_examples=100, deadline=None)
@given(
    spans=st.lists(st.tuples(st.sampled_from(CLASSES), st.integers(0, 50), st.integers(1, 20)), min_size=1, max_size=8),
    start=st.integers(0, 60),
    length=st.integers(1, 10),
)
def test_any_windows_are_as_a_plain_loop_finds_them(
    spans: list[tuple[str, int, int]], start: int, length: int
) -> None:
    labels = [Label(name, begin, begin + width) for name, begin, width in spans]
    (targets,), (known,) = rows(labels, [(start, start + length)], annotated=list(CLASSES))
    for column, name in enumerate(CLASSES):
        overlaps = [(min(start + length, x.end_s) - max(start, x.start_s), x.end_s - x.start_s)
                    for x in labels if x.class_name == name]  # fmt: skip
        is_in = any(shared >= WindowRule().min_overlap * min(length, width) for shared, width in overlaps)
        partly = any(shared > 0 for shared, _ in overlaps)
        assert targets[column] == is_in
        assert known[column] == (is_in or not partly)


def test_the_classes_of_recordings_take_the_memory_of_their_labels_and_are_the_same() -> None:
    labels = [
        [Label("Tit"), Label("Tit"), Label("Wren", weight=0.0)],
        [Label("Owl"), Label("Tit", 1, 2), Label(IGNORED, 3, 4)], [],
        [reviewed("Wren", 1, 2, weight=0.0), reviewed("Owl", 1, 2)], [Label("Tit"), Label("Tit", 1, 2)],
    ]  # fmt: skip
    targets = targets_of(labels, CLASSES)
    found = targets.positive()
    assert found.nnz == 5 and np.array_equal(found.toarray(), targets.of_recordings()[0] > 0)
    assert np.array_equal(targets.some(np.array([4, 1])).positive().toarray(), found.toarray()[[4, 1]])


def test_what_is_kept_grows_with_the_labels_not_with_recordings_times_classes() -> None:
    names = [f"Species {number}" for number in range(2_000)]
    labels = [(Label(names[number % 2_000]),) for number in range(10_000)]
    tracemalloc.start()
    try:
        targets = targets_of(labels, names)
        assert targets.positive().sum() == 10_000
        assert tracemalloc.get_traced_memory()[1] < 10e6, "80 MB, if there is a number of each class"
    finally:
        tracemalloc.stop()


def test_a_label_has_times_if_it_does_not_hold_throughout() -> None:
    assert not Label("Tit").has_times
    assert Label("Tit", 1.0).has_times and Label("Tit", 0.0, 3.0).has_times
    assert Label("Tit").end_s == math.inf
    with pytest.raises(AttributeError):
        Label("Tit").weight = 2.0  # type: ignore[misc]
