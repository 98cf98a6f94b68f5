"""`review`: detections → a page to decide on them → review.csv → labels."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from makers import tone, without_processes, write_sound
from test_label_table import labels_of
from test_layout import inspect, said

from birdtune.cli import main
from birdtune.data import annotated
from birdtune.data.annotations import review
from birdtune.data.dataset import Dataset
from birdtune.data.labels import Label
from birdtune.errors import InputError
from birdtune.pipeline.review import certainty, least_certain
from birdtune.reporting.review_page import Doubtful
from birdtune.runtime.files import read_csv
from birdtune.serving.detect import Call
from birdtune.serving.detection_ledger import Entry, Ledger, newest

# Names that would be markup, script, or another cell.
OWL, TIT = 'Owl "<i>&amp;"', "Parus major"
RECORDING = "a, <b>'b.wav"


def call(name: str, score: float, start_s: float = 1.0, end_s: float = 4.0, decision: str = "") -> Call:
    return Call(start_s, end_s, name, score, decision or name, None, start_s)


def entry(path: Path, calls: tuple[Call, ...], made_by: str = "model", sha256: str = "") -> Entry:
    return Entry(path.name, str(path), 1, 1, 1, sha256 or path.name, made_by, 20.0, 9, None, "", "", calls)


def keep(folder: Path, *entries: Entry) -> None:
    folder.mkdir(exist_ok=True)
    for one in entries:
        ledger = Ledger(folder, one.made_by)
        ledger.add(one)
        ledger.close()


# ---- which detections ---------------------------------------------------------------------------


def test_each_class_gives_its_least_certain_detections_in_turn(tmp_path: Path) -> None:
    calls = [*(call("a", score) for score in (0.9, 0.5, 0.65, 0.52)), call("b", 0.3), call("c", 0.99),
             call("a", 0.5, decision="unknown")]  # fmt: skip
    given = [entry(tmp_path / "x.wav", tuple(calls))]
    found = least_certain(given, {"b": 0.25, "c": 0.98}, 4)
    assert [(one.class_name, one.score) for one in found] == [("a", 0.5), ("a", 0.52), ("b", 0.3), ("c", 0.99)]
    assert [(one.class_name, one.threshold) for one in found][2:] == [("b", 0.25), ("c", 0.98)]
    many = [entry(tmp_path / f"{k}.wav", (call("a", 0.99 - k / 1000),)) for k in range(400)]
    assert [one.score for one in least_certain(many, {}, 2)] == pytest.approx([0.591, 0.592])
    with_unknown = least_certain(given, {}, 7, unknown=True)
    assert len(with_unknown) == 7 and [one.score for one in with_unknown][:2] == [0.5, 0.5]


def doubtful(score: float = 0.5, threshold: float = 0.5, start_s: float = 2, end_s: float = 5, peak_s: float = 3):
    return Doubtful("x", Path("x"), 60.0, "a", start_s, end_s, peak_s, score, threshold)


def test_certainty_is_in_logits_as_scores_near_1_lie_close_together() -> None:
    assert certainty(doubtful(0.99, 0.98)) > certainty(doubtful(0.51, 0.5))
    assert certainty(doubtful(1.0, 0.5)) < float("inf") > certainty(doubtful(0.5, float("inf")))


@pytest.mark.parametrize(
    ("times", "span"), [((2, 5, 3), (2, 5)), ((2, 30, 9), (9, 15)), ((2, 30, 29), (24, 30)), ((2, 30, 1), (2, 8))]
)
def test_of_a_long_detection_the_part_that_is_played_is_decided_on(
    times: tuple[float, float, float], span: tuple[float, float]
) -> None:
    assert doubtful(0.5, 0.5, *times).span_s == span


def test_detections_of_the_last_model_count_each_recording_once(tmp_path: Path) -> None:
    old, new = (entry(tmp_path / f"{k}.wav", (call("a", score),)) for k, score in ((1, 0.6), (1, 0.7)))
    other = entry(tmp_path / "2.wav", (call("a", 0.8),), made_by="other model")
    keep(tmp_path / "det", other, old, new)
    with (tmp_path / "det/detections.jsonl").open("a") as file:
        file.write('{"cut')
    assert list(newest(tmp_path / "det")) == [new]


# ---- the page -----------------------------------------------------------------------------------


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of four detections; one of a recording that is away is left out."""
    monkeypatch.chdir(tmp_path)
    path = write_sound(tmp_path / RECORDING, tone(20.0, 8000), 8000)
    first = (call(OWL, 0.5), call(OWL, 0.6, 6.25, 7.5), call(TIT, 0.7, 8, 19))
    keep(tmp_path / "detections", entry(path, first), entry(tmp_path / "gone.wav", (call(TIT, 0.5),)))
    assert main(["review", "--output", str(tmp_path / "none")]) == 0
    return tmp_path / "detections/review.html"


