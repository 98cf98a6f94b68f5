"""How much of the recordings the backbone is given: padding where they are short, and energy above its band.

    recordings + FrontEnd ─▶ padded: a remark on one;  padding_notices, band_notices, band_lines: sentences about all

The energy is that of what stands out of a recording's noise floor, for noise above 8 kHz is in every recording that
reaches there. What varies stands out by its mean over the floor; a steady tone or buzz, by its band over those around.
"""

import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from birdtune.audio.front_end import FrontEnd
from birdtune.audio.measures import BAND_EDGES_HZ, NO_BAND, Measures
from birdtune.data.scan import Problem, Recording

Floats = npt.NDArray[np.float64]

# Of a window: below, padding is counted, and named for no recording or class.
_MUCH_PADDING = 0.1
_LEAST_PADDING_S = 0.001  # padding below is not counted
# Of a class's energy: what is told by `check`, and what is a notice.
_NOTABLE, _MOST = 0.1, 0.5
# Below it wind and handling are louder than what sings.
_LOWEST_HZ = 100.0
# A band's mean counts as above its floor from this factor on (1.5 dB): levels are kept in whole decibels.
_CLEARLY = 1.4
# A steady sound stands out of the middle of so many bands on either side by this factor.
_AROUND, _STEADILY = 4, 10.0
# What varies tells alone, unless what is steady has so many times its energy: a whine of the recorder mostly has less.
_OUTWEIGHS = 100.0
_NAMES_IN_A_NOTICE = 8


# ---- padding ------------------------------------------------------------------------------------


def _padding(recording: Recording, spec: FrontEnd) -> int:
    """Zeros put behind a recording to make it a window; 0 where that is no millisecond. Samples at `spec.rate_hz`."""
    lacking = spec.window_samples - spec.samples(recording.facts.duration_s)
    return lacking if lacking >= spec.samples(_LEAST_PADDING_S) else 0


def padded(recording: Recording, spec: FrontEnd) -> Problem | None:
    """The remark on a recording of whose window much is padding."""
    share = _padding(recording, spec) / spec.window_samples
    if share < _MUCH_PADDING:
        return None
    detail = f"{recording.facts.duration_s:.3g} s long: {_percent(share)} of its window of {spec.heard_s:g} s is zeros"
    return Problem(recording.name, recording.label, "padded", detail, used=True)


def padding_notices(recordings: Iterable[Recording], spec: FrontEnd) -> list[str]:
    """What should be known of padding: how many recordings have it, how much, and which classes above all."""
    every: list[int] = []
    lacking: dict[str, list[int]] = defaultdict(list)
    samples: dict[str, int] = defaultdict(int)  # class → of all its recordings, padding included
    for recording in recordings:
        zeros = _padding(recording, spec)
        every += [zeros] if zeros else []
        for name in recording.classes:
            samples[name] += max(spec.samples(recording.facts.duration_s), spec.window_samples)
            lacking[name] += [zeros] if zeros else []
    if not every:
        return []
    share = sum(every) / (len(every) * spec.window_samples)
    many = "1 recording is" if len(every) == 1 else f"{len(every):,} recordings are"
    words = (
        f"{many} shorter than a window of {spec.heard_s:g} s and padded with zeros: "
        f"{_percent(share)} of {'that window' if len(every) == 1 else 'these windows'} is padding."
    )
    shares = {label: sum(inside) / samples[label] for label, inside in lacking.items()}
    if much := _listed(shares, _MUCH_PADDING):
        words += f" Classes with much padding: {much}."
        if min(shares.values()) < _MUCH_PADDING:
            words += " A model can learn padding instead of song where other classes have none."
    return [f"{words} --audio.short-clips skip leaves such recordings out."]


# ---- energy above the band ----------------------------------------------------------------------


