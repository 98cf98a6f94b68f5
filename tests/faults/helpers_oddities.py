"""A folder with more than a hundred kinds of files that recorders, people and disks leave behind.

    build(folder) ─▶ what must become of each: a code of recordings.PROBLEMS, with ", used" if it is used all the same,
                     or "used"

Made anew each time, always the same. What is expected follows from what was made, not from what birdtune says.
"""

import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

RATE_HZ = 16_000
# Above the first a recording is too long, below the second too short, with the settings that the books are tried with.
LONGEST_S, SHORTEST_S = 3.6, 0.975
A, B, C, D = "Apus_apus", "Bubo_bubo", "<b>Corvus</b> corax", "Dryocopus martius"
# On opening it a worker is killed by helpers of the test: no file is known to crash every libsndfile.
DEADLY = "deadly.wav"

Samples = npt.NDArray[np.float64]


class Oddities:
    """Writes files and notes what must become of each."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.expected: dict[str, str] = {}
        self._number = 0

    def tone(self, seconds: float = 1.1, rate_hz: int = RATE_HZ, channels: int = 1) -> Samples:
        """A tone in noise that no other file has. [n, channels]"""
        self._number += 1
        n = max(1, round(seconds * rate_hz))
        noise = np.random.default_rng(self._number).standard_normal((n, channels))
        sine = np.sin(2 * np.pi * (300 + 3 * self._number) * np.arange(n) / rate_hz)
        found: Samples = 0.3 * sine[:, None] + 0.02 * noise
        return found

    def note(self, name: str, becomes: str, shown: str | None = None) -> Path:
        """The path of an entry, and the folders above; `shown` is how tables call it if not by its name."""
        path = self.data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert (shown or name) not in self.expected
        self.expected[shown or name] = becomes
        return path

    def sound(
        self, name: str, becomes: str = "used", samples: Samples | None = None, *, rate_hz: int = RATE_HZ,
        kind: str = "WAV", encoding: str | None = "PCM_16", shown: str | None = None,
    ) -> bytes:  # fmt: skip
        """A sound file; its bytes."""
        path = self.note(name, becomes, shown)
        samples = self.tone(rate_hz=rate_hz) if samples is None else samples
        soundfile.write(os.fsencode(path), samples, rate_hz, format=kind, subtype=encoding)
        return path.read_bytes()

    def raw(self, name: str, content: bytes, becomes: str, shown: str | None = None) -> None:
        """A file of these bytes."""
        self.note(name, becomes, shown).write_bytes(content)

    def made(self, kind: str, encoding: str, samples: Samples | None = None) -> bytes:
        """The bytes of a sound file that is not there."""
        path = self.data / "being-made"
        soundfile.write(
            path, self.tone() if samples is None else samples, RATE_HZ, format=kind, subtype=encoding
        )
        content = path.read_bytes()
        path.unlink()
        return content

    def link(self, name: str, target: str, becomes: str) -> None:
        """A symbolic link."""
        self.note(name, becomes).symlink_to(target)


def build(data: Path, *, with_rights: bool) -> dict[str, str]:
    """Make the folder; entry → what must become of it.

    Args:
        with_rights: whether the rights of files apply to who will read them.
    """
    for label in (A, B, C, D):
        (data / label).mkdir(parents=True)
    odd = Oddities(data)
    for label in (A, B, C, D):
        for number in range(4):
            odd.sound(f"{label}/plain {number}.wav")
    _kinds(odd)
    _shapes(odd)
    _names(odd)
    _headers(odd)
    _damage(odd)
    _levels(odd)
    _foreign(odd)
    _links(odd)
    _copies(odd)
    if with_rights:
        odd.sound(f"{A}/secret.wav", "unreadable")
        (data / A / "secret.wav").chmod(0)
        odd.note(f"{B}/closed", "unreadable").mkdir(mode=0)
    return odd.expected


def _kinds(odd: Oddities) -> None:
    """All kinds of sound that can be read."""
    wav = [
        "PCM_U8",
        "PCM_24",
        "PCM_32",
        "FLOAT",
        "DOUBLE",
        "ULAW",
        "ALAW",
        "IMA_ADPCM",
        "MS_ADPCM",
        "GSM610",
        "G721_32",
    ]
    for encoding in wav:
        odd.sound(f"{A}/kinds/{encoding}.wav", kind="WAV", encoding=encoding)
    others = [
        ("WAVEX", "PCM_24", "wav"), ("RF64", "PCM_16", "rf64"), ("W64", "PCM_16", "w64"), ("FLAC", "PCM_S8", "flac"),
        ("FLAC", "PCM_24", "FLAC"), ("OGG", "VORBIS", "ogg"), ("OGG", "OPUS", "opus"), ("OGG", "VORBIS", "oga"),
        ("MP3", "MPEG_LAYER_III", "mp3"), ("AIFF", "PCM_16", "aiff"), ("AIFF", "FLOAT", "aifc"), ("AIFF", "PCM_S8",
        "aif"),
        ("AU", "PCM_16", "au"), ("AU", "FLOAT", "snd"), ("CAF", "PCM_16", "caf"), ("CAF", "ALAC_16", "Caf"),
        ("WAV", "PCM_16", "wave"), ("WAV", "PCM_16", "bwf"), ("WAV", "PCM_16", "WaV"),
    ]  # fmt: skip
    for kind, encoding, ending in others:
        odd.sound(f"{B}/kinds/{kind} {encoding}.{ending}", kind=kind, encoding=encoding)
    for inside, ending in (("FLAC", "wav"), ("WAV", "mp3"), ("WAV", "flac"), ("OGG", "wav"), ("AIFF", "wav")):
        encoding = "VORBIS" if inside == "OGG" else "PCM_16"
        odd.sound(f"{B}/named wrongly/{inside}.{ending}", "misnamed, used", kind=inside, encoding=encoding)


def _shapes(odd: Oddities) -> None:
    """Rates, channels and lengths."""
    for rate_hz in (1_000, 4_000, 8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000, 384_000, 2_000_000):
        odd.sound(f"{A}/rates/{rate_hz}.wav", rate_hz=rate_hz)
    for rate_hz in (1, 999, 2_000_001):
        odd.sound(f"{A}/rates/{rate_hz}.wav", "corrupt", odd.tone(0.1, 20_000), rate_hz=rate_hz)
    for channels in (2, 3, 6, 16, 255, 1024):
        odd.sound(f"{B}/channels/{channels}.wav", samples=odd.tone(channels=channels))
    lengths = {
        "one window": SHORTEST_S, "nearly too long": LONGEST_S, "short": SHORTEST_S - 1 / RATE_HZ, "ten ms": 0.01,
        "one sample": 1 / RATE_HZ, "long": LONGEST_S + 1 / RATE_HZ,
    }  # fmt: skip
    for name, seconds in lengths.items():
        becomes = "too-long" if seconds > LONGEST_S else "too-short" if seconds < SHORTEST_S else "used"
        odd.sound(f"{C}/lengths/{name}.wav", becomes, odd.tone(seconds))
    odd.sound(f"{C}/lengths/one sample.flac", "too-short", odd.tone(0.0), kind="FLAC")
    odd.sound(f"{C}/lengths/long.ogg", "too-long", odd.tone(5.0), kind="OGG", encoding="VORBIS")
    odd.sound(f"{C}/lengths/long.mp3", "too-long", odd.tone(5.0), kind="MP3", encoding="MPEG_LAYER_III")
    odd.sound(f"{C}/lengths/at another rate.wav", "too-long", odd.tone(4.0, 1_000), rate_hz=1_000)


def _names(odd: Oddities) -> None:
    names = {
        "with  blanks .wav": None, "quote'\".wav": None, "Grünling.wav": None, "夜鶯 🐦.wav": None, "=1+1.wav": None,
        "-rf.wav": None, "@SUM(A1).wav": None, "+1.wav": None, "<script>alert(1)<": None, "&amp;.wav": None,
        "'=quoted.wav": None, "a.wav.wav": None, "nul.wav": None, "$x$ %s {0}.wav": None, "semi;colon,comma.wav": None,
        "Gru\u0308nling.wav": None, "CAPITALS.WAV": None, "~backup.wav": None, "x" * 251 + ".wav": None,
        "back\\slash.wav": "back\\\\slash.wav", "new\nline.wav": "new\\nline.wav", "tab\t.wav": "tab\\t.wav",
        "\x1b[2Jclear.wav": "\\x1b[2Jclear.wav", "\u202evaw.txt.wav": "\\u202evaw.txt.wav",
        "bell\x07.wav": "bell\\x07.wav",
        "\u2028line.wav": "\\u2028line.wav", "\ufeffmark.wav": "\\ufeffmark.wav", "cr\r.wav": "cr\\r.wav",
        os.fsdecode(b"latin-\xe9.wav"): "latin-\\udce9.wav", os.fsdecode(b"\xff\xfe.wav"): "\\udcff\\udcfe.wav",
    }  # fmt: skip
    for name, shown in names.items():
        name = name if name.lower().endswith(".wav") else f"{name}.wav"
        odd.sound(f"{D}/{name}", shown=f"{D}/{shown}" if shown else None)
    odd.sound(f"{D}/" + "deep/" * 98 + "x.wav")
    odd.note(f"{D}/" + "deep/" * 99 + "d", "unreadable").mkdir()
    odd.sound(f"{D}/night.wav/one.wav")


def _headers(odd: Oddities) -> None:
    """Headers that say other things than the file holds."""
    wav = odd.made("WAV", "PCM_16")
    size, rate, channels, bits = 40, 24, 22, 34  # where a plain WAV header says so
    for name, length in (("to a pipe", 0xFFFFFFFF), ("to another pipe", 0x7FFFFFFF)):
        content = bytearray(odd.made("WAV", "PCM_16"))
        content[4:8] = content[size : size + 4] = struct.pack("<I", length)
        odd.raw(f"{A}/headers/written {name}.wav", bytes(content), "used")
    odd.raw(f"{A}/headers/more than promised.wav", odd.made("WAV", "PCM_16") + b"\0\0left over" * 99, "used")
    odd.raw(f"{A}/headers/tag behind.wav", odd.made("WAV", "PCM_16") + b"ID3 " + bytes(996), "used")
    odd.raw(f"{A}/headers/promises a little more.wav", _patched(wav, size, "<I", len(wav)), "repaired, used")
    odd.raw(f"{A}/headers/never finished.wav", _patched(wav, size, "<I", 0), "repaired, used")
    odd.raw(f"{A}/headers/rate 0.wav", _patched(wav, rate, "<I", 0), "corrupt")
    odd.raw(f"{A}/headers/rate 4 billion.wav", _patched(wav, rate, "<I", 0xFFFFFFFF), "corrupt")
    odd.raw(f"{A}/headers/no channels.wav", _patched(wav, channels, "<H", 0), "corrupt")
    odd.raw(f"{A}/headers/60000 channels.wav", _patched(wav, channels, "<H", 60_000), "corrupt")
    odd.raw(f"{A}/headers/no bits.wav", _patched(wav, bits, "<H", 0), "corrupt")
    odd.raw(f"{A}/headers/unheard-of encoding.wav", _patched(wav, 20, "<H", 0x4321), "corrupt")
    odd.raw(f"{A}/headers/only.wav", wav[:44], "truncated")
    odd.sound(f"{A}/headers/without samples.wav", "empty", np.zeros((0, 1)))
    flac = bytearray(odd.made("FLAC", "PCM_16"))
    flac[21:26] = bytes([flac[21] & 0xF0, 0, 0, 0, 0])  # STREAMINFO: total samples unknown
    odd.raw(f"{A}/headers/written to a pipe.flac", bytes(flac), "used")
    mp3 = odd.made("MP3", "MPEG_LAYER_III")
    cover = bytes(5_000)
    odd.raw(f"{A}/headers/with a cover.mp3", b"ID3\x03\0\0" + bytes([0, 0, 39, 8]) + cover + mp3, "used")


def _patched(content: bytes, at: int, form: str, value: int) -> bytes:
    changed = bytearray(content)
    struct.pack_into(form, changed, at, value)
    return bytes(changed)


def _damage(odd: Oddities) -> None:
    """What disks, cards and cables do."""
    kinds = {
        "wav": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS"),
        "aiff": ("AIFF", "PCM_16"), "w64": ("W64", "PCM_16"), "au": ("AU", "PCM_16"), "caf": ("CAF", "PCM_16"),
    }  # fmt: skip
    for ending, (kind, encoding) in kinds.items():
        content = odd.made(kind, encoding, odd.tone(2.5))
        for share in (0.5, 0.9):
            # A page of Ogg holds about a second, and what is left of one is nothing.
            becomes = "truncated" if kind == "OGG" and share == 0.5 else "truncated, used"
            odd.raw(f"{B}/damage/{share} of it.{ending}", content[: int(len(content) * share)], becomes)
    for ending, becomes in (("flac", "corrupt, used"), ("ogg", "corrupt")):
        content = bytearray(odd.made(*kinds[ending], odd.tone(2.5)))
        middle = len(content) // 2
        content[middle : middle + 3000] = np.random.default_rng(9).bytes(3000)
        odd.raw(f"{B}/damage/rubbish inside.{ending}", bytes(content), becomes)
    odd.raw(f"{B}/damage/little of it.wav", odd.made("WAV", "PCM_16")[:9_000], "truncated")
    wav = odd.made("WAV", "PCM_16")
    odd.raw(f"{B}/damage/nothing.wav", b"", "empty")
    odd.raw(f"{B}/damage/nothing.flac", b"", "empty")
    odd.raw(f"{B}/damage/one byte.wav", b"R", "not-audio")
    odd.raw(f"{B}/damage/four bytes.wav", b"RIFF", "not-audio")
    odd.raw(f"{B}/damage/zeros.wav", bytes(40_000), "not-audio")
    odd.raw(f"{B}/damage/erased flash.wav", b"\xff" * 40_000, "not-audio")
    odd.raw(f"{B}/damage/beginning lost.wav", wav[512:], "not-audio")
    odd.raw(f"{B}/damage/random.mp3", np.random.default_rng(5).bytes(3_000), "not-audio")
    odd.raw(f"{B}/damage/letter.wav", b"this is a letter, not a song\n" * 40, "not-audio")
    odd.raw(f"{B}/damage/page.mp3", b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "not-audio")
    odd.raw(f"{B}/damage/archive.flac", b"PK\x03\x04" + bytes(500), "not-audio")
    odd.raw(
        f"{B}/damage/pointer.wav", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "not-audio"
    )
    odd.sound(f"{B}/{DEADLY}", "crash")


def _levels(odd: Oddities) -> None:
    def put(samples: Samples, at: int, value: float) -> Samples:
        samples[at] = value
        return samples

    floats: dict[str, Callable[[], Samples]] = {
        "nan": lambda: put(odd.tone(), 100, np.nan), "nan at the end": lambda: put(odd.tone(), -1, np.nan),
        "infinite": lambda: put(odd.tone(), 5, np.inf), "minus infinite": lambda: put(odd.tone(), 0, -np.inf),
        "huge": lambda: odd.tone() * 1e30, "all nan": lambda: odd.tone() * np.nan,
    }  # fmt: skip
    for name, make in floats.items():
        becomes = "not-finite, used" if name == "nan at the end" else "not-finite"
        odd.sound(f"{C}/levels/{name}.wav", becomes, make(), encoding="DOUBLE")
    silent: Any = np.zeros((2 * RATE_HZ, 1))
    odd.sound(f"{C}/levels/silent.wav", "silent", silent)
    odd.sound(f"{C}/levels/silent.flac", "silent", silent[:-1], kind="FLAC")
    odd.sound(f"{C}/levels/silent stereo.wav", "silent", np.zeros((30_000, 2)), encoding="PCM_24")
    odd.sound(f"{C}/levels/one step.wav", "silent", silent + 2**-15)
    odd.sound(f"{C}/levels/below any step.wav", "silent", odd.tone() * 1e-8, encoding="FLOAT")
    odd.sound(f"{C}/levels/two steps.wav", samples=silent + 2**-14)
    odd.sound(f"{C}/levels/direct current.wav", samples=silent + 0.5)
    odd.sound(f"{C}/levels/one click.wav", samples=put(silent.copy(), 999, 0.5))
    odd.sound(f"{C}/levels/clipped.wav", samples=np.clip(odd.tone() * 99, -1, 1))
    odd.sound(f"{C}/levels/as integers.wav", samples=odd.tone() * 32_768, encoding="FLOAT")
    odd.sound(f"{C}/levels/out of phase.wav", samples=np.hstack([tone := odd.tone(), -tone]))


def _foreign(odd: Oddities) -> None:
    """What is no sound, or none that can be read."""
    for name in ("phone.m4a", "video.MP4", "windows.wma", "radio.aac", "page.webm", "old.ape", "call.amr"):
        odd.raw(f"{C}/foreign/{name}", b"\0\0\0\x18ftypM4A " + name.encode(), "corrupt")
    for name in ("x.wav.part", "noending", "wav", "x.wav~", "a."):
        odd.raw(f"{C}/foreign/{name}", name.encode(), "not-audio")
    for name in ("letter.txt", "photo.jpg", "Thumbs.db"):
        odd.raw(f"{C}/foreign/{name}", name.encode(), "metadata")
    odd.raw(f"{C}/foreign/labels.TextGrid", b"x", "annotation")
    for name in (
        "<img src=x onerror=alert(2)>.txt",
        '" onclick="alert(3)" x=".txt',
        "{{ 7 * 7 }}.txt",
        "=1+1.txt",
    ):
        odd.raw(f"{C}/foreign/{name}", name.encode(), "metadata")
    for name in (".trash.wav", "._resource.wav", ".DS_Store"):
        odd.raw(f"{C}/{name}", b"x", "hidden")
    odd.note(f"{C}/.git", "hidden").mkdir()
    (odd.data / C / ".git" / "x.wav").write_bytes(b"RIFF")
    odd.note(".Spotlight", "hidden").mkdir()
    odd.sound("stray.wav", "outside-class")
    odd.raw("README.txt", b"x", "metadata")
    odd.raw("desktop.ini", b"x", "metadata")
    os.mkfifo(odd.note(f"{C}/pipe.wav", "not-a-file"))
    os.mkfifo(odd.note(f"{C}/pipe", "not-audio"))
    _make_socket(odd.note(f"{C}/socket.wav", "not-a-file"))
    (odd.data / "Empty class").mkdir()


def _make_socket(path: Path) -> None:
    # By a name that fits into the 108 bytes of a socket's address, wherever the folder is.
    folder = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)


def _links(odd: Oddities) -> None:
    outside = odd.data.parent / "outside"
    outside.mkdir()
    soundfile.write(outside / "x.wav", odd.tone(), RATE_HZ)
    odd.link(f"{D}/out.wav", str(outside / "x.wav"), "link-outside")
    odd.link(f"{D}/out", "../../outside", "link-outside")
    odd.link(f"{D}/etc", "/etc", "link-outside")
    odd.link(f"{D}/gone.wav", "nowhere.wav", "link-broken")
    odd.link(f"{D}/below a file.wav", "plain 0.wav/x", "link-broken")
    odd.link(f"{D}/gone", "nowhere", "not-audio")
    odd.link(f"{D}/self.wav", "self.wav", "link-loop")
    odd.link(f"{D}/there.wav", "back.wav", "link-loop")
    odd.link(f"{D}/back.wav", "there.wav", "link-loop")
    odd.link(f"{D}/round", ".", "link-loop")
    odd.link(f"{D}/up", "..", "link-loop")
    odd.link(f"{D}/to the kinds", f"../{A}/kinds", "link-again")
    odd.link(f"{B}/to Apus", f"../{A}", "link-again")
    odd.link(f"{A}/to Bubo", f"../{B}", "link-again")
    odd.link("Linked class", f"{A}/rates", "link-again")
    odd.link("linked.wav", f"{A}/plain 0.wav", "outside-class")


def _copies(odd: Oddities) -> None:
    """The first copy of a class, by name, is used."""
    content = odd.sound(f"{A}/copies/a.wav")
    odd.raw(f"{A}/copies/b.wav", content, "duplicate-in-class")
    odd.raw(f"{A}/copies/a (copy).wav", content, "used")
    odd.expected[f"{A}/copies/a.wav"] = "duplicate-in-class"  # a blank comes before a dot
    odd.raw(f"{A}/copies/named wrongly.flac", content, "duplicate-in-class")
    os.link(odd.data / A / "copies/a.wav", odd.note(f"{A}/copies/sub/hard link.wav", "duplicate-in-class"))
    odd.link(f"{A}/copies/soft link.wav", "a.wav", "duplicate-in-class")
    both = odd.sound(f"{A}/copies/both.wav", "duplicate-across-classes")
    odd.raw(f"{B}/copies/both too.wav", both, "duplicate-across-classes")
    odd.raw(f"{C}/copies/and here.wav", both, "duplicate-across-classes")
    odd.raw(f"{C}/copies/and here again.wav", both, "duplicate-across-classes")
    broken = odd.made("WAV", "PCM_16")[:9_000]
    for label in (A, B):
        odd.raw(f"{label}/copies/broken copy.wav", broken, "truncated")
    odd.sound(f"{B}/unlisted.wav", "not-in-split")