def test_a_page_has_each_detection_with_spectrogram_and_sound_and_fetches_nothing(
    page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["review", "--output", str(tmp_path / "none")]) == 0
    text = page.read_text("utf-8")
    assert text.count("<audio controls") == text.count('class="picture"') == 3
    assert "1 detection left out: 1 recording no longer there, e.g. gone.wav" in capsys.readouterr().out
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", text)
    assert OWL not in text and "a, <b>" not in text and text.count("<script>") == 1
    assert len(text) < 400_000


def test_a_page_of_other_detections_is_kept_as_decisions_may_not_be_saved(
    page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = page.read_text("utf-8")
    given = ["review", "--output", str(tmp_path / "none"), "--n"]
    assert main([*given, "2"]) == main([*given, "3"]) == main([*given, "2"]) == 0
    assert "review detections/review-2.html: 2 detections of 2 classes" in capsys.readouterr().out
    assert [path.name for path in sorted(page.parent.glob("*.html"))] == ["review-2.html", "review.html"]
    assert page.read_text("utf-8") == text
    assert main([*given, "2", "--out", str(page)]) == 0
    assert page.read_text("utf-8") != text


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere"], 42, "nowhere: holds no detections.jsonl"),
        (["--n", "0"], 2, "expected 1 to 1,000"),
        (["--out", "review.pdf"], 2, "review.pdf"),
        (["--model", "nowhere"], 42, "--model"),
    ],
)
def test_what_cannot_be_reviewed_is_said(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["review", *arguments]) == code
    assert said in capsys.readouterr().err


CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
# Presses keys as a person does, and puts the table that is saved into the page.
PRESSING = """
const press = (key, at) => (at || document.body).dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
URL.createObjectURL = blob => { blob.text().then(text => {
  const made = document.createElement("pre");
  made.id = "saved";
  made.textContent = JSON.stringify(text);
  document.body.append(made);
}); return "#"; };
"""
KEYS = """
for (const key of ["s", "ArrowLeft", "y", "n", "o"]) press(key);
document.querySelector("select").value = OTHER;
press("n"); // while the list is open, keys are its own
press("Enter", document.querySelector("select"));
"""
NEW_CLASS = """
const type = text => { press("o"); typed.value = text; press("Enter", typed); };
type(OTHER);
type("  " + OTHER.toUpperCase().replace(" ", "_"));
type("unknown");
document.title = dialog.open + " " + typed.validity.customError;
typed.value = "-Owl";
press("Enter", typed);
document.title += " " + dialog.open + " " + select.options.length;
typed.value = "PARUS  major"; // as the list has it, so that it is the detected class
press("Enter", typed);
"""


PLACES = """
const places = [scrollY];
for (const key of ["y", "n", "ArrowLeft"]) {
  press(key);
  const at = document.querySelector(".here").getBoundingClientRect();
  const top = document.querySelector("nav").getBoundingClientRect().bottom;
  places.push(at.top > top && at.top < innerHeight / 2, at.bottom < innerHeight);
}
document.title = places.join(" ");
"""


