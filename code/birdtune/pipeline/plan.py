"""Which stages a run has to do: those whose results are missing, damaged, or made from something else.

A chain of fingerprints decides it: a stage's own settings, its inputs, and the fingerprint of what came before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from birdtune.data.dataset import Dataset
from birdtune.models import published
from birdtune.models.head_start import HeadStart
from birdtune.models.weights import sound_checkpoint
from birdtune.reporting import tuned
from birdtune.runtime import fingerprints
from birdtune.runtime.files import file_sha256, value_sha256
from birdtune.runtime.runs import Run
from birdtune.training import base_model
from birdtune.training.served_model import ServedModel


@dataclass(frozen=True)
class Plan:
    """What there is to do.

    Attributes:
        fingerprints: of each stage: what its result must have been made from to be current.
        wanted: all stages up to the last one asked for, in order.
        due: those that must be done, in order.
    """

    fingerprints: dict[str, str]
    wanted: list[str]
    due: list[str]

    @classmethod
    def of(
        cls,
        current: Run,
        dataset: Dataset,
        train: str,
        base: ServedModel | None,
        champion: ServedModel | None,
        until: str,
    ) -> "Plan":
        """The plan of a run that has its number; `train`: the fingerprint of its training."""
        fingerprints = _fingerprints(current, dataset, train, base, champion)
        names = list(fingerprints)
        wanted = names[: names.index(until) + 1]
        # Without a gate, a candidate is promoted, also one that was compared with nothing.
        overrides = current.config.gate.champion is None and current.record["promoted"] is False
        stale = [
            name for name in wanted
            if not current.is_current(name, fingerprints[name]) or (name == "export" and overrides)
        ]  # fmt: skip
        # Checkpoints may be deleted once their model is exported; but who asks for weights gets them.
        weights_lack = until == "train" and not current.checkpoints.exists()
        # What was made of weights that are trained anew is made anew, too.
        return cls(fingerprints, wanted, wanted if "train" in stale or weights_lack else stale)


def _fingerprints(
    current: Run, dataset: Dataset, train: str, base: ServedModel | None, champion: ServedModel | None
) -> dict[str, str]:
    config = current.config
    # Calibration, thresholds, label issues, the OOD limit and all intervals are by source recording.
    sources = dataset.digest(sources=True)
    compared = [_as_served(served) for served in (base, champion)]
    kept = published.keep(config, dataset.classes)
    more: list[Any] = [] if kept is None else [kept.columns, kept.row()]
    more += [] if config.evaluate.taxonomy is None else [file_sha256(Path(config.evaluate.taxonomy))]
    evaluate = fingerprints.stage_fingerprint(train, config, "evaluate", sources, dataset.background, compared, *more)
    margin = config.gate.margin if champion is not None else None
    # What is served is calibrated, and has thresholds.
    beside = sound_checkpoint(config)  # a head on embeddings is exported with that backbone, or without any
    export = fingerprints.stage_fingerprint(
        evaluate, config, "export", dataset.class_ids, margin, *([] if beside is None else [str(beside)])
    )
    problems = value_sha256([problem.row() for problem in dataset.problems])
    shown = (export, problems, dataset.notices, tuned.digest(config))
    report = fingerprints.stage_fingerprint(evaluate, config, "report", *shown)
    return {"train": train, "evaluate": evaluate, "export": export, "report": report}


def _as_served(served: ServedModel | None) -> list[Any] | None:
    return None if served is None else [served.digest(), served.calibration.row(), served.title]


def with_base(
    current: Run, dataset: Dataset, checkpoint: Path | None, bases: Sequence[ServedModel]
) -> tuple[ServedModel | None, Dataset, HeadStart | None, str]:
    """The model that the run begins from, the dataset with its columns, which of them begin from a published
    classifier, and the fingerprint of the training.

    Of several it is the first with which the newest version goes on, else the last.
    """
    config = current.config
    choices: Sequence[ServedModel | None] = bases or [None]
    for base in choices:
        columns = base_model.with_columns(config, dataset, base)
        # What is trained by folds changes with the source recordings, as no fold shares one with another.
        digest = columns.digest(sources=bool(config.train.label_refinement or config.train.ensemble))
        start = base_model.find_head_start(config, columns.classes, base)
        train = fingerprints.fingerprint(
            config,
            digest,
            checkpoint,
            base.digest() if base is not None else None,
            start.columns if start is not None else None,
        )
        if base is not None and base is not choices[-1]:
            if not current.continues(train):
                continue
            base_model.verify(base, config, remember=True)
        return base, columns, start, train
    raise AssertionError("there is always a last one")
