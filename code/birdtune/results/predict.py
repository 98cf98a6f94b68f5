"""Sound files → embeddings or predictions, in memory that does not grow with their length.

    files, folders ─▶ find_sounds ─▶ hear (patches through the model) ─▶ embed_files: .npz
                                                                      └─▶ predict_files: .csv

A sound is cut into patches as the network wants them: resampled to 16 kHz, log-mel frames, the tail dropped or
filled up with zeros as its front end says, a sound shorter than a patch filled up.
"""

import io
import math
import os
import stat
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from birdtune.errors import UsageError, shown
from birdtune.files import try_to_write, write_bytes, write_csv
from birdtune.results.answers import BACKGROUND, NO_ANSWER, NONE, Thresholds
from birdtune.results.calibration import Calibration
from birdtune.results.hearing import Cutter, Floats, Heard, Unused, hear
from birdtune.results.novelty import held
from birdtune.results.scores import shares
from birdtune.results.verify import ExportedModel as ExportedModel  # with what it is used for
from birdtune.results.verify import open_model as open_model
from birdtune.sound.audio import FOREIGN_ENDINGS, SOUND_ENDINGS
from birdtune.sound.logmel import FrontEnd

# Columns of the best classes in a table; jibjib's readers show three.
_TOP = 3
# Scores are written with this many decimals: float32 near 1 has seven.
_DECIMALS = 6


@dataclass(frozen=True)
class Outcome:
    """What came of some files."""

    files: int  # used
    patches: int
    problems: tuple[Unused, ...]


class Scorer(Protocol):
    """What `predict_files` needs; `model.classifier.Classifier` and `verify.ExportedModel` have it."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the scores."""
        ...

    @property
    def front_end(self) -> FrontEnd:
        """What its patches are made with."""
        ...

    def scores(self, patches: Any, /) -> tuple[Any, Any]:
        """Patches [n, 96, 64] float32 → scores [n, C] and embeddings [n, K]."""
        ...

    def attend(self, embeddings: Any, /) -> Any:
        """Embeddings [n, K] → how much each patch counts beside the others of its sound [n]."""
        ...


# ---- files in -----------------------------------------------------------------------------------


def find_sounds(given: Sequence[Path]) -> tuple[list[Path], list[Unused]]:
    """Files as given, and those below the folders given, sorted; each path once.

    Below a folder only names that end as sound does are taken, and none that begin with a dot; links to
    folders are not followed. A file given by its own name is taken whatever its ending.
    """
    found: dict[Path, None] = {}
    problems: list[Unused] = []
    for path in given:
        fault = _fault(path)
        if fault is not None:
            problems.append(fault)
        elif path.is_dir():
            below, unused = _walk(path)
            found.update(dict.fromkeys(below))
            problems.extend(unused)
        else:
            found[path] = None
    return list(found), problems


def _walk(folder: Path) -> tuple[list[Path], list[Unused]]:
    files: list[Path] = []
    problems: list[Unused] = []

    def not_listed(fault: OSError) -> None:
        problems.append(Unused(shown(fault.filename), "unreadable", f"cannot be listed ({fault.strerror})"))

    for place, folders, names in os.walk(folder, onerror=not_listed):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(place, name)
            ending = path.suffix.lower()
            if ending in FOREIGN_ENDINGS:
                problems.append(Unused(shown(path), "unsupported-format", f"{ending} cannot be read"))
            elif ending in SOUND_ENDINGS:
                fault = _fault(path)
                problems.extend([fault] if fault else [])
                files.extend([] if fault else [path])
    if not files and not problems:
        problems.append(Unused(shown(folder), "not-audio", "no file in this folder has an ending of sound"))
    return sorted(files), problems


def _fault(path: Path) -> Unused | None:
    """Why a path cannot be opened at all; a pipe, for one, would be waited for without end."""
    try:
        mode = path.stat().st_mode
    except OSError as fault:
        return Unused(shown(path), "unreadable", f"the system refuses to look at it ({fault.strerror})")
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return Unused(shown(path), "not-a-file", "it is no regular file")
    return None


# ---- tables out ---------------------------------------------------------------------------------


def _check_arguments(resampler: str, hop_frames: int | None, batch_size: int) -> None:
    if (hop_frames is not None and hop_frames < 1) or batch_size < 1 or resampler not in ("soxr", "resampy"):
        raise UsageError(
            f"hop {hop_frames} frames, {batch_size} patches at a time, resampler {shown(resampler)}: "
            "expected at least 1, at least 1, and soxr or resampy."
        )