def dumped(page: Path, profile: Path, *more: str) -> str:
    """The page as it is after its script ran."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", f"--user-data-dir={profile}"]
    flags += more
    done = subprocess.run([str(CHROMIUM), *flags, "--dump-dom", page.as_uri()], capture_output=True, check=True)
    return done.stdout.decode()


def saved(page: Path, profile: Path, keys: str, other: str, *more: str) -> tuple[str, Path]:
    """The page after some keys were pressed, and the table that was saved then."""
    text = re.sub(r"<meta http-equiv=[^>]*>|scroll-behavior: smooth;", "", page.read_text("utf-8"))
    pressed = page.with_name("pressed.html")
    script = f"const OTHER = {json.dumps(other)};{PRESSING}{keys}".replace("</", "<\\/")
    script += 'press("Enter");'
    pressed.write_text(text.replace("</body>", f"<script>{script}</script></body>"), "utf-8")
    dom = dumped(pressed, profile, *more)
    found = re.search(r'<pre id="saved">(.*?)</pre>', dom)
    assert found is not None
    table = page.with_name("review.csv")
    table.write_text(json.loads(html.unescape(found[1])), "utf-8", newline="")
    return dom, table


@needs_chromium
def test_in_a_browser_keys_decide_and_the_table_that_is_saved_can_be_read(page: Path, tmp_path: Path) -> None:
    assert "0 of 3: 0 yes, 0 no, 0 other, 0 skipped" in dumped(page, tmp_path / "profile")  # our script may run
    dom, table = saved(page, tmp_path / "profile", KEYS, OWL)
    assert "3 of 3: 1 yes, 1 no, 1 other, 0 skipped" in dom
    rows = [tuple(row.values()) for row in read_csv(table)]
    assert tuple(read_csv(table)[0]) == review.COLUMNS
    assert rows == [
        (RECORDING, "1", "4", OWL, "yes", OWL), (RECORDING, "6.25", "7.5", OWL, "no", ""),
        (RECORDING, "8", "14", TIT, "other", OWL),
    ]  # fmt: skip
    assert "3 of 3: 1 yes, 1 no, 1 other, 0 skipped" in dumped(page, tmp_path / "profile")  # the browser kept them


@needs_chromium
@pytest.mark.parametrize(("size", "fits"), [("800,900", "true"), ("800,600", "false")])
def test_the_page_begins_with_what_to_do_and_then_a_card_is_below_the_bar(
    page: Path, tmp_path: Path, size: str, fits: str
) -> None:
    dom, _ = saved(page, tmp_path / "profile", PLACES, OWL, f"--window-size={size}")
    found = re.search(r"<title>(.*?)</title>", dom)
    assert found is not None and found[1] == " ".join(["0", *["true", fits] * 3])
    names = re.findall(r'<p class="asked"><bdi>(.*?)</bdi>\?</p>', dom)
    assert [html.unescape(name) for name in names] == [OWL, OWL, TIT]


@needs_chromium
def test_a_class_that_no_list_has_is_typed_once_and_is_then_in_the_list(page: Path, tmp_path: Path) -> None:
    new = 'Neu, "Kauz" <b>&lt;</script>'
    dom, table = saved(page, tmp_path / "profile", NEW_CLASS, new)
    assert "3 of 3: 1 yes, 0 no, 2 other, 0 skipped" in dom
    assert "<title>true true true 3</title>" in dom  # what is no name is not taken, and the dialog waits
    assert [(row["decision"], row["label"]) for row in read_csv(table)] == [("other", new)] * 2 + [("yes", TIT)]
    again = dumped(page, tmp_path / "profile")
    escaped = 'Neu, "Kauz" &lt;b&gt;&amp;lt;&lt;/script&gt;'  # as a text of the page, not as markup
    assert again.count("<option") == 3 and again.count(f">{escaped}</option>") == 1
    assert again.count(f">is {escaped}</span>") == 2
    assert next(iter(review.read(table, []))).labels[0].class_name == new


# ---- from the table to labels -------------------------------------------------------------------

HEADER = "recording,start_s,end_s,detected,decision,label\n"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two class folders, a folder of a site, and a recording in none."""
    without_processes(monkeypatch)
    names = [f"{name}/{k}.wav" for name in ("Owl", "Tit") for k in range(4)]
    for seed, name in enumerate([*names, "site/a.wav", "site/b.wav", "flat.wav"]):
        write_sound(tmp_path / "data" / name, tone(8.0, 8000, seed=seed), 8000)
    return tmp_path


def decided(place: Path, rows: str, **labels: object) -> Dataset:
    (place / "review.csv").write_text(HEADER + rows)
    return inspect(place, labels={"review": str(place / "review.csv"), **labels})


def test_a_place_beside_one_that_was_reviewed_is_no_class_either(data: Path) -> None:
    write_sound(data / "data/site 2/c.wav", tone(8.0, 8000, seed=50), 8000)
    rows = "site/a.wav,1,4,Owl,yes,Owl\n"
    found = decided(data, rows)
    assert found.classes == ("Owl", "Tit")
    unused = {one.recording for one in found.problems if one.problem == "no-label"}
    assert {"site/b.wav", "site 2/c.wav"} <= unused
    assert "name no class: recordings in them were reviewed for other classes, or they are called like" in said(found)
    # Without any decision in a site, folders are classes, whatever they are called.
    assert "site 2" in decided(data, "Owl/0.wav,1,4,Owl,yes,Owl\n").classes


