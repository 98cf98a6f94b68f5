"""A genus or family where no species passes: chosen for the classes of a run, and measured on its test.

    classes, their scientific names, --evaluate.taxonomy ─▶ measure ─▶ `genera` and `families` of metrics.json
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from birdtune.config import Config
from birdtune.errors import shown
from birdtune.evaluation import genera
from birdtune.evaluation.class_vectors import ClassNames, level_of, rows_of
from birdtune.evaluation.decision import Thresholds
from birdtune.evaluation.genera import FAMILY, Genera
from birdtune.evaluation.scores import Scores
from birdtune.pipeline.metrics import RunMetrics
from birdtune.runtime.text import some
from birdtune.training.job import Job

_SETTING = "--evaluate.taxonomy"


def require(config: Config) -> None:
    """Refuse a table of taxa that is none before the long work, not after. Raises InputError."""
    if config.evaluate.taxonomy is not None:
        rows_of(Path(config.evaluate.taxonomy), _SETTING, ClassNames((), {}))


def measure(job: Job, found: RunMetrics, thresholds: Thresholds) -> dict[str, Any]:
    """`genera` and `families` of metrics.json: those that a recording can be decided for, and what that adds."""
    settings, classes, kind = job.config.evaluate, job.dataset.classes, job.config.model.output
    published = job.head_start.labels if job.head_start is not None else {}
    names = genera.scientific_names(classes, published, are_scientific=settings.genera)
    of_genera = None if settings.genera is False else genera.find(classes, names, job.dataset.background, kind)
    families = genera.families(classes, _families(job, names), of_genera, kind)
    chosen: list[Genera] = []
    figures = dict[str, Any](genera=None, families=None)
    for key, several in (("genera", of_genera), ("families", families)):
        if several is not None:
            with_thresholds = genera.choose(
                several, found.held_out, precision=settings.precision, window_s=job.store.spec.window_s
            )
            added = _added(job, with_thresholds, found.scores.get("test"), thresholds, chosen)
            figures[key] = {**with_thresholds.row(classes), "test": added}
            chosen.append(with_thresholds)
    return figures


def _families(job: Job, scientific: Mapping[str, str]) -> dict[str, str]:
    """Class → family by `--evaluate.taxonomy`, as far as that knows them."""
    path = job.config.evaluate.taxonomy
    if path is None:
        return {}
    classes = tuple(name for name in job.dataset.classes if name not in job.dataset.background)
    names = ClassNames(classes, scientific)
    rows = rows_of(Path(path), _SETTING, names, may_lack=True)
    if missing := [name for name in classes if not level_of(names, rows.get(name, {}), name, FAMILY)]:
        job.journal.warn(f"{_SETTING} {shown(path)}: has no family of {some(missing)}.")
    return {name: level_of(names, row, name, FAMILY) for name, row in rows.items()}


def _added(
    job: Job, taxa: Genera, test: Scores | None, thresholds: Thresholds, before: Sequence[Genera]
) -> dict[str, Any] | None:
    """What decisions for genera or families add in the test; None: there is none."""
    if test is None:
        return None
    added = genera.evaluate(
        taxa, test, thresholds, *before, n_bootstrap=job.config.evaluate.bootstrap, seed=job.config.train.seed
    )
    without = "a genus" if before else "a species"
    job.journal.say(
        f"  {taxa.rank}: of {added['recordings']:,} test recordings {added['decided']:,} without {without} have one, "
        f"{added['right']:,} of them the right one"
    )
    return added
