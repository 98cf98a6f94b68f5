"""What may be done to a batch, as pure functions of (batch, seed).

    Batch ─▶ changed as sound (sound_changes.py) ─▶ turned, moved in pitch ─▶ a stretch of another ─▶ mixed with
             others, with background, with noise ─▶ louder or softer ─▶ masked

All that is random is drawn from (seed, epoch, place of the row in the epoch), so that a batch is the same after a
restart, and a worker that makes a slice of a batch makes the very rows of the whole. What has strength 0 changes no
bit, and neither does what a row was not drawn for.

Sounds are mixed as they are in the air, not as logarithms (`mixing.py`).
"""

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.audio import noise
from birdtune.audio.front_end import FrontEnd
from birdtune.audio.logmel import LogMel
from birdtune.audio.waveform import as_float
from birdtune.data.batches import Batch, Source
from birdtune.data.mixing import Amplitudes, Mixing, column, mixing_of
from birdtune.data.sound_changes import CHANGES, changed, impulse_responses
from birdtune.data.targets import WindowTargets
from birdtune.errors import InputError, SettingsError
from birdtune.settings import AugmentSettings

Frames = npt.NDArray[Any]  # [n, window_rows, ...] as they are stored
Rows = npt.NDArray[np.int64]
Targets = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]  # [n, C] 0…1, and [n, C] how much they count
Floats = npt.NDArray[np.float64]

# What is drawn for each row, in this order. New ones go to the end: the others then keep their numbers.
_DRAWN = (
    "frames", "bands", "mixup", "partner", "share", "background", "which", "background snr", "white", "white snr",
    "white start", "white phase", "pink", "pink snr", "pink start", "pink phase", "gain", "time width", "time start",
    "band width", "band start", "cutmix", "cut start",
)  # fmt: skip
_PER_ROW = 4 * -(-len(_DRAWN) // 4)  # Philox gives four numbers a count
# Keys of streams: the order of batches is drawn from (seed, epoch), and seeds stay below this.
_STREAM = 2**32
_SOUND_STREAM = 2 * _STREAM
# Of the second mask; those behind follow.
_MASK_STREAM = 2 * _STREAM
# Of a window that is cut, what stays: neither too little nor so much that the rest could not be recognised.
_LEAST_KEPT, _MOST_KEPT = 0.25, 0.75
# Rows that one thread does at a time; numpy lets others work meanwhile, so that a fast card need not wait.
_PIECE = 32
_MOST_THREADS = 8

# Noise fainter than this is inaudible, and changes nothing for the network.
SNR_RANGE_DB = 20.0
# Several birds at once: how much louder or fainter the second may be than the first.
_BIRDS_DB = 6.0
# The second of two mixed sounds is brought to the level of the first before, but by no more than this: else one in
# silence would be inaudible, and silence would become a roar.
_MOST_LIFT_DB = 20.0
NAMES = (
    *CHANGES, "time_roll_s", "pitch_shift", "cutmix", "mixup", "background", "white_noise", "pink_noise", "gain_db",
    "time_mask_s", "band_mask",
)  # fmt: skip


def active(settings: AugmentSettings) -> list[str]:
    """The names of what is on, in the order in which it is done."""
    return [name for name in NAMES if getattr(settings, name)]


def spoken(settings: AugmentSettings) -> list[str]:
    """What is on, as it would be typed."""
    return [f"--augment.{name.replace('_', '-')} {getattr(settings, name):g}" for name in active(settings)]


def background_columns(classes: tuple[str, ...], background: tuple[str, ...]) -> tuple[int, ...]:
    """Columns of the classes that are background."""
    return tuple(classes.index(name) for name in background)


def require_background(settings: AugmentSettings, background: tuple[str, ...]) -> None:
    """See to it that there is a background class to mix in, where that is asked for.

    Raises:
        InputError: there is none.
    """
    if settings.background and not background:
        raise InputError(
            f"--augment.background {settings.background:g} mixes in windows of a background class, and there is none. "
            "Put recordings of the place without the birds into INPUT/background (or --background FOLDER), name such a "
            "class with --labels.negative-classes, or leave the setting out."
        )


# Of pictures of sound only.
_OF_LOGMEL = ("pitch_shift", "band_mask")


def require_front_end(settings: AugmentSettings, spec: FrontEnd) -> None:
    """Refuse what cannot be done to the features of a front end.

    Raises:
        SettingsError: a change of sound, and features are log-mel; or one of log-mel, and they are a waveform.
        InputError: the impulse responses cannot be used.
    """
    is_logmel = isinstance(spec, LogMel)
    for name in CHANGES if is_logmel else _OF_LOGMEL:
        if getattr(settings, name):
            flag = f"--augment.{name.replace('_', '-')}"
            instead = (
                "Take a backbone that works on waveforms (birdnet, perch, a model of yours), or leave it out."
                if is_logmel else "Take --augment.pitch-semitones or --augment.filter, or leave it out."
            )  # fmt: skip
            kind = "waveforms, and features of this backbone are log-mel" if is_logmel else (
                "log-mel features, and this backbone takes a waveform"
            )
            raise SettingsError(f"{flag} changes {kind}. {instead}")
    if settings.reverberation and settings.impulse_responses is not None:
        impulse_responses(Path(settings.impulse_responses), spec.rate_hz)


def draw(seed: int, epoch: int, first: int, n: int) -> dict[str, Floats]:
    """Numbers in 0…1 (without 1) for the rows `first` … `first + n - 1` of an epoch. [n] each"""
    bits = np.random.Philox(key=[seed + _STREAM, epoch])
    bits.advance(first * _PER_ROW // 4)
    numbers = (bits.random_raw(n * _PER_ROW) >> np.uint64(11)) * 2.0**-53
    return dict(zip(_DRAWN, numbers.reshape(n, _PER_ROW).T, strict=False))


@functools.lru_cache(maxsize=16)
def _mixed(seed: int, epoch: int, n: int) -> dict[str, Floats]:
    """What mixup needs of `draw` for a whole epoch."""
    drawn = draw(seed, epoch, 0, n)
    return {name: drawn[name].copy() for name in ("mixup", "cutmix", "partner", "share")}


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1), "augment")


