"""What augmentation makes of real windows, to look at: one picture, a column for each thing that is done.

    Windows + AugmentSettings ─▶ sheet ─▶ PNG

Each column has one thing alone, done to every window; the last has all together, as training has it.
"""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from birdtune.audio.front_end import FrontEnd
from birdtune.audio.logmel import LogMel, picture
from birdtune.config import Config
from birdtune.data import augment
from birdtune.data import dataset as gather
from birdtune.data.augment import SNR_RANGE_DB, Augmenter
from birdtune.data.batches import Batch, Windows
from birdtune.data.dataset import Dataset
from birdtune.data.frames import FrameStore
from birdtune.data.mixing import mixing_of
from birdtune.data.sampling import Examples
from birdtune.data.sound_changes import SHARES
from birdtune.data.targets import WindowTargets
from birdtune.errors import shown
from birdtune.models.registry import front_end
from birdtune.runtime.files import make_folder, write_bytes
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.settings import AugmentSettings

N_WINDOWS = 4
# Of each class so many windows are looked through for a loud one.
_LOOKED_AT = 64
_SHARES = ("mixup", "cutmix", "background", "white_noise", "pink_noise", *SHARES)
# What the picture shows where nothing is on: strengths worth a first try.
WORTH_A_TRY = AugmentSettings(
    gain_db=6,
    white_noise=0.5,
    pink_noise=0.5,
    mixup=0.3,
    time_roll_s=0.1,
    pitch_shift=1,
    time_mask_s=0.16,
    band_mask=8,
)
# The same for backbones that take a waveform.
_WORTH_A_TRY_ON_SOUND = AugmentSettings(
    gain_db=6, white_noise=0.5, pink_noise=0.5, mixup=0.3, speed=0.05, tempo=0.1, pitch_semitones=1, filter=0.3,
    reverberation=0.3, clipping=0.1, codec=0.3, time_mask_s=0.5,
)  # fmt: skip

_JITTER_WORTH_A_TRY = 0.48  # seconds: half a window of VGGish

Frames = npt.NDArray[Any]  # [n, window_rows, ...] as they are stored


def draw_sheet(config: Config, out: Path, journal: Journal, interrupts: Interrupts) -> None:
    """Prepare the data if need be, and write the picture of what the settings do to it.

    Raises:
        InputError, RetryableError, Interrupted: as `gather.prepare`; background is asked for and there is none.
    """
    spec = front_end(config)
    augment.require_front_end(config.augment, spec)
    dataset, store = gather.prepare(config, spec, journal, interrupts)
    config = config.with_output(dataset.output)
    augment.require_background(config.augment, dataset.background)
    settings = config.augment
    if not augment.active(settings) and not config.train.jitter_s:
        journal.say("  no augmentation is on: these are strengths worth a try")
        worth_a_try = WORTH_A_TRY if isinstance(spec, LogMel) else _WORTH_A_TRY_ON_SOUND
        settings = worth_a_try.model_copy(update={"background": 0.3 if dataset.background else 0.0})
        worth = config.train.model_copy(update={"jitter_s": _JITTER_WORTH_A_TRY})
        config = config.model_copy(update={"train": worth})
    if jitter := config.train.jitter_s:
        journal.say(f"  --train.jitter-s {jitter:g}: {_jitter_title(jitter).replace(chr(10), ' ')}")
    for name in augment.active(settings):
        value = getattr(settings, name)
        journal.say(f"  --augment.{name.replace('_', '-')} {value:g}: {title(name, settings).replace(chr(10), ' ')}")
    make_folder(out.parent)
    write_bytes(out, sheet_of(config, settings, dataset, store))
    journal.say(f"{shown(out)}: {N_WINDOWS} windows, and what becomes of them")


def sheet_of(config: Config, settings: AugmentSettings, dataset: Dataset, store: FrameStore) -> bytes:
    """The picture for the training part of a dataset. PNG"""
    part = dataset.part("train")
    windows = Windows(store, [recording.content for recording in part], store.spec.hop(config.train.hop_s))
    targets = WindowTargets(dataset.targets(part), windows, config.model.output)
    backgrounds = augment.background_columns(dataset.classes, dataset.background)
    augmenter = Augmenter(
        settings,
        store.spec,
        windows,
        targets,
        seed=config.train.seed,
        kind=config.model.output,
        backgrounds=backgrounds,
    )
    chosen = loud_windows(windows, Examples(targets).stratum, backgrounds)
    return sheet(augmenter, chosen, np.arange(len(windows)), config.train.jitter_s)


def loud_windows(
    windows: Windows, classes: npt.NDArray[np.int32], without: tuple[int, ...] = ()
) -> npt.NDArray[np.int64]:
    """A loud window of each of some classes, spread over the class list. [at most N_WINDOWS]

    Args:
        classes: [windows] column of one class of each.
        without: columns to leave out, where there are others.
    """
    others = np.setdiff1d(classes, np.array(without, np.int32))
    chosen = others if others.size else np.unique(classes)
    chosen = chosen[np.unique(np.linspace(0, chosen.size - 1, N_WINDOWS).astype(np.int64))]
    found = []
    for label in chosen:
        inside = np.flatnonzero(classes == label)
        some = inside[np.unique(np.linspace(0, inside.size - 1, _LOOKED_AT).astype(np.int64))]
        mixing = mixing_of(windows.store.spec)
        found.append(int(some[np.argmax(mixing.power(mixing.amplitudes(windows.features(some))))]))
    return np.array(found, np.int64)