def test_of_decisions_that_contradict_each_other_none_counts_and_both_are_named(data: Path) -> None:
    rows = "site/a.wav,1,4,Owl,yes,Owl\nsite/a.wav,1,4,Owl,no,\nsite/a.wav,5,6,Owl,yes,Owl\nflat.wav,1,4,Tit,no,\n"
    found = decided(data, rows)
    assert labels_of(found, "site/a.wav") == (Label("Owl", 5, 6, is_reviewed=True),)
    named = [one.detail for one in found.problems if one.problem == "row-contradicted"]
    assert len(named) == 2 and "row 2: says yes of Owl, and review.csv, row 3 says no; neither counts" in named[0]
    assert "Not used: 2 that contradict another." in said(found)


def test_decisions_become_labels_beside_those_of_the_folders(data: Path) -> None:
    rows = (
        "nights/site/a.wav,1,4,Owl,yes,Owl\nsite/a.wav,5,6,Owl,other,Tit\nflat.wav,2,3,Tit,no,\nOwl/0.wav,0,2,Tit,no,\n"
        "site/a.wav,1,4,Owl,yes,Owl\nsite/a.wav,4,1,Owl,yes,Owl\nsite/a.wav,4,5,Owl,maybe,\ngone.wav,0,1,Owl,no,\n"
    )
    found = decided(data, rows)
    assert set(labels_of(found, "site/a.wav")) == {
        Label("Owl", 1, 4, is_reviewed=True), Label("Tit", 5, 6, is_reviewed=True),
        Label("Owl", 5, 6, weight=0.0, is_reviewed=True),
    }  # fmt: skip
    assert labels_of(found, "flat.wav") == (Label("Tit", 2, 3, weight=0.0, is_reviewed=True),)
    assert labels_of(found, "Owl/0.wav") == (Label("Owl"), Label("Tit", 0, 2, weight=0.0, is_reviewed=True))
    assert labels_of(found, "Tit/1.wav") == (Label("Tit"),)
    assert found.classes == ("Owl", "Tit") and found.output == "sigmoid"
    problems = {(one.recording, one.problem) for one in found.problems}
    assert problems == {
        ("site/b.wav", "no-label"), ("gone.wav", "row-without-file"), ("site/a.wav", "row-invalid"),
    }  # fmt: skip
    assert found.rows == {
        "found": 8, "used": 4, "left_out": {"row-invalid": 2, "row-repeated": 1, "row-without-file": 1},
    }  # fmt: skip
    assert (
        "8 decisions on detections (3 yes, 3 no, 1 other class, 1 not understood); 4 used, in 3 recordings. Of 2 of "
        "these"
    ) in said(found)
    assert "Not used: 2 that cannot be read, 1 that repeat another, 1 of recordings that are not found." in said(found)
    (data / "data/Owl/0.txt").write_text("0\t2\tOwl\n")
    found = decided(data, rows, annotations=str(data / "data"))
    table = {line.split()[0]: line.split()[1] for line in annotated.lines(found, None) if line.startswith("  ")}
    assert table["class"] == "yes/no" and (table["Owl"], table["Tit"]) == ("1/1", "1/2")
    assert 'Folders "site" name no class' in said(found)


def test_decisions_on_a_name_of_several_recordings_are_of_none_and_name_them(data: Path) -> None:
    found = decided(data, "a.wav,1,4,Owl,yes,Owl\n0.wav,1,4,Owl,no,\n0.wav,5,6,Owl,no,\n")
    assert found.rows["left_out"] == {"row-ambiguous": 2}
    (problem,) = (one for one in found.problems if one.problem.startswith("row-"))
    assert (problem.recording, problem.problem) == ("0.wav", "row-ambiguous")
    assert problem.detail == "it may be any of Owl/0.wav, Tit/0.wav (2 rows, e.g. review.csv, row 3)"


