"""Sound files → embeddings or predictions, in memory that does not grow with their length.

    files, folders ─▶ find_sounds ─▶ patches, batched across files ─▶ model ─▶ embed_files: .npz
                                                                       └─▶ predict_files: .csv

A sound is cut into patches as in training: resampled to 16 kHz, log-mel frames, the tail dropped, a sound
shorter than a patch filled up with zeros. A file that cannot be used is reported and the others go on. The
model is given as a callable, so that nothing here imports TensorFlow.
"""

import io
import itertools
import math
import os
import stat
import tempfile
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from birdtune.errors import CheckpointError, UsageError, shown
from birdtune.files import make_folder, storage_faults, write_bytes, write_csv
from birdtune.results.verify import ExportedModel as ExportedModel  # with what it is used for
from birdtune.results.verify import open_model as open_model
from birdtune.sound.audio import FOREIGN_ENDINGS, SOUND_ENDINGS, SoundError, SoundStream
from birdtune.sound.logmel import VGGISH, FrontEnd, LogMelStream

Floats = npt.NDArray[np.float32]

# Columns of the best classes in a table; jibjib's readers show three.
_TOP = 3
# Scores are written with this many decimals: float32 near 1 has seven.
_DECIMALS = 6


class Unused(NamedTuple):
    """A file that was not used, and why."""

    name: str  # as given, or below the folder that was given; safe to show
    problem: str  # a key of recordings.PROBLEMS
    detail: str


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

    def scores(self, patches: Any, /) -> tuple[Any, Any]:
        """Patches [n, 96, 64] float32 → scores [n, C] and embeddings [n, 128]."""
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


# ---- patches through the model ------------------------------------------------------------------


@dataclass(eq=False)
class _Sound:
    """A file on its way through the model."""

    name: str
    first_frames: list[int] = field(default_factory=list)  # of each patch cut so far
    results: list[Floats] = field(default_factory=list)  # parts of [P, K]
    n_results: int = 0
    ended: bool = False
    duration_s: float = 0.0
    problem: Unused | None = None

    @property
    def is_done(self) -> bool:
        return self.ended and (self.problem is not None or self.n_results == len(self.first_frames))


class _Heard(NamedTuple):
    """A file that went through the model."""

    name: str
    duration_s: float
    start_s: npt.NDArray[np.float64]  # [P]
    results: Floats  # [P, K]


class _Batches:
    """Collects patches, whichever files they are of, and gives the model full batches."""

    def __init__(self, function: Callable[[Floats], Any], size: int, spec: FrontEnd) -> None:
        self._function = function
        self._patches = np.zeros((size, spec.patch_frames, spec.n_mels), np.float32)
        self._owners: list[_Sound] = []

    def add(self, sound: _Sound, patch: Floats) -> bool:
        """Take one patch [96, 64]; whether the model was run."""
        self._patches[len(self._owners)] = patch
        self._owners.append(sound)
        return len(self._owners) == len(self._patches) and self.flush()

    def flush(self) -> bool:
        """Run the model over what is waiting and hand the results to the files."""
        if not self._owners:
            return False
        # A copy: a view of what the model was given would change when that is filled anew.
        results = np.array(self._function(self._patches[: len(self._owners)]), np.float32)  # [n, K]
        if not np.isfinite(results).all():
            raise CheckpointError(
                "the model answers NaN or infinity; its weights are broken. Train or export it again."
            )
        at = 0
        for sound, patches in itertools.groupby(self._owners, key=lambda owner: owner):
            count = len(list(patches))
            sound.results.append(results[at : at + count])
            sound.n_results += count
            at += count
        self._owners.clear()
        return True


