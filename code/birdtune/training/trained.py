"""What a training has left: the weights of the best epoch, and what they make of recordings.

    Job ─▶ best_classifier ─▶ Classifier;  Windows ─▶ feed_of ─▶ Feed ─▶ score ─▶ Scores

Importing this loads TensorFlow.
"""

from collections.abc import Callable, Sequence

import numpy as np

from birdtune.data.batches import Source, Windows
from birdtune.data.scan import Recording
from birdtune.data.targets import WindowTargets
from birdtune.errors import CheckpointError, DivergedError
from birdtune.evaluation.scores import Scores
from birdtune.models import classifier as classifiers
from birdtune.models.classifier import Classifier
from birdtune.training import health
from birdtune.training.first_weights import build_classifier
from birdtune.training.inputs import Feed, Frozen, whole
from birdtune.training.job import Job
from birdtune.training.scoring import Scorer, Together, noting, score_windows


def feed_of(job: Job, classifier: Classifier, windows: Windows, *, what: str, some: bool = False) -> Feed:
    """Windows as embeddings that are kept on disk, where only the head is trained; or as they are.

    Every recording thus goes through a frozen backbone once a run, whatever its embeddings are needed for.

    Args:
        some: only some of the windows are needed: they are not computed for the sake of keeping them.

    Raises:
        Interrupted, RetryableError, InputError: what was finished is kept.
    """
    if not classifier.is_frozen:
        return whole(classifier, windows)
    frozen = Frozen(
        classifier, store=job.store, most_bytes=job.config.train.cache_gb * 1e9, journal=job.journal,
        interrupts=job.interrupts,
    )  # fmt: skip
    if some and not frozen.has(windows):
        return whole(classifier, windows)
    return frozen.feed(windows, what=what)


def score(
    job: Job,
    classifier: Classifier,
    scorer: Scorer,
    windows: Windows,
    part: Sequence[Recording],
    advance: Callable[[int], None] = lambda n: None,
    source: Source | None = None,
    *,
    logits: bool = False,
) -> tuple[Scores, int | None]:
    """Scores of some recordings, and how many units of the embedding depend on the sound.

    Args:
        scorer: of the classifier.
        windows: of `part`.
        source: what the scorer is given of the windows, if not their frames.
        logits: the scorer gives these in place of scores.

    Raises:
        DivergedError: the weights are so large that scores are NaN or infinite.
    """
    live, recording = health.LiveUnits(), windows.recording.astype(np.int64)
    together = Together(classifier, recording, logits=logits)
    watched = noting(noting(scorer, live.note), together.note)
    found = score_windows(
        watched, source or windows, job.config.evaluate.batch_size, job.interrupts, advance
    )  # [P, C]
    found = together.scores(found)
    if broken := int((~np.isfinite(found)).any(axis=1).sum()):
        raise DivergedError(
            f"The scores of {broken:,} of {len(found):,} windows are NaN or infinite: training has made the "
            "weights too large. Lower --train.learning-rate (try a tenth), or try --train.precision float32."
        )
    labels = job.dataset.targets(part)
    targets, known = labels.of_recordings()
    own = WindowTargets(labels, windows).all() if labels.have_times else (None, None)
    scores = Scores(
        classes=classifier.classes,
        recordings=tuple(recording.name for recording in part),
        groups=tuple(job.dataset.places[recording.name].group for recording in part),
        targets=targets,
        window_scores=found,
        window_recording=recording,
        window_start_s=windows.start_s,
        mask=None if known.all() else known > 0,
        window_weight=together.shares(),
        window_targets=own[0],
        window_mask=own[1],
    )
    return scores, live.count()


def has_weights(job: Job) -> bool:
    """Whether the trained weights of which the record speaks are still there, and whole."""
    try:
        job.checkpoints.best()
        found = classifiers.weights_sha256(job.served.checkpoints.best())
    except CheckpointError:
        return False
    return found == str(job.run.record["weights_sha256"])


def best_classifier(job: Job) -> Classifier:
    """The trained network with the weights of the best epoch, in float32 as it is served."""
    classifier = build_classifier(job.config, job.dataset.classes, "float32", seed=None)
    classifiers.load_weights(classifier, job.checkpoints.best(), source=str(job.run.checkpoints))
    return classifier
