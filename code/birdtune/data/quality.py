"""What is wrong with recordings that decode: nothing in them, faults of the recorder, padding, energy out of band.

    SoundFacts ─▶ silence: why it cannot be used;  remarks ─▶ (code of `scan.PROBLEMS`, words)
    recordings + FrontEnd ─▶ padded: a remark on one;  padding_notices, band_notices, band_lines: sentences about all

The limits of the remarks are far from what good recordings have. Of the 542 recordings of ESC-10, warblers and
BioDCASE, remarked are: offset 0 (the most is 0.012), clipped 3, click 0 (the most is 0.79), gaps 7, of ESC-10's clips
that are filled up with zeros; 80 of these are a quarter empty or more, 4 of them between sounds.

The energy above the band is that of what stands out of a recording's noise floor, for noise above 8 kHz is in every
recording that reaches there. What varies stands out by its mean over the floor; a steady tone or buzz, by its band over
those around.
"""

import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from birdtune.audio.channels import Choice, channel_words
from birdtune.audio.decode import SILENCE_DB, SoundFacts
from birdtune.audio.front_end import FrontEnd
from birdtune.audio.measures import BAND_EDGES_HZ, NO_BAND, Measures
from birdtune.data.scan import Problem, Recording

Floats = npt.NDArray[np.float64]

# ---- faults of the recorder -----------------------------------------------------------------------------------------

_OFFSET = 0.02
_CLIPPED = 1e-3
# Of 619 excerpts of 3.5 s of the warblers, a short song in a quiet moment reaches 0.994; 44 reach 0.9.
_CLICK = 0.995
# Of what is a click and else zeros.
_CLICK_ALONE = 0.9
# Of the recording, empty between sounds, and empty at all: clips are filled up to a common length with zeros.
_GAPS, _EMPTY = 0.25, 0.85
_WORTH_SAYING = 0.005
# A channel that is dead for more than this is simply dead.
_WHOLE = 0.95
# A recording of steps of 16-bit sound alone is fainter.
_DRIFT_DB = -80.0
# What lasts no longer, in a recording without even the noise of a recorder, is no song.
_CLICK_S = 0.03


def silence(facts: SoundFacts) -> str:
    """Why there is no sound in a recording; "" if there is some."""
    measures = facts.measures
    if measures is None:
        return ""
    if measures.empty == 1.0:
        if facts.peak_db < SILENCE_DB:
            return f"no sample is louder than {facts.peak_db:.0f} dB of full scale"
        if measures.offset > 0.5 * 10 ** (facts.peak_db / 20):
            return f"a constant offset of {measures.offset:.2g} of full scale, and nothing else"
        if facts.channels > 1:
            return (
                "its channels cancel each other when they are mixed (--audio.channels best takes one of them), "
                "or there is nothing but a slow drift"
            )
        if facts.peak_db > _DRIFT_DB:
            return "a slow drift, and nothing else"
        return "nothing in it is louder than one step of 16-bit sound"
    sound_s = (1 - measures.empty) * facts.duration_s
    if measures.click >= _CLICK_ALONE and sound_s <= _CLICK_S:
        return f"a click of {1000 * sound_s:.0f} ms, and nothing else in {facts.duration_s:.1f} s"
    return ""


def remarks(facts: SoundFacts) -> Iterator[tuple[str, str]]:
    """Remarks on a recording that is used: code and words."""
    choice, measures = facts.choice, facts.measures
    if choice is not None and choice.fault:
        yield "channels-inverted" if choice.fault == "inverted" else f"channel-{choice.fault}", _channels(choice, facts)
    if measures is None:
        return
    fault = "" if choice is None else choice.fault
    if measures.offset >= _OFFSET and fault != "offset":
        yield "offset", f"its mean is {measures.offset:.2g} of full scale"
    if measures.clipped >= _CLIPPED and fault != "clipped":
        yield "clipped", f"{measures.clipped:.1%} of its samples are at the end of their range"
    if measures.click >= _CLICK:
        yield "click", f"{measures.click:.1%} of its energy lies within 20 ms"
    if measures.gaps >= _GAPS or measures.empty >= _EMPTY:
        yield "gaps", _empty(measures)


