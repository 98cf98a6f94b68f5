"""Everything is accounted for: found = used + each reason, in all that a run says of a folder of oddities."""

import csv
import html.parser
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers_command import QUICK, ROOT
from helpers_oddities import DEADLY, LONGEST_S, A, B, build

from birdtune.data.scan import PROBLEMS

# Made by what happens while a run looks, or by a setting; they are tried where that is tried.
PASSING = {"vanished", "changed", "storage-failed", "rare-class"}
# Of a table of labels, which this folder has none of.
OF_A_TABLE = {"no-label", "several-labels", "row-without-file"}

# Class → id; the last two are of no class.
IDS = {A: "=1+1\r\n2", B: "<b onclick='x'>&\"", "\x1b[31mred\x1b[0m": 1, "a\nnote: b \u202e": 2}

# Python's own place for what every process does first. A worker that opens the deadly file dies as by a fault in C.
SITE = f"""
import multiprocessing, os, sys
def note(event, arguments):
    if event == "open" and str(arguments[0]).endswith({DEADLY!r}) and multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), {int(signal.SIGSEGV)})
sys.addaudithook(note)
"""

# To user 0 the rights of files do not apply: these two capabilities go. Anybody else has none.
WITHOUT_CAPABILITIES = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]


@dataclass(frozen=True)
class Books:
    """A run on the folder, and what was in there."""

    data: Path
    output: Path
    expected: dict[str, str]  # entry → what must become of it
    said: str

    def table(self, name: str) -> list[dict[str, str]]:
        with (self.output / name).open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    @property
    def left_out(self) -> Counter[str]:
        """Reason → files, as they must be."""
        return Counter(found for found in self.expected.values() if not is_used(found))


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Books]:
    folder = tmp_path_factory.mktemp("books")
    is_root = os.geteuid() == 0
    with_rights = not is_root or shutil.which("setpriv") is not None
    expected = build(folder / "input/data", with_rights=with_rights)
    corvus = "<b>Corvus</b> corax/levels"
    expected |= {
        f"{corvus}/as integers.wav": "clipped, used", f"{corvus}/clipped.wav": "clipped, used",
        f"{corvus}/direct current.wav": "silent", f"{corvus}/one click.wav": "silent",
        f"{corvus}/two steps.wav": "silent", "Apus_apus/headers/promises a little more.wav": "duplicate-in-class",
        **{f"{corvus}/{name}.wav": "not-finite, used"
           for name in ("infinite", "minus infinite", "nan", "nan at the end")},
        f"{corvus}/out of phase.wav": "channels-inverted, used",
        **{f"Bubo_bubo/channels/{n}.wav": "channels-inverted, used" for n in (6, 16, 255, 1024)},
    }  # fmt: skip
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(SITE)
    _write_split(folder / "split.csv", expected)
    (folder / "input/bird_id_map.json").write_text(json.dumps(IDS))
    command = [
        *(WITHOUT_CAPABILITIES if is_root and with_rights else []), sys.executable, "-m", "birdtune", "run", *QUICK,
        "--train.epochs=1", "--audio.short-clips=skip",
        f"--audio.max-hours={LONGEST_S / 3600}", "--split.file=split.csv",
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BIRDTUNE_")}
    environment |= {
        "PYTHONPATH": f"{ROOT / 'code'}{os.pathsep}{folder / 'site'}",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    yield Books(folder / "input/data", folder / "output", expected, done.stdout)
    if with_rights:
        (folder / "input/data" / B / "closed").chmod(0o700)


def is_used(becomes: str) -> bool:
    return becomes.endswith("used")


def _write_split(path: Path, expected: dict[str, str]) -> None:
    """A place for every entry but one, whatever becomes of it."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["recording", "split"])
        for name, becomes in expected.items():
            if becomes != "not-in-split":
                rows.writerow([name, {"2.wav": "val", "3.wav": "test"}.get(name[-5:], "train")])


def entries(data: Path) -> list[str]:
    """Everything in the folder that is a thing of its own: files, links, and folders that nobody is to enter."""
    found = []
    for place, folders, files in os.walk(os.fsencode(data)):
        depth = place.count(b"/") - os.fsencode(data).count(b"/")
        alone = [
            name
            for name in folders
            if name.startswith(b".") or Path(os.fsdecode(place), os.fsdecode(name)).is_symlink()
            or depth >= 100 or name == b"closed"
        ]  # fmt: skip
        folders[:] = [name for name in folders if name not in alone]
        found += [os.path.join(place, name) for name in [*alone, *files]]  # noqa: PTH118
    return [os.fsdecode(os.path.relpath(path, os.fsencode(data))) for path in found]


def test_the_folder_holds_more_than_a_hundred_oddities_and_every_reason(books: Books) -> None:
    plain = [name for name in books.expected if "/plain " in name]
    assert len(books.expected) - len(plain) > 200
    assert len(entries(books.data)) == len(books.expected)
    codes = {found.removesuffix(", used") for found in books.expected.values()}
    assert codes - {"used"} <= PROBLEMS.keys() and len(codes) > 25


def test_every_oddity_becomes_what_it_must_and_none_is_missing_or_there_twice(books: Books) -> None:
    problems = books.table("problems.csv")
    used = [row["recording"] for row in books.table("split.csv")]
    not_used = [row["recording"] for row in problems if row["used"] == "no"]
    assert len(used) + len(not_used) == len(set(used) | set(not_used)) == len(entries(books.data))
    found = dict.fromkeys(used, "used") | {row["recording"]: _becomes(row) for row in problems}
    wrong = {
        name: (found.get(name), must) for name, must in books.expected.items() if found.get(name) != must
    }
    assert wrong == {}
    assert found.keys() == books.expected.keys()
    for row in problems:
        assert row["detail"] and row["advice"] == PROBLEMS[row["problem"]]



def _becomes(row: dict[str, str]) -> str:
    return row["problem"] + (", used" if row["used"] == "yes" else "")


def test_the_log_the_events_and_the_tables_tell_the_same(books: Books) -> None:
    n_found, n_used = len(entries(books.data)), sum(map(is_used, books.expected.values()))
    assert n_found == n_used + books.left_out.total()
    (line,) = re.findall(r"^  ([\d,]+) of ([\d,]+) files not used: (.*)$", books.said, re.M)
    assert (int(line[0]), int(line[1])) == (books.left_out.total(), n_found)
    assert {
        reason: int(n.replace(",", "")) for n, reason in re.findall(r"(\d[\d,]*) ([\w-]+)", line[2])
    } == books.left_out
    sides = r"^  ([\d,]+) recordings of 4 classes, .*: (\d+) train, (\d+) val, (\d+) test$"
    (said,) = re.findall(sides, books.said, re.M)
    assert int(said[0]) == sum(map(int, said[1:])) == n_used
    events = [
        json.loads(line) for line in (books.output / "logs/1/events.jsonl").read_text("utf-8").splitlines()
    ]
    (event,) = [event for event in events if event["event"] == "dataset"]
    assert (event["found"], event["used"], event["left_out"]) == (n_found, n_used, dict(books.left_out))
    assert (books.output / "reports/1/problems.csv").read_bytes() == (
        books.output / "problems.csv"
    ).read_bytes()
    by_class = {row["class"]: row for row in books.table("reports/1/per_class.csv")}
    assert (by_class[A]["external_id"], by_class[B]["external_id"]) == (IDS[A], IDS[B])
    assert sum(int(row["recordings"]) for row in by_class.values()) == n_used
    judged = {row["recording"] for row in books.table("reports/1/predictions.csv")}
    assert judged == {row["recording"] for row in books.table("split.csv") if row["split"] != "train"}


class _Page(html.parser.HTMLParser):
    """The text of a page by section, and of the rows of its tables; its tags and their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, set[str]] = {}
        self.links: list[str] = []
        self.section = ""
        self.text: dict[str, str] = {"": ""}
        self.rows: dict[str, list[list[str]]] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.setdefault(tag, set()).update(name for name, _ in attrs)
        self.links += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")
        ]
        if tag == "section":
            self.section = dict(attrs).get("id") or ""
        elif tag == "tr":
            self.rows.setdefault(self.section, []).append([])
        elif tag in ("td", "th") and self.rows.get(self.section):
            self.rows[self.section][-1].append("")

    def handle_data(self, data: str) -> None:
        self.text[self.section] = self.text.get(self.section, "") + data
        rows: Any = self.rows.get(self.section)
        if rows and rows[-1]:
            rows[-1][-1] += data


