"""What is wrong with a sound that can be decoded: that there is nothing in it, or what to know of it.

    SoundFacts ─▶ silence ─▶ why it cannot be used;  remarks ─▶ (code of `recordings.PROBLEMS`, words)

The limits are far from what good recordings have. Of the 542 recordings of ESC-10, warblers and BioDCASE, remarked are:
offset 0 (the most is 0.012), clipped 3, click 0 (the most is 0.79), gaps 7, of ESC-10's clips that are filled up with
zeros; 80 of these are a quarter empty or more, 4 of them between sounds.
"""

from collections.abc import Iterator

from birdtune.audio.channels import Choice, channel_words
from birdtune.audio.decode import SILENCE_DB, SoundFacts
from birdtune.audio.measures import Measures

_OFFSET = 0.02
_CLIPPED = 1e-3
# Of 619 pieces of 3.5 s of the warblers, a short song in a quiet moment reaches 0.994; 44 reach 0.9.
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
    """Why there is nothing in a recording; "" if there is something."""
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
    heard_s = (1 - measures.empty) * facts.duration_s
    if measures.click >= _CLICK_ALONE and heard_s <= _CLICK_S:
        return f"a click of {1000 * heard_s:.0f} ms, and nothing else in {facts.duration_s:.1f} s"
    return ""


def remarks(facts: SoundFacts) -> Iterator[tuple[str, str]]:
    """What to know of a recording that is used: code and words."""
    choice, measures = facts.choice, facts.measures
    if choice is not None and choice.fault:
        yield _CODES[choice.fault], _channels(choice, facts.channels)
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


_CODES = {
    "inverted": "channels-inverted", "dead": "channel-dead", "noisy": "channel-noisy",
    "offset": "channel-offset", "clipped": "channel-clipped",
}  # fmt: skip


def _channels(choice: Choice, n_channels: int) -> str:
    """"channel 2 is dead, channel 3 would cancel the others; channels 1 and 4 are mixed and used"."""
    others = [channel for channel in range(n_channels) if channel not in choice.kept]
    why = {channel: choice.faults[channel] if choice.faults else choice.fault for channel in others}
    groups = [[channel for channel in others if why[channel] == fault] for fault in dict.fromkeys(why.values())]
    return f"{', '.join(_fault_words(group, why[group[0]], choice) for group in groups)}; {choice.words}"


def _fault_words(channels: list[int], fault: str, choice: Choice) -> str:
    left = channel_words(channels)
    is_one = len(channels) == 1
    are = "is" if is_one else "are"
    return {
        "inverted": f"mixed with {left}, the sound would cancel itself",
        "dead": f"{left} {are} dead" + _for(choice.dead_share),
        "noisy": f"{left} {are} much noisier",
        "offset": f"{left} {'has' if is_one else 'have'} a constant offset",
        "clipped": f"{left} {are} clipped",
    }[fault]


def _for(share: float) -> str:
    return f" for about {share:.0%} of the recording" if share < _WHOLE else ""
