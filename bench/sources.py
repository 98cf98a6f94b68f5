"""Which clips the sound shows to be of one recording, and which recordings are joined by mistake.

    real recordings cut up, or one clip of each ─▶ fingerprints ─▶ groups at a threshold ─▶ found, joined by mistake

A clip counts as found if it stands in a group with another clip of its recording. Joined by mistake are as many
recordings as there are sources too few: two that are joined are one too few. Once with the thresholds of
data/acoustic.py, and once with the least threshold that joins at most one in a hundred in one half of the warblers,
evaluated on the other half, halves of the species. The constants were chosen with all of the warblers in sight, and
with a look at ESC-10.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from bench import learning
from bench.harness import Line, Result, Settings
from birdtune.audio.decode import SoundFacts
from birdtune.audio.measures import Meter
from birdtune.data import acoustic
from birdtune.data.labels import Label
from birdtune.data.scan import Recording

# name → seconds of a clip, seconds left out between clips, rate (0: its own)
CUTS = {
    "3 s": (3, 0, 0), "5 s": (5, 0, 0), "3 s, 2 s left out between": (3, 2, 0), "3 s at 16 kHz": (3, 0, 16_000),
    "5 s at 16 kHz": (5, 0, 16_000),
}  # fmt: skip
MOST_JOINED, LEAST_FOUND = 0.01, 0.9
GRID = tuple(range(4, 41))  # nats


def measure(settings: Settings) -> Result:
    """Lines of each way of cutting."""
    files = sorted(learning.place("warblers").glob("*/*.ogg"))
    lines: list[Line] = []
    for name, cut in list(CUTS.items())[: 1 if settings.quick else None]:
        clips = list(_cut(files[: 40 if settings.quick else None], *cut))
        lines += [_line(f"warblers, {name}", clips, threshold) for threshold in (acoustic.JOINS, acoustic.WARNS)]
        drawn = np.random.default_rng(settings.seed).permutation(sorted({clip.label for _, clip in clips}))
        half = set(drawn[: len(drawn) // 2].tolist())
        parts = [[clip for clip in clips if (clip[1].label in half) == inside] for inside in (True, False)]
        for chosen_on, judged_on in (parts, parts[::-1]):
            threshold = next((one for one in GRID if _judge(chosen_on, one)[1] <= MOST_JOINED), GRID[-1])
            lines.append(_line(f"warblers, {name}, a half, threshold chosen on the other", judged_on, threshold))
    if not settings.quick:
        for what, clips in (
            ("warblers, one clip of 5 s of each", list(_cut(files, 5, 100, 0))),
            ("ESC-10, takes", list(_takes())),
        ):
            lines += [_line(what, clips, threshold) for threshold in (acoustic.JOINS, acoustic.WARNS)]
    return Result("sources", lines)


def _cut(files: Sequence[Path], clip_s: float, gap_s: float, rate_hz: int) -> Iterator[tuple[str, Recording]]:
    for path in files:
        sound, own_hz = soundfile.read(path, dtype="float32")
        if rate_hz:
            sound = soxr.resample(sound, own_hz, rate_hz)
        hz = rate_hz or own_hz
        n, step = int(clip_s * hz), int((clip_s + gap_s) * hz)
        for k, begin in enumerate(range(0, len(sound) - n + 1, step)):
            yield path.stem, _recording(f"{path.parent.name}/{path.stem}-{k}", sound[begin : begin + n], hz)


def _takes() -> Iterator[tuple[str, Recording]]:
    for path in sorted(learning.esc10().glob("*/*.ogg")):
        sound, rate_hz = soundfile.read(path, dtype="float32")
        yield path.stem.split("-")[1], _recording(f"{path.parent.name}/{path.stem}", sound, rate_hz)


def _recording(name: str, sound: npt.NDArray[np.float32], rate_hz: int) -> Recording:
    """A clip as it would be read from a file of 16 bits."""
    block = np.clip(np.rint(32767 * sound), -32768, 32767).astype(np.int16)[:, None]
    mono = np.ascontiguousarray(block[:, 0] / np.float32(32768))
    meter = Meter(rate_hz, 1)
    meter.feed(block, mono, float(np.abs(mono).max()))
    facts = SoundFacts(rate_hz, 1, len(sound) / rate_hz, len(sound), 0.0, "WAV PCM_16", measures=meter.measures())
    return Recording(name, Path(name), (Label(name.split("/", 1)[0]),), name, facts)


def _line(what: str, clips: list[tuple[str, Recording]], threshold: float) -> Line:
    found, joined, n_sources, n_cut_up = _judge(clips, threshold)
    share = f"{found:.3f} of {n_cut_up} clips found; " if n_cut_up else ""
    target = f"≥ {LEAST_FOUND:g} found, " if n_cut_up else ""
    return Line(
        f"{what}: from {threshold:g} nats on",
        f"{share}{joined:.3f} of {n_sources} recordings joined by mistake",
        target=f"{target}≤ {MOST_JOINED:g} joined",
        reached=joined <= MOST_JOINED and (not n_cut_up or found >= LEAST_FOUND),
    )


def _judge(clips: list[tuple[str, Recording]], threshold: float) -> tuple[float, float, int, int]:
    """Share of clips found, share of recordings joined by mistake; how many recordings, how many clips cut up."""
    recordings = [recording for _, recording in clips]
    source = {recording.name: source for source, recording in clips}
    sizes = Counter(source.values())
    n_cut_up = sum(size for size in sizes.values() if size > 1)
    found, head = 0, {name: name for name in sizes}

    def top(name: str) -> str:
        while head[name] != name:
            name = head[name]
        return name

    for cohort in acoustic.cohorts(recordings):
        compared = acoustic.compare(cohort)
        pairs, seams = acoustic.near_pairs(compared, threshold), acoustic.seams(cohort, compared)
        for group in acoustic.groups(cohort, pairs, threshold, seams):
            inside = Counter(source[recordings[cohort.index[member]].name] for member in group)
            found += sum(count for count in inside.values() if count > 1)
            first, *others = inside
            for other in others:
                head[top(other)] = top(first)
    lost = len(head) - len({top(name) for name in head})
    return found / max(1, n_cut_up), lost / len(sizes), len(sizes), n_cut_up