def sheet(
    augmenter: Augmenter,
    chosen: npt.NDArray[np.int64],
    order: npt.NDArray[np.int64],
    jitter_s: float = 0.0,
) -> bytes:
    """The picture of some windows. PNG

    Args:
        augmenter: as training has it; at least one thing should be on, or the start jitter.
        order: [n] windows to mix with.
        jitter_s: how far a window may start from its place; they are drawn that far off, by turns either way.
    """
    source, settings = augmenter.source, augmenter.settings
    weights = np.ones(chosen.size, np.float32)
    batch = Batch(source.features(chosen), weights, chosen, *augmenter.targets.of(chosen))
    columns = [("as it is", batch.features)]
    names = augment.active(settings)
    if jitter_s:
        jitter_rows = augmenter.spec.rows(jitter_s)
        moved = np.where(np.arange(chosen.size) % 2, -jitter_rows, jitter_rows)
        batch = replace(batch, features=source.features(chosen, moved))
        columns.append((_jitter_title(jitter_s), batch.features))
    as_it_is = replace(batch, features=columns[0][1])
    for name in names:
        alone = AugmentSettings(
            **{name: 1.0 if name in _SHARES else getattr(settings, name)},
            snr_db=settings.snr_db,
            time_masks=settings.time_masks,
            band_masks=settings.band_masks,
            mask_with=settings.mask_with,
            impulse_responses=settings.impulse_responses,
        )
        made = replace(augmenter, settings=alone)(as_it_is, 0, 0, order)
        columns.append((title(name, settings), made.features))
    if len(columns) > 2:
        columns.append(("all together,\nas in training", augmenter(batch, 0, 0, order).features))
    return _picture(columns, augmenter.spec)


def _jitter_title(jitter_s: float) -> str:
    return f"started elsewhere,\n± {jitter_s:g} s"


def title(name: str, settings: AugmentSettings) -> str:
    """What is done, and how strongly, in a few words."""
    value = getattr(settings, name)
    snr = _fainter(settings.snr_db, settings.snr_db + SNR_RANGE_DB)
    share = f"{100 * value:.0f} % of windows"
    return {
        "time_roll_s": f"rotated in time,\n± {value:g} s",
        "pitch_shift": f"moved in pitch,\n± {value} bands",
        "mixup": f"mixed with another,\n{share}",
        "cutmix": f"a stretch of another,\n{share}",
        "background": f"background, {share},\n{snr}",
        "white_noise": f"white noise, {share},\n{snr}",
        "pink_noise": f"pink noise, {share},\n{snr}",
        "speed": f"faster or slower,\n± {100 * value:.0f} %",
        "tempo": f"tempo alone,\n± {100 * value:.0f} %",
        "pitch_semitones": f"pitch alone,\n± {value:g} semitone{'' if value == 1 else 's'}",
        "filter": f"filtered,\n{share}",
        "reverberation": f"reverberation,\n{share}",
        "clipping": f"clipped,\n{share}",
        "codec": f"lossy codec,\n{share}",
        "gain_db": f"louder or softer,\n± {value:g} dB",
        "time_mask_s": f"time masked ({settings.mask_with}),\n{_times(settings.time_masks)}up to {value:g} s",
        "band_mask": f"pitch masked ({settings.mask_with}),\n{_times(settings.band_masks)}up to {value} bands",
    }[name]


def _times(n: int) -> str:
    return f"{n} × " if n > 1 else ""


def _fainter(low_db: float, high_db: float) -> str:
    """From so many dB fainter than the window to so many, the higher; below 0 it is louder."""
    if low_db >= 0:
        return f"{low_db:g} to {high_db:g} dB fainter"
    if high_db <= 0:
        return f"{-low_db:g} to {-high_db:g} dB louder"
    return f"{-low_db:g} dB louder to {high_db:g} fainter"


def _picture(columns: list[tuple[str, Frames]], spec: FrontEnd) -> bytes:
    n_rows = len(columns[0][1])
    figure = Figure(figsize=(1.75 * len(columns), 1.25 * n_rows + 0.5), dpi=80, layout="constrained")
    axes = figure.subplots(n_rows, len(columns), squeeze=False)
    # One scale for all, from silence to nearly the loudest: what gets louder must look so.
    looks = [(words, *picture(spec, windows)) for words, windows in columns]
    floor = looks[0][2]
    scale = {"vmin": floor, "vmax": max(float(np.quantile(looks[0][1], 0.999)), floor + 1.0)}
    for column, (words, features, _) in enumerate(looks):
        axes[0, column].set_title(words, fontsize=7.5)
        for row, window in enumerate(features):
            cell = axes[row, column]
            cell.imshow(window.T, origin="lower", aspect="auto", cmap="magma", **scale)
            cell.set_xticks([])
            cell.set_yticks([])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
