"""What birdtune learns on real sound: its settings beside each other, over folds, seeds and source recordings.

    python bench/learning.py [PART ...]     in an environment with the packages of requirements.txt

Each part learn_*.py is one question. The sound is ESC-10 (K. J. Piczak 2015: 400 clips of 10 classes in five folds, the
fold being the first digit of a file's name), the backbone YAMNet with its AudioSet weights; where they lie is said by
BENCH_DATA. Intervals are of 95 % and drawn over source recordings; figures are means over seeds.
"""

import csv
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1] / part) for part in ("", "code")]

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score

from bench.harness import ON_REAL_SOUND, ROOT, Line, birdtune
from bench.made_sets import Clip

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FOLDS = 5
REPLICATES = 1000


def esc10() -> Path:
    """The folder of ESC-10's class folders. Raises FileNotFoundError: it is not there."""
    return place("esc10")


def yamnet() -> Path:
    """YAMNet's weights. Raises FileNotFoundError: they are not there."""
    return place("yamnet/yamnet.tflite")


def birdnet() -> Path:
    """BirdNET's weights. Raises FileNotFoundError: they are not there."""
    path = Path(os.environ.get("BENCH_BIRDNET", "BirdNET_GLOBAL_6K_V2.4_Model_FP32.tflite"))
    if not path.is_file():
        raise FileNotFoundError(f"{path}: BirdNET's weights are not there; say where with BENCH_BIRDNET.")
    return path


