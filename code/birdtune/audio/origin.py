"""Which recorder a sound file comes from and when its recording began, by what recorders write into it.

    path, tags ─▶ read_origin ─▶ Origin | None

Read are, of WAV files: BWF (`bext`), GUANO (`guan`), Wildlife Acoustics (`wamd`), and of all files the comment and the
title that the decoder knows, as AudioMoth writes them. Only chunk headers and a few kilobytes are read, and what cannot
be read is not there: nothing of it is needed to decode the sound.
"""

import contextlib
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, time
from pathlib import Path
from typing import Final

from birdtune.audio.chunks import wav_chunks

# Of one chunk: metadata are small, and headers that are damaged lead anywhere.
_MOST_BYTES: Final = 1 << 16
_READ: Final = (b"bext", b"guan", b"wamd")
# Programs that name themselves as the recorder and stamp the time of saving.
_EDITORS = re.compile(
    r"lavf|ffmpeg|audacity|sox|libsndfile|reaper|adobe|audition|pro ?tools|logic|cubase|nuendo|wavelab|ocenaudio|"
    r"izotope|goldwave|raven|kaleidoscope|python|matlab|tuner",
    re.IGNORECASE,
)
_AUDIOMOTH = re.compile(
    r"Recorded at (\d\d:\d\d:\d\d)(?:\.\d+)? (\d\d/\d\d/\d{4})(?: \(UTC(?P<zone>[+-]\d{1,2}(?::\d\d)?)?\))? "
    r"(?:by AudioMoth|during deployment) (?P<device>[0-9A-F]{4,})"
)
# An id within a sentence may be of another recording, to compare with.
_XENO_CANTO = re.compile(r"^\s*XC[\s_-]?(\d{3,8})\s*(?![^\W_]|\s)|xeno-canto\.org/(\d{3,8})\b", re.IGNORECASE)


@dataclass(frozen=True)
class Origin:
    """Metadata of a file about the recording that it is from."""

    recorder: str = ""  # an id that no two recorders share, as far as the file has one
    start_s: float | None = None  # since 1970; the recorder's clock is taken for UTC where there is no time zone
    original: str = ""  # name of the file, or id of the recording, that it was cut from


def read_origin(path: Path, tags: Mapping[str, str], rate_hz: int) -> Origin | None:
    """The origin by the metadata of a file; None if there is nothing. Raises nothing for what it holds.

    Args:
        tags, rate_hz: comment, title and sample rate, as the decoder gives them.
    """
    origins = [Origin()]
    with contextlib.suppress(ValueError):
        origins.append(_of_tags(tags))
    with contextlib.suppress(OSError, struct.error, ValueError, OverflowError), path.open("rb") as file:
        for name, begin, length in wav_chunks(file):
            if name in _READ:
                file.seek(begin)
                body = file.read(min(length, _MOST_BYTES))
                with contextlib.suppress(struct.error, ValueError, OverflowError):
                    if name == b"bext":
                        origins.append(_bext(body, rate_hz))
                    else:
                        origins.append(_guano(body) if name == b"guan" else _wamd(body))
    # GUANO and wamd know the device; bext mostly its make.
    origin = Origin(
        next((one.recorder for one in reversed(origins) if one.recorder), ""),
        next((one.start_s for one in reversed(origins) if one.start_s is not None), None),
        next((one.original for one in reversed(origins) if one.original), ""),
    )
    return origin if origin != Origin() else None


def _of_tags(tags: Mapping[str, str]) -> Origin:
    text = "\n".join(tags.values())
    if match := _AUDIOMOTH.search(text):
        sign, hours, minutes = re.fullmatch(r"([+-]?)(\d*):?(\d*)", match["zone"] or "").groups()  # type: ignore[union-attr]
        zone = f"{sign or '+'}{int(hours or 0):02}:{int(minutes or 0):02}"
        stamp = datetime.strptime(f"{match[2]} {match[1]} {zone}", "%d/%m/%Y %H:%M:%S %z")
        return Origin(f"AudioMoth {match['device']}", _seconds(stamp.isoformat()))
    for tag in tags.values():
        if match := _XENO_CANTO.search(tag):
            return Origin(original=f"XC{match[1] or match[2]}")
    return Origin()


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "replace").strip()


def _bext(body: bytes, rate_hz: int) -> Origin:
    """Of a BWF chunk, which counts in samples (EBU Tech 3285)."""
    originator, date, clock = _text(body[256:288]), _text(body[320:330]), _text(body[330:338])
    (samples,) = struct.unpack("<Q", body[338:346])
    if not originator or _EDITORS.search(originator):
        return Origin()
    date, clock = re.sub(r"\D", "-", date), re.sub(r"\D", ":", clock)
    stamp_s = _seconds(f"{date} {clock}")
    if samples and rate_hz:
        since_midnight_s = samples / rate_hz
        # The time of the recording, and that of the clip within it; else one of them is the place on a track.
        if since_midnight_s < stamp_s % 86_400 - 2.0:
            return Origin(originator)
        return Origin(originator, stamp_s - stamp_s % 86_400 + since_midnight_s)
    return Origin(originator, stamp_s)


def _guano(body: bytes) -> Origin:
    lines = (line.partition(":") for line in body.decode("utf-8", "replace").splitlines())
    fields = {key.strip(): value.strip(" \t\r\n\0") for key, _, value in lines}
    serial = next((value for key, value in fields.items() if key.split("|")[-1] in ("Serial", "Serial Number")), "")
    recorder = " ".join(filter(None, (fields.get("Make", ""), fields.get("Model", ""), serial))) if serial else ""
    stamp = fields.get("Timestamp", "")
    return Origin(recorder, _seconds(stamp) if stamp else None, fields.get("Original Filename", ""))


def _wamd(body: bytes) -> Origin:
    """Of the sub-chunks that Wildlife Acoustics publishes: 1 model, 2 serial number, 5 time of the beginning."""
    found: dict[int, str] = {}
    at = 0
    while at + 6 <= len(body):
        key, size = struct.unpack("<HI", body[at : at + 6])
        found[key] = _text(body[at + 6 : at + 6 + size])
        at += 6 + size
    recorder = f"{found.get(1, '')} {found[2]}".strip() if found.get(2) else ""
    return Origin(recorder, _seconds(found[5]) if found.get(5) else None)


def _seconds(text: str) -> float:
    """Seconds since 1970 of an ISO date and time. Raises ValueError if it is none, or of no time of recorders."""
    stamp = datetime.fromisoformat(text)
    unset = stamp.year in (1980, 2000) or stamp.time() == time()
    if stamp.year < 1980 or ((stamp.month, stamp.day) == (1, 1) and unset):
        raise ValueError(f"{text}: a clock that was not set")
    return (stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)).timestamp()
