"""The columns of an earlier model kept: its classes first and in their order, then the new ones.

    Dataset + classes and ids of the earlier model ─▶ keep ─▶ Dataset

Whatever reads scores by their column, or labels.csv by its row, goes on working. A class that has no recordings any
more keeps its column, too.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from birdtune.data.dataset import Dataset, class_notices
from birdtune.data.label_map import ExternalId
from birdtune.data.labels import background_of
from birdtune.errors import shown

_NAMES_IN_A_NOTICE = 8
# A class has moved if this share of what the earlier model had of it stands under other names.
_MOVED = 0.5
MOVED_ADVICE = (
    "Its column is never the right answer any more. If the folder was renamed, give it its old name back; if that was "
    "meant, as where a species was split in two, nothing is to be done: the next version that begins from this one "
    "does not say it again."
)


def keep(
    dataset: Dataset,
    classes: Sequence[str],
    ids: Mapping[str, ExternalId],
    background: str,
    title: str,
    *,
    forgets: bool = True,
    learnt: Mapping[str, str] | None = None,
) -> Dataset:
    """The same recordings, with the columns of an earlier model.

    Args:
        classes, ids: of that model, in the order of its columns.
        background: as --labels.negative-classes.
        title: what that model is called.
        forgets: whether sounds of classes without training recordings will be strange to the new one.
        learnt: as `moved`; None: nobody knows.
    """
    present = {recording.label for recording in dataset.recordings}
    columns = (*classes, *sorted(present - set(classes)))
    joined = {**{name: value for name, value in ids.items() if name in columns}, **dataset.class_ids}
    outdated = class_notices(dataset.class_ids, dataset.classes)
    notices = [notice for notice in dataset.notices if notice not in outdated]
    return replace(
        dataset,
        classes=columns,
        class_ids=joined,
        background=background_of(columns, background),
        notices=[
            *notices,
            *class_notices(joined, columns),
            *_notices(dataset, classes, ids, title, forgets),
            *(f"{moved_sentence(row)} {MOVED_ADVICE}" for row in moved(dataset, learnt or {})),
        ],
    )


def moved(dataset: Dataset, learnt: Mapping[str, str]) -> list[dict[str, Any]]:
    """Classes of the earlier model without training recordings now, most of whose recordings have other names now.

    Args:
        learnt: content of each recording that the earlier model was trained, chosen and tested on → its class then.

    Returns:
        Rows of `class`, `recordings` (how many the earlier model had), `now` (name → how many of them it has).
    """
    taught = {recording.label for recording in dataset.part("train")}
    had = Counter(learnt.values())
    now: dict[str, Counter[str]] = {}
    for recording in dataset.recordings:
        before = learnt.get(recording.content)
        if before is not None and before not in taught and recording.label != before:
            now.setdefault(before, Counter())[recording.label] += 1
    return [
        {"class": name, "recordings": had[name], "now": dict(now[name].most_common())}
        for name in sorted(now)
        if now[name].total() >= _MOVED * had[name]
    ]


def moved_sentence(row: Mapping[str, Any]) -> str:
    """One row of `moved`, for people."""
    counts = [f"{shown(name)} ({n:,} of {row['recordings']:,})" for name, n in row["now"].items()]
    return f"Recordings of {shown(row['class'])} are now in {_list(counts)}."


def _notices(
    dataset: Dataset, classes: Sequence[str], ids: Mapping[str, ExternalId], title: str, forgets: bool
) -> list[str]:
    """What became of the earlier columns, in sentences."""
    taught = {recording.label for recording in dataset.part("train")}
    present = {recording.label for recording in dataset.recordings}
    found = []
    none = (
        " As the backbone is trained, their sounds will be answered none, as unlike what was trained on: freeze it "
        "(--model.freeze all-but-head), or call nothing strange (--ood.target-recall 1)."
        if forgets
        else ""
    )
    if gone := [name for name in classes if name not in present]:
        found.append(
            f"Classes of {title} without recordings now: {_names(gone)}. Their columns stay, and nothing pushes them "
            "down; but nothing is learnt of them, nothing tests them, and what sounds like another class goes to that "
            f"one now.{none} If a folder was renamed, give it its old name: columns go by names."
        )
    if untaught := [name for name in classes if name in present - taught]:
        found.append(
            f"Classes of {title} without training recordings now: {_names(untaught)}. Their columns stay, and nothing "
            f"pushes them down; but nothing is learnt of them.{none}"
        )
    changed = [name for name in classes if name in ids and dataset.class_ids.get(name, ids[name]) != ids[name]]
    if changed:
        pairs = [f"{name} ({ids[name]} before, {dataset.class_ids[name]} now)" for name in changed]
        found.append(f"The label map gives classes of {title} other ids: {_names(pairs)}.")
    return found


def untaught(dataset: Dataset, n_kept: int) -> tuple[int, ...]:
    """Those of the first `n_kept` columns that have no training recordings."""
    counts = dataset.counts(dataset.part("train"))
    return tuple(column for column in range(n_kept) if not counts[column])


def _names(names: list[str]) -> str:
    return _list([shown(name) for name in names])


def _list(parts: list[str]) -> str:
    more = len(parts) - _NAMES_IN_A_NOTICE
    return ", ".join(parts[:_NAMES_IN_A_NOTICE]) + (f" and {more:,} more" if more > 0 else "")
