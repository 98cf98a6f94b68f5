"""birdtune.runtime.parsing: what people wrote is read as plain data, or refused with the reason."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from birdtune.errors import InputError
from birdtune.runtime.parsing import decode_old_text, decode_text, parse_json, parse_yaml, read_bounded

# ---- files --------------------------------------------------------------------------------------


def test_a_file_of_the_largest_size_is_read_and_one_byte_more_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 1000)
    assert read_bounded(path, 1000, "a note") == b"x" * 1000
    with pytest.raises(InputError, match=r"a: 1,000 bytes are too many for a note \(at most 999\)"):
        read_bounded(path, 999, "a note")


def test_a_huge_file_is_refused_by_its_size_alone(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match="1,099,511,627,776 bytes are too many"):
        read_bounded(path, 1000, "a note")


def test_what_tells_no_size_is_read_no_further_than_allowed() -> None:
    # Files of /proc are regular and 0 bytes long.
    assert b"Name:" in read_bounded(Path("/proc/self/status"), 100_000, "a note")
    with pytest.raises(InputError, match="too many"):
        read_bounded(Path("/proc/self/status"), 10, "a note")


def test_pipes_devices_and_folders_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InputError, match="is a pipe or a device; expected a note in a file"):
            read_bounded(path, 1000, "a note")
    with pytest.raises(IsADirectoryError):
        read_bounded(tmp_path, 1000, "a note")
    with pytest.raises(FileNotFoundError):
        read_bounded(tmp_path / "none", 1000, "a note")


# ---- keys ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parse", "text", "said"),
    [
        (parse_json, '{"a": 1, "b": 2, "a": 3}', "'a' is given twice"),
        (parse_json, '{"a": 1, "\\u0061": 3}', "'a' is given twice"),
        (parse_json, '{"x": [{"é": 1, "é": 1}]}', "'é' is given twice"),
        (parse_yaml, "a: 1\nb: 2\na: 3\n", "'a' is given twice in the mapping that begins in line 1"),
        (parse_yaml, "x:\n  y: [{'é': 1, \"é\": 2}]\n", "'é' is given twice in the mapping that begins in line 2"),
        (parse_yaml, "a: 1\n? !!str a\n: 2\n", "'a' is given twice"),
    ],
)
def test_a_key_that_stands_twice_is_refused_by_its_name(parse: Any, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse(text)


# ---- YAML ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["a: &x 1\nb: *x\n", "&a {b: *a}", "a: &x {k: 1}\nb: {<<: *x}\n", "a: *nobody\n", "&a [*a]", "? &a x\n: *a\n"],
)
def test_aliases_are_refused_and_so_cannot_unfold(text: str) -> None:
    with pytest.raises(ValueError, match=r"it has aliases .*the first is in line [12]"):
        parse_yaml(text)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.mkdir [trap]", "!!python/name:os.mkdir", "!!python/module:os", "a: !mine 1",
        "!!python/object/new:os.mkdir [trap]", "!<tag:yaml.org,2002:python/object/apply:os.mkdir> [trap]",
        "%TAG ! tag:yaml.org,2002:python/object/apply:\n---\n!os.mkdir [trap]", "!!python/tuple [1]",
    ],
)  # fmt: skip
def test_tags_that_would_make_more_than_data_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="could not determine a constructor"):
        parse_yaml(text)
    assert not Path("trap").exists()


@pytest.mark.parametrize(
    "text",
    ["!!bool maybe", "!!timestamp x", "!!int ''", "!!float ''", "!!int '-'", "!!binary é", "!!map [a]", "!!seq {a: b}"],
)
def test_tags_that_do_not_fit_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"does not fit its value|expected|failed to"):
        parse_yaml(text)


@pytest.mark.parametrize("text", ["[" * 5000, "{a: " * 5000, "- " * 5000, "? " * 5000])
def test_nesting_without_end_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_yaml(text)
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100_000)


@pytest.mark.parametrize("text", ["a: " + ":".join("1" * 400_000), "a: 0b" + "1" * 1000, "a: 1." + "0" * 999])
def test_numbers_that_take_long_to_read_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="line 1 holds a number of"):
        parse_yaml(text)


def test_numbers_as_people_write_them_are_read() -> None:
    assert parse_yaml("[1, -0x1F, 1_000, 1.5e-3, .inf, '1:30']") == [1, -31, 1000, 0.0015, float("inf"), "1:30"]
    assert parse_yaml("a: 1:30") == {"a": 90}


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.text(st.sampled_from("ab01:-?[]{},&*!|>'\"%@`#\n \t\\<~.x_é\u2028\ufeff"), max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_yaml, parse_json):
        try:
            parse(text)
        except ValueError as fault:
            assert str(fault)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("a.wav,1.5,2.5,Rotkehlchen Größe", "'Rotkehlchen Größe'"),  # whole, though long before its first odd letter
        ("a.wav;1,5;\"Nördlicher Raubwürger\";x", "'Nördlicher Raubwürger'"),
        ("Käuzchen", "'Käuzchen'"),
        ("x" * 40 + "ä" + "y" * 40, f"'…{'x' * 24}ä{'y' * 23}…'"),
    ],
)
def test_of_text_that_is_not_utf8_the_cell_is_shown_and_what_is_cut_is_marked(line: str, shown: str) -> None:
    content = f"recording,label\r\n{line}\r\n".encode("cp1252")
    assert f"line 2 as {shown}." in decode_old_text(content, Path("x.csv"))[1]
    for mark in (b"", b"\xef\xbb\xbf"):
        with pytest.raises(InputError) as refused:
            decode_text(mark + content, Path("x.csv"))
        place = len(mark) + next(k for k, byte in enumerate(content) if byte > 127)
        assert f"row 2: is not UTF-8 text (byte {place}): {shown}, if it is" in str(refused.value)
