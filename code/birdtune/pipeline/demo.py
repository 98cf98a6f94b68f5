"""A seed → a small, honest data set of invented birds, as a user would bring it.

    make_data(folder) ─▶ folder/data/<Genus_species>/*.wav|flac|ogg|mp3|WAV, folder/bird_id_map.pickle

The recordings differ in all that real ones differ in: individual, distance, weather, recorder, format,
length, naming. A few files are broken on purpose; `DemoData.broken` says which, and what a check of
the folder should find. The same seed gives the same sounds, and the same bytes where the format allows
(Ogg streams carry a serial number of their own).
"""

import io
import pickle
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from birdtune.audio.demo_songs import NOISE_CLASS, SONGS, Song, Sound, Voice, draw_voice, record
from birdtune.errors import InputError, shown
from birdtune.runtime.files import new_folder, read_json, write_json
from birdtune.runtime.signals import Interrupts

DEMO_VERSION = 1
MARKER = ".birdtune-demo.json"
MAP_NAME = "bird_id_map.pickle"
EMPTY_CLASS = "Nullavis_tacita"  # a folder without recordings
ABSENT_CLASS = "Nullavis_absens"  # in the map, without a folder

CLASSES = tuple(sorted([*(song.species for song in SONGS), NOISE_CLASS]))
CLIP_S = (3.0, 4.7)
_CLIP_BYTES = 253_000  # on average over all recorders; measured

# Vorbis in libsndfile has crashed on long single writes; a second at a time is safe.
_OGG_BLOCK_S = 1


@dataclass(frozen=True)
class Recorder:
    """What a sound is kept in: ending, soundfile's format and subtype, rate and channels."""

    ending: str
    format: str
    subtype: str
    rate_hz: int
    channels: int


RECORDERS = (
    Recorder("wav", "WAV", "PCM_16", 44_100, 1),
    Recorder("wav", "WAV", "PCM_16", 48_000, 2),
    Recorder("wav", "WAV", "PCM_24", 32_000, 1),
    Recorder("flac", "FLAC", "PCM_16", 24_000, 1),
    Recorder("ogg", "OGG", "VORBIS", 32_000, 2),
    Recorder("mp3", "MP3", "MPEG_LAYER_III", 44_100, 1),
    Recorder("WAV", "WAV", "PCM_16", 22_050, 1),
    Recorder("wav", "WAV", "ALAW", 16_000, 1),
    Recorder("wav", "WAV", "MS_ADPCM", 44_100, 2),
    Recorder("wav", "WAV", "FLOAT", 24_000, 1),
    Recorder("wav", "WAV", "PCM_32", 16_000, 1),
    Recorder("wav", "WAV", "PCM_U8", 22_050, 1),
    Recorder("flac", "FLAC", "PCM_24", 48_000, 1),
)


@dataclass(frozen=True)
class Clip:
    """One file to be made: where, what, by whom."""

    path: str  # below data/, with forward slashes
    song: Song | None
    recorder: Recorder
    numbers: tuple[int, int, int]  # class, source, slice: what its randomness is derived from


@dataclass(frozen=True)
class DemoData:
    """What `make_data` made, and what it broke on purpose."""

    folder: Path
    seed: int
    sources_per_class: int
    calls_per_source: tuple[int, int]
    classes: tuple[str, ...]  # sorted; those with sound recordings
    sources: int
    clips: int  # sound ones; the broken come on top
    seconds: float  # of the sound ones together
    files: int  # below data/, broken ones included
    broken: dict[str, str]  # path below data/ → the problem code that a check should give it

    @property
    def data(self) -> Path:
        """The folder of class folders."""
        return self.folder / "data"