@dataclass(frozen=True)
class _Cutter:
    """How sound is cut into patches."""

    resampler: str
    hop_frames: int
    longest_s: float
    spec: FrontEnd = VGGISH

    def patches(self, stream: SoundStream) -> Iterator[tuple[int, Floats]]:
        """First frame and frames [96, 64] of each patch. Raises SoundError, some after the last."""
        waiting = np.zeros((0, self.spec.n_mels), np.float32)
        start = 0  # frame of the sound with which `waiting` begins
        first = 0  # frame of the sound with which the next patch begins
        for frames in self._frames(stream):
            waiting = np.concatenate([waiting, frames])
            while first + self.spec.patch_frames <= start + len(waiting):
                yield first, waiting[first - start : first - start + self.spec.patch_frames]
                first += self.hop_frames
            passed = min(first - start, len(waiting))
            waiting, start = waiting[passed:], start + passed

    def _frames(self, stream: SoundStream) -> Iterator[Floats]:
        mel = LogMelStream(self.spec)
        n_samples = 0
        for block in stream:
            n_samples += block.size
            yield from mel.feed(block)
        yield from mel.feed(np.zeros(max(0, self.spec.patch_samples - n_samples), np.float32))
        yield from mel.finish()


def _hear(
    paths: Sequence[Path],
    function: Callable[[Floats], Any],
    cutter: _Cutter,
    batch_size: int,
    check: Callable[[], None],
) -> Iterator[_Heard | Unused]:
    """Every file in its order: what the model answered to its patches, or why it was not used."""
    batches = _Batches(function, batch_size, cutter.spec)
    queue: deque[_Sound] = deque()
    for path in paths:
        check()
        sound = _Sound(shown(path))
        queue.append(sound)
        stream = SoundStream(path, resampler=cutter.resampler, longest_s=cutter.longest_s)
        try:
            for first, patch in cutter.patches(stream):
                sound.first_frames.append(first)
                if batches.add(sound, patch):
                    check()
        except SoundError as fault:
            sound.problem = Unused(sound.name, fault.problem, str(fault))
        except OSError as fault:
            sound.problem = Unused(sound.name, "unreadable", f"the storage failed ({fault.strerror})")
        except (UnicodeError, TypeError) as fault:
            # soundfile opens no name that is not UTF-8, and none that ends in .raw.
            detail = f"its name keeps it from being opened ({shown(fault)}); rename it"
            sound.problem = Unused(sound.name, "unreadable", detail)
        if stream.facts is not None:
            sound.duration_s = stream.facts.duration_s
        sound.ended = True
        yield from _done(queue, cutter.spec)
    batches.flush()
    yield from _done(queue, cutter.spec)


def _done(queue: deque[_Sound], spec: FrontEnd) -> Iterator[_Heard | Unused]:
    while queue and queue[0].is_done:
        sound = queue.popleft()
        if sound.problem is not None:
            yield sound.problem
        else:
            start_s = np.array(sound.first_frames, np.float64) / spec.frames_per_s
            yield _Heard(sound.name, sound.duration_s, start_s, np.concatenate(sound.results))


def _check_arguments(resampler: str, hop_frames: int, batch_size: int) -> None:
    if hop_frames < 1 or batch_size < 1 or resampler not in ("soxr", "resampy"):
        raise UsageError(
            f"hop {hop_frames} frames, {batch_size} patches at a time, resampler {shown(resampler)}: "
            "expected at least 1, at least 1, and soxr or resampy."
        )


def _check_place(path: Path) -> None:
    """Find out that a file cannot be written before hours of work, not after. Raises as storage_faults."""
    make_folder(path.parent)
    with storage_faults(path):
        tempfile.TemporaryFile(dir=path.parent).close()


# ---- tables out ---------------------------------------------------------------------------------


