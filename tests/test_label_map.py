"""birdtune.data.label_map: label maps of every kind, and pickles that never run."""

import json
import os
import pickle
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from makers import ordinary_folder

from birdtune.data.label_map import find_label_map, read_label_map, read_pickle
from birdtune.errors import InputError

JIBJIB = Path(__file__).parents[2] / "shared" / "data" / "jibjib"
needs_jibjib = pytest.mark.skipif(not JIBJIB.exists(), reason="jibjib's pickles are not here")

BIRDS = {"Turdus_merula": 0, "Erithacus_rubecula": 70_000, "Parus_major": 2**40, "Noise_noise": -1, "Grünling": 255}


def written(tmp_path: Path, content: bytes | str, name: str = "bird_id_map.pickle") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_label_map(path)
    assert path.name in str(caught.value)
    assert len(str(caught.value)) < 800
    return str(caught.value)


# ---- the map in the input folder ----------------------------------------------------------------


def test_a_map_that_is_a_link_to_nothing_is_not_taken_for_none(tmp_path: Path) -> None:
    (tmp_path / "bird_id_map.csv").symlink_to("not mounted")
    found = find_label_map(tmp_path)
    assert found == tmp_path / "bird_id_map.csv"
    with pytest.raises(InputError, match=r"bird_id_map.csv: cannot be read"):
        read_label_map(found)


def test_a_folder_without_a_map_has_none(tmp_path: Path) -> None:
    assert find_label_map(tmp_path) is None
    assert find_label_map(tmp_path / "missing") is None


@pytest.mark.parametrize("ending", ["pickle", "json", "csv", "yaml"])
def test_the_map_is_found_by_its_name(tmp_path: Path, ending: str) -> None:
    path = written(tmp_path, "", f"bird_id_map.{ending}")
    written(tmp_path, "", "another.json")
    assert find_label_map(tmp_path) == path


def test_two_maps_are_one_too_many(tmp_path: Path) -> None:
    written(tmp_path, "{}", "bird_id_map.json")
    written(tmp_path, "", "bird_id_map.csv")
    with pytest.raises(InputError, match=r"bird_id_map\.json, bird_id_map\.csv.*--labels\.map"):
        find_label_map(tmp_path)


# ---- jibjib's real files ------------------------------------------------------------------------


@needs_jibjib
def test_jibjibs_map_has_194_birds_numbered_in_order() -> None:
    found = read_label_map(JIBJIB / "bird_id_map.pickle")
    assert list(found.values()) == list(range(194))
    assert "Noise_noise" not in found
    assert all(isinstance(name, str) and "_" in name for name in found)


@needs_jibjib
def test_jibjibs_class_lists_are_read() -> None:
    first = read_pickle(JIBJIB / "train_id_list-1.0.0.pickle")
    second = read_pickle(JIBJIB / "train_id_list-1.1.0.pickle")
    assert (len(first), len(second)) == (195, 145)
    assert first.index("Noise_noise") == 54
    assert all(type(name) is str for name in first + second)


@needs_jibjib
def test_a_class_list_is_no_map() -> None:
    with pytest.raises(InputError, match="holds a list; expected a mapping"):
        read_label_map(JIBJIB / "train_id_list-1.0.0.pickle")


# ---- pickles ------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "value",
    [
        BIRDS, {}, [], list(BIRDS), {"a": ["b", ["c", {"d": 1}]]}, {f"bird {k}": k for k in range(3000)},
        ["x" * 300, "ü" * 70_000], [0, 255, 256, 65_535, 65_536, -1, 2**31, -(2**31), 2**63, 2**2040],
        ["same"] * 3, "alone", 7,
    ],
)  # fmt: skip
def test_plain_data_of_every_protocol_is_read(tmp_path: Path, protocol: int, value: Any) -> None:
    assert read_pickle(written(tmp_path, pickle.dumps(value, protocol))) == value


def test_order_is_kept(tmp_path: Path) -> None:
    assert list(read_label_map(written(tmp_path, pickle.dumps(BIRDS, 2)))) == list(BIRDS)


PYTHON_2 = {
    "protocol 0": b"(dp0\nS'Turdus_merula'\np1\nI7\nsS\"Gr\\xc3\\xbcn 'ling'\"\np2\nL5L\ns.",
    "protocol 1": b"}q\x00(U\rTurdus_merulaq\x01K\x07U\x0cGr\xc3\xbcn 'ling'q\x02L5L\nu.",
    "protocol 2": b"\x80\x02}q\x00(T\r\x00\x00\x00Turdus_merulaK\x07X\x0c\x00\x00\x00Gr\xc3\xbcn 'ling'\x8a\x01\x05u.",
    "unicode": b"(dp0\nVTurdus_merula\np1\nI7\nsVGr\\u00fcn 'ling'\np2\nI5\ns.",
}  # fmt: skip