def _empty(measures: Measures) -> str:
    at_end = measures.empty - measures.gaps - measures.leading
    whole = f"{measures.empty:.0%} of it is empty"
    if measures.empty - measures.gaps < _WORTH_SAYING:
        return f"{whole} between sounds"
    if measures.empty - max(measures.leading, at_end) < _WORTH_SAYING:
        return f"the {'first' if measures.leading > at_end else 'last'} {whole}"
    parts = ((measures.leading, "at its beginning"), (measures.gaps, "between sounds"), (at_end, "at its end"))
    return f"{whole}: {', '.join(f'{share:.0%} {where}' for share, where in parts if share >= _WORTH_SAYING)}"


def _channels(choice: Choice, facts: SoundFacts) -> str:
    """"channel 2 is dead, channel 3 would cancel the others; channels 1 and 4 are mixed and used"."""
    others = [channel for channel in range(facts.channels) if channel not in choice.kept]
    why = {channel: choice.faults[channel] if choice.faults else choice.fault for channel in others}
    groups = [[channel for channel in others if why[channel] == fault] for fault in dict.fromkeys(why.values())]
    return f"{', '.join(_fault_words(group, why[group[0]], choice) for group in groups)}; {choice.words}"


def _fault_words(channels: list[int], fault: str, choice: Choice) -> str:
    left = channel_words(channels)
    is_one = len(channels) == 1
    are = "is" if is_one else "are"
    partly = f" for about {choice.dead_share:.0%} of the recording" if choice.dead_share < _WHOLE else ""
    return {
        "inverted": f"mixed with {left}, the sound would cancel itself",
        "dead": f"{left} {are} dead{partly}",
        "noisy": f"{left} {are} much noisier",
        "offset": f"{left} {'has' if is_one else 'have'} a constant offset",
        "clipped": f"{left} {are} clipped",
    }[fault]


# ---- padding --------------------------------------------------------------------------------------------------------

# Of a window: below, padding is counted, and named for no recording or class.
_MUCH_PADDING = 0.1
_LEAST_PADDING_S = 0.001  # padding below is not counted


def _padding(recording: Recording, spec: FrontEnd) -> int:
    """Zeros put behind a recording to make it a window; 0 where that is no millisecond. Samples at `spec.rate_hz`."""
    lacking = spec.window_samples - spec.samples(recording.facts.duration_s)
    return lacking if lacking >= spec.samples(_LEAST_PADDING_S) else 0


def padded(recording: Recording, spec: FrontEnd) -> Problem | None:
    """The remark on a recording of whose window much is padding."""
    share = _padding(recording, spec) / spec.window_samples
    if share < _MUCH_PADDING:
        return None
    seconds = f"{recording.facts.duration_s:.3g} s long"
    detail = f"{seconds}: {_percent(share)} of its window of {spec.receptive_s:g} s is zeros"
    return Problem(recording.name, recording.label, "padded", detail, used=True)


def padding_notices(recordings: Iterable[Recording], spec: FrontEnd) -> list[str]:
    """How many recordings are padded, how much, and which classes above all."""
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
        f"{many} shorter than a window of {spec.receptive_s:g} s and padded with zeros: "
        f"{_percent(share)} of {'that window' if len(every) == 1 else 'these windows'} is padding."
    )
    shares = {label: sum(inside) / samples[label] for label, inside in lacking.items()}
    if much := _listed(shares, _MUCH_PADDING):
        words += f" Classes with much padding: {much}."
        if min(shares.values()) < _MUCH_PADDING:
            words += " A model can learn padding instead of song where other classes have none."
    return [f"{words} --audio.short-clips skip leaves such recordings out."]


# ---- energy above the band ------------------------------------------------------------------------------------------