def make_data(
    folder: Path,
    *,
    seed: int = 1,
    sources_per_class: int = 12,
    calls_per_source: tuple[int, int] = (1, 3),
    interrupts: Interrupts | None = None,
) -> DemoData:
    """Write the demonstration's input folder, or take the one that an earlier call wrote there.

    Args:
        folder: takes its place there only when whole; may exist if empty or made by this function.
        seed: of everything that varies.
        sources_per_class: source recordings of each class.
        calls_per_source: fewest and most slices of each source.
        interrupts: asked before each clip; the folder appears only when all are done.

    Raises:
        Interrupted: told to stop; nothing is left behind.
        InputError: `folder` holds something else, or another demonstration, or cannot be written.
        RetryableError: the disk is full.
    """
    if not _is_free(folder):
        low_high = list(calls_per_source)
        return _reuse(
            folder, {"seed": seed, "sources_per_class": sources_per_class, "calls_per_source": low_high}
        )
    clips = _plan(seed, sources_per_class, calls_per_source)
    with new_folder(folder, what="the demonstration's sounds", needed=len(clips) * _CLIP_BYTES) as building:
        seconds = 0.0
        for clip in clips:
            if interrupts is not None:
                interrupts.check()
            seconds += _write_clip(building / "data", clip, seed)
        broken = _break_things(building / "data", clips, seed)
        if interrupts is not None:
            interrupts.check()  # what a codec's callback raises is dropped, and half a sound may be left
        (building / MAP_NAME).write_bytes(pickle.dumps(_id_map(seed), protocol=2))
        made = DemoData(
            folder=folder, seed=seed, sources_per_class=sources_per_class, calls_per_source=calls_per_source,
            classes=CLASSES, sources=len({clip.numbers[:2] for clip in clips}), clips=len(clips),
            seconds=round(seconds, 3), files=_count_files(building / "data"), broken=broken,
        )  # fmt: skip
        write_json(building / MARKER, {"version": DEMO_VERSION, **asdict(made), "folder": None})
    return made


def _is_free(folder: Path) -> bool:
    if folder.is_dir():
        return not any(folder.iterdir())
    return not (folder.exists() or folder.is_symlink())


def _reuse(folder: Path, wanted: dict[str, Any]) -> DemoData:
    advice = "Give another place, or delete it if it is not needed."
    marker = read_json(folder / MARKER)
    if not isinstance(marker, dict):
        raise InputError(
            f"{shown(folder)}: exists and was not made by the demonstration, which wants to write there. "
            f"{advice}"
        )
    wanted["version"] = DEMO_VERSION
    found = {key: marker.get(key) for key in wanted}
    other = [f"{key} {found[key]}, not {wanted[key]}" for key in wanted if found[key] != wanted[key]]
    if other:
        raise InputError(f"{shown(folder)}: holds another demonstration ({'; '.join(other)}). {advice}")
    files = _count_files(folder / "data")
    if files < marker["files"]:
        raise InputError(
            f"{shown(folder)}: holds {files} of the demonstration's {marker['files']} files; "
            "some were deleted. Delete the folder, and the demonstration makes it anew."
        )
    del marker["version"]
    marker |= {"folder": folder, "classes": tuple(marker["classes"])}
    return DemoData(**marker | {"calls_per_source": tuple(marker["calls_per_source"])})


def _count_files(folder: Path) -> int:
    return sum(entry.is_file() for entry in folder.rglob("*"))


def _plan(seed: int, sources_per_class: int, calls_per_source: tuple[int, int]) -> list[Clip]:
    """Every sound file that is to be made, in order of class, source and slice."""
    songs = {song.species: song for song in SONGS}
    clips = []
    for class_number, name in enumerate(CLASSES):
        rng = np.random.default_rng([seed, class_number])
        # Recorders are dealt, not drawn: a class must not be known by its format.
        deal = rng.permutation(len(RECORDERS))
        for source in range(sources_per_class):
            recorder = RECORDERS[deal[source % len(RECORDERS)]]
            calls = int(rng.integers(calls_per_source[0], calls_per_source[1] + 1))
            for call, path in enumerate(_paths(name, class_number, source, calls, recorder.ending)):
                clips.append(Clip(path, songs.get(name), recorder, (class_number, source, call)))
    return clips


def _paths(name: str, class_number: int, source: int, calls: int, ending: str) -> Sequence[str]:
    """Where the slices of one source go: jibjib's two ways of naming, and what people really do."""
    number = 100_000 + 1_009 * class_number + 17 * source
    if source == 1 and class_number % 4 == 1:
        # Such a name tells nothing of its source, so that there may be but one slice of it.
        return [f"{name}/Früh am Teich, O'Hara's recording {class_number}.{ending}"]
    if source % 4 == 2:
        return [f"{name}/{name}_{source}_{call}.{ending}" for call in range(calls)]
    below = "2019 spring/" if source % 4 == 3 else ""
    return [f"{name}/{below}{name}-{number}_{call}.{ending}" for call in range(calls)]


