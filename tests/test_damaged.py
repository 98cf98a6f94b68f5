"""Damaged recordings: each is used as far as it decodes, and what is wrong with it is said."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import Samples, scan_and_select, tone, without_processes, write_sound

from birdtune.audio.container import open_sound
from birdtune.audio.decode import SoundStream, examine
from birdtune.audio.faults import SoundError
from birdtune.audio.streams import ogg_fault
from birdtune.data.file_index import FileIndex
from birdtune.settings import AudioSettings

RATE_HZ, SECONDS = 16_000, 6.0
SOUND = tone(SECONDS)
LIST = b"LIST" + struct.pack("<I", 30) + b"INFOIART" + struct.pack("<I", 18) + b"A field recordist\0"

# Ending of the name, and how soundfile writes it.
KINDS: dict[str, dict[str, str]] = {
    "wav16": {"format": "WAV", "subtype": "PCM_16"}, "wav24": {"format": "WAV", "subtype": "PCM_24"},
    "wavfloat": {"format": "WAV", "subtype": "FLOAT"}, "wav8": {"format": "WAV", "subtype": "PCM_U8"},
    "wavulaw": {"format": "WAV", "subtype": "ULAW"}, "wavex": {"format": "WAVEX", "subtype": "PCM_24"},
    "aiff": {"format": "AIFF", "subtype": "PCM_16"}, "au": {"format": "AU", "subtype": "PCM_16"},
    "w64": {"format": "W64", "subtype": "PCM_16"}, "rf64": {"format": "RF64", "subtype": "PCM_16"},
    "caf": {"format": "CAF", "subtype": "PCM_16"}, "flac": {"format": "FLAC", "subtype": "PCM_16"},
    "ogg": {"format": "OGG", "subtype": "VORBIS"}, "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III"},
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    """The bytes of a whole recording of each kind."""
    folder = tmp_path_factory.mktemp("made")
    contents = {name: write_sound(folder / name, SOUND, **how).read_bytes() for name, how in KINDS.items()}
    return contents.__getitem__


def place(content: bytes) -> tuple[int, str, int]:
    """Where the size of the samples stands, how it is written, and how much more than the samples it counts."""
    if content.startswith((b"RF64", b"BW64")):
        return 28, "<Q", 0
    if content.startswith(b"riff"):
        return content.index(b"data\xf3\xac") + 16, "<Q", 24
    if content.startswith(b"FORM"):
        return content.index(b"SSND") + 4, ">I", 8
    if content.startswith(b"caff"):
        return content.index(b"data") + 4, ">q", 4
    if content.startswith(b".snd"):
        return 8, ">I", 0
    return content.index(b"data") + 4, "<I", 0


def sized(content: bytes, size: Callable[[int], int]) -> bytes:
    """With another size of the samples in its header."""
    at, form, more = place(content)
    n_bytes = struct.unpack_from(form, content, at)[0] - more
    field = struct.pack(form, size(n_bytes) + more)
    return content[:at] + field + content[at + len(field) :]


def with_flac_count(content: bytes, count: Callable[[int], int]) -> bytes:
    """With another number of samples in its header: the lower 36 of 64 bits."""
    fields = int.from_bytes(content[18:26], "big")
    counted = fields >> 36 << 36 | count(fields & (1 << 36) - 1)
    return content[:18] + counted.to_bytes(8, "big") + content[26:]


def with_mp3_count(content: bytes, count: Callable[[int], int]) -> bytes:
    at = content.index(b"Xing" if b"Xing" in content else b"Info") + 8
    return content[:at] + struct.pack(">I", count(struct.unpack_from(">I", content, at)[0])) + content[at + 4 :]


def rubbish_in(content: bytes, n_bytes: int = 2000) -> bytes:
    middle = len(content) // 2
    return content[:middle] + np.random.default_rng(9).bytes(n_bytes) + content[middle + n_bytes :]


def with_nan(content: bytes) -> bytes:
    """With two samples that are no numbers, long before the end."""
    return content[:-200_000] + 2 * struct.pack("<f", np.nan) + content[-199_992:]


RAW = ("wav16", "wav24", "wavfloat", "wav8", "wavulaw", "wavex", "aiff", "au", "w64", "rf64", "caf")
# Kind, what was done to it, seconds that can be decoded, and its problem: none where nothing is missing.
CASES: list[tuple[str, str, Callable[[bytes], bytes], float, str]] = [
    *((kind, "size 0", lambda c: sized(c, lambda n: 0), 6.0, "repaired") for kind in RAW),
    *((kind, "size too small", lambda c: sized(c, lambda n: n // 8 // 8 * 8), 6.0, "repaired") for kind in RAW),
    *((kind, "44 bytes too many", lambda c: sized(c, lambda n: n + 44), 6.0, "repaired") for kind in RAW),
    *((kind, "twice the size", lambda c: sized(c, lambda n: 2 * n), 6.0, "truncated") for kind in RAW),
    *((kind, "0.5 % missing", lambda c: c[: -len(c) // 200], 5.97, "truncated") for kind in RAW[:3]),
    *((kind, "a third missing", lambda c: c[: -len(c) // 3], 4.0, "truncated") for kind in RAW),
    ("wav16", "8 bytes too many", lambda c: sized(c, lambda n: n + 8), 6.0, "repaired"),
    ("wav16", "all sizes 0", lambda c: sized(c[:4] + bytes(4) + c[8:], lambda n: 0), 6.0, "repaired"),
    ("wav16", "size 0 and a tag behind", lambda c: sized(c, lambda n: 0) + LIST, 6.0, "repaired"),
    ("wav16", "wrapped and a tag behind", lambda c: sized(c, lambda n: n // 8) + LIST, 6.0, "repaired"),
    ("wav16", "8 bytes too many and a tag behind", lambda c: sized(c, lambda n: n + 8) + LIST, 6.0, "repaired"),
    *(("wav16", f"to a pipe, size {size:x}", lambda c, size=size: sized(c, lambda n: size), 6.0, "")
      for size in (0xFFFFFFFF, 0x7FFFFFFF, 0xFFFFFFFF - 36)),
    ("wav16", "to a pipe and a tag behind", lambda c: sized(c, lambda n: 0xFFFFFFFF) + LIST, 6.0, ""),
    ("wav16", "right and a tag behind", lambda c: c + LIST, 6.0, ""),
    ("wav16", "right and a bat's chunk", lambda c: c + b"guan" + struct.pack("<I", 60) + b"x" * 60, 6.0, ""),
    ("wav16", "right and zeros behind", lambda c: c + bytes(90_000), 6.0, ""),
    ("wav16", "right and little behind", lambda c: c + b"left over" * 99, 6.0, ""),
    ("wav16", "RIFF size wrong", lambda c: c[:4] + struct.pack("<I", 77) + c[8:], 6.0, ""),
    ("wav16", "long zeros before", lambda c: c[:12] + b"LIST\xcc\xff\5\0" + bytes(393_164) + c[12:], 6.0, ""),
    ("rf64", "BW64", lambda c: b"BW64" + c[4:], 6.0, ""),
    ("rf64", "BW64, 64-bit sizes 0", lambda c: b"BW64" + c[4:20] + bytes(24) + c[44:], 6.0, "repaired"),
    ("rf64", "64-bit sizes 0", lambda c: c[:20] + bytes(24) + c[44:], 6.0, "repaired"),
    ("flac", "counts twice", lambda c: with_flac_count(c, lambda n: 2 * n), 6.0, "repaired"),
    ("flac", "counts half", lambda c: with_flac_count(c, lambda n: n // 2), 6.0, "repaired"),
    ("flac", "counts none", lambda c: with_flac_count(c, lambda n: 0), 6.0, ""),
    ("flac", "a tag before, counts half", lambda c: b"ID3\3\0\0\0\0\10\0" + bytes(1024)
        + with_flac_count(c, lambda n: n // 2), 6.0, "repaired"),
    ("flac", "last frame broken", lambda c: c[:-500], 5.888, "truncated"),
    ("flac", "counts none, last frame broken", lambda c: with_flac_count(c, lambda n: 0)[:-500], 5.888, "truncated"),
    ("flac", "half", lambda c: c[: len(c) // 2], 3.0, "truncated"),
    ("flac", "rubbish inside", rubbish_in, 3.0, "corrupt"),
    ("flac", "checksum of all samples wrong", lambda c: c[:26] + b"no checksum here" + c[42:], 6.0, ""),
    ("ogg", "last page missing", lambda c: c[: c.rindex(b"OggS")], 5.5, "truncated"),
    ("opus", "last page missing", lambda c: c[: c.rindex(b"OggS")], 5.0, "truncated"),
    ("ogg", "cut in a page", lambda c: c[:-400], 5.5, "truncated"),
    ("opus", "cut in a page", lambda c: c[:-400], 5.0, "truncated"),
    ("ogg", "rubbish inside", rubbish_in, 4.5, "corrupt"),
    ("opus", "rubbish inside", rubbish_in, 4.5, "corrupt"),
    ("mp3", "cut in a frame", lambda c: c[:-500], 5.9, "truncated"),
    ("mp3", "half", lambda c: c[: len(c) // 2], 3.0, "truncated"),
    ("mp3", "counts half", lambda c: with_mp3_count(c, lambda n: n // 2), 6.0, "repaired"),
    ("mp3", "counts twice", lambda c: with_mp3_count(c, lambda n: 2 * n), 6.0, "repaired"),
    ("mp3", "counts a year", lambda c: with_mp3_count(c, lambda n: 1 << 29), 6.0, "repaired"),
    ("mp3", "counts none", lambda c: with_mp3_count(c, lambda n: 0), 6.1, ""),
    ("mp3", "two, one behind the other", lambda c: c + c, 12.0, "repaired"),
    ("wav16", "another behind", lambda c: c + c, 12.001375, "repaired"),
    ("flac", "another behind", lambda c: c + c, 6.0, "truncated"),
    ("ogg", "another behind", lambda c: c + c, 6.0, "corrupt"),
    ("wavfloat", "a few samples are NaN", with_nan, 6.0, "not-finite"),
    ("mp3", "a tag longer than the file", lambda c: b"ID3\3\0\0\x7f\x7f\x7f\x7f" + bytes(99) + c, 6.0, "repaired"),
    ("mp3", "rubbish inside", rubbish_in, 2.95, "corrupt"),
]  # fmt: skip
# Of what is cut, whole frames and pages are left.
SLACK_S = {"caf": 0.05, "flac": 0.26, "ogg": 1.1, "opus": 1.1, "mp3": 0.15}


@pytest.mark.parametrize(
    ("kind", "what", "damaged", "seconds", "problem"), CASES, ids=[f"{case[0]}: {case[1]}" for case in CASES]
)
def test_all_that_decodes_is_used_and_the_damage_is_reported(
    tmp_path: Path, made: Callable[[str], bytes], kind: str, what: str, damaged: Callable[[bytes], bytes],
    seconds: float, problem: str,
) -> None:  # fmt: skip
    path = tmp_path / kind
    path.write_bytes(made(kind))
    whole = decoded(path)
    assert examine(path).damage == ""
    path.write_bytes(damaged(made(kind)))
    facts, sound = examine(path, longest_s=60.0), decoded(path)
    is_exact = problem in ("", "repaired", "not-finite") and kind != "mp3"
    assert facts.duration_s == pytest.approx(seconds, abs=0 if is_exact else SLACK_S.get(kind, 0.005))
    assert facts.damage == problem
    assert bool(problem) == bool(facts.damage_detail)
    if problem in ("truncated", "corrupt") and kind not in ("ogg", "opus"):
        assert f"of {2 * SECONDS if what.startswith('twice') else SECONDS:.2f} s" in facts.damage_detail
    # The very sound up to the break, nothing else between.
    n = sound.size if seconds <= SECONDS else whole.size
    if "NaN" in what:
        assert np.isfinite(sound).all() and sound.size == whole.size
    elif kind != "mp3" and not (problem == "corrupt" and kind in ("ogg", "opus")):
        assert np.array_equal(sound[: n - 2000], whole[: n - 2000])


def decoded(path: Path) -> Samples:
    return np.concatenate(list(SoundStream(path)))


@pytest.mark.parametrize(
    ("seconds", "share", "is_used"), [(6.0, 0.1, False), (6.0, 0.2, True), (0.4, 0.3, False), (0.4, 0.6, True)]
)
def test_from_a_second_or_half_of_it_on_a_recording_is_used(
    tmp_path: Path, seconds: float, share: float, is_used: bool
) -> None:
    path = write_sound(tmp_path / "a.wav", tone(seconds))
    path.write_bytes(path.read_bytes()[: 44 + round(seconds * share * RATE_HZ) * 2])
    if is_used:
        assert examine(path).damage == "truncated"
    else:
        with pytest.raises(SoundError, match="too little to be used") as caught:
            examine(path)
        assert caught.value.problem == "truncated"


def test_who_refuses_what_breaks_off_still_uses_what_is_whole_behind_a_wrong_header(
    tmp_path: Path, made: Callable[[str], bytes]
) -> None:
    refusing = AudioSettings(truncated="refuse")
    path = tmp_path / "a.wav"
    for content in (sized(made("wav16"), lambda n: 0), sized(made("wav16"), lambda n: n + 44)):
        path.write_bytes(content)
        assert examine(path, refusing).duration_s == SECONDS
    path.write_bytes(made("wav16")[:-5000])
    with pytest.raises(SoundError, match=r"5\.84 s can be decoded, but audio\.truncated is refuse"):
        next(iter(SoundStream(path, refusing)))
    for kind in ("flac", "mp3", "ogg"):
        path.write_bytes(made(kind)[:-500])
        with pytest.raises(SoundError, match=r"audio\.truncated is refuse"):
            examine(path, refusing)
    assert refusing.cache_key != AudioSettings().cache_key


def test_sizes_that_began_again_at_4_gib_are_seen_through(tmp_path: Path) -> None:
    # A real one, but for zeros that take no room; how it is decoded, the smaller ones show.
    path = write_sound(tmp_path / "a.wav", tone(10.0, 48_000), 48_000, subtype="PCM_24")
    content = path.read_bytes()
    n_bytes = 4_310_000_000 // 3 * 3
    with path.open("r+b") as file:
        file.write(content[:40] + struct.pack("<I", n_bytes % 2**32))
        for place in (44 + n_bytes % 2**32, 44 + n_bytes - 300_000):  # behind the promised end, and at the true one
            file.seek(place)
            file.write(content[-300_000:])
    for tail in (b"", LIST):
        with path.open("ab") as file:
            file.write(tail)
        with open_sound(path) as file:
            assert (file.frames, file.samplerate) == (n_bytes // 3, 48_000)
            assert file.damage is not None and "again at 0 above 4 GiB" in file.damage.describe(1e5)


def test_what_was_found_stays_in_the_file_index_and_the_books_balance(
    tmp_path: Path, made: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_processes(monkeypatch)
    contents = {"a.wav": sized(made("wav16"), lambda n: 0), "b.flac": made("flac")[:-500], "c.wav": made("wav16")[:999]}
    (tmp_path / "data/A").mkdir(parents=True)
    for name, content in contents.items():
        (tmp_path / "data/A" / name).write_bytes(content)
    rows = []
    for _ in range(2):
        file_index = FileIndex(tmp_path / "ledger.json", AudioSettings())
        _, used, problems = scan_and_select(tmp_path / "data", file_index)
        file_index.save()
        assert [recording.name for recording in used] == ["A/a.wav", "A/b.flac"]
        rows.append([problem.row() for problem in problems])
    assert rows[0] == rows[1]
    assert [(row["recording"], row["problem"], row["used"]) for row in rows[0]] == [
        ("A/a.wav", "repaired", "yes"), ("A/b.flac", "truncated", "yes"), ("A/c.wav", "truncated", "no"),
    ]  # fmt: skip


def test_a_fault_of_the_decoder_leaves_what_came_before_it(tmp_path: Path, made: Callable[[str], bytes]) -> None:
    # soundfile itself drops it; that this goes on working with another soundfile, only a test can tell.
    path = tmp_path / "a.flac"
    path.write_bytes(rubbish_in(made("flac")))
    with soundfile.SoundFile(path) as file, pytest.raises(soundfile.LibsndfileError):
        file.read()
    assert decoded(path).size % 4096 == 0 and decoded(path).size > 2 * RATE_HZ


def test_words_of_what_cannot_be_used_name_the_cause(tmp_path: Path) -> None:
    words = {
        b"RIFF": "the beginning of a WAV file, and nothing more", b"FORM\1\2": "the beginning of an AIFF file",
        b"ID3\3\0\0\x7f\x7f\x7f\x7f" + bytes(50): "its ID3 tag says that it is 268,435,465 bytes long, in a file of 60",
    }  # fmt: skip
    for content, said in words.items():
        for name in ("a.wav", "a.mp3"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(SoundError, match=said):
                examine(tmp_path / name)


# ---- Ogg: its decoders skip holes without an error ---------------------------------------------------------------


def pages(content: bytes) -> list[bytes]:
    """The pages of an Ogg file without damage."""
    found = []
    while content:
        size = 27 + content[26] + sum(content[27 : 27 + content[26]])
        found.append(content[:size])
        content = content[size:]
    return found


def problem_of(path: Path, content: bytes) -> str:
    """The problem of a file, whether or not it is used, or nothing."""
    path.write_bytes(content)
    try:
        return examine(path).damage
    except SoundError as fault:
        return fault.problem


@pytest.mark.parametrize("kind", ["ogg", "opus"])
def test_holes_between_pages_are_damage_and_a_tag_behind_them_is_none(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.ogg"
    whole = write_sound(path, tone(12.0), **KINDS[kind]).read_bytes()
    assert problem_of(path, whole + b"TAG" + bytes(125)) == ""
    assert len(pages(whole)) > 5
    assert problem_of(path, b"".join([*pages(whole)[:4], *pages(whole)[5:]])) == "corrupt"
    middle = len(whole) // 2
    for size in (1, 300, 9000):
        assert problem_of(path, whole[:middle] + whole[middle + size :]) == "corrupt"
        assert problem_of(path, whole[:middle] + bytes(size) + whole[middle:]) == "corrupt"
    # The checksum of a page does not hold any more, which only the length of the decoded sound shows.
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    assert problem_of(path, flipped) in ("corrupt", "truncated") and ogg_fault(path, RATE_HZ) is None


@pytest.mark.parametrize("kind", ["ogg", "opus"])
def test_two_streams_after_another_are_whole_if_both_are_decoded(
    tmp_path: Path, made: Callable[[str], bytes], kind: str
) -> None:
    # The second with a number of its own; its checksums are wrong then, which does not matter here.
    second = b"".join(page[:14] + b"\x01\x02\x03\x04" + page[18:] for page in pages(made(kind)))
    (tmp_path / "x.ogg").write_bytes(made(kind) + second)
    assert ogg_fault(tmp_path / "x.ogg", RATE_HZ, 2 * SOUND.size) is None
    assert ogg_fault(tmp_path / "x.ogg", RATE_HZ, SOUND.size) is not None


@pytest.mark.parametrize("kind", ["wav16", "flac", "ogg", "opus", "mp3"])
def test_every_cut_is_a_problem(tmp_path: Path, made: Callable[[str], bytes], kind: str) -> None:
    for share in np.linspace(0.0, 0.98, 40):
        problem = problem_of(tmp_path / "x", made(kind)[: int(len(made(kind)) * share)])
        assert problem in ("empty", "not-audio", "corrupt", "truncated"), share


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 2**32))
def test_any_bytes_in_an_ogg_have_an_answer(tmp_path_factory: pytest.TempPathFactory, content: bytes, at: int) -> None:
    path = tmp_path_factory.getbasetemp() / "any.ogg"
    head = b"OggS\0\2" + bytes(8) + b"abcd" + bytes(8) + b"\x01\x07\x01vorbis"
    place = at % (len(head) + 1)
    for data in (content, head + content, head[:place] + content + head[place:]):
        path.write_bytes(data)
        fault = ogg_fault(path, 16_000, 100)
        assert fault is None or fault[0] in ("corrupt", "truncated")