def embed_files(
    files: Sequence[Path],
    embed: Callable[[Floats], Any],
    out: Path,
    *,
    front_end: FrontEnd,
    resampler: str = "soxr",
    hop_frames: int | None = None,
    batch_size: int = 64,
    longest_s: float = math.inf,
    check: Callable[[], None] = lambda: None,
) -> Outcome:
    """Write the embeddings of all patches of some sounds.

    Args:
        files: files, and folders of files (see `find_sounds`).
        embed: patches [n, 96, 64] float32 → embeddings [n, K] (VGGish 128, YAMNet 1024), n up to `batch_size`.
        out: the .npz: `embeddings` [P, K] float32, `file` [P] str, `start_s` [P] float32 seconds; the files
            in their order, patches from the first to the last. Read it with `numpy.load`.
        front_end: what `embed` wants patches to be made with.
        resampler: "soxr" or "resampy".
        hop_frames: from one patch to the next, in frames of 10 ms; None = as the front end says.
        longest_s: longer sounds are not used.
        check: called between batches; it may raise to stop, and then nothing is written.

    Raises:
        UsageError: a hop, batch size or resampler that cannot be.
        CheckpointError: the model answers NaN.
        InputError, PassingError: `out` cannot be written.
    """
    _check_arguments(resampler, hop_frames, batch_size)
    try_to_write(out.parent)
    paths, problems = find_sounds(files)
    heard: list[Heard] = []
    cutter = Cutter(resampler, hop_frames or front_end.patch_hop, longest_s, front_end)
    for item in hear(paths, embed, cutter, batch_size, check):
        problems.append(item) if isinstance(item, Unused) else heard.append(item)
    counts = [len(item.start_s) for item in heard]
    none = np.zeros((0, 0), np.float32)
    arrays = {
        "embeddings": np.concatenate([item.results for item in heard]) if heard else none,
        "file": np.repeat(np.array([item.name for item in heard], np.str_), counts),
        "start_s": np.concatenate([np.zeros(0), *(item.start_s for item in heard)]).astype(np.float32),
    }
    write_bytes(out, _npz(arrays))
    return Outcome(len(heard), sum(counts), tuple(problems))


