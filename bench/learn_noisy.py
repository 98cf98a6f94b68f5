"""Which labels are wrong: one in twenty was made so, and the check of labels ranks all.

    embeddings, labels of which 5 % are wrong ─▶ as `run` checks labels ─▶ the wrong ones among its first label issues
"""

from typing import Any

import numpy as np

from bench import learning, made_sets
from bench.harness import Result, Settings

SHARE, FIRST = 0.05, 0.10


def measure(settings: Settings) -> Result:
    """A line of what the first tenth holds, and one of what the report lists."""
    from birdtune.evaluation import label_issues
    from birdtune.pipeline.label_check import out_of_fold_scores
    from birdtune.runtime.signals import Interrupts
    from birdtune.training.embeddings import folds

    bench = learning.embed(learning.esc10(), settings.folder)
    found = bench.embedded
    averages = _averages(found)
    first, listed, right = [], [], []
    for seed in range(settings.seed, settings.seed + (1 if settings.quick else 10)):
        clips, wrong = made_sets.noisy(bench.clips(), seed, share=SHARE)
        labels = np.array([found.classes.index(clip.label) for clip in clips])
        positive = np.eye(len(found.classes))[labels] > 0
        fold = folds(positive, found.groups, seed)
        scores, _ = out_of_fold_scores(averages, positive, fold, Interrupts())
        order = [issue.index for issue in label_issues.ranked(scores, positive, fold >= 0)]
        table = [issue.index for issue in label_issues.find(scores, positive, fold >= 0)]
        everything = np.arange(len(labels))
        is_wrong = np.isin(everything, wrong)
        first.append(np.where(is_wrong, np.isin(everything, order[: round(FIRST * len(labels))]), np.nan))
        listed.append(np.where(is_wrong, np.isin(everything, table), np.nan))
        right.append(len(set(table) - set(wrong)))
    groups = found.groups
    return Result("learn_noisy", [
        learning.reach(f"of {SHARE:.0%} wrong labels, among the first {FIRST:.0%} of all ranked",
                       learning.shares(np.array(first), groups), at_least=0.6, note=f"{len(first)} seeds"),
        learning.reach("of the wrong labels, listed in label_issues.csv", learning.shares(np.array(listed), groups),
                       note=f"beside {np.mean(right):.1f} of {len(groups)} recordings whose label was right"),
    ])  # fmt: skip


def _averages(embedded: Any) -> Any:
    """Mean embedding of each recording, silence left out, as `run` has it. [N, K]"""

    windows = embedded.windows
    weight = windows.store.spec.held(windows.features(np.arange(len(windows))))
    sums = np.zeros((len(embedded.labels), embedded.embeddings.shape[1]))
    np.add.at(sums, windows.recording, weight[:, None] * embedded.embeddings)
    return (sums / np.bincount(windows.recording, weight)[:, None]).astype(np.float32)
