"""`collect xeno-canto`, against a server on loopback that answers in the shapes of its API, version 3."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from helpers_collect import Site, reasons, rows, run, serving, sound, status
from test_layout import inspect

from birdtune.collect import xeno_canto
from birdtune.data.annotations import xeno_canto as reader
from birdtune.data.annotations.rows import Options

Captured = pytest.CaptureFixture[str]
OUT = Path("output/collected")
KEY = "0123456789abcdef0123456789abcdef01234567"
pytestmark = pytest.mark.usefixtures("alone")


def answered(number: int, species: str = "Strix aluco", **cells: Any) -> dict[str, Any]:
    """One recording as the API has it, all keys of version 3."""
    genus, _, epithet = species.partition(" ")
    return {
        "id": str(number), "gen": genus, "sp": epithet, "ssp": "", "grp": "birds", "en": "Owl", "rec": "Anna Example",
        "cnt": "Poland", "loc": "Puszcza, Podlaskie", "lat": "52.7", "lon": "23.8", "alt": "160", "type": "song",
        "sex": "male", "stage": "adult", "method": "field recording", "url": f"//xeno-canto.org/{number}",
        "file": f"/{number}/download", "file-name": f"XC{number}-Strix aluco song.mp3",
        "sono": {"small": "//x/s.png"}, "osci": {"small": "//x/o.png"},
        "lic": "//creativecommons.org/licenses/by-nc-sa/4.0/", "q": "A", "length": "0:46", "time": "22:00",
        "date": "2024-03-01", "uploaded": "2024-03-02", "also": ["Asio otus", "", "Strix aluco"], "rmk": "",
        "animal-seen": "no",
        "playback-used": "no", "temp": "", "regnr": "", "auto": "no", "dvc": "", "mic": "", "smp": "48000", **cells,
    }  # fmt: skip


def page(*recordings: dict[str, Any], number: int = 1, of: int = 1) -> bytes:
    head = {"numRecordings": str(len(recordings)), "numSpecies": "1", "page": number, "numPages": of}
    return json.dumps({**head, "recordings": list(recordings)}).encode()


class Api(Site):
    """A site with the API at /api."""

    def answer(self, *recordings: dict[str, Any]) -> None:
        self.files["/api"] = page(*recordings)
        self.files |= {f"/{one['id']}/download": sound(hash(one["id"]) % 10_000) for one in recordings}


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setenv(xeno_canto.KEY, KEY)
    with serving(Api()) as site:
        assert isinstance(site, Api)
        monkeypatch.setattr(xeno_canto, "API", f"{site.address}/api")
        yield site


def test_a_query_becomes_recordings_with_secondary_labels_and_whom_to_name(api: Api, capsys: Captured) -> None:
    asio = answered(2, "Asio otus", also=["Strix aluco", "Nobody here"], rec="Bert", lic="")
    api.answer(answered(1), asio)
    assert run("xeno-canto", "--query", "gen:Strix cnt:Poland") == 0
    asked = parse_qs(urlsplit(api.seen[0][0]).query)
    assert asked == {"query": ["gen:Strix cnt:Poland"], "key": [KEY], "per_page": ["500"], "page": ["1"]}
    assert rows(OUT, "labels.csv")["XC2.mp3"] == {
        "recording": "XC2.mp3", "label": "Asio otus", "secondary_labels": "Strix aluco,Nobody here",
    }  # fmt: skip
    assert rows(OUT, "labels.csv")["XC1.mp3"]["secondary_labels"] == "Asio otus"
    whom = rows(OUT, "attribution.csv")
    assert whom["XC1.mp3"] == {
        "recording": "XC1.mp3", "author": "Anna Example", "licence": "CC BY-NC-SA 4.0",
        "source": "https://xeno-canto.org/1",
    }  # fmt: skip
    assert (whom["XC2.mp3"]["author"], whom["XC2.mp3"]["licence"]) == ("Bert", "")
    text = (OUT / "xeno-canto.json").read_text()
    assert {(row.recording, row.class_name, row.also) for row in reader.read(text, Options())} >= {
        ("XC1", "Strix aluco", ("Asio otus", "Strix aluco")), ("XC2", "Asio otus", ("Strix aluco", "Nobody here")),
    }  # fmt: skip
    said = "".join(capsys.readouterr()) + "".join(path.read_text() for path in OUT.glob("*.[cj]s*"))
    assert KEY not in said


def test_a_run_reads_what_was_collected_one_source_a_recording(api: Api) -> None:
    api.answer(*(answered(k, also=["Asio otus", "Nobody here"]) for k in range(1, 6)),
               *(answered(k, "Asio otus", also=[]) for k in range(6, 11)))  # fmt: skip
    assert run("xeno-canto", "--query", "grp:birds") == 0
    Path("data").symlink_to(OUT)
    dataset = inspect(Path(), model={"output": "sigmoid"})
    assert dataset.classes == ("Asio otus", "Strix aluco") and len(dataset.recordings) == 10
    assert {place.group for place in dataset.places.values()} == {f"XC{k}" for k in range(1, 11)}
    owls = [one for one in dataset.recordings if one.label == "Strix aluco"]
    _, known = dataset.targets(owls).of_recordings()
    assert (known > 0).tolist() == [[False, True]] * 5  # whether the other owl is there, nobody knows
    assert {problem.problem for problem in dataset.problems} == {"metadata", "misnamed"}  # WAV in .mp3


def test_all_pages_are_asked_for(api: Api) -> None:
    pages = {str(number): page(answered(number), number=number, of=3) for number in (1, 2, 3)}

    def turn(request: Any, content: bytes) -> None:
        body = pages[parse_qs(urlsplit(request.path).query)["page"][0]]
        status(200, Content_Length=str(len(body)))(request, b"")
        request.wfile.write(body)

    api.always["/api"] = turn
    api.files |= {f"/{k}/download": sound(k) for k in (1, 2, 3)}
    assert run("xeno-canto", "--query", "gen:Strix") == 0
    assert sorted(rows(OUT)) == ["XC1.mp3", "XC2.mp3", "XC3.mp3"] and api.asked_for("/api") == 3


def test_filters_leave_out_and_count(api: Api, capsys: Captured) -> None:
    api.answer(
        answered(1), answered(2, q="D"), answered(3, length="1:02:03"), answered(4, length="soon"),
        answered(5, lic="//creativecommons.org/publicdomain/zero/1.0/"),
        answered(6, lic="//creativecommons.org/licenses/by/4.0/"),
    )
    how = ["--quality", "a,B", "--length", "3-60", "--licence", "BY,cc0"]
    assert run("xeno-canto", "--query", "gen:Strix", *how) == 0
    assert sorted(rows(OUT)) == ["XC5.mp3", "XC6.mp3"]
    assert rows(OUT, "attribution.csv")["XC5.mp3"]["licence"] == "CC0"
    said = capsys.readouterr().out
    assert "6 recordings found, 2 wanted" in said
    for part in ("1 under another licence", "1 of another quality", "2 shorter or longer"):
        assert part in said


def test_so_many_of_each_species_are_drawn_by_the_seed(api: Api) -> None:
    many = [answered(k, species) for k, species in enumerate(["Strix aluco", "Asio otus"] * 20, start=1)]
    drawn = []
    for seed, number in ((1, 3), (1, 3), (1, 5), (2, 3)):
        kept, left = xeno_canto.chosen(many, xeno_canto.Filter(per_species=number, seed=seed))
        drawn.append({one["id"] for one in kept})
        assert len(kept) == 2 * number and left["more"] == 40 - 2 * number
    assert drawn[0] == drawn[1] < drawn[2] and drawn[0] != drawn[3]
    assert drawn[0] == {one["id"] for one in xeno_canto.chosen(many[::-1], xeno_canto.Filter(per_species=3))[0]}


def test_what_is_not_given_out_or_of_no_species_has_a_reason(api: Api, capsys: Captured) -> None:
    api.answer(
        answered(1), answered(2, file=""), answered(3, "Mystery mystery"), answered(4, "Sonus naturalis"),
        answered(5, **{"file-name": "XC5.exe"}), answered(6, **{"file-name": "../../x.WAV"}), answered(7, id="../x"),
    )  # fmt: skip
    assert run("xeno-canto", "--query", "cnt:Poland") == 0
    assert reasons(OUT) == {"XC2.mp3": "restricted", "XC3.mp3": "no-species", "XC4.mp3": "no-species"}
    assert {path.name for path in OUT.rglob("XC*")} == {"XC1.mp3", "XC5.mp3", "XC6.wav"}
    assert "1 without an id" in capsys.readouterr().out


def test_an_address_of_another_kind_is_not_followed(api: Api) -> None:
    api.answer(answered(1, file="file:///etc/passwd"))
    assert run("xeno-canto", "--query", "gen:Strix") == 42
    assert reasons(OUT) == {"XC1.mp3": "forbidden"}


def test_metadata_of_several_calls_add_up(api: Api) -> None:
    for number in (1, 2):
        api.answer(answered(number))
        assert run("xeno-canto", "--query", "gen:Strix") == 0
    found = json.loads((OUT / "xeno-canto.json").read_text())["recordings"]
    assert [one["id"] for one in found] == ["1", "2"] and len(rows(OUT, "labels.csv")) == 2


def test_a_dry_run_asks_the_api_and_fetches_no_recording(api: Api, capsys: Captured) -> None:
    api.answer(answered(1), answered(2, "Asio otus"))
    assert run("xeno-canto", "--query", "cnt:Poland", "--dry-run") == 0
    assert [urlsplit(url).path for url, _ in api.seen] == ["/api"] and not OUT.exists()
    assert "1  Strix aluco" in capsys.readouterr().out


# ---- what goes wrong ----------------------------------------------------------------------------


def test_without_a_key_nothing_is_asked(api: Api, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.delenv(xeno_canto.KEY)
    assert run("xeno-canto", "--query", "gen:Strix") == 42
    assert "XENO_CANTO_API_KEY is not set" in capsys.readouterr().err and api.seen == []


@pytest.mark.parametrize(("code", "ended"), [(401, 42), (403, 42), (400, 42), (429, 75), (503, 75)])
def test_what_the_api_refuses_is_said_without_the_key(api: Api, capsys: Captured, code: int, ended: int) -> None:
    api.always["/api"] = status(code)
    assert run("xeno-canto", "--query", "gen:Strix") == ended
    said = "".join(capsys.readouterr())
    assert f"HTTP {code}" in said and KEY not in said and not OUT.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"<html>", "no JSON"), (b"\xff\xfe", "no JSON"), (b"[]", "no recordings"), (b"[" * 100_000, "no JSON"),
     (json.dumps({"error": "client_error", "message": f"bad key {KEY} \x1b[2J"}).encode(), "bad key … \\x1b"),
     (page(), "no recording that is wanted"), (b'{"recordings": [7, null], "numPages": "x"}', "no recording that is")],
)  # fmt: skip
def test_odd_answers_are_42_in_words(api: Api, capsys: Captured, content: bytes, said: str) -> None:
    api.files["/api"] = content
    assert run("xeno-canto", "--query", "gen:Strix") == 42
    told = "".join(capsys.readouterr())
    assert said in told and KEY not in told and "Traceback" not in told


@pytest.mark.parametrize(
    "how", [["--quality", "F"], ["--length", "60-3"], ["--length", "long"], ["--licence", "gpl"]]
)
def test_filters_that_are_none_are_42_before_anything_is_asked(api: Api, capsys: Captured, how: list[str]) -> None:
    assert run("xeno-canto", "--query", "gen:Strix", *how) == 42
    assert how[0] in capsys.readouterr().err and api.seen == []


@pytest.mark.parametrize(
    "arguments",
    [["xeno-canto"], ["xeno-canto", "list.csv", "--query", "x"], ["csv", "list.csv", "--query", "x"],
     ["xeno-canto", "--query", "x", "--per-class", "0"]],
)  # fmt: skip
def test_arguments_of_another_source_are_2(api: Api, arguments: list[str]) -> None:
    assert run(*arguments) == 2 and api.seen == []


@pytest.mark.parametrize(
    ("address", "code", "words"),
    [("//creativecommons.org/licenses/by-nc-nd/4.0/", "by-nc-nd", "CC BY-NC-ND 4.0"),
     ("https://creativecommons.org/publicdomain/mark/1.0/", "pd", "public domain"),
     ("//creativecommons.org/publicdomain/zero/1.0/", "cc0", "CC0"), ("own terms", "", "own terms"), ("", "", "")],
)  # fmt: skip
def test_licences_are_written_as_people_know_them(address: str, code: str, words: str) -> None:
    assert (xeno_canto.licence_code(address), xeno_canto.licence_words(address)) == (code, words)
