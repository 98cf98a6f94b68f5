"""What is wrong with a sound that can be decoded: that there is nothing in it, or what to know of it.

    SoundFacts ─▶ silence ─▶ why it cannot be used;  remarks ─▶ (code of `recordings.PROBLEMS`, words)

The limits are far from what good recordings have. Of the 542 recordings of ESC-10, warblers and BioDCASE, remarked are:
offset 0 (the most is 0.012), clipped 3, click 0 (the most is 0.79), gaps 4, all of them in ESC-10.
"""

from collections.abc import Iterator

from birdtune.sound.audio import SILENCE_DB, SoundFacts
from birdtune.sound.channels import Choice, channel_words

_OFFSET = 0.02
_CLIPPED = 1e-3
_CLICK = 0.9
_GAPS = 0.25
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
            return "its channels cancel each other when they are mixed; --sound.channels best takes one of them"
        return "nothing in it is louder than one step of 16-bit sound"
    heard_s = (1 - measures.empty) * facts.duration_s
    if measures.click >= _CLICK and heard_s <= _CLICK_S:
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
        yield "click", f"{measures.click:.0%} of its energy lies within 20 ms"
    if measures.gaps >= _GAPS:
        yield "gaps", f"{measures.gaps:.0%} of it is empty between sounds"


_CODES = {
    "inverted": "channels-inverted", "dead": "channel-dead", "noisy": "channel-noisy",
    "offset": "channel-offset", "clipped": "channel-clipped",
}  # fmt: skip


def _channels(choice: Choice, n_channels: int) -> str:
    others = [channel for channel in range(n_channels) if channel not in choice.kept]
    left = channel_words(others)
    are = "is" if len(others) == 1 else "are"
    said = {
        "inverted": f"mixed with {left}, the sound would cancel itself",
        "dead": f"{left} {are} dead",
        "noisy": f"{left} {are} much noisier",
        "offset": f"{left} {'has' if len(others) == 1 else 'have'} a constant offset",
        "clipped": f"{left} {are} clipped",
    }
    return f"{said[choice.fault]}; {choice.words}"