def _write_clip(data: Path, clip: Clip, seed: int) -> float:
    """Make one clip and write it; returns its length in seconds."""
    class_number, source, _ = clip.numbers
    voice = draw_voice(np.random.default_rng([seed, class_number, source]), scene=source)
    rng = np.random.default_rng([seed, *clip.numbers])
    seconds = float(rng.uniform(*CLIP_S))
    sound = record(clip.song, voice, seconds, clip.recorder.rate_hz, rng)
    path = data / clip.path
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_sound(path, _channels(sound, voice, clip.recorder, rng), clip.recorder)
    return seconds


def _channels(sound: Sound, voice: Voice, recorder: Recorder, rng: np.random.Generator) -> Sound:
    """[samples] → [samples, channels]; the second microphone stands a little apart and hears less."""
    if recorder.channels == 1:
        return sound[:, None]
    delay = 1 + int(voice.pitch * 3)
    other = np.roll(sound, delay) * rng.uniform(0.5, 0.9)
    other[:delay] = 0.0
    return np.stack([sound, other], axis=1)


def _write_sound(path: Path, sound: Sound, recorder: Recorder) -> None:
    buffer = io.BytesIO()  # soundfile would guess the format from the ending, and stumble over ".WAV"
    with soundfile.SoundFile(
        buffer, "w", recorder.rate_hz, recorder.channels, recorder.subtype, format=recorder.format
    ) as file:
        block = _OGG_BLOCK_S * recorder.rate_hz
        for start in range(0, len(sound), block):
            file.write(sound[start : start + block])
    content = bytearray(buffer.getvalue())
    if (peak := content[:200].find(b"PEAK")) >= 0:
        # The peak chunk of floating point WAVs holds the time of writing; the same seed gives the same bytes.
        content[peak + 12 : peak + 16] = bytes(4)
    path.write_bytes(content)


def _break_things(data: Path, clips: Sequence[Clip], seed: int) -> dict[str, str]:
    """Add what people bring by mistake; returns path below data/ → the problem code of each file."""
    plain = Recorder("wav", "WAV", "PCM_16", 22_050, 1)
    spare = data / "spare.wav"
    _write_clip(data, Clip(spare.name, SONGS[0], plain, (len(CLASSES), 0, 0)), seed)
    whole = spare.read_bytes()
    _write_sound(spare, np.zeros((3 * plain.rate_hz, 1)), plain)
    silence = spare.read_bytes()
    spare.unlink()
    twin = next(clip.path for clip in clips if clip.numbers[0] == 5)
    shopping = b"This is a shopping list: seed, nuts, a bird bath.\n" * 40
    # Each stands in another class, so that none of them loses much. The numbers sort behind all others:
    # of two copies it is the added one that a check calls a copy.
    mistakes = (
        (0, "-900001_0.wav", whole[: len(whole) // 20], "truncated"),
        (1, "-900002_0.wav", b"", "empty"),
        (2, "-900003_0.wav", shopping, "not-audio"),
        (3, "-900004 notes.csv", b"file;heard by\n", "metadata"),
        (4, "-900005_0.wav", silence, "silent"),
        (5, f"-900006_0{Path(twin).suffix}", (data / twin).read_bytes(), "duplicate-in-class"),
        (6, "-900007_0.wav", whole, "duplicate-across-classes"),
        (7, "-900008_0.wav", whole, "duplicate-across-classes"),
    )
    broken = {}
    for class_number, file, content, problem in mistakes:
        path = f"{CLASSES[class_number]}/{CLASSES[class_number]}{file}"
        (data / path).write_bytes(content)
        broken[path] = problem
    (data / EMPTY_CLASS).mkdir()
    return broken


def _id_map(seed: int) -> dict[str, int]:
    """Name → database id. Ids are no positions, the order is not the alphabet's, noise is no bird."""
    names = [ABSENT_CLASS, *(song.species for song in SONGS)]
    order = np.random.default_rng([seed, 10_000]).permutation(len(names))
    return {names[place]: 201 + 7 * rank for rank, place in enumerate(order)}