@pytest.fixture(scope="module")
def page(books: Books) -> _Page:
    parsed = _Page()
    parsed.feed((books.output / "reports/1/report.html").read_text("utf-8"))
    return parsed


# What the template and the figures are made of.
TAGS = {
    "html", "head", "meta", "title", "style", "body", "main", "header", "nav", "section", "footer", "script", "p", "h1",
    "h2", "h3", "div", "span", "b", "i", "code", "dl", "dt", "dd", "ul", "li", "a", "bdi", "wbr", "table", "thead",
    "tbody", "tr", "th", "td", "button", "label", "input", "details", "summary", "audio", "img", "figure",
    "figcaption", "svg", "g",
    "path", "defs", "use", "text", "rect", "circle", "line", "tspan", "clippath", "metadata", "desc", "image",
    "rdf:rdf",
    "cc:work", "dc:type", "dc:date", "dc:format", "dc:creator", "cc:agent", "dc:title",
}  # fmt: skip


def test_no_name_becomes_more_than_text_in_the_report(page: _Page) -> None:
    assert page.tags.keys() - TAGS == set()
    for tag, names in page.tags.items():
        assert not [name for name in names if name.startswith("on") or name in ("srcdoc", "formaction")], tag
    assert all(link.startswith(("#", "data:audio/", "data:image/")) for link in page.links)
    text = "".join(page.text.values())
    assert "<img src=x onerror=alert(2)>.txt" in text and "<b>Corvus</b> corax" in text
    assert not set(
        re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]", text)
    )


def test_no_name_commands_the_terminal_or_breaks_a_line_of_the_log(books: Books) -> None:
    log = (books.output / "logs/1/run.log").read_text("utf-8")
    for text in (books.said, log):
        assert not re.findall(
            r"[^\n\t\x20-\x7e\u00a0-\u200a\u2010-\u2027\u2030-\uffff\U00010000-\U0010ffff]", text
        )
    assert all(re.match(r"\d{4}-\d\d-\d\dT", line) for line in log.splitlines())


def test_the_report_tells_the_same(books: Books, page: _Page) -> None:
    n_found, n_out = len(books.expected), books.left_out.total()
    text = " ".join(page.text["files"].split())
    assert f"{n_found} files found, {n_found - n_out} used, {n_out} not used" in text
    rows = [[" ".join(cell.split()) for cell in row] for row in page.rows["files"]]
    reasons = {reason.replace("-", " "): reason for reason in PROBLEMS}
    table = {reasons[row[0]]: int(row[1]) for row in rows if len(row) == 3 and row[0] in reasons}
    # The used ones with a remark stand in a table of three columns, too, below.
    assert table == books.left_out
    listed = Counter(row[0] for row in page.rows["files"] if len(row) == 4)
    listed.pop("file", None)
    assert listed == Counter(name for name, found in books.expected.items() if not is_used(found))
    assert A in page.text["classes"]