def place(name: str) -> Path:
    """Something in the folder of real sound. Raises FileNotFoundError: it is not there."""
    folder = Path(os.environ.get("BENCH_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / name).exists():
        raise FileNotFoundError(
            f"{folder / name}: is not there. The measurements of learning need ESC-10 as class folders in esc10/ and "
            "Google's weights in yamnet/yamnet.tflite; say where with BENCH_DATA."
        )
    return folder / name


def fold_of(name: str) -> int:
    """The fold of one of ESC-10's clips, 1 to 5."""
    return int(Path(name).name.split("-")[0])


def folds_of(data: Path) -> dict[str, int]:
    """The fold of each recording below a folder of class folders, 1 to 5: of ESC-10 its own, else drawn by class."""
    names = [path.relative_to(data).as_posix() for path in sorted(data.glob("*/*"))]
    if all(re.match("[1-5]-", Path(name).name) for name in names):
        return {name: fold_of(name) for name in names}
    generator = np.random.default_rng(0)
    drawn = [name for label in sorted({name.split("/")[0] for name in names})
             for name in generator.permutation([name for name in names if name.split("/")[0] == label])]  # fmt: skip
    return {str(name): number % FOLDS + 1 for number, name in enumerate(drawn)}


# ---- on embeddings ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Bench:
    """ESC-10, or what was made of it, as embeddings by YAMNet's backbone, and what heads need to learn on them."""

    config: Any
    classifier: Any
    embedded: Any
    fold: Ints  # [N]

    def out_of_fold(self, kind: str, *, rows: Mapping[int, Ints] | None = None, **train: Any) -> Floats:
        """Scores of all clips, each by a head that was trained on the other four folds. [N, C]

        Args:
            kind: a head, a baseline, or SMOTE.
            rows: what is trained on where a fold is judged; default: all clips of the others.
            train: settings of training that differ from their defaults.
        """
        from birdtune.runtime.signals import Interrupts
        from birdtune.training.probes import BASELINES, SMOTE, Baseline, Head

        settings = self.config.train.model_copy(update=train)
        config = self.config.model_copy(update={"train": settings})
        candidate = (
            Baseline(kind, self.embedded, config)
            if kind in (*BASELINES, SMOTE)
            else Head(kind, self.classifier, self.embedded, config, Interrupts())
        )
        found = np.zeros((len(self.fold), len(self.embedded.classes)))
        for fold in np.unique(self.fold):
            judged = np.flatnonzero(self.fold == fold)
            training = np.flatnonzero(self.fold != fold) if rows is None else rows[int(fold)]
            found[judged] = candidate(training, judged)
        return found

    def clips(self) -> list[Clip]:
        """The clips in the order of their embeddings."""
        folder = Path(self.config.data)
        return [Clip(folder / name, Path(name).parent.name) for name in self.embedded.names]


def embed(data: Path, output: Path, **settings: Any) -> Bench:
    """Embeddings of a folder of class folders, by YAMNet's backbone if no other is set."""
    from birdtune.config import Config
    from birdtune.data import dataset as gather
    from birdtune.models.registry import backbone_of
    from birdtune.runtime.log import Journal
    from birdtune.runtime.signals import Interrupts
    from birdtune.training import devices, embeddings

    given = {"backbone": "yamnet", "checkpoint": str(yamnet()), "freeze": "all-but-head"} | settings
    config = Config(data=str(data), output=output, model=given)
    journal, interrupts = Journal(quiet=True), Interrupts()
    dataset, store = gather.prepare(config, backbone_of(config).front_end, journal, interrupts)
    config = config.with_output(dataset.output)
    devices.prepare_devices()
    classifier, found = embeddings.embed(
        config, dataset, store, dataset.recordings, journal, interrupts, what="measurement"
    )
    folds = folds_of(data)
    return Bench(config, classifier, found, np.array([folds[name] for name in found.names]))


# ---- whole jobs -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Judged:
    """What a job has left: its record, its metrics, and scores of the test part, calibrated."""

    record: Mapping[str, Any]
    metrics: Mapping[str, Any]
    test: Any


def job(output: Path, fold: int, data: Path | None = None, **flags: Any) -> Judged:
    """`run` with one fold for test, the next for validation, three to train on; once, unless flags say otherwise.

    Args:
        output: jobs in one folder share their frames; each is a version of its own.
        flags: settings, with `__` for the point.

    Raises:
        RuntimeError: it did not end with 0.
    """
    from birdtune.evaluation.scores import Scores

    data = data or esc10()
    folds = output.with_name(f"{output.name}-folds.csv")
    rows = "".join(f"{name},{number}\n" for name, number in folds_of(data).items())
    folds.write_text(f"recording,fold\n{rows}", "utf-8")
    settings = {
        "data": data, "output": output, "split.file": folds, "split.test-fold": fold,
    }  # fmt: skip
    flags = {"model__backbone": "yamnet", "model__checkpoint": yamnet(), "train__refit": "false"} | flags
    birdtune("run", *(f"--{name}={value}" for name, value in settings.items()), *told(flags).split())()
    record = json.loads((output / "run.json").read_text("utf-8"))
    reports = output / "reports" / str(record["version"])
    metrics = json.loads((reports / "metrics.json").read_text("utf-8"))
    return Judged(record, metrics, Scores.load(reports / "scores-test.npz"))


def answers(output: Path, folder: Path) -> dict[str, dict[str, str]]:
    """What the last job's model answers to the sounds in a folder: name of the file, without ending → its row."""
    place = folder.with_name(f"{folder.name}.csv")
    birdtune("predict", str(folder), "--output", str(output), "--out", str(place))()
    return {Path(row["file"]).stem: row for row in table(place)}


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def clip_rows(judged: Sequence[Judged]) -> tuple[Floats, Ints, tuple[str, ...]]:
    """Calibrated scores of the test recordings of several jobs, their classes, and their sources. [N, C], [N], [N]"""
    from birdtune.evaluation.scores import clip_scores

    parts = [one.test for one in judged]
    return (
        np.concatenate([clip_scores(part) for part in parts]),
        np.concatenate([part.labels for part in parts]),
        tuple(group for part in parts for group in part.groups),
    )


# ---- figures --------------------------------------------------------------------------------------


def shares(values: npt.NDArray[Any], groups: Sequence[str]) -> tuple[float, float, float]:
    """Mean of a value of each clip, and its interval over source recordings.

    Args:
        values: [N] or, over seeds, [seeds, N]; NaN: does not count.
    """
    from birdtune.evaluation.bootstrap import Bootstrap

    table = np.atleast_2d(np.asarray(values, np.float64))
    counts = np.isfinite(table).sum(axis=0)
    known = counts > 0
    table = np.divide(np.nansum(table, axis=0), counts, out=np.zeros(len(counts)), where=known)
    draws = Bootstrap(tuple(groups), REPLICATES, 0)
    replicates = draws.ratio(table, known)
    low, high = np.nanpercentile(replicates, [2.5, 97.5])
    return float(table[known].mean()), float(low), float(high)


def drawn(figure: Any, groups: Sequence[str], n: int = 300) -> tuple[float, float, float]:
    """A figure of some clips, and its interval over source recordings.

    Args:
        figure: from rows [n] of clips, drawn with repetition, to the figure.
    """
    names, index = np.unique(np.asarray(groups, object), return_inverse=True)
    members = [np.flatnonzero(index == group) for group in range(len(names))]
    generator = np.random.default_rng(0)
    replicates = [
        figure(np.concatenate([members[group] for group in generator.integers(0, len(names), len(names))]))
        for _ in range(n)
    ]
    low, high = np.nanpercentile(replicates, [2.5, 97.5])
    return float(figure(np.arange(len(groups)))), float(low), float(high)


def macro_ap(scores: Floats, labels: Ints) -> float:
    """Mean over classes of the average precision. scores [N, C], labels [N]"""
    present = np.unique(labels)
    return float(np.mean([average_precision_score(labels == column, scores[:, column]) for column in present]))


def text(found: tuple[float, float, float], sign: bool = False) -> str:
    """As it stands in the table: 0.975 (0.958 to 0.990)."""
    form = "+.3f" if sign else ".3f"
    return "{} ({} to {})".format(*(format(value, form) for value in found))


def reach(
    what: str, found: tuple[float, float, float], *, at_least: float | None = None, at_most: float | None = None,
    beside: str = "", note: str = "",
) -> Line:  # fmt: skip
    """A line whose figure itself is to reach something."""
    reached = None
    target = ""
    if at_least is not None:
        target, reached = f"≥ {at_least:g}", found[0] >= at_least
    if at_most is not None:
        target, reached = f"≤ {at_most:g}", found[0] <= at_most
    return Line(what, text(found), beside, None, target, reached, note)


def told(settings: Mapping[str, Any]) -> str:
    """Settings, with `__` for the point, as flags."""
    return " ".join(
        f"--{name.replace('__', '.').replace('_', '-')}={value}" for name, value in settings.items()
    )


if __name__ == "__main__":
    from bench.__main__ import main

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.exit(main(sys.argv[1:] if any(not given.startswith("-") for given in sys.argv[1:]) else [
        *sys.argv[1:], *ON_REAL_SOUND
    ]))  # fmt: skip
