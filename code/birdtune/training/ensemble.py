"""Several heads on a frozen backbone, each validated on another fold of the recordings, served as one: their mean.

    Job ─▶ members: Jobs, of which the first is the run's own training ─▶ train ─▶ checkpoints/<v>/member-2, …
        checkpoints of all members ─▶ checkpoints/<v>/ensemble: the weights that are served
        ─▶ evaluate ─▶ Scores of recordings by the member that has not learnt from them

So all recordings but those of test are learnt from, most by all members but one, and still each is scored by a member
that has not. Test stays untouched.

Importing this loads TensorFlow.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from birdtune.data.batches import Windows
from birdtune.errors import InputError
from birdtune.evaluation.part import quick_look
from birdtune.evaluation.scores import Scores, joined
from birdtune.models import classifier as classifiers
from birdtune.models import ensemble
from birdtune.models.classifier import Classifier
from birdtune.runtime.files import read_json, write_json
from birdtune.runtime.runs import HISTORY_NAME
from birdtune.runtime.text import count
from birdtune.training.checkpoints import State
from birdtune.training.embeddings import classes_of, folds
from birdtune.training.inputs import Feed
from birdtune.training.job import ENSEMBLE_NAME, Job
from birdtune.training.scoring import make_scorer
from birdtune.training.train import Shares, again
from birdtune.training.trained import best_classifier, feed_of, score


def members(job: Job) -> list[Job]:
    """The trainings of an ensemble.

    The first is the run's own, and validates on validation. The training recordings are dealt by source recording to
    the others, each of which validates on its own and learns from all others, those of validation included.
    A recording whose class no other fold has is learnt from by all members.

    Raises:
        InputError: there are too few source recordings.
    """
    n = job.config.train.ensemble
    assert n is not None
    part, val = job.dataset.part("train"), job.dataset.part("val")
    groups = [job.dataset.places[recording.name].group for recording in part]
    fold = folds(classes_of(job.dataset, part), groups, job.config.train.seed, n - 1)
    dealt = len(np.unique(fold[fold >= 0]))
    if not val or dealt < n - 1:
        why = f"{count(len(set(groups)), 'source recording')} of training can be dealt to {count(dealt, 'fold')}"
        raise InputError(
            f"--train.ensemble {n}: each member validates on other recordings, the first on those of validation, "
            f"the others on {n - 1} folds of training; {why if val else 'there are no validation recordings'}. "
            f"{'Give a smaller number' if val else 'Give --split.val-fraction 0.15'}, or add recordings of other "
            "sources of the same classes."
        )
    taught = {recording.name: "train" for recording in val}
    return [job] + [
        job.moved(
            taught | {recording.name: "val" for recording, own in zip(part, fold, strict=True) if own == number - 2},
            later=f"member-{number}", member=number,
        )
        for number in range(2, n + 1)
    ]  # fmt: skip


def train(job: Job, label_shares: Callable[[Job], Shares | None]) -> None:
    """Train the members but the first, which is trained; leave their mean as the weights that are served.

    Args:
        label_shares: of a member: as `train.train`.

    Raises:
        InputError: as `members`. DivergedError: as `train.train`.
    """
    everyone = members(job)
    trained = read_json(job.run.logs / HISTORY_NAME) if job.world.is_chief else {}
    rows = [_row(job, trained.get("epochs", []), trained.get("best_epoch"))]
    for member in everyone[1:]:
        learnt, own = (count(len(member.dataset.part(name)), "recording") for name in ("train", "val"))
        job.journal.say(f"  {member.later} of {len(everyone)}: learns from {learnt}, validates on {own}")
        state = again(member, label_shares(member))
        rows.append(_row(member, state.history, state.best["epoch"] if state.best else None))
    if not job.world.is_chief:
        return
    mean = ensemble.averaged([dict(member.checkpoints.best()) for member in everyone])
    # Whatever it is made of, it is whole: a checkpoint of a training that is over.
    job.served.checkpoints.save(mean, {}, State(best={"epoch": 0}, finished=True))
    write_json(job.run.logs / HISTORY_NAME, {**trained, "ensemble": rows})
    job.run.record.update(ensemble=rows, weights_sha256=classifiers.weights_sha256(mean))


def _row(member: Job, history: list[dict[str, Any]], best_epoch: int | None) -> dict[str, Any]:
    best = next((row for row in history if row["epoch"] == best_epoch), {})
    return {
        "member": member.member,
        "recordings": len(member.dataset.part("train")),
        "validated_on": len(member.dataset.part("val")),
        "epochs": len(history),
        "best_epoch": best_epoch,
        "val_accuracy": best.get("val_accuracy"),
        "val_macro_ap": best.get("val_macro_ap"),
        "seconds": round(sum(row["seconds"] for row in history), 2),
    }


def evaluate(job: Job) -> tuple[Scores, dict[str, Any]]:
    """What calibration and thresholds rest on, and what the members come to.

    Returns:
        recordings of training and validation, each by the member that validates on it, with logits; and `ensemble` of
        metrics.json: `recordings` that were learnt from, `members` as in history.json, each with its accuracy and macro
        average precision on test, and these of their mean in `together`, not calibrated; None without test recordings.

    Raises:
        DivergedError, Interrupted, RetryableError.
    """
    parts, on_test, test = [], [], _Part.of(job, best_classifier(job), "test") if job.dataset.part("test") else None
    for each in [*members(job), job.served]:
        classifier = best_classifier(each)
        if each.later != ENSEMBLE_NAME:
            parts.append(_Part.of(each, classifier, "val").scores(classifier, logits=True))
        on_test.append(_figures(test, classifier))
    rows = [{**row, **figures} for row, figures in zip(job.run.record["ensemble"], on_test, strict=False)]
    recordings = len(job.served.dataset.part("train"))
    return joined(parts), {"recordings": recordings, "members": rows, "together": on_test[-1]}


@dataclass(frozen=True)
class _Part:
    """One side of the split, as embeddings that all members share."""

    job: Job
    name: str
    windows: Windows
    feed: Feed

    @classmethod
    def of(cls, job: Job, classifier: Classifier, name: str) -> "_Part":
        windows = job.windows(job.dataset.part(name), job.config.evaluate.hop_s)
        return cls(job, name, windows, feed_of(job, classifier, windows, what=name))

    def scores(self, classifier: Classifier, *, logits: bool = False) -> Scores:
        part, scorer = self.job.dataset.part(self.name), make_scorer(classifier, self.feed.embed, logits=logits)
        return score(self.job, classifier, scorer, self.windows, part, source=self.feed.source)[0]


def _figures(test: _Part | None, classifier: Classifier) -> dict[str, float | None]:
    if test is None:
        return {"test_accuracy": None, "test_macro_ap": None}
    scores = test.scores(classifier)
    found = quick_look(scores, classifier.kind, of_windows=scores.window_targets is not None)
    return {f"test_{name}": found[name] for name in ("accuracy", "macro_ap")}