def test_a_folder_in_which_nothing_but_no_was_decided_stays_a_class_and_scores_stay_softmax(data: Path) -> None:
    for seed, name in enumerate(("Wren/0.wav", "Wren/1.wav", "Strix aluco/0.wav", "nights/0.wav")):
        write_sound(data / "data" / name, tone(8.0, 8000, seed=50 + seed), 8000)
    rows = "Wren/0.wav,1,4,Owl,no,\nWren/1.wav,1,4,Tit,no,\nsite/a.wav,1,4,Tit,no,\n"
    found = decided(data, rows)
    assert found.classes == ("Owl", "Strix aluco", "Tit", "Wren", "nights") and found.output == "softmax"
    assert labels_of(found, "Wren/0.wav") == (Label("Wren"), Label("Owl", 1, 4, weight=0.0, is_reviewed=True))
    assert 'Folders "Wren" name a class each' in said(found) and 'Folders "site" name no class' in said(found)
    assert "and 3 decisions of the review that a class is absent teach nothing" in said(found)
    rows += "nights/0.wav,1,4,Owl,yes,Owl\nStrix aluco/0.wav,1,4,Tit,yes,Tit\n"
    found = decided(data, rows)
    assert found.classes == ("Owl", "Strix aluco", "Tit", "Wren")
    assert labels_of(found, "nights/0.wav") == (Label("Owl", 1, 4, is_reviewed=True),)
    assert found.output == "sigmoid" and "as the labels have 1 recording with several classes." in said(found)
    assert decided(data, "site/a.wav,1,4,Owl,yes,Owl\nsite/b.wav,1,4,Owl,other,Tit\n").output == "softmax"


def test_decisions_go_with_a_table_of_labels_too(data: Path) -> None:
    listed = [f"{name}/{k}.wav,{name},0,8" for name in ("Owl", "Tit") for k in range(4)]
    (data / "data/labels.csv").write_text(
        "\n".join(["recording,label,start_s,end_s", *listed, "site/a.wav,Owl,1,2", "site/a.wav,Owl,9,x"])
    )
    found = decided(data, "site/a.wav,3,4,Owl,no,\nsite/b.wav,3,4,Owl,yes,Owl\n")
    assert labels_of(found, "site/a.wav") == (Label("Owl", 1, 2), Label("Owl", 3, 4, weight=0.0, is_reviewed=True))
    assert labels_of(found, "site/b.wav") == (Label("Owl", 3, 4, is_reviewed=True),)
    assert {(one.recording, one.problem) for one in found.problems} == {
        ("flat.wav", "no-label"), ("site/a.wav", "row-invalid"),
    }  # fmt: skip
    assert (found.rows["found"], found.rows["used"], found.rows["left_out"]) == (12, 11, {"row-invalid": 1})


def test_a_reviewed_negative_of_a_class_stays_background(data: Path) -> None:
    write_sound(data / "data/-Owl/a.wav", tone(8.0, 8000, seed=99), 8000)
    found = decided(data, "-Owl/a.wav,3,4,Tit,no,\n")
    assert labels_of(found, "-Owl/a.wav")[0] == Label("background")
    assert found.classes == ("Owl", "Tit", "background", "site")


