"""The columns of an earlier model kept: its classes first and in their order, then the new ones.

    Dataset + classes and ids of the earlier model ─▶ keep ─▶ Dataset

Whatever reads scores by their column, or labels.csv by its row, goes on working. A class that has no recordings any
more keeps its column, too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from birdtune.dataset.gather import Dataset, class_notices
from birdtune.dataset.labels import ExternalId, background_of
from birdtune.errors import shown

_NAMES_IN_A_NOTICE = 8


def keep(
    dataset: Dataset,
    classes: Sequence[str],
    ids: Mapping[str, ExternalId],
    background: str,
    title: str,
    *,
    forgets: bool = True,
) -> Dataset:
    """The same recordings, with the columns of an earlier model.

    Args:
        classes, ids: of that model, in the order of its columns.
        background: as --labels.background.
        title: what that model is called.
        forgets: whether sounds of classes without training recordings will be strange to the new one.
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
        notices=[*notices, *class_notices(joined, columns), *_notices(dataset, classes, ids, title, forgets)],
    )


def _notices(
    dataset: Dataset, classes: Sequence[str], ids: Mapping[str, ExternalId], title: str, forgets: bool
) -> list[str]:
    """What became of the earlier columns, in sentences."""
    taught = {recording.label for recording in dataset.part("train")}
    present = {recording.label for recording in dataset.recordings}
    found = []
    none = (
        " As the trunk is trained, their sounds will be answered none, as unlike what was trained on: freeze it "
        "(--model.freeze all-but-head), or call nothing strange (--evaluate.keep-known 1)."
        if forgets
        else ""
    )
    if gone := [name for name in classes if name not in present]:
        found.append(
            f"Classes of {title} without recordings now: {_names(gone)}. Their columns stay, and are left out of what "
            "training compares, so that nothing pushes them down; but nothing is learnt of them, and nothing tests "
            f"them.{none} If a folder was renamed, give it its old name: columns go by names."
        )
    if untaught := [name for name in classes if name in present - taught]:
        found.append(
            f"Classes of {title} without training recordings now: {_names(untaught)}. Their columns stay, and are left "
            f"out of what training compares.{none}"
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
    more = len(names) - _NAMES_IN_A_NOTICE
    return ", ".join(map(shown, names[:_NAMES_IN_A_NOTICE])) + (f" and {more:,} more" if more > 0 else "")