@pytest.mark.parametrize("content", PYTHON_2.values(), ids=PYTHON_2.keys())
def test_what_python_2_wrote_is_read_as_utf8(tmp_path: Path, content: bytes) -> None:
    found = read_label_map(written(tmp_path, content))
    assert found == {"Turdus_merula": 7, "Grün 'ling'": 5}
    assert all(type(value) is int for value in found.values())


def test_byte_strings_that_are_not_utf8_are_damage(tmp_path: Path) -> None:
    assert "can't decode" in refusal(written(tmp_path, b"}U\x02\xc3\x28K\x01s."))


class _Runs:
    """Unpickling this runs a command."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.witness}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_would_run_a_program_does_not(tmp_path: Path, protocol: int) -> None:
    witness = tmp_path / "it-ran"
    path = written(tmp_path, pickle.dumps({"Turdus_merula": _Runs(witness)}, protocol))
    assert "which could run a program" in refusal(path)
    assert not witness.exists()
    pickle.loads(path.read_bytes())  # the attack is real
    assert witness.exists()


ATTACKS = {
    "GLOBAL": b"cos\nsystem\n(S'touch %s'\ntR.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85R.",
    "INST": b"(S'touch %s'\nios\nsystem\n.",
    "OBJ": b"\x80\x02(cos\nsystem\nS'touch %s'\no.",
    "NEWOBJ": b"\x80\x02cos\nsystem\n)\x81.",
    "REDUCE": b"}}R.",
    "BUILD": b"}}b.",
    "EXT1": b"\x80\x02\x82\x01.",
    "PERSID": b"Pid\n.",
    "BINPERSID": b"}Q.",
}


@pytest.mark.parametrize("content", ATTACKS.values(), ids=ATTACKS)
def test_what_could_run_a_program_is_refused(tmp_path: Path, content: bytes) -> None:
    witness = tmp_path / "it-ran"
    assert "JSON" in refusal(written(tmp_path, content.replace(b"%s", str(witness).encode())))
    assert not witness.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_cut_anywhere_is_refused_in_words(tmp_path: Path, protocol: int) -> None:
    content = pickle.dumps(BIRDS, protocol)
    for size in range(len(content)):
        assert "no pickle of plain data" in refusal(written(tmp_path, content[:size]))


@settings(derandomize=True, max_examples=400, deadline=None)
@given(data=st.data(), protocol=st.integers(0, 5))
def test_a_damaged_pickle_never_does_worse_than_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, protocol: int
) -> None:
    content = bytearray(pickle.dumps(BIRDS, protocol))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = written(tmp_path_factory.getbasetemp(), bytes(content))
    try:
        found = read_label_map(path)
    except InputError:
        return
    assert all(isinstance(name, str) and isinstance(value, int | str) for name, value in found.items())


@settings(derandomize=True, max_examples=300, deadline=None)
@given(content=st.binary(max_size=60))
@example(content=b"s.")
@example(content=b"u.")
@example(content=b"l.")
@example(content=b"(K\x01d.")
@example(content=b"(.")
@example(content=b"g0\n.")
@example(content=b"q\x00.")
@example(content=b"]}K\x01s.")
@example(content=b"(((l.")
@example(content=b"S'\\q'\n.")
@example(content=b"Sx\n.")
@example(content=b"p\xff\n.")
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    try:
        found = read_label_map(written(tmp_path_factory.getbasetemp(), content))
    except InputError:
        return
    assert all(isinstance(name, str) and isinstance(value, int | str) for name, value in found.items())


def peak_bytes(path: Path) -> int:
    tracemalloc.start()
    try:
        refusal(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_deep_nesting_is_refused_in_words(tmp_path: Path) -> None:
    depth = 200_000
    content = b"}U\x01a" + b"]" * depth + b"a" * (depth - 1) + b"s."
    assert "does not map a class name" in refusal(written(tmp_path, content))
    assert refusal(written(tmp_path, '{"a":' + "[" * depth + "]" * depth + "}", "m.json"))
    assert refusal(written(tmp_path, "a: " + "[" * 2000 + "]" * 2000, "m.yaml"))


def test_references_that_unfold_are_not_unfolded(tmp_path: Path) -> None:
    # Thirty lists, each holding the one before it twice: a billion items when written out.
    lists = b"".join(b"](h%bh%be" % (bytes([k]), bytes([k])) + b"q%b" % bytes([k + 1]) for k in range(40))
    head = b"]q\x00" + lists
    assert peak_bytes(written(tmp_path, head + b".")) < 1e6
    path = written(tmp_path, head + b"}U\x01ah\x28s.")
    assert "'a': a list does not map" in refusal(path)
    assert peak_bytes(path) < 1e6


def test_a_map_that_holds_itself_is_refused(tmp_path: Path) -> None:
    assert "does not map a class name" in refusal(written(tmp_path, b"}q\x00U\x01ah\x00s."))


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02\x8b\xff\xff\xff\x7f.", b"\x80\x02\x8b\xff\xff\xff\xff.", b"\x80\x02\x8aFF.", b"T\xff\xff\xff\x7f.",
        b"X\xff\xff\xff\xffab.", b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fab.", b"r\xff\xff\xff\xff.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}.x"[:-3], b"]r\xff\xff\xff\x01.",
        b"\x80\x05\x96\xff\xff\xff\x0f\0\0\0\0.",
    ],
)  # fmt: skip
def test_lengths_that_lie_take_no_memory(tmp_path: Path, content: bytes) -> None:
    assert peak_bytes(written(tmp_path, content)) < 1e6


@pytest.mark.parametrize("name", ["huge.pickle", "huge.yaml"])
def test_a_number_too_large_to_print_is_refused(tmp_path: Path, name: str) -> None:
    number = 2 ** (8 * 4000)
    content = (
        b"\x80\x02}U\x01a\x8b" + struct.pack("<I", 4002) + number.to_bytes(4002, "little") + b"s."
        if name.endswith("pickle")
        else b"a: 0x1" + b"0" * 8000
    )
    said = "more than 64 bits" if name.endswith("pickle") else "a number of 8,003 digits"
    assert said in refusal(written(tmp_path, content, name))


def test_a_huge_file_is_not_even_opened(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    with path.open("wb") as file:
        file.truncate(17_000_000)
    assert "too many for a label map" in refusal(path)
    assert peak_bytes(path) < 1e6


# ---- JSON, YAML, CSV ----------------------------------------------------------------------------

TEXTS = {
    "m.json": ['{"Turdus_merula": 7, "Grünling": "g-1"}', '\ufeff{"Turdus_merula":7,"Gr\\u00fcnling":"g-1"}\n'],
    "m.yaml": ["Turdus_merula: 7\nGrünling: g-1\n", "# birds\n{Turdus_merula: 7, 'Grünling': !!str g-1}\n"],
    "m.YML": ["---\n? Turdus_merula\n: 7\n? Grünling\n: 'g-1'\n"],
    "m.csv": ["name,id\nTurdus_merula,7\nGrünling,g-1\n", "\ufeffname;id\r\nTurdus_merula;7\r\nGrünling;g-1\r\n",
              "bird,number,remark\nTurdus_merula, 7 ,common\n\"Grünling\",g-1,\n",
              "name,id,,\nTurdus_merula,7,,\nGrünling,g-1,,,\n"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in TEXTS.items() for text in texts])
def test_text_maps_are_read(tmp_path: Path, name: str, text: str) -> None:
    assert read_label_map(written(tmp_path, text, name)) == {"Turdus_merula": 7, "Grünling": "g-1"}


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("m.json", "[1]", "holds a list"), ("m.json", '{"a": ', "not a whole .json"), ("m.json", "", "not a whole"),
        ("m.json", '{"a": 1.5}', "'a': a float does not map"), ("m.json", '{"a": null}', "'a': nothing"),
        ("m.json", '{"a": true}', "'a': a bool"), ("m.json", '{"a": {"b": 1}}', "'a': a dict"),
        ("m.json", '{"a": NaN}', "a float"), ("m.json", '{"a": ' + "9" * 5000 + "}", "not a whole"),
        ("m.json", b"\xff\xfe{\x00}\x00", "not a whole"),
        ("m.yaml", "- a\n- b\n", "holds a list"), ("m.yaml", "a: [", "not a whole .yaml"), ("m.yaml", "", "NoneType"),
        ("m.yaml", "7: a\n", "a int: 'a'"), ("m.yaml", "no: 1\n", "a bool: a int"),
        ("m.yaml", "a: !!python/object/apply:os.system ['touch it-ran']\n", "not a whole"),
        ("m.yaml", "a: !!python/name:os.system\n", "not a whole"), ("m.yaml", "a: !mine 1\n", "not a whole"),
        ("m.yaml", "a: !!bool maybe\n", "does not fit its value"), ("m.yaml", "a: !!timestamp x\n", "does not fit"),
        ("m.yaml", "a: !!int x\n", "not a whole"), ("m.yaml", "a: 2001-99-99\n", "not a whole"),
        ("m.yaml", "a: 2001-01-01\n", "a date"), ("m.yaml", "? [a]\n: 1\n", "not a whole"),
        ("m.yaml", "a: !!set {b}\n", "a set"),
        ("m.yaml", "a: &x 1\nb: *x\n", "aliases"), ("m.yaml", "a: *x\n", "aliases"),
        ("m.yaml", "a: 1\n---\nb: 2\n", "not a whole"), ("m.yaml", "a: \x07\n", "not a whole"),
        ("m.csv", "name\na\n", "one column"), ("m.csv", "name,id\na,1\na,2\n", "row 3: the class a is listed twice"),
        ("m.csv", "name,id\na,1,2\n", "more cells than the header"), ("m.csv", b"name,id\n\xff,1\n", "not UTF-8"),
        ("m.csv", "name,id\n\"a" + "x" * 200_000 + "\",1\n", "not a CSV table"),
        ("m.txt", "a 1", "ends in one of"), ("m", "{}", "ends in one of"),
    ],
)  # fmt: skip
def test_text_that_is_no_map_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert why in refusal(written(tmp_path, text, name))
    assert not Path("it-ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("m.json", '{"a": 1, "b": 2, "a": 3}', "'a' is given twice"),
        ("m.yaml", "a: 1\nb: 2\na: 3\n", "'a' is given twice"),
        ("m.csv", "name,id\na,1\nb,2\na,3\n", "row 4: the class a is listed twice"),
        ("m.json", '{"Gr\u00fc": 1, "Gru\u0308": 1}', "the class 'Gr\u00fc' is listed twice, in two spellings"),
        ("m.csv", "name,id\nGr\u00fc,1\nGru\u0308,1\n", "the class 'Gr\u00fc' is listed twice, in two spellings"),
    ],
)
def test_a_class_that_stands_twice_is_refused_by_its_name(
    tmp_path: Path, name: str, content: bytes | str, said: str
) -> None:
    assert said in refusal(written(tmp_path, content, name))


@pytest.mark.parametrize("ending", ["pickle", "json", "yaml", "csv"])
def test_a_pipe_in_place_of_a_map_is_not_waited_for(tmp_path: Path, ending: str) -> None:
    os.mkfifo(tmp_path / f"m.{ending}")
    assert "is a pipe or a device" in refusal(tmp_path / f"m.{ending}")


@pytest.mark.parametrize("merge", [True, False])
def test_aliases_that_unfold_are_not_unfolded(tmp_path: Path, merge: bool) -> None:
    # Each line holds ten of the one before: a million entries, and ten times as many with each line more.
    lines = ["a0: &a0 {" + ", ".join(f"k{n}: {n}" for n in range(10)) + "}"]
    for k in range(1, 6):
        tens = ", ".join([f"*a{k - 1}"] * 10)
        lines.append(f"a{k}: &a{k} " + (f"{{<<: [{tens}]}}" if merge else f"[{tens}]"))
    assert peak_bytes(written(tmp_path, "\n".join(lines), "m.yaml")) < 2e6


def test_ids_that_only_look_like_numbers_stay_text(tmp_path: Path) -> None:
    found = read_label_map(written(tmp_path, "name,id\na,-5\nb,²\nc,--5\nd,1e3\ne,007\nf,\n", "m.csv"))
    assert found == {"a": -5, "b": "²", "c": "--5", "d": "1e3", "e": 7, "f": ""}


def test_names_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    message = refusal(written(tmp_path, json.dumps({"\x1b[31m\u202ered\n": None}), "m.json"))
    assert message.isprintable()


def test_a_missing_map_is_told(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "m.json")
    (tmp_path / "n.json").mkdir()
    assert "cannot be read" in refusal(tmp_path / "n.json")


def test_a_map_without_the_right_to_read_is_told() -> None:
    with ordinary_folder() as folder:
        path = written(folder, "{}", "m.json")
        path.chmod(0)
        assert "Permission denied" in refusal(path)