def _npz(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """What numpy.savez_compressed writes; it cannot be used, for it takes no array called `file`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
    return buffer.getvalue()


def predict_files(
    files: Sequence[Path],
    classifier: Scorer,
    out: Path,
    *,
    calibration: Calibration | None = None,
    thresholds: Thresholds | None = None,
    strangeness: Callable[[Floats], Any] | None = None,
    patches_out: Path | None = None,
    resampler: str = "soxr",
    hop_frames: int | None = None,
    batch_size: int = 64,
    longest_s: float = math.inf,
    check: Callable[[], None] = lambda: None,
) -> Outcome:
    """Write what the classifier hears in some sounds.

    Args:
        files, resampler, hop_frames, batch_size, longest_s, check: as `embed_files`.
        classifier: an exported or a trained one.
        calibration: makes the mean over the patches (by attention, where the head has one) the recording's scores;
            None: the mean is.
        thresholds: from which score on a class counts; None: there are none, and `answer` stays empty.
        strangeness: mean embeddings, silence left out [n, K] → how unlike all that was trained on they are [n]; None:
            it is not told, and the column stays empty.
        out: CSV, one row a file: `file`, `duration_s`, `patches`; `answer`: the class with the highest of the scores
            that pass, or `none`, as also where `strangeness` is above 1; `class` and `score` of the best class, and of
            the next ones (`class_2`, `score_2` …), whether they pass or not, background left out; `at_s`, the second
            from which on the best class is heard best; `strangeness`; and a column `score:<class>` for every class.
        patches_out: CSV, one row a patch: `file`, `start_s`, `end_s`, and the best classes as above.

    Raises:
        as `embed_files`.
    """
    _check_arguments(resampler, hop_frames, batch_size)
    for place in filter(None, [out, patches_out]):
        try_to_write(place.parent)
    classes = classifier.classes
    paths, problems = find_sounds(files)
    sounds: list[dict[str, object]] = []
    n_patches = 0

    def patch_rows() -> Iterator[dict[str, object]]:
        nonlocal n_patches
        front_end = classifier.front_end
        cutter = Cutter(resampler, hop_frames or front_end.patch_hop, longest_s, front_end)
        judge = _judged_by(classifier, pools=strangeness is not None)
        for item in hear(paths, judge, cutter, batch_size, check, kept=len(classes) + 1):
            if isinstance(item, Unused):
                problems.append(item)
                continue
            n_patches += len(item.start_s)
            strange = None if strangeness is None else float(strangeness(_pooled(item))[0])
            sounds.append(_sound_row(item, classes, calibration, thresholds, strange))
            if patches_out is not None:
                yield from _patch_rows(item, classes, cutter.spec, thresholds)

    best = tuple(_best(np.zeros(len(classes), np.float32), classes, thresholds))
    if patches_out is not None:
        write_csv(patches_out, ("file", "start_s", "end_s", *best), patch_rows())
    else:
        deque(patch_rows(), maxlen=0)
    every = tuple(f"score:{name}" for name in classes)
    write_csv(out, ("file", "duration_s", "patches", *best, "at_s", "strangeness", *every), sounds)
    return Outcome(len(sounds), n_patches, tuple(problems))


def _judged_by(classifier: Scorer, *, pools: bool) -> Callable[[Floats], Floats]:
    """From patches [n, 96, 64] to their scores and, in a column of its own, how much each counts. [n, C + 1]

    Args:
        pools: behind these, what the mean embedding of a recording is made of: each embedding times what its patch
            holds, and that. [n, C + 1 + K + 1]
    """

    def judge(patches: Floats) -> Floats:
        scores, embeddings = classifier.scores(patches)
        columns = [np.asarray(scores), np.asarray(classifier.attend(embeddings))]
        if pools:
            weight = held(patches, classifier.front_end).astype(np.float32)
            columns += [weight[:, None] * np.asarray(embeddings), weight]
        return np.column_stack(columns)

    return judge


def _pooled(item: Heard) -> Floats:
    """The mean embedding of a recording, silence left out. [1, K]"""
    return np.asarray(item.sums[None, :-1] / item.sums[-1], np.float32)


def _best(
    scores: Floats, classes: Sequence[str], thresholds: Thresholds | None, strange: float | None = None
) -> dict[str, object]:
    """The answer, and the best classes of [C] scores, the first of equals first; background is left out."""
    order = np.argsort(-scores, kind="stable")
    row: dict[str, object] = {"answer": ""}
    if thresholds is not None:
        known = None if strange is None else np.array([strange])
        answer = int(thresholds.answers(scores[None], known)[0])
        row["answer"] = NO_ANSWER if answer == NONE else classes[answer]
        order = np.array([column for column in order if thresholds.origins[column] != BACKGROUND])
    for rank, column in enumerate(order[:_TOP], start=1):
        suffix = "" if rank == 1 else f"_{rank}"
        row[f"class{suffix}"] = classes[column]
        row[f"score{suffix}"] = round(float(scores[column]), _DECIMALS)
    return row


def _sound_row(
    item: Heard,
    classes: Sequence[str],
    calibration: Calibration | None,
    thresholds: Thresholds | None,
    strange: float | None,
) -> dict[str, object]:
    patches, attention = item.results[:, :-1], item.results[:, -1]
    mean = shares(attention, np.zeros(len(attention), np.int64)) @ patches  # [C]
    scores = calibration.clips(mean[None])[0] if calibration is not None else mean
    best = _best(scores, classes, thresholds, strange)
    clearest = int(patches[:, classes.index(str(best["class"]))].argmax())
    return {
        "file": item.name,
        "duration_s": round(item.duration_s, 3),
        "patches": len(item.start_s),
        **best,
        "at_s": round(float(item.start_s[clearest]), 2),
        "strangeness": "" if strange is None else round(strange, 4),
        **{f"score:{name}": round(float(scores[column]), _DECIMALS) for column, name in enumerate(classes)},
    }


def _patch_rows(
    item: Heard, classes: Sequence[str], spec: FrontEnd, thresholds: Thresholds | None
) -> Iterator[dict[str, object]]:
    patch_s = spec.patch_samples / spec.rate_hz
    for start_s, scores in zip(item.start_s.tolist(), item.results[:, :-1], strict=True):
        end_s = round(min(start_s + patch_s, item.duration_s), 3)
        yield {"file": item.name, "start_s": round(start_s, 2), "end_s": end_s, **_best(scores, classes, thresholds)}
