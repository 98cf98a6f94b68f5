"""Recordings → embeddings or predictions, in memory that does not grow with their length.

    files, folders ─▶ find_sounds ─▶ infer (windows through the model) ─▶ embed_files: .npz, .parquet, .tfrecord
                                                                      └─▶ predict_files: .csv

A recording is cut into windows as the backbone needs them: resampled to its rate, made into its features, the last
window where the recording ends, a recording shorter than a window filled up with zeros.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from birdtune.audio.front_end import FrontEnd
from birdtune.data.embedding_files import EmbeddedRecording, MadeBy, writing
from birdtune.errors import UsageError
from birdtune.evaluation.calibration import Calibration
from birdtune.evaluation.decision import Thresholds
from birdtune.evaluation.genera import Genera
from birdtune.runtime.files import growing_csv, try_to_write
from birdtune.serving.inference import Channel, Cutter, Floats, Scored, Unused, infer
from birdtune.serving.rows import PublishedChoice, Rows, Scorer, kept_columns, sequenced, window_results
from birdtune.serving.sounds import channel_by_channel, find_sounds
from birdtune.serving.verify import ExportedModel as ExportedModel  # with what it is used for
from birdtune.serving.verify import open_model as open_model
from birdtune.settings import AudioSettings

DEFAULT: Final = AudioSettings()
# Recordings this many times longer than those of validation are too long for one row, mostly.
LONG = 3.0


@dataclass(frozen=True)
class Outcome:
    """What came of some files."""

    files: int  # used, as far as they go
    windows: int
    problems: tuple[Unused, ...]  # and remarks on what is used
    long: int = 0  # of the files, those with one row that are `LONG` times longer than what the model was calibrated on
    silent: int = 0  # without sound, and rejected as unknown

    @property
    def in_part(self) -> int:
        """Of the files used, those that break off."""
        return sum(problem.in_part for problem in self.problems)

    @property
    def unused(self) -> int:
        """Files of which nothing is known."""
        return sum(not (problem.in_part or problem.is_used) for problem in self.problems) - self.silent


def _check_arguments(hop_s: float | None, batch_size: int) -> None:
    if (hop_s is not None and not hop_s > 0) or batch_size < 1:
        raise UsageError(
            f"hop {hop_s} s, {batch_size} windows at a time: expected more than 0 of both."
        )


def embed_files(
    files: Sequence[Path],
    embed: Callable[[Floats], Any],
    out: Path,
    *,
    front_end: FrontEnd,
    kind: str = "npz",
    made: MadeBy | None = None,
    sound: AudioSettings = DEFAULT,
    hop_s: float | None = None,
    batch_size: int = 64,
    longest_s: float = math.inf,
    check: Callable[[], None] = lambda: None,
    called: Callable[[str], str] = str,
) -> Outcome:
    """Write the embeddings of all windows of some sounds, of which nobody knows labels.

    Args:
        files: files, and folders of files (see `sounds.find_sounds`).
        embed: windows [n, window_rows, ...] float32 → embeddings [n, K], n up to `batch_size`.
        out: the file; a row a window, the files in their order, windows from the first to the last.
        front_end: what `embed` wants windows to be made with.
        kind: of `embedding_files.ENDINGS`.
        made: what `embed` is; None: nobody knows.
        sound: how files are decoded.
        hop_s: seconds from one window to the next; None = as the front end says.
        longest_s: longer sounds are not used.
        check: called between batches; it may raise to stop, and then nothing is written.
        called: path → what the recording is called.

    Raises:
        UsageError: a hop or batch size that cannot be.
        CheckpointError: the model answers NaN.
        InputError, RetryableError: `out` cannot be written.
    """
    _check_arguments(hop_s, batch_size)
    try_to_write(out.parent)
    problems: list[Unused] = []
    n_files = n_windows = 0
    cutter = Cutter(sound, front_end.hop(hop_s), longest_s, front_end)
    with writing(out, kind, made or MadeBy.of(front_end, hop_s)) as add:
        for item in _named(infer(sounds_in(files, sound), embed, cutter, batch_size, check), called):
            problems += _problem(item)
            if isinstance(item, Scored):
                end_s = np.minimum(item.start_s + front_end.window_s, item.duration_s)
                add(EmbeddedRecording(item.name, item.results, item.start_s, end_s, ((),) * len(end_s)))
                n_files += 1
                n_windows += len(end_s)
    return Outcome(n_files, n_windows, tuple(problems))


def sounds_in(files: Sequence[Path], audio: AudioSettings) -> Sequence[Path | Channel | Unused]:
    """The recordings in some files and folders, channel by channel where each is one of its own."""
    found = find_sounds(files)
    return channel_by_channel(found) if audio.channels == "each" else found


def predict_files(
    files: Sequence[Path],
    classifier: Scorer,
    out: Path,
    *,
    calibration: Calibration | None = None,
    thresholds: Thresholds | None = None,
    ood_score: Callable[[Floats], Any] | None = None,
    windows_out: Path | None = None,
    segment_s: float | None = None,
    calibration_clip_s: float | None = None,
    published: PublishedChoice | None = None,
    genera: tuple[Genera, ...] = (),
    sound: AudioSettings = DEFAULT,
    hop_s: float | None = None,
    batch_size: int = 64,
    longest_s: float = math.inf,
    check: Callable[[], None] = lambda: None,
    called: Callable[[str], str] = str,
) -> Outcome:
    """Write the scores and decisions for some recordings.

    Args:
        files, sound, hop_s, batch_size, longest_s, check, called: as `embed_files`.
        classifier: an exported or a trained one.
        calibration: makes the mean over the windows (by attention, where the head has one) the recording's scores;
            None: the mean is.
        thresholds: from which score on a class counts; None: there are none, and `decision` stays empty.
        ood_score: mean embeddings, silence left out [n, K] → OOD scores [n]; None: the column stays empty.
        out: CSV, one row a file, as `Rows.recording` has it; of a file that was not used, why (`Rows.unused`).
        windows_out: CSV, one row a window, as `Rows.windows` has it.
        segment_s: a row of `out` is not a file but a segment of this many seconds, one behind the other, each scored as
            if it were a recording of its own, cut out of the file. The last may be shorter; one below a window
            begins earlier, to hold a window (0.975 s). Of a file that breaks off, the segments before stand.
        calibration_clip_s: seconds of the recordings that calibration and thresholds rest on; for `Outcome.long`.
        published: published classes that rows of `out` are about, too; `windows_out` has own classes alone.
        genera: that are decided for where no class passes, and then families.

    Raises:
        as `embed_files`; also UsageError: a segment shorter than a window.
    """
    _check_arguments(hop_s, batch_size)
    for place in filter(None, [out, windows_out]):
        try_to_write(place.parent)
    spec = classifier.front_end
    segment = None if segment_s is None else _segment_rows(segment_s, spec)
    cutter = Cutter(sound, spec.hop(hop_s), longest_s, spec, segment)
    segment_s = None if segment is None else segment / spec.rows_per_s
    rows = Rows(tuple(classifier.classes), spec, calibration, thresholds, ood_score, segment_s, published, genera)
    results = window_results(classifier, pools=ood_score is not None, published=published)
    scored = infer(sounds_in(files, sound), results, cutter, batch_size, check, kept=kept_columns(classifier))
    return _write(_named(sequenced(scored, classifier), called), rows, out, windows_out, calibration_clip_s)


def _named(items: Iterable[Scored | Unused], called: Callable[[str], str]) -> Iterator[Scored | Unused]:
    """The same under the names that tables have."""
    for item in items:
        if isinstance(item, Scored) and item.damage is not None:
            item = item._replace(damage=item.damage._replace(name=called(item.damage.name)))
        yield item._replace(name=called(item.name))


def _segment_rows(segment_s: float, spec: FrontEnd) -> int:
    # Samples of a window may be some more (`window_samples`): its last frame reaches into the next window.
    if not spec.window_s <= segment_s < math.inf:
        raise UsageError(f"--window {segment_s:g}: expected at least {spec.window_s:g} s, a window of the model.")
    return round(segment_s * spec.rows_per_s)


def _problem(item: Scored | Unused) -> list[Unused]:
    found = item if isinstance(item, Unused) else item.damage
    return [] if found is None else [found]


def _write(
    scored: Iterable[Scored | Unused], rows: Rows, out: Path, windows_out: Path | None, calibration_clip_s: float | None
) -> Outcome:
    """Write rows as they come, for there may be more of them than memory holds."""
    n_files = n_windows = n_long = 0
    problems: list[Unused] = []
    longest_s = math.inf if calibration_clip_s is None or rows.segment_s is not None else LONG * calibration_clip_s
    with contextlib.ExitStack() as tables:
        add = tables.enter_context(growing_csv(out, rows.columns))
        add_window = None
        if windows_out is not None:
            add_window = tables.enter_context(growing_csv(windows_out, rows.window_columns))
        for item in scored:
            problems += _problem(item)
            if isinstance(item, Unused):
                add(rows.unused(item))
                continue
            add(rows.recording(item))
            if add_window is not None:
                for row in rows.windows(item):
                    add_window(row)
            n_files += item.begin_s == 0
            n_windows += len(item.start_s)
            n_long += item.duration_s > longest_s
    silent = sum(problem.problem == "silent" for problem in problems)
    return Outcome(n_files, n_windows, tuple(problems), n_long, silent)
