"""Scores of training and validation recordings by heads that have not learnt from them, for calibration.

    Job, epochs ─▶ embeddings, computed once ─▶ a head for each fold left out ─▶ Scores with logits

A model that was trained on all recordings but those of test has none left to be calibrated on. Heads that were trained
as it was, but for a fifth of the source recordings, score that fifth.

Importing this loads TensorFlow.
"""

import numpy as np
import numpy.typing as npt

from birdtune.config import Config
from birdtune.data.targets import WindowTargets
from birdtune.evaluation.scores import Scores, subset
from birdtune.models.backbone import ALL_BUT_HEAD
from birdtune.training.embeddings import embed, folds
from birdtune.training.job import Job
from birdtune.training.probes import Head

# Of more windows, every second, third, … of each recording: embeddings lie in memory.
MOST_WINDOWS = 200_000


def why_not(job: Job) -> str:
    """Why heads trained by folds would not be such as the model's; "" where they are."""
    config = job.config
    if config.model.freeze_point != ALL_BUT_HEAD:
        return "the backbone is trained as well"
    if job.base is not None:
        return "the base model may have learnt from all recordings"
    if job.changes_windows:
        return "windows are augmented"
    return "labels are refined" if config.train.label_refinement else ""


def cross_fit(job: Job, epochs: int) -> Scores | None:
    """Logits of all recordings but those of test, each by a head that learnt from other sources.

    Args:
        epochs: of the model.

    Returns:
        recordings whose classes have another source recording; None: there are no two folds.

    Raises:
        DivergedError, Interrupted, RetryableError.
    """
    part = [*job.dataset.part("train"), *job.dataset.part("val")]
    classifier, embedded = embed(
        job.config, job.dataset, job.store, part, job.journal, job.interrupts, what="calibration", most=MOST_WINDOWS
    )
    fold = folds(embedded.positive, embedded.groups, job.config.train.seed)
    if not (fold >= 0).any():
        return None
    head = Head(job.config.model.head, classifier, embedded, _of_model(job.config, epochs), job.interrupts)
    recording = embedded.windows.recording.astype(np.int64)
    logits = np.zeros((len(recording), len(embedded.classes)), np.float32)
    weight: npt.NDArray[np.float32] | None = None
    numbers = np.unique(fold[fold >= 0])
    with job.journal.progress("cross-fitting", len(numbers), "folds") as progress:
        for number in numbers:
            job.interrupts.check()
            found = head.logits(np.flatnonzero(fold != number), np.flatnonzero(fold == number))
            inside = fold[recording] == number
            logits[inside] = found.window_scores
            if found.window_weight is not None:
                shape = (len(recording), *found.window_weight.shape[1:])
                weight = np.zeros(shape, np.float32) if weight is None else weight
                weight[inside] = found.window_weight
            progress.advance()
    targets, known = embedded.targets.of_recordings()
    labels = embedded.targets
    own = WindowTargets(labels, embedded.windows).all() if labels.have_times else (None, None)
    whole = Scores(
        embedded.classes, embedded.names, embedded.groups, targets, logits, recording, embedded.windows.start_s,
        mask=None if known.all() else known > 0, window_weight=weight,
        window_targets=own[0], window_mask=own[1],
    )  # fmt: skip
    return subset(whole, fold >= 0)


def _of_model(config: Config, epochs: int) -> Config:
    """The same settings with the model's epochs, and with batches as large as those of its updates.

    Heads do not accumulate.
    """
    size = config.train.batch_size * config.train.accumulate
    return config.model_copy(
        update={"train": config.train.model_copy(update={"batch_size": size, "epochs": epochs})}
    )