# Shares of a class's energy from which `check` lists it, and from which there is a notice.
_NOTABLE, _MOST = 0.1, 0.5
# Below it wind and handling are louder than what sings.
_LOWEST_HZ = 100.0
# A band's mean counts as above its floor from this factor on (1.5 dB): levels are kept in whole decibels.
_CLEARLY = 1.4
# A steady sound stands out of the middle of so many bands on either side by this factor.
_AROUND, _STEADILY = 4, 10.0
# What varies counts alone, unless what is steady has so many times its energy: a whine of the recorder mostly has less.
_OUTWEIGHS = 100.0
_NAMES_IN_A_NOTICE = 8
_AT_ONCE = 4096  # recordings


def shares_above(measures: Sequence[Measures], spec: FrontEnd) -> Floats:
    """Share of the energy of each recording that lies above `spec.top_hz`, to about a third of an octave. [N]

    0 where nothing stands out of the noise.
    """
    pieces = (measures[start : start + _AT_ONCE] for start in range(0, len(measures), _AT_ONCE))
    return np.concatenate([np.zeros(0), *(_shares_above(piece, spec) for piece in pieces)])


def _shares_above(measures: Sequence[Measures], spec: FrontEnd) -> Floats:
    """As `shares_above`, of as many as memory has room for."""
    mean, floor = (
        _powers()[np.stack(bands).view(np.uint8)]
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
def _powers() -> Floats:
    """The power of each level as `encode_bands` keeps it, by its byte; 0 of NO_BAND. [256]"""
    decibels = np.arange(256, dtype=np.uint8).view(np.int8)
    return np.where(decibels != NO_BAND, 10.0 ** (decibels / 10.0), 0.0)


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
    density, n = floor / width, len(width)
    around = [[*range(max(0, band - _AROUND), band), *range(band + 1, min(n, band + _AROUND + 1))] for band in range(n)]
    middle = np.stack([np.median(density[:, bands], axis=1) for bands in around], axis=1)  # [N, bands]
    return np.where(density > _STEADILY * middle, (density - middle) * width, 0.0)


def class_shares(recordings: Iterable[Recording], spec: FrontEnd, background: Sequence[str] = ()) -> dict[str, float]:
    """Class → mean over its recordings of `shares_above`, as far as they were measured; background classes left out."""
    measured = [(each.classes, each.facts.measures) for each in recordings if each.facts.measures is not None]
    inside: dict[str, list[float]] = defaultdict(list)
    for (classes, _), share in zip(measured, shares_above([measures for _, measures in measured], spec), strict=True):
        for name in classes:
            if name not in background:
                inside[name].append(float(share))
    return {label: float(np.mean(shares)) for label, shares in inside.items()}


def band_notices(shares: Mapping[str, float], spec: FrontEnd) -> list[str]:
    """A warning about classes most of whose energy lies above the backbone's band.

    Args:
        shares: as `class_shares`.
    """
    classes = _listed(shares, _MOST)
    if not classes:
        return []
    return [
        f"Most of the energy of these classes lies above the backbone's band ({_band(spec)}): {classes}. It is "
        "not used: calls that are only there cannot be learnt."
    ]


def band_lines(shares: Mapping[str, float], spec: FrontEnd) -> Iterator[str]:
    """For `check`: classes that have a good part of their energy above the band."""
    if classes := _listed({name: share for name, share in shares.items() if share < _MOST}, _NOTABLE):
        yield f"energy above the backbone's band ({_band(spec)}), not used: {classes}"


def _band(spec: FrontEnd) -> str:
    return f"{spec.low_hz:,.0f} to {spec.top_hz:,.0f} Hz"


def _listed(shares: Mapping[str, float], least: float) -> str:
    """Classes and shares from `least` on, the largest first."""
    chosen = sorted(((share, name) for name, share in shares.items() if share >= least), key=lambda x: (-x[0], x[1]))
    more = f" and {len(chosen) - _NAMES_IN_A_NOTICE:,} more" if len(chosen) > _NAMES_IN_A_NOTICE else ""
    return ", ".join(f"{name} ({_percent(share)})" for share, name in chosen[:_NAMES_IN_A_NOTICE]) + more


def _percent(share: float) -> str:
    return "less than 1 %" if share < 0.01 else f"{100 * share:.0f} %"