def embed_files(
    files: Sequence[Path],
    embed: Callable[[Floats], Any],
    out: Path,
    *,
    resampler: str = "soxr",
    hop_frames: int = VGGISH.patch_frames,
    batch_size: int = 64,
    longest_s: float = math.inf,
    check: Callable[[], None] = lambda: None,
) -> Outcome:
    """Write the embeddings of all patches of some sounds.

    Args:
        files: files, and folders of files (see `find_sounds`).
        embed: patches [n, 96, 64] float32 → embeddings [n, K] (128 for VGGish), n up to `batch_size`.
        out: the .npz: `embeddings` [P, K] float32, `file` [P] str, `start_s` [P] float32 seconds; the files
            in their order, patches from the first to the last. Read it with `numpy.load`.
        resampler: "soxr" or "resampy".
        hop_frames: from one patch to the next, in frames of 10 ms; 96 = side by side.
        longest_s: longer sounds are not used.
        check: called between batches; it may raise to stop, and then nothing is written.

    Raises:
        UsageError: a hop, batch size or resampler that cannot be.
        CheckpointError: the model answers NaN.
        InputError, PassingError: `out` cannot be written.
    """
    _check_arguments(resampler, hop_frames, batch_size)
    _check_place(out)
    paths, problems = find_sounds(files)
    heard: list[_Heard] = []
    for item in _hear(paths, embed, _Cutter(resampler, hop_frames, longest_s), batch_size, check):
        problems.append(item) if isinstance(item, Unused) else heard.append(item)
    counts = [len(item.start_s) for item in heard]
    none = np.zeros((0, 128), np.float32)
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
    patches_out: Path | None = None,
    resampler: str = "soxr",
    hop_frames: int = VGGISH.patch_frames,
    batch_size: int = 64,
    longest_s: float = math.inf,
    check: Callable[[], None] = lambda: None,
) -> Outcome:
    """Write what the classifier hears in some sounds.

    Args:
        files, resampler, hop_frames, batch_size, longest_s, check: as `embed_files`.
        classifier: an exported or a trained one.
        out: CSV, one row a file: `file`, `duration_s`, `patches`; `class` and `score` of the best class by
            the mean over the patches, and of the next ones (`class_2`, `score_2` …); `at_s`, the second
            from which on the best class is heard best; and a column `score:<class>` for every class.
        patches_out: CSV, one row a patch: `file`, `start_s`, `end_s`, and the best classes as above.

    Raises:
        as `embed_files`.
    """
    _check_arguments(resampler, hop_frames, batch_size)
    for place in filter(None, [out, patches_out]):
        _check_place(place)
    classes = classifier.classes
    paths, problems = find_sounds(files)
    sounds: list[dict[str, object]] = []
    n_patches = 0

    def patch_rows() -> Iterator[dict[str, object]]:
        nonlocal n_patches
        cutter = _Cutter(resampler, hop_frames, longest_s)
        for item in _hear(paths, lambda patches: classifier.scores(patches)[0], cutter, batch_size, check):
            if isinstance(item, Unused):
                problems.append(item)
                continue
            n_patches += len(item.start_s)
            sounds.append(_sound_row(item, classes))
            if patches_out is not None:
                yield from _patch_rows(item, classes, cutter.spec)

    best = tuple(_best(np.zeros(len(classes), np.float32), classes))
    if patches_out is not None:
        write_csv(patches_out, ("file", "start_s", "end_s", *best), patch_rows())
    else:
        deque(patch_rows(), maxlen=0)
    every = tuple(f"score:{name}" for name in classes)
    write_csv(out, ("file", "duration_s", "patches", *best, "at_s", *every), sounds)
    return Outcome(len(sounds), n_patches, tuple(problems))


def _best(scores: Floats, classes: Sequence[str]) -> dict[str, object]:
    """The best classes of [C] scores, the first of equals first."""
    row: dict[str, object] = {}
    for rank, column in enumerate(np.argsort(-scores, kind="stable")[:_TOP], start=1):
        suffix = "" if rank == 1 else f"_{rank}"
        row[f"class{suffix}"] = classes[column]
        row[f"score{suffix}"] = round(float(scores[column]), _DECIMALS)
    return row


def _sound_row(item: _Heard, classes: Sequence[str]) -> dict[str, object]:
    mean = item.results.mean(axis=0)  # [C]
    clearest = int(item.results[:, int(mean.argmax())].argmax())
    return {
        "file": item.name,
        "duration_s": round(item.duration_s, 3),
        "patches": len(item.start_s),
        **_best(mean, classes),
        "at_s": round(float(item.start_s[clearest]), 2),
        **{f"score:{name}": round(float(mean[column]), _DECIMALS) for column, name in enumerate(classes)},
    }


def _patch_rows(item: _Heard, classes: Sequence[str], spec: FrontEnd) -> Iterator[dict[str, object]]:
    patch_s = spec.patch_samples / spec.rate_hz
    for start_s, scores in zip(item.start_s.tolist(), item.results, strict=True):
        end_s = round(min(start_s + patch_s, item.duration_s), 3)
        yield {"file": item.name, "start_s": round(start_s, 2), "end_s": end_s, **_best(scores, classes)}