def test_several_tables_of_one_folder_are_joined(data: Path) -> None:
    (data / "reviews").mkdir()
    for k in (1, 2):
        (data / f"reviews/{k}.csv").write_text(f"{HEADER}flat.wav,{k},{k + 1},Owl,yes,Owl\n")
    found = inspect(data, labels={"review": str(data / "reviews")})
    assert [label.start_s for label in labels_of(found, "flat.wav")] == [1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such table"),
        ("recording,start_s\na,1\n", "has no column"),
        (f"{HEADER}other.wav,1,2,Owl,yes,Owl\n", "is of none of the recordings.*other.wav"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(data: Path, content: str | None, message: str) -> None:
    if content is not None:
        (data / "review.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        inspect(data, labels={"review": str(data / "review.csv")})


def test_a_new_class_that_was_typed_is_one_and_too_few_recordings_of_it_are_said(data: Path) -> None:
    new = 'Neu, "Kauz" <b>'
    cell = new.replace('"', '""')
    rows = f'site/a.wav,1,4,Owl,other,"{cell}"\nsite/a.wav,5,6,Owl,other,"{cell}"\nflat.wav,1,2,Owl,other,-Owl\n'
    found = decided(data, rows)
    assert found.classes == (new, "Owl", "Tit")
    assert labels_of(found, "site/a.wav")[0] == Label(new, 1, 4, is_reviewed=True)
    assert f'Classes that only the review has: "{new}" (1 recording)' in said(found)
    assert f"Too few source recordings to be tested: {new}." in said(found)
    (fault,) = (one.detail for one in found.problems if one.problem == "row-invalid")
    assert fault == 'review.csv, row 4: "-Owl" is no class, as "-" before a name says that it is absent'
    few = {"min_samples_per_class": 100, "min_samples_action": "leave-out"}
    for seed in range(9):
        write_sound(data / f"data/Owl/long{seed}.wav", tone(60.0, 8000, seed=200 + seed), 8000)
        write_sound(data / f"data/Tit/long{seed}.wav", tone(60.0, 8000, seed=300 + seed), 8000)
    found = inspect(data, labels={"review": str(data / "review.csv")}, train=few)
    assert found.classes == ("Owl", "Tit")
    assert re.search(f"fewer than 100 training windows: {re.escape(new)} .*they are left out", said(found))


MARKED = "recording,start_s,end_s,label\n"


def test_a_folder_of_reviewed_recordings_is_a_site_where_annotations_lie_elsewhere(data: Path) -> None:
    (data / "marks").mkdir()
    listed = [f"{name}/{k}.wav,0,8,{name}" for name in ("Owl", "Tit") for k in range(3)]
    (data / "marks/all.csv").write_text(MARKED + "\n".join(listed) + "\n")
    rows = "site/a.wav,1,4,Owl,yes,Owl\nOwl/3.wav,5,6,Owl,other,Tit\n"
    found = decided(data, rows, annotations=str(data / "marks"))
    assert found.classes == ("Owl", "Tit") and 'Folders "site" name no class' in said(found)
    assert labels_of(found, "site/a.wav") == (Label("Owl", 1, 4, is_reviewed=True),)
    assert 'by the folders "Owl", "Tit", which hold throughout' in said(found)
    # What no annotation names has the class of its folder, as without a review.
    assert labels_of(found, "Tit/3.wav") == (Label("Tit"),) and labels_of(found, "Owl/3.wav")[0] == Label("Owl")
    assert {(one.recording, one.problem) for one in found.problems} == {
        ("site/b.wav", "no-label"), ("flat.wav", "no-label"),
    }  # fmt: skip


@pytest.mark.parametrize("n_annotated", [1, 4])
def test_a_folder_of_reviewed_recordings_is_a_site_beside_annotated_sites(data: Path, n_annotated: int) -> None:
    for name in ("Owl", "Tit"):
        shutil.rmtree(data / "data" / name)
    (data / "data/flat.wav").unlink()
    write_sound(data / "data/site/not_reviewed.wav", tone(8.0, 8000, seed=60), 8000)
    for k in range(n_annotated):
        write_sound(data / f"data/site_A/{k}.wav", tone(8.0, 8000, seed=70 + k), 8000)
        (data / f"data/site_A/{k}.txt").write_text(f"1\t2\tOwl\n3\t4\t{'Tit' if k % 2 else 'Owl'}\n")
    found = decided(data, "site/a.wav,1,4,Owl,yes,Owl\nsite/b.wav,5,6,Owl,other,Tit\n")
    assert found.classes == ("Owl", "Tit")
    assert [(one.recording, one.problem) for one in found.problems] == [("site/not_reviewed.wav", "no-label")]
    assert labels_of(found, "site/b.wav")[0] == Label("Tit", 5, 6, is_reviewed=True)
    assert labels_of(found, "site_A/0.wav") == (Label("Owl", 1, 2), Label("Owl", 3, 4))


def test_an_annotated_class_stays_one_whatever_was_found_in_its_folder(data: Path) -> None:
    write_sound(data / "data/pond/a.wav", tone(8.0, 8000, seed=80), 8000)
    (data / "marks.csv").write_text(f"{MARKED}site/a.wav,0,1,pond\nsite/b.wav,0,1,Owl\n")
    found = decided(data, "pond/a.wav,5,6,Owl,other,Tit\n", annotations=str(data / "marks.csv"))
    assert labels_of(found, "pond/a.wav")[0] == Label("pond")
    assert labels_of(found, "site/a.wav") == (Label("pond", 0, 1),)
    # As a label of a table, `site` is a class, also where folders of this name are none.
    (data / "marks.csv").write_text(f"{MARKED}pond/a.wav,0,1,site\n")
    rows = "site/a.wav,5,6,Owl,yes,Owl\nTit/1.wav,5,6,Tit,yes,Tit\n"
    found = decided(data, rows, annotations=str(data / "marks.csv"))
    assert labels_of(found, "pond/a.wav") == (Label("site", 0, 1),)
