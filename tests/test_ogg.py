"""birdtune.audio.streams: holes in Ogg files that their decoders pass over."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import tone, write_sound

from birdtune.audio.decode import examine
from birdtune.audio.faults import SoundError
from birdtune.audio.streams import ogg_fault as fault

KINDS = {"a.ogg": "VORBIS", "a.opus": "OPUS"}


@pytest.fixture(scope="module", params=KINDS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("ogg") / request.param
    return write_sound(path, tone(12.0), subtype=KINDS[request.param]).read_bytes()


def pages(content: bytes) -> list[bytes]:
    """The pages of an Ogg file without damage."""
    found = []
    while content:
        size = 27 + content[26] + sum(content[27 : 27 + content[26]])
        found.append(content[:size])
        content = content[size:]
    return found


def told(tmp_path: Path, content: bytes) -> str:
    """The problem of a file, whether or not it is used, or nothing."""
    (tmp_path / "x.ogg").write_bytes(content)
    try:
        return examine(tmp_path / "x.ogg").damage
    except SoundError as found:
        return found.problem


def test_a_whole_file_has_none_and_nor_has_one_with_a_tag_behind(tmp_path: Path, whole: bytes) -> None:
    assert told(tmp_path, whole) == ""
    assert told(tmp_path, whole + b"TAG" + bytes(125)) == ""


def test_two_whole_ones_after_another_are_whole_if_both_are_heard(tmp_path: Path, whole: bytes) -> None:
    (tmp_path / "x.ogg").write_bytes(whole + _renamed(whole))
    assert fault(tmp_path / "x.ogg", 16_000, 24 * 16_000) is None
    assert fault(tmp_path / "x.ogg", 16_000, 12 * 16_000) is not None


def _renamed(content: bytes) -> bytes:
    """The same as another stream; its checksums are wrong then, which is not looked at here."""
    return b"".join(page[:14] + b"\x01\x02\x03\x04" + page[18:] for page in pages(content))


def test_a_page_that_is_missing_is_damage(tmp_path: Path, whole: bytes) -> None:
    found = pages(whole)
    assert len(found) > 6
    assert told(tmp_path, b"".join([*found[:4], *found[5:]])) == "corrupt"


@pytest.mark.parametrize("size", [1, 300, 9000])
def test_bytes_that_are_missing_or_too_many_in_the_middle_are_damage(tmp_path: Path, whole: bytes, size: int) -> None:
    middle = len(whole) // 2
    assert told(tmp_path, whole[:middle] + whole[middle + size :]) == "corrupt"
    assert told(tmp_path, whole[:middle] + bytes(size) + whole[middle:]) == "corrupt"


def test_a_page_that_the_decoder_drops_is_damage(tmp_path: Path, whole: bytes) -> None:
    content = bytearray(whole)
    content[len(whole) // 2] ^= 1  # its checksum does not hold any more
    (tmp_path / "x.ogg").write_bytes(content)
    assert fault(tmp_path / "x.ogg", 16_000) is None, "only by what was heard can it be told"
    assert told(tmp_path, bytes(content)) in ("corrupt", "truncated")


def test_every_cut_is_told(tmp_path: Path, whole: bytes) -> None:
    for share in np.linspace(0.02, 0.999, 25):
        assert told(tmp_path, whole[: int(len(whole) * share)]) in ("truncated", "empty", "not-audio", "corrupt")


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 2**32))
def test_whatever_is_in_it_there_is_an_answer(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, at: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.ogg"
    head = b"OggS\0\2" + bytes(8) + b"abcd" + bytes(8) + b"\x01\x07\x01vorbis"
    place = at % (len(head) + 1)
    for data in (content, head + content, head[:place] + content + head[place:]):
        path.write_bytes(data)
        found = fault(path, 16_000, 100)
        assert found is None or found[0] in ("corrupt", "truncated")
