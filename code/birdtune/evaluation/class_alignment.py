"""Class alignment: the columns of the base model kept, its classes first and in order, then the new ones.

    Dataset + classes and ids of the base model ─▶ keep ─▶ Dataset

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
from birdtune.runtime.text import some

_NAMES_IN_A_NOTICE = 8
# A class has moved if this share of its recordings in the base model has another label now.
_MOVED = 0.5
MOVED_ADVICE = (
    "Its column is never the right class any more. If the folder was renamed, give it its old name back; if that was "
    "intended, as where a species was split in two, ignore this: the next version does not repeat it."
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
    """The same recordings, with the columns of the base model.

    Args:
        classes, ids: of that model, in the order of its columns.
        background: as --labels.negative-classes.
        title: what that model is called.
        forgets: whether classes without training recordings will be rejected as OOD by the new one.
        learnt: as `moved`; None: nobody knows.
    """
    present = {name for recording in dataset.recordings for name in recording.classes}
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
    """Classes of the base model without training recordings now, most of whose recordings have other labels now.

    Args:
        learnt: content of each recording that the base model was trained, chosen and tested on → its class then.

    Returns:
        Rows of `class`, `recordings` (how many the base model had), `now` (name → how many of them it has).
    """
    taught = {name for recording in dataset.part("train") for name in recording.classes}
    had = Counter(learnt.values())
    now: dict[str, Counter[str]] = {}
    for recording in dataset.recordings:
        before = learnt.get(recording.content)
        if before is not None and before not in taught and before not in recording.classes:
            now.setdefault(before, Counter()).update(recording.classes)
    return [
        {"class": name, "recordings": had[name], "now": dict(now[name].most_common())}
        for name in sorted(now)
        if now[name].total() >= _MOVED * had[name]
    ]


def moved_sentence(row: Mapping[str, Any]) -> str:
    """One row of `moved`, for people."""
    counts = [f"{name} ({n:,} of {row['recordings']:,})" for name, n in row["now"].items()]
    return f"Recordings of {shown(row['class'])} are now in {some(counts, _NAMES_IN_A_NOTICE)}."


def _notices(
    dataset: Dataset, classes: Sequence[str], ids: Mapping[str, ExternalId], title: str, forgets: bool
) -> list[str]:
    """What became of the columns of the base model, in sentences."""
    taught = {name for recording in dataset.part("train") for name in recording.classes}
    present = {name for recording in dataset.recordings for name in recording.classes}
    found = []
    none = (
        " As the backbone is trained, their recordings will be rejected as unknown, as far from the training data: "
        "freeze it (--model.freeze all-but-head), or reject nothing as OOD (--ood.target-recall 1)."
        if forgets
        else ""
    )
    if gone := [name for name in classes if name not in present]:
        found.append(
            f"Classes of {title} without recordings now: {some(gone, _NAMES_IN_A_NOTICE)}. Their columns stay, and "
            "nothing pushes them down; but they are neither trained nor tested, and recordings that sound like another "
            f"class go to that one.{none} If a folder was renamed, give it its old name: columns go by names."
        )
    if untaught := [name for name in classes if name in present - taught]:
        found.append(
            f"Classes of {title} without training recordings now: {some(untaught, _NAMES_IN_A_NOTICE)}. Their columns "
            f"stay, and nothing pushes them down; but they are not trained.{none}"
        )
    changed = [name for name in classes if name in ids and dataset.class_ids.get(name, ids[name]) != ids[name]]
    if changed:
        pairs = [f"{name} ({ids[name]} before, {dataset.class_ids[name]} now)" for name in changed]
        found.append(f"The label map gives classes of {title} other ids: {some(pairs, _NAMES_IN_A_NOTICE)}.")
    return found


def untaught(dataset: Dataset, n_kept: int) -> tuple[int, ...]:
    """Those of the first `n_kept` columns that have no training recordings."""
    counts = dataset.counts(dataset.part("train"))
    return tuple(column for column in range(n_kept) if not counts[column])