def shares_above(measures: Sequence[Measures], spec: FrontEnd) -> Floats:
    """Share of the energy of each recording that lies above `spec.top_hz`, to about a third of an octave. [N]

    0 where nothing stands out of the noise.
    """
    if not measures:
        return np.zeros(0)
    mean, floor = (
        np.stack([np.where(some != NO_BAND, 10.0 ** (some / 10.0), 0.0) for some in bands])
        for bands in ([each.spectrum_db for each in measures], [each.floor_db for each in measures])
    )  # [N, bands] each
    even = floor / _noise_quantile()  # what the mean would be, were the band all noise
    varying = np.where(mean > _CLEARLY * even, mean - even, 0.0)
    lowest = BAND_EDGES_HZ[:-1] >= _LOWEST_HZ
    varying, steady = varying * lowest, _steady(floor) * lowest
    is_steady = steady.sum(axis=1) > _OUTWEIGHS * varying.sum(axis=1)
    energy = np.where(is_steady[:, None], steady, varying)
    lower, upper = BAND_EDGES_HZ[:-1], BAND_EDGES_HZ[1:]
    above = np.clip((upper - spec.top_hz) / (upper - lower), 0.0, 1.0)  # [bands] share of each
    return np.asarray(energy @ above / np.maximum(energy.sum(axis=1), 1e-30))


@functools.cache
def _noise_quantile() -> Floats:
    """The floor of even noise, as a share of its mean, in each band: the tenth of a gamma distribution. [bands]"""
    # A frame of 40 ms has a bin every 25 Hz; a Hann window makes about 1.5 of them one.
    shape = np.maximum(1.0, np.diff(BAND_EDGES_HZ) / 25.0 / 1.5)
    # Wilson and Hilferty's approximation (1931); -1.2816 is the tenth of a normal distribution.
    return np.asarray((1 - 1 / (9 * shape) - 1.2816 / (3 * np.sqrt(shape))) ** 3)


def _steady(floor: Floats) -> Floats:
    """What a band's floor has over the bands around, where that is much. [N, bands]"""
    width = np.diff(BAND_EDGES_HZ)
    density = floor / width
    around = np.pad(density, ((0, 0), (_AROUND, _AROUND)), constant_values=np.nan)
    around = np.lib.stride_tricks.sliding_window_view(around, 2 * _AROUND + 1, axis=1)  # [N, bands, 9]
    middle = np.nanmedian(np.delete(around, _AROUND, axis=2), axis=2)  # [N, bands]
    return np.where(density > _STEADILY * middle, (density - middle) * width, 0.0)


def class_shares(recordings: Iterable[Recording], spec: FrontEnd, background: Sequence[str] = ()) -> dict[str, float]:
    """Class → mean over its recordings of `shares_above`, as far as they were measured; background classes left out."""
    inside: dict[str, list[Measures]] = defaultdict(list)
    for recording in recordings:
        for name in recording.classes:
            if recording.facts.measures is not None and name not in background:
                inside[name].append(recording.facts.measures)
    return {label: float(shares_above(measures, spec).mean()) for label, measures in inside.items()}


def band_notices(shares: Mapping[str, float], spec: FrontEnd) -> list[str]:
    """A warning about classes most of whose energy the backbone does not hear.

    Args:
        shares: as `class_shares`.
    """
    classes = _listed(shares, _MOST)
    if not classes:
        return []
    return [
        f"Most of the energy of these classes lies above what the backbone hears ({_band(spec)}): {classes}. What lies "
        "above is not used: calls that are only there cannot be learnt."
    ]


def band_lines(shares: Mapping[str, float], spec: FrontEnd) -> Iterator[str]:
    """What `check` says of classes that have a good part of their energy above the band."""
    if classes := _listed({name: share for name, share in shares.items() if share < _MOST}, _NOTABLE):
        yield f"energy above what the backbone hears ({_band(spec)}), not used: {classes}"


def _band(spec: FrontEnd) -> str:
    return f"{spec.low_hz:,.0f} to {spec.top_hz:,.0f} Hz"


def _listed(shares: Mapping[str, float], least: float) -> str:
    """Classes and shares from `least` on, the largest first."""
    chosen = sorted(((share, name) for name, share in shares.items() if share >= least), key=lambda x: (-x[0], x[1]))
    more = f" and {len(chosen) - _NAMES_IN_A_NOTICE:,} more" if len(chosen) > _NAMES_IN_A_NOTICE else ""
    return ", ".join(f"{name} ({_percent(share)})" for share, name in chosen[:_NAMES_IN_A_NOTICE]) + more


def _percent(share: float) -> str:
    return "less than 1 %" if share < 0.01 else f"{100 * share:.0f} %"