@dataclass(frozen=True)
class Augmenter:
    """What is done to each training batch.

    Attributes:
        source, targets: of the training windows, to mix with.
        kind: of the head: "softmax" shares the targets of mixed sounds, "sigmoid" joins them.
        backgrounds: columns of classes without birds.
    """

    settings: AugmentSettings
    spec: FrontEnd
    source: Source
    targets: WindowTargets
    seed: int
    kind: str
    backgrounds: tuple[int, ...] = ()

    def __call__(self, batch: Batch, epoch: int, first: int, order: Rows) -> Batch:
        """The batch, augmented.

        Args:
            epoch, first: place of the batch's first row.
            order: [rows of the epoch] windows, in the order in which they are trained on: others to mix with are
                drawn from it, and so as often as the sampler draws them.
        """

        def some(start: int) -> tuple[Frames, Targets]:
            part = slice(start, start + _PIECE)
            targets = batch.targets[part], batch.known[part]
            return self._some(batch.features[part], targets, epoch, first + start, order)

        made = list(_pool().map(some, range(0, len(batch.targets), _PIECE)))
        features = np.concatenate([frames for frames, _ in made])
        targets, known = (np.concatenate(parts) for parts in zip(*(pair for _, pair in made), strict=True))
        return replace(batch, features=features, targets=targets, known=known)

    def _some(
        self, frames: Frames, targets: Targets, epoch: int, first: int, order: Rows
    ) -> tuple[Frames, Targets]:
        drawn = draw(self.seed, epoch, first, len(frames))
        frames = self._changed(frames, epoch, first)
        frames, targets = self._cut(shifted(frames, self.settings, drawn, self.spec), targets, drawn, order)
        frames, targets = self._sound(frames, targets, drawn, order)
        frames = masked(frames, self.settings, drawn, self.spec)
        for number in range(1, max(self.settings.time_masks, self.settings.band_masks)):
            more = draw(self.seed + number * _MASK_STREAM, epoch, first, len(frames))
            frames = masked(frames, self.settings, more, self.spec, number)
        return frames, targets

    def _changed(self, frames: Frames, epoch: int, first: int) -> Frames:
        """Each window's sound after `sound_changes`, drawn from its place."""
        if not any(getattr(self.settings, name) for name in CHANGES):
            return frames
        made = np.empty_like(frames)
        for k, window in enumerate(frames):
            bits = np.random.Philox(key=[self.seed + _SOUND_STREAM, epoch], counter=[0, first + k, 0, 0])
            wave = changed(as_float(window).ravel(), self.spec.rate_hz, np.random.Generator(bits), self.settings)
            made[k] = self.spec.stored(wave.reshape(window.shape))
        return made

    def mixed_targets(self, windows: Rows, epoch: int, order: Rows) -> Targets:
        """What windows are to answer in an epoch in which each lies at its own number. [n, C] each"""
        targets, known = (each.copy() for each in self.targets.of(windows))
        drawn = {name: numbers[windows] for name, numbers in _mixed(self.seed, epoch, order.size).items()}
        for rows, share in (self._which_cut(drawn), self._which_mixed(drawn)):
            if rows.size:
                partners = order[(drawn["partner"][rows] * order.size).astype(np.int64)]
                own = targets[rows], known[rows]
                targets[rows], known[rows] = self._joined(own, self.targets.of(partners), share)
        return targets, known

    def _which_mixed(self, drawn: dict[str, Floats]) -> tuple[Rows, Floats]:
        """Rows that are mixed with another, and the share of each that is its own."""
        rows = np.flatnonzero(drawn["mixup"] < self.settings.mixup)
        return rows, drawn["share"][rows]

    def _which_cut(self, drawn: dict[str, Floats]) -> tuple[Rows, Floats]:
        """Rows with a part of another, and the share of each that is its own; none of them is mixed as well."""
        is_cut = (drawn["cutmix"] < self.settings.cutmix) & (drawn["mixup"] >= self.settings.mixup)
        rows = np.flatnonzero(is_cut)
        return rows, _LEAST_KEPT + (_MOST_KEPT - _LEAST_KEPT) * drawn["share"][rows]

    def _cut(
        self, frames: Frames, targets: Targets, drawn: dict[str, Floats], order: Rows
    ) -> tuple[Frames, Targets]:
        """Windows with a stretch of another in place of their own (S. Yun et al., "CutMix", 2019, in time alone)."""
        rows, share = self._which_cut(drawn)
        if not rows.size:
            return frames, targets
        partners = order[(drawn["partner"][rows] * order.size).astype(np.int64)]
        others, room = self.source.features(partners), frames.shape[1]
        widths = np.maximum(1, np.round((1.0 - share) * room)).astype(np.int64)
        starts = np.floor(drawn["cut start"][rows] * (room - widths + 1)).astype(np.int64)
        frames, targets = frames.copy(), (targets[0].copy(), targets[1].copy())
        for row, other, start, width in zip(rows, others, starts, widths, strict=True):
            frames[row, start : start + width] = other[start : start + width]
        own = targets[0][rows], targets[1][rows]
        targets[0][rows], targets[1][rows] = self._joined(own, self.targets.of(partners), share)
        return frames, targets

    def _sound(
        self, frames: Frames, targets: Targets, drawn: dict[str, Floats], order: Rows
    ) -> tuple[Frames, Targets]:
        """What is done to sounds, and not to pictures of them; only rows that it concerns are computed."""
        settings = self.settings
        chosen = {
            name: drawn[key] < getattr(settings, name)
            for name, key in (
                ("mixup", "mixup"), ("background", "background"), ("white_noise", "white"), ("pink_noise", "pink")
            )
        }  # fmt: skip
        touched = np.full(len(frames), settings.gain_db > 0)
        for rows in chosen.values():
            touched |= rows
        if not touched.any():
            return frames, targets
        inside = np.cumsum(touched) - 1  # [n] row → row of `mel`
        mel = self._mixing.amplitudes(frames[touched])
        power = self._mixing.power(mel)  # [touched]
        if (rows := np.flatnonzero(chosen["mixup"])).size:
            partners = order[(drawn["partner"][rows] * order.size).astype(np.int64)]
            targets = targets[0].copy(), targets[1].copy()
            own = targets[0][rows], targets[1][rows]
            mixed = self._mix(mel, power, inside[rows], own, partners, drawn["share"][rows])
            targets[0][rows], targets[1][rows] = mixed
        if (rows := np.flatnonzero(chosen["background"])).size:
            self._add_background(mel, power, inside[rows], drawn, rows)
        for colour in noise.COLOURS:
            if (rows := np.flatnonzero(chosen[f"{colour}_noise"])).size:
                snr_db = self._snr_db(drawn[f"{colour} snr"][rows])
                starts = drawn[f"{colour} start"][rows], drawn[f"{colour} phase"][rows]
                at = inside[rows]
                level = np.sqrt(power[at] * 10.0 ** (-snr_db / 10))  # silence stays silent
                mel[at] = self._mixing.with_noise(mel[at], level, colour, *starts)
        if settings.gain_db:
            mel *= column(_factor((2.0 * drawn["gain"][touched] - 1.0) * settings.gain_db), mel)
        made = frames.copy()
        made[touched] = self._mixing.stored(mel)
        return made, targets

    def _mix(
        self,
        mel: Amplitudes,
        power: npt.NDArray[np.float32],
        at: Rows,
        own: Targets,
        partners: Rows,
        share: Floats,
    ) -> Targets:
        """Mix rows `at` of `mel` with other windows, in place; their power goes along. Returns the new targets."""
        other = self._mixing.amplitudes(self.source.features(partners))
        level = _level(power[at], self._mixing.power(other))
        if self.kind == "softmax":
            weights = share, 1.0 - share
        else:
            weights = np.ones_like(share), _factor((2.0 * share - 1.0) * _BIRDS_DB)
        total = np.hypot(*weights)  # so that the mixture is about as loud as the first was
        first, second = (column(weight, mel) for weight in (weights[0] / total, level * weights[1] / total))
        mel[at] = self._mixing.summed(mel[at] * first, other * second)
        power[at] = self._mixing.power(mel[at])
        return self._joined(own, self.targets.of(partners), share)

    def _joined(self, own: Targets, others: Targets, share: Floats) -> Targets:
        """What mixed windows are to answer."""
        joined: npt.NDArray[np.floating] = (
            share[:, None] * own[0] + (1.0 - share[:, None]) * others[0]
            if self.kind == "softmax" else self._both(np.maximum(own[0], others[0]))
        )  # fmt: skip
        return np.asarray(joined, np.float32), _known_of_mixed(own, others)

    def _both(self, labels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Where a bird sings, it is no background any more."""
        has_bird = np.delete(labels, self.backgrounds, axis=1).any(axis=1)
        for background in self.backgrounds:
            labels[has_bird, background] = 0.0
        return labels

    def _add_background(
        self, mel: Amplitudes, power: npt.NDArray[np.float32], at: Rows, drawn: dict[str, Floats], rows: Rows
    ) -> None:
        windows = self.background_windows
        if not windows.size:
            return  # the classes have one, the training part has none of it
        chosen = windows[(drawn["which"][rows] * windows.size).astype(np.int64)]
        other = self._mixing.amplitudes(self.source.features(chosen))
        level = _level(power[at], self._mixing.power(other))
        fainter = _factor(-self._snr_db(drawn["background snr"][rows]))
        mel[at] = self._mixing.summed(mel[at], other * column(level * fainter, other))

    @property
    def _mixing(self) -> Mixing:
        return mixing_of(self.spec)

    @functools.cached_property
    def background_windows(self) -> Rows:
        """The training windows that hold a background class and no other."""
        found = [
            windows[(targets > 0).any(axis=1) & ~np.delete(targets > 0, self.backgrounds, axis=1).any(axis=1)]
            for windows, targets, _ in self.targets.blocks()
        ]
        return np.concatenate([np.zeros(0, np.int64), *found])

    def _snr_db(self, drawn: Floats) -> Floats:
        return np.asarray(self.settings.snr_db + drawn * SNR_RANGE_DB)


# ---- levels and labels -----------------------------------------------------------------------------


def _level(power: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> Floats:
    """Factor that brings another sound to the level of the first. [n]"""
    least, most = _factor(np.array([-_MOST_LIFT_DB, _MOST_LIFT_DB]))
    wanted = np.sqrt(np.divide(power, other, out=np.ones(len(power)), where=other > 0))
    return np.asarray(np.clip(wanted, least, most))


def _factor(level_db: Floats) -> Floats:
    return np.asarray(10.0 ** (level_db / 20))


def _known_of_mixed(one: Targets, other: Targets) -> npt.NDArray[np.float32]:
    """How much the targets of mixed windows count: where a class is in one, as there; else it must be in neither."""
    counts = [np.where(targets > 0, known, 0.0) for targets, known in (one, other)]
    is_in = (one[0] > 0) | (other[0] > 0)
    return np.where(is_in, np.maximum(*counts), np.minimum(one[1], other[1])).astype(np.float32)


# ---- pictures -----------------------------------------------------------------------------------


def shifted(frames: Frames, settings: AugmentSettings, drawn: dict[str, Floats], spec: FrontEnd) -> Frames:
    """Windows turned in time and moved in pitch; the outermost band fills what is left empty."""
    if not (settings.time_roll_s or settings.pitch_shift):
        return frames
    n_frames, n_mels = frames.shape[1:]
    turns, moves = (
        _whole(drawn["frames"], spec.rows(settings.time_roll_s)),
        _whole(drawn["bands"], settings.pitch_shift),
    )
    made = np.empty_like(frames)
    bands = np.arange(n_mels)
    # Row by row: that copies stretches of memory, which is five times as fast as one large gather.
    for window, row, turn, move in zip(made, frames, turns.tolist(), moves.tolist(), strict=True):
        moved = row[:, np.clip(bands - move, 0, n_mels - 1)] if move else row
        turn %= n_frames
        window[turn:], window[:turn] = moved[: n_frames - turn], moved[n_frames - turn :]
    return made


def _whole(drawn: Floats, reach: int) -> Rows:
    """Whole numbers from -reach to reach, all alike. [n]"""
    return np.asarray(np.floor(drawn * (2 * reach + 1)) - reach, np.int64)


def masked(
    frames: Frames, settings: AugmentSettings, drawn: dict[str, Floats], spec: FrontEnd, number: int = 0
) -> Frames:
    """Windows with an interval of time and a range of pitch masked, 0 up to the widest wide (SpecAugment).

    Args:
        number: of the mask, from 0.
    """
    time_mask_s = settings.time_mask_s if number < settings.time_masks else 0.0
    band_mask = settings.band_mask if number < settings.band_masks else 0
    if not (time_mask_s or band_mask):
        return frames
    made = frames.copy()
    fill = np.full(len(frames), mixing_of(spec).silence, frames.dtype)
    if settings.mask_with == "mean":
        fill = frames.mean(axis=(1, 2), dtype=np.float32).astype(frames.dtype)
    in_time = _stretch(drawn["time width"], drawn["time start"], spec.rows(time_mask_s), frames.shape[1])
    in_pitch = _stretch(drawn["band width"], drawn["band start"], band_mask, frames.shape[2])
    for window, value, time, pitch in zip(made, fill, in_time, in_pitch, strict=True):
        window[slice(*time)] = value
        window[:, slice(*pitch)] = value
    return made


def _stretch(width: Floats, start: Floats, widest: int, room: int) -> list[list[int]]:
    """First and last + 1 of what is masked. [n, 2]"""
    widths = np.floor(width * (min(widest, room - 1) + 1)).astype(np.int64)
    starts = np.floor(start * (room - widths + 1)).astype(np.int64)
    return [list(pair) for pair in zip(starts.tolist(), (starts + widths).tolist(), strict=True)]
