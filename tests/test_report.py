"""birdtune.reporting.report and figures: what the page says, shows and refuses to run."""

import base64
import dataclasses
import hashlib
import html
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from makers import recording
from markupsafe import Markup

from birdtune.audio.logmel import VGGISH, display, log_mel
from birdtune.data.dataset import Dataset
from birdtune.data.labels import Label
from birdtune.data.split import Place
from birdtune.evaluation import metrics
from birdtune.evaluation.calibration import Calibration, Scale
from birdtune.evaluation.decision import BACKGROUND, NOMINAL, OWN, SHARED, Thresholds
from birdtune.evaluation.diagnostics import MILD, STRONG, Diagnostic
from birdtune.evaluation.event_metrics import Event
from birdtune.evaluation.part import evaluate_part
from birdtune.evaluation.part import quick_look as quick_look_at
from birdtune.evaluation.recording_events import Compared
from birdtune.evaluation.reliability import evaluate_calibration
from birdtune.evaluation.scores import Scores, clip_scores, one_hot, pool_mean
from birdtune.evaluation.thresholds import evaluate_decisions, evaluate_ood
from birdtune.models.known import KNOWN
from birdtune.reporting import calibration_section, class_section, figures, report
from birdtune.reporting.calibration_section import (
    alarms_sentence,
    calibration_sentence,
    decided_sentence,
    meaning_sentence,
    thresholds_sentence,
)
from birdtune.reporting.event_section import RecordingEvents
from birdtune.reporting.report import Clip, ReportData, write_report
from birdtune.reporting.report_data import class_rows
from birdtune.reporting.tables import write_tables
from birdtune.reporting.verdict import Verdict, of_scores, verdict
from birdtune.runtime import text as words
from birdtune.runtime.files import read_csv

CLASSES = ("Parus_major", "Strix_aluco", "Turdus_merula", "=HYPERLINK(1)")
HOSTILE = 'Parus_major/<img src=x onerror="alert(1)">\n\u202egpj.wav'
PATCHES = 8


@pytest.fixture(autouse=True, scope="module")
def _each_figure_is_drawn_once() -> Iterator[None]:
    """Most pages here have the same curves and intervals, and drawing them takes longer than the rest of a page."""

    def once(draw: Callable[..., Markup]) -> Callable[..., Markup]:
        drawn: dict[str, Markup] = {}

        def draw_once(*given: Any) -> Markup:
            if (key := repr(given)) not in drawn:
                drawn[key] = draw(*given)
            return drawn[key]

        return draw_once

    with pytest.MonkeyPatch.context() as patch:
        for name in ("headline", "learning_curves"):
            patch.setattr(figures, name, once(getattr(figures, name)))
        yield


def make_scores(labels: list[int], said: list[int], sureness: list[float], names: dict[int, str]) -> Scores:
    """Recordings of eight windows; the window after the fifth second is the surest. Two slices a source."""
    n, c = len(labels), len(CLASSES)
    table = np.zeros((n, PATCHES, c))
    for k in range(n):
        table[k] = (1 - sureness[k]) / (c - 1)
        table[k, :, said[k]] = sureness[k]
        table[k, 5, said[k]] += 0.01
    return Scores(
        classes=CLASSES,
        recordings=tuple(names.get(k, f"{CLASSES[label]}/{k}.wav") for k, label in enumerate(labels)),
        groups=tuple(f"source {k // 2}" for k in range(n)),
        targets=one_hot(labels, c),
        window_scores=table.reshape(-1, c).astype(np.float32),
        window_recording=np.repeat(np.arange(n), PATCHES),
        window_start_s=np.tile(np.arange(PATCHES) * 0.96, n).astype(np.float32),
    )


def make_data(**changes: Any) -> ReportData:
    """100 test recordings, ten wrong; Turdus_merula is tested but never answered, the last is untested."""
    labels = [0] * 50 + [1] * 46 + [2] * 4
    said = [1] * 6 + [0] * 44 + [1] * 46 + [0] * 4
    sure = [0.95, 0.94, 0.7, 0.6, 0.6, 0.6, *[0.9] * 90, *[0.5] * 4]
    scores = make_scores(labels, said, sure, {0: HOSTILE})
    judged = evaluate_part(scores, train_counts=np.array([30, 20, 3, 1]), n_bootstrap=100, seed=0)
    rows = [
        {
            "class": name,
            "recordings": 60,
            "minutes": 10.0,
            "train": 30,
            "val": 5,
            "test": 25,
            "external_id": 7,
        }
        for name in CLASSES
    ]
    problem = {"recording": HOSTILE, "class": "Parus_major", "problem": "corrupt", "used": "no"}
    data = ReportData(
        version=3,
        created="2026-01-02T03:04:05+00:00",
        birdtune_version="0.1.0",
        command="birdtune run",
        settings={"train.epochs": "40", "train.seed": "1"},
        changed=frozenset({"train.epochs"}),
        classes=CLASSES,
        class_rows=rows,
        metrics={"val": None, "test": judged},
        scores={"test": scores},
        history=[{"epoch": 1, "train_loss": 1.5, "val_loss": None}, {"epoch": 2, "train_loss": 0.5}],
        best_epoch=2,
        problems=[{**problem, "detail": "bad header", "advice": "Copy it again."}],
        books={"found": 241, "used": 240, "left_out": {"corrupt": 1}},
        notices=["Class X has one source only."],
        diagnostics=[],
        verdict=Verdict("good", "Clearly better than guessing", "The test rests on 50 source recordings."),
        hardware={"processor": "two cores"},
        stages={"train": 3725.0},
        window_s=0.96,
        listen=lambda recording, start_s, seconds: None,
    )
    if "metrics" in changes and "diagnostics" not in changes:
        changes["diagnostics"] = of_scores(changes["metrics"])
        changes["verdict"] = verdict(changes["metrics"], changes["diagnostics"])
    return dataclasses.replace(data, **changes)


def trusted_data() -> ReportData:
    """As `make_data`, with ten recordings of a score near 0.8, calibration, thresholds and false alarms."""
    data = make_data()
    scores = data.scores["test"]
    pooled = clip_scores(scores).copy()
    pooled[20:30, 0] = 0.86
    scores = dataclasses.replace(scores, pooled=pooled.astype(np.float32))
    chosen = Thresholds(
        (0.85, 0.5, float("inf"), 0.9), (OWN, SHARED, BACKGROUND, NOMINAL), "at most 2 false alarms an hour",
        "There are too few held-out recordings.",
    )  # fmt: skip
    drawing: dict[str, Any] = {"n_bootstrap": 100, "seed": 0}
    judged = {
        **evaluate_part(scores, train_counts=np.array([30, 20, 3, 1]), **drawing),
        "calibration": evaluate_calibration(scores, pool_mean(scores), **drawing),
        "decisions": evaluate_decisions(scores, chosen, **drawing),
    }
    heard = {
        "hours": 1 / 60, "recordings": 1, "recordings_decided": 1, "alarms": 1, "alarms_per_hour": 60.0,
        "windows_passing": 0.5, "per_class": [{"class": "Strix_aluco", "alarms": 1, "alarms_per_hour": 60.0}],
    }  # fmt: skip
    trust = {
        "calibration": Calibration("softmax", Scale(1.25), Scale(2.0), 30).row(),
        "thresholds": chosen.row(CLASSES), "ood": {"scale": None, "reason": "too few"},
        "refit": None, "false_alarms": {
            "background": {"part": "test", "chosen_on": False, **heard},
            "noise": [{"noise": "pink noise", "decision": None, "score": None, **heard}],
        },
    }
    return dataclasses.replace(data, metrics={"val": None, "test": judged}, scores={"test": scores}, trust=trust)


class Page(HTMLParser):
    """Tags with their attributes, and the text, of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.parts: list[str] = []
        self.hidden = 0
        self.feed(source)
        self.text = re.sub(r"\s+", " ", "".join(self.parts))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.hidden += tag in ("style", "script")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("style", "script")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data)


def page_of(data: ReportData, folder: Path) -> Page:
    path = folder / "report.html"
    write_report(path, data)
    return Page(path.read_text("utf-8"))


def test_the_title_counts_only_classes_that_were_taught(tmp_path: Path) -> None:
    data = make_data()
    rows = [{**row, "train": 0} if place == 1 else row for place, row in enumerate(data.class_rows)]
    n = sum(row["train"] for row in rows)
    text = page_of(dataclasses.replace(data, class_rows=rows), tmp_path).text
    assert f"Trained on {n} recordings of 3 classes" in text


def test_the_title_counts_what_a_second_training_has_learnt_from(tmp_path: Path) -> None:
    data = trusted_data()
    refit = {"epochs": 4, "recordings": 150, "cross_fitted": True, "reason": ""}
    text = page_of(dataclasses.replace(data, trust={**(data.trust or {}), "refit": refit}), tmp_path).text
    assert "Trained on 150 recordings of 4 classes" in text
    assert "trained once more, for 4 epochs, on all 150 recordings of training and validation. Figures of" in text


def test_the_first_screen_says_what_how_well_and_against_what(tmp_path: Path) -> None:
    text = page_of(make_data(), tmp_path).text
    assert "Trained on 120 recordings of 4 classes, tested on 100 recordings of other sources" in text
    assert re.search(
        r"90\s% Top-1 accuracy on 100 test recordings, 4 classes \(95\s% interval: 7\d to 9",
        text,
    )
    assert re.search(r"Majority baseline \(always “Parus_major”\): 50\s%", text)
    assert "Clearly better than guessing. The test rests on 50 source recordings" in text
    assert "Lowest recall: Turdus_merula (0 of 4), Parus_major (44 of 50)." in text
    assert "Class X has one source only." in text


def test_whose_recordings_they_are_is_on_the_page(tmp_path: Path) -> None:
    row = {"licence": f"CC BY 4.0 {HOSTILE}", "recordings": 3, "authors": f"Anna {HOSTILE} (3)"}
    page = page_of(make_data(licences=[row]), tmp_path)
    assert "Whose recordings these are" in page.text and "CC BY 4.0" in page.text and "Anna" in page.text
    assert not any(attributes.get("src") == "x" for _, attributes in page.tags)
    assert "Whose recordings" not in page_of(make_data(), tmp_path).text


def test_where_the_leak_test_warns_the_headline_claims_less_and_the_rest_stands_beside_it(tmp_path: Path) -> None:
    leak = {"near": 30, "far": 70, "far_accuracy": 0.8571, "far_accuracy_ci": [0.75, 0.93]}
    warning = Diagnostic("test-leak", MILD, "Test recordings sound like clips of training recordings: 30.", "Join.")
    warned = words.plain(page_of(make_data(leak=leak, diagnostics=[warning]), tmp_path).text)
    assert "tested on 100 recordings birdtune" not in warned and "of other sources" not in warned
    assert "86 %without the 30 that sound like clips of training recordings" in warned
    fine = page_of(make_data(leak=leak), tmp_path).text
    assert "tested on 100 recordings of other sources" in fine and "without the 30" not in fine


def test_a_metric_is_one_function_and_appears_in_figures_tables_and_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "METRICS", metrics.METRICS)
    monkeypatch.setitem(metrics.METRICS, "brier", None)  # put back as it was afterwards

    @metrics.metric("brier", "Brier score", "Mean squared distance of score and truth.")
    def brier(scores: Any, positive: Any, weights: Any) -> Any:
        return (weights * (scores - positive) ** 2).sum(axis=0) / weights.sum(axis=0)

    data = make_data(history=[{"epoch": 1, "train_loss": 1.0, **{f"val_{k}": v for k, v in quick_look().items()}}])
    test = data.metrics["test"]
    assert test is not None
    low, high = test["clip"]["macro_brier_ci"]
    expected = np.mean((clip_scores(data.scores["test"]) - data.scores["test"].targets) ** 2)
    assert low < test["clip"]["macro_brier"] < high
    assert test["clip"]["macro_brier"] == pytest.approx(expected)
    assert test["per_class"][0]["brier_ci"] is not None and "macro_brier" in test["window"]
    write_tables(tmp_path, data)
    row = read_csv(tmp_path / "per_class.csv")[0]
    assert float(row["test_brier_lo"]) < float(row["test_brier"]) < float(row["test_brier_hi"])
    page = page_of(data, tmp_path)
    assert ">Brier score, test</text>" in page.source  # the first figure
    assert page.source.count(">Brier score</text>") == 1  # the curves
    for place in ("by-class", "glossary", "Figures of every epoch"):
        assert "Brier score" in page.source[page.source.index(place) :].partition("</section>")[0], place


def quick_look() -> dict[str, Any]:
    return quick_look_at(make_data().scores["test"], "softmax")


def test_with_several_classes_a_recording_the_page_leads_with_average_precision(tmp_path: Path) -> None:
    one = make_data()
    targets = one.scores["test"].targets.copy()
    targets[60:80, 0] = 1.0  # a second bird
    targets[95] = 0.0  # none
    scores = dataclasses.replace(one.scores["test"], targets=targets)
    found = evaluate_part(scores, train_counts=np.array([30, 20, 3, 1]), n_bootstrap=50, seed=0)
    data = make_data(scores={"test": scores}, metrics={"val": None, "test": found})
    text = words.plain(page_of(data, tmp_path).text)
    assert "Mean average precision (mAP) on 100 test recordings, 4 classes" in text
    assert "Recordings have several classes, or none." in text and "Parus_major, Strix_aluco" not in text
    write_tables(tmp_path, data)
    classes = [row["class"] for row in read_csv(tmp_path / "predictions.csv")]
    assert classes[60] == "Parus_major;Strix_aluco" and classes[95] == ""


def test_where_labels_have_times_the_page_is_of_events_and_windows(tmp_path: Path) -> None:
    data = make_data()
    scores = data.scores["test"]
    inside = np.zeros(scores.window_scores.shape, np.bool_)
    inside[::2] = scores.positive[scores.window_recording][::2]  # every other window holds the class of its recording
    scores = dataclasses.replace(scores, window_targets=inside, window_mask=np.ones_like(inside))
    found = evaluate_part(scores, train_counts=np.array([30, 20, 3, 1]), n_bootstrap=100, seed=0)
    of_class = {"events": 40, "detections": 10, "precision": 0.5, "recall": 0.125, "f1": 0.2}
    per_class = [{"class": name, **of_class} for name in CLASSES]
    own = {"events": 160, "detections": 40, "precision": 0.5, "recall": 0.125, "f1": 0.2, "f1_ci": [0.1, 0.3]}
    found["events"] = {
        "events": {**own, "per_class": per_class}, "segments": own, "segment_s": 1.0, "recordings": 100,
        "recordings_left_out": 0, "least_overlap": 0.3, "hop_s": 0.96,
    }  # fmt: skip
    lower = Thresholds((0.2,) * 4, (SHARED,) * 4, "the highest F1 of events", "")
    found |= {
        "calibration": evaluate_calibration(scores, scores.window_scores, n_bootstrap=50, seed=0), "ood": None,
        "decisions": evaluate_decisions(scores, lower, n_bootstrap=50, seed=0),
    }  # fmt: skip
    trust = {**(trusted_data().trust or {}), "detection_thresholds": lower.row(CLASSES)}
    given: Any = {"metrics": {"val": None, "test": found}, "scores": {"test": scores}, "trust": trust}
    timed = make_data(**given, diagnostics=[], best_epoch_by="windows")
    page = page_of(timed, tmp_path)
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert "20 % F1 of 160 events in 100 test recordings, 4 classes (95 % interval: 10 to 30 %)." in text
    assert "(always “no class”: 50 %)" in text and "(in a random order:" in text and "recall of events" in text
    assert "top-1" not in text.partition("Glossary")[0], "of whole recordings"
    assert not {"confused", "listen"} & {values.get("id") for _, values in page.tags}
    write_tables(tmp_path, timed)
    row = read_csv(tmp_path / "per_class.csv")[0]
    assert (row["test_events"], row["test_event_recall"], row["test_windows"]) == ("40", "0.125", "200")
    assert row["detection_threshold"] == "0.2" and row["threshold"] != "0.2" and text.count("0.20") >= 4
    assert "The thresholds were chosen on held-out recordings, for the highest F1 of events." in text
    assert "there are 40 detections in the 100 test recordings. Of these 50 % are right, and of the 160" in text
    assert "equally many windows" in text and "test windows with a score between" in text
    assert 0 < float(row["test_window_ap_lo"]) < float(row["test_window_ap"]) < 1
    for n, words_said in ((1, "The only test recording with events."), (2, "All 2 test recordings with events, those")):
        compared = [Compared(k, f"{k}.wav", 20.0, [Event(0, 1.0, 2.0)], [], []) for k in range(n)]
        shown = dataclasses.replace(timed, events=RecordingEvents(CLASSES, compared, lower, 0.96))
        text = words.plain(page_of(shown, tmp_path).text)
        assert words_said in text and "the worst" not in text and "0.wav: F1 0 %; 0 of 1 annotated event" in text


def test_label_issues_can_be_listened_to_and_names_in_them_are_only_text(tmp_path: Path) -> None:
    row = {
        "rank": 1, "recording": "<script>z</script>.wav", "class": "<b>a</b>", "suggested": "</td>b",
        "label_issue_score": 0.9, "class_score": 0.01, "suggested_score": 0.9, "source_recording": "g",
        "split": "test", "seconds": 5.0, "start_s": 1.44,
        "why": "others say <i>so</i>",
    }  # fmt: skip
    found = {"reason": "", "scored": 400, "single_source": ["<u>c</u>"], "rule": "As a rule.", "rows": [row] * 300,
             "several": False, "with_times": 0}  # fmt: skip
    page = page_of(make_data(label_issues=found, listen=tone), tmp_path)
    section = page.source[page.source.index('<section id="labels">') : page.source.index('<section id="calibration">')]
    assert "300 labels</b> of 400 may be wrong" in section and "As a rule." in section
    assert section.count("<audio") == 8 and section.count("<svg") + section.count("<img") >= 8
    assert section.count("<tr>") == 201 and "The first 200 of 300" in section
    assert not any(mark in section for mark in ("<script>z", "<b>a</b>", "</td>b", "<i>so</i>", "<u>c</u>"))
    assert "framed from 1.4 s" in section and "others say" in section

    assert "in training or selection. As a rule." in page.text

    none = page_of(make_data(label_issues={**found, "rows": []}), tmp_path).text
    assert "None of the 400 labels that were checked looks wrong" in none
    why = page_of(make_data(label_issues={**found, "rows": [], "reason": "no backbone"}), tmp_path).text
    assert "Labels were not checked: no backbone." in why
    assert "Label issues" not in page_of(make_data(), tmp_path).text


def test_an_error_whose_label_may_be_wrong_is_reported_as_such_and_no_label_as_the_truth(tmp_path: Path) -> None:
    data = make_data()
    worst = report.worst_errors(data.scores["test"], clip_scores(data.scores["test"]))
    row = {
        "rank": 1, "recording": data.scores["test"].recordings[worst[0].index], "class": "a", "suggested": "b",
        "label_issue_score": 0.9, "class_score": 0.1, "suggested_score": 0.9, "source_recording": "g",
        "split": "test", "seconds": 5.0,
        "start_s": 0.0, "why": "so",
    }  # fmt: skip
    found = {"reason": "", "scored": 400, "single_source": [], "rule": "", "rows": [row],
             "several": False, "with_times": 0}  # fmt: skip
    cards = page_of(make_data(label_issues=found), tmp_path).source.split('<figure class="card"')[1:]
    wrong = [card for card in cards if "error</span> Labelled <b>" in card]
    assert len(wrong) > 1 and "It is <b>" not in "".join(cards)
    marked = {"The label may be wrong" in card for card in wrong if str(report.name(row["recording"])) in card}
    assert marked == {True}
    others = [card for card in wrong if str(report.name(row["recording"])) not in card]
    assert others and not any("The label may be wrong" in card for card in others)


def test_nothing_is_fetched_and_only_its_own_script_may_run(tmp_path: Path) -> None:
    page = page_of(make_data(listen=tone), tmp_path)
    script = re.search(r"<script>(.*?)</script>", page.source, re.DOTALL)
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert script is not None and policy is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "img-src data:" in policy and "media-src data:" in policy
    assert script[1].count("addEventListener") >= 3
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
        assert not any(name.startswith("on") for name in attributes)
    assert "@import" not in page.source and "url(" not in re.sub(r"url\(#\w+\)", "", page.source)


def test_hostile_names_are_shown_and_never_run(tmp_path: Path) -> None:
    classes = ("<script>x</script>", "$\\frac$", "a\u202eb\ud800", "]]>&amp;")
    data = make_data()
    scores = dataclasses.replace(data.scores["test"], classes=classes)
    judged = evaluate_part(scores, train_counts=np.array([30, 20, 3, 1]), n_bootstrap=10, seed=0)
    rows = [{**row, "class": name} for row, name in zip(data.class_rows, classes, strict=True)]
    hostile = make_data(
        classes=classes, scores={"test": scores}, metrics={"test": judged}, class_rows=rows, listen=tone,
        notices=["<b>bold</b>"], command="birdtune '\"><script>y</script>", hardware={"<i>": "</td>"},
    )  # fmt: skip
    page = page_of(hostile, tmp_path)
    assert page.source.count("<script>") == 1
    assert not [a for tag, a in page.tags if tag == "img"]
    assert "\u202e" not in page.source
    for name in ("<script>x</script>", "$\\frac$", "a\\u202eb\\ud800", "]]>&amp;", "<b>bold</b>", "<i>"):
        assert name in page.text
    assert 'Parus_major/<img src=x onerror="alert(1)">\\n\\u202egpj.wav' in page.text
    assert page.text.count("]]>&amp;") >= 2  # in the table and in the matrix


def tone(recording: str, start_s: float, seconds: float) -> Clip:
    time = np.arange(round(seconds * 16_000)) / 16_000
    wave = (0.01 * np.sin(2 * np.pi * 2000 * time)).astype(np.float32)
    return Clip(wave, 16_000)


def test_the_clips_are_playable_amplified_and_lie_around_the_most_confident_window(tmp_path: Path) -> None:
    asked = []

    def listen(recording: str, start_s: float, seconds: float) -> Clip:
        asked.append((recording, start_s, seconds))
        return tone(recording, start_s, seconds)

    page = page_of(make_data(listen=listen), tmp_path)
    assert asked[0][0] == "Strix_aluco/50.wav" or HOSTILE in [name for name, *_ in asked]
    # Window 5 is from 4.80 to 5.76 s; six seconds around it would end after the recording, which has 7.68 s.
    assert {(round(start, 2), seconds) for _, start, seconds in asked} == {(1.68, 6.0)}
    sounds = [a["src"] or "" for tag, a in page.tags if tag == "audio"]
    # Errors come from five sources (three pairs of slices, then two); two pairs of classes, two examples.
    assert len(sounds) == 5 + 2 + 2
    kind, content = sounds[0].split(",")
    assert kind in ("data:audio/mpeg;base64", "data:audio/flac;base64")
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(content)))
    assert rate == 16_000 and abs(len(samples) / rate - 6.0) < 0.2
    assert 0.25 < np.abs(samples).max() < 0.4  # 0.01 raised by 30 dB
    assert "framed from 4.8 s" in page.text
    assert page.source.count('aria-label="Spectrogram, 1.7 to 7.7 s') == len(sounds)


def test_worst_errors_are_the_surest_ones_one_from_a_source() -> None:
    scores = make_data().scores["test"]
    found = report.worst_errors(scores, pool_mean(scores))
    assert [(example.index, example.predicted) for example in found] == [(0, 1), (2, 1), (4, 1), (96, 0), (98, 0)]


def test_pair_errors_prefer_what_was_not_shown_yet() -> None:
    data = make_data()
    scores, judged = data.scores["test"], data.metrics["test"]
    assert judged is not None
    found = report.pair_errors(scores, pool_mean(scores), judged["confusion_pairs"], {0, 2, 4, 96})
    assert [(pair["true"], example.index) for pair, example in found] == [
        ("Parus_major", 1),
        ("Turdus_merula", 97),
    ]


def test_what_ood_rejection_costs_is_said_and_drawn(tmp_path: Path) -> None:
    data = trusted_data()
    assert data.trust is not None
    ood_score = np.append(np.full(95, 0.5), np.full(5, 99.0)).astype(np.float32)
    scores = {"test": dataclasses.replace(data.scores["test"], ood_score=ood_score)}
    test = {**(data.metrics["test"] or {}), "ood": evaluate_ood(scores["test"], n_bootstrap=100, seed=0)}
    (pink,) = data.trust["false_alarms"]["noise"]
    noise = [
        {**pink, "ood_score": 0.4, "decision": "<b>Owl", "score": 0.98},
        {**pink, "ood_score": 1.5, "decision": None, "score": None},
    ]
    scale = {"energy_weight": 1.0, "median": 2.0, "limit": 3.0, "target_recall": 0.9, "sources": 40}
    trust = {
        **data.trust, "ood": {"scale": scale, "reason": ""},
        "false_alarms": {**data.trust["false_alarms"], "noise": noise},
    }  # fmt: skip
    full = dataclasses.replace(data, trust=trust, scores=scores, metrics={"val": None, "test": test})
    page = page_of(full, tmp_path)
    text = words.plain(page.text)
    assert "than 90 % of the validation recordings" in text
    assert "Of the 100 test recordings, all of known classes, 95 % (" in text
    assert "Of 2 synthetic noises, 1 was rejected." in text
    assert page.source.count("OOD scores of known recordings and of synthetic noises") == 1
    table = page.source[page.source.index("decision for the whole") :].partition("</table>")[0]
    decisions = [html.unescape(cell) for cell in re.findall(r'<td class="text">([^\n]*)</td></tr>', table)]
    assert [words.plain(each) for each in decisions] == ["<bdi><b>Owl</bdi> (98 %)", "unknown"]
    off = {**trust, "ood": {"scale": None, "reason": "validation is too small"}}
    page = page_of(dataclasses.replace(full, trust=off), tmp_path)
    assert "Nothing is rejected as out of distribution: validation is too small." in page.text
    assert "OOD scores of known" not in page.source


def test_recordings_that_are_gone_or_silent_do_not_break_the_page(tmp_path: Path) -> None:
    silence = Clip(np.zeros(96_000, np.float32), 16_000)
    scrap = Clip(np.zeros(10, np.float32), 16_000)
    clips = iter([silence, scrap])
    page = page_of(make_data(listen=lambda *_: next(clips, None)), tmp_path)
    assert page.text.count("This clip is silent") == 1
    # Of nine cards one is silent; neither the scrap nor the seven that are gone have a picture.
    assert page.text.count("No sound of this recording can be read") == 8
    assert page.source.count('aria-label="Spectrogram') == 1
    assert "<audio" not in page.source


def test_without_a_test_it_says_so_and_never_calls_the_result_good(tmp_path: Path) -> None:
    data = make_data()
    validated = make_data(
        metrics={"val": data.metrics["test"], "test": None}, scores={"val": data.scores["test"]}
    )
    text = page_of(validated, tmp_path).text
    assert "There is no test: " in text and text.count("on which the model was selected") == 1
    assert "Better than guessing, but not independently tested" in text
    assert "Top-1 accuracy on 100 validation recordings" in text and "of other sources" not in text


def test_with_nothing_measured_it_still_tells_what_it_knows(tmp_path: Path) -> None:
    bare = make_data(
        metrics={"val": None, "test": None}, scores={}, history=[], best_epoch=None, problems=[], notices=[],
        changed=frozenset(), books={"found": 240, "used": 240, "left_out": {}},
    )  # fmt: skip
    text = page_of(bare, tmp_path).text
    assert "Nothing was measured. Do not rely on it." in text and "No epoch was finished." in text
    assert "All 240 files found were used." in text
    assert "every setting is at its default" in text
    assert "Parus_major" in text and "Confusion" not in text


def test_what_the_licence_of_the_weights_means_for_the_model_is_said(tmp_path: Path) -> None:
    rows = [("backbone", "BirdNET <2.4>"), *KNOWN["birdnet"].lines()]
    text = page_of(make_data(backbone=rows), tmp_path).text
    assert "BirdNET <2.4>" in text and "CC-BY-NC-SA-4.0. A model made from these weights may not be used" in text
    assert "Xeno-canto" in text and "10.1016/" in text


def test_strong_warnings_stand_before_the_figure_and_mild_ones_below_it_each_once(tmp_path: Path) -> None:
    strong = Diagnostic("loss-never-moved", STRONG, "The training loss never moved: 2.3 in the first epoch.", "Faster.")
    mild = Diagnostic("never-predicted", MILD, "On test, 1 class was never predicted: Turdus <b>merula</b>.", "More.")
    poor = Verdict("poor", "Not shown to be better than guessing", "Do not rely on its predictions.")
    text = page_of(make_data(diagnostics=[strong, mild], verdict=poor), tmp_path).text
    figure = text.index("Top-1 accuracy on 100 test recordings")
    first = text[:figure]
    assert "better than guessing. Do not rely on its predictions. The training loss never moved" in first
    assert "Faster." in first and "Turdus <b>merula</b>" in first
    text = page_of(make_data(diagnostics=[mild]), tmp_path).text
    assert "Clearly better than guessing." in text and text.count("never predicted") == 1
    assert text.index("on 100 test") < text.index("never predicted") < text.index("Results by class")


def test_what_the_verdict_says_is_not_listed_again(tmp_path: Path) -> None:
    small = Diagnostic("small-test", MILD, "The test rests on 9 source recordings: accuracy may lie anywhere.", "More.")
    text = page_of(make_data(diagnostics=[small], verdict=Verdict("fair", "On little", str(small))), tmp_path).text
    assert text.count("rests on 9 source recordings") == 1


def test_external_ids_have_a_column_where_there_are_any(tmp_path: Path) -> None:
    data = make_data()
    without = [{**row, "external_id": None} for row in data.class_rows]
    for rows, expected in ((data.class_rows, True), ([data.class_rows[0], *without[1:]], True), (without, False)):
        heads = re.findall(r"<th[^>]*>(.*?)</th>", page_of(make_data(class_rows=rows), tmp_path).source, re.DOTALL)
        assert any(re.sub(r"<[^>]+>", "", head).strip() == "id" for head in heads) == expected


def test_percentages_are_never_rounded_to_0_or_100() -> None:
    assert [words.percent(x) for x in (1.0, 0.9996, 0.994, 0.5, 0.003, 1e-9, 0.0)] == [
        f"{text}\N{NO-BREAK SPACE}%" for text in ("100", "99.9", "99", "50", "0.3", "0.1", "0")
    ]
    assert words.span([0.0, 0.996]) == "0 to 99.6\N{NO-BREAK SPACE}%"


def test_the_calibration_sentence_tells_the_direction() -> None:
    def judged(*bins: tuple[int, float, float], luck: float = 0.0) -> dict[str, Any]:
        n = sum(count for count, _, _ in bins)
        return {
            "ece": sum(count * abs(said - was) for count, said, was in bins) / n,
            "ece_null_upper": luck,
            "confidence": sum(count * said for count, said, _ in bins) / n,
            "accuracy": sum(count * was for count, _, was in bins) / n,
        }

    def said(*bins: tuple[int, float, float], luck: float = 0.0, sources: int = 30, calibrated: bool = True) -> str:
        found = judged(*bins, luck=luck)
        return calibration_sentence(found, sources=sources, calibrated=calibrated)

    assert "Overconfident: it" in said((10, 0.9, 0.6))
    assert "30 percentage points" in said((10, 0.9, 0.6))
    assert "Underconfident: it" in said((10, 0.5, 0.8))
    assert "Well calibrated" in said((10, 0.5, 0.52))
    assert "Overconfident at some levels" in said((10, 0.5, 0.8), (10, 0.9, 0.6))
    # What luck explains is not asserted first.
    lucky = said((10, 0.9, 0.6), luck=0.31)
    assert lucky.startswith("Too few recordings to tell:")
    assert "by 30 percentage points on average" in lucky and "up to 31." in lucky and "verconfident" not in lucky
    assert "Too few" not in said((10, 0.9, 0.6), luck=0.29)
    many = said((100, 0.9, 0.84), luck=0.08)
    assert "differ by 6 percentage points on average, no more than by chance" in many and "verconfident" not in many
    # Nobody vouches for what was not calibrated, what few sources tell, or what luck would hide.
    assert "though nothing was calibrated" in said((10, 0.5, 0.52), luck=0.04, calibrated=False)
    for weak in (said((10, 0.5, 0.52), sources=29), said((10, 0.5, 0.52), luck=0.2)):
        assert "Well calibrated" not in weak and "2 percentage points" in weak and "few" in weak


def test_thresholds_are_said_to_be_chosen_only_where_they_were() -> None:
    def said(*origins: str) -> str:
        rows = [{"threshold": None if origin == BACKGROUND else 0.9, "from": origin} for origin in origins]
        return thresholds_sentence({"goal": "a precision of 0.9", "reason": "", "classes": rows})

    assert said(OWN, SHARED, BACKGROUND) == "The thresholds were chosen on held-out recordings, for a precision of 0.9."
    assert said(NOMINAL, NOMINAL, BACKGROUND) == "The thresholds are nominal: a score of 0.9."
    assert said(OWN, NOMINAL, BACKGROUND).startswith("The thresholds of 1 of 2 classes were chosen on held-out")


def test_where_some_are_rejected_their_share_stands_beside_the_accuracy(tmp_path: Path) -> None:
    data = trusted_data()
    test = data.metrics["test"]
    assert test is not None
    assert "With the thresholds, 96 of the 100 get a class, " in page_of(data, tmp_path).text
    few = {**test["decisions"], "decided": 79, "decided_share": 0.79, "precision": 0.95}
    page = page_of(dataclasses.replace(data, metrics={"val": None, "test": {**test, "decisions": few}}), tmp_path)
    assert "only 79 of the 100 get a class, 95 % of these correctly" in words.plain(page.text)
    assert page.text.index("only 79 of the 100") < page.text.index("Results by class")
    nobody = {"decisions": {**few, "decided": 0, "decided_share": 0.0, "precision": None}}
    most = {"decisions": {**few, "decided": 90, "decided_share": 0.9, "precision": 0.9}, "n_recordings": 100}
    assert "With the thresholds, 90 of the 100 get a class, 90\xa0% of these correctly" in decided_sentence(most)
    assert not decided_sentence({"decisions": {**few, "decided": 100, "decided_share": 1.0}, "n_recordings": 100})
    assert "every recording is rejected" in decided_sentence(nobody)


def test_a_rate_of_alarms_in_clips_is_distinguished_from_that_in_long_recordings() -> None:
    heard = {"part": "test", "hours": 0.1, "recordings": 72, "recordings_decided": 1}
    of_clips = alarms_sentence(heard)
    assert "As wholes, 1 recording of the 72 would get a class" in of_clips
    assert "last 5 s on average" in of_clips and "up to 720 an hour" in of_clips
    of_hours = alarms_sentence({**heard, "hours": 72.0})
    assert "of the 72 would" in of_hours and "on average" not in of_hours
    assert alarms_sentence(None).startswith("An alarm is")


def test_false_alarms_that_were_counted_where_thresholds_were_chosen_say_so(tmp_path: Path) -> None:
    data = trusted_data()
    assert "that the model was neither trained nor selected on (1 recording" in page_of(data, tmp_path).text
    assert data.trust is not None
    alarms = data.trust["false_alarms"]
    for chosen_on, told in ((True, "on which the thresholds were chosen"), (False, "on which the best epoch was")):
        heard = {**alarms["background"], "part": "val", "chosen_on": chosen_on}
        trust = {**data.trust, "false_alarms": {**alarms, "background": heard}}
        text = page_of(dataclasses.replace(data, trust=trust), tmp_path).text
        assert f"of background {told}" in text and "too low for other background" in text
        assert "trained on (" not in text


def test_decisions_on_the_recordings_that_thresholds_were_chosen_on_say_so() -> None:
    data = trusted_data()
    test, trust = data.metrics["test"], data.trust
    assert test is not None and trust is not None
    nominal = [{**row, "from": NOMINAL} for row in trust["thresholds"]["classes"]]
    untouched = {**trust, "thresholds": {**trust["thresholds"], "classes": nominal}}
    for part, of, chosen_on in (("validation", trust, True), ("test", trust, False), ("validation", untouched, False)):
        section = calibration_section.section(test, part, of)
        assert section is not None
        assert ("chosen on these very recordings" in section["decisions"]) == chosen_on


def test_no_class_is_called_rare_where_all_have_as_many_and_untested_ones_are_named(tmp_path: Path) -> None:
    def told(**rarest: Any) -> str:
        test = {**(make_data().metrics["test"] or {}), "rare_classes": {**numbers, **rarest}}
        return page_of(make_data(metrics={"val": None, "test": test}, diagnostics=[]), tmp_path).text

    numbers: dict[str, Any] = {
        "classes": [], "untested": [], "most_recordings": None, "macro_ap": None, "macro_ap_ci": None,
        "others_macro_ap": None, "others_macro_ap_ci": None, "of": "recordings",
    }  # fmt: skip
    even = told()
    assert "No class is clearly rarer in training than the others." in even and "Settings for rare classes" not in even
    untested = told(untested=[{"class": "Strix_aluco", "recordings": 2}])
    assert "None of the classes in test is clearly rarer" in untested
    assert "Rare, but not in test, so not counted: Strix_aluco (2). Settings for rare classes:" in untested
    two = told(classes=["Strix_aluco", "Turdus_merula"], most_recordings=3, macro_ap=0.5, others_macro_ap=0.75)
    assert "The 2 classes with fewest training recordings (3 or fewer: Strix_aluco, Turdus_merula) reach an" in two
    rare = told(classes=["Strix_aluco"], most_recordings=3, macro_ap=0.5, others_macro_ap=0.75)
    assert "The class with fewest training recordings (Strix_aluco: 3) reaches an average precision" in rare
    assert "the others 75 %. Settings for rare classes:" in rare
    unequal = told(classes=["Strix_aluco"], most_recordings=3, macro_ap=0.5, others_macro_ap=0.75, times=40)
    assert "(none is on, though the largest class has 40 times as many training recordings as the" in unequal


def test_what_each_measure_did_to_rare_classes_is_said_beside_how_it_was_measured(tmp_path: Path) -> None:
    better = {"with": 0.8, "without": 0.5, "gain": 0.3, "ci": [0.1, 0.45]}
    open_ = {"with": 0.9, "without": 0.91, "gain": -0.01, "ci": [-0.05, 0.04]}
    row = {
        "changed": True,
        "rare_recall": better,
        "rare_ap": open_,
        "accuracy": open_,
        "macro_ap": {**open_, "ci": None},
    }
    both = {"train.sampling-power": 1.0, "train.sample-weights": None}
    found: dict[str, Any] = {
        "on": list(both), "reason": "", "classes": ["Strix_aluco"], "unjudged": [HOSTILE],
        "recordings": 6, "sources": 5, "all_recordings": 90, "all_sources": 80,
        "head": "linear", "folds": 5, "every": 1,
        "rows": [
            {**row, "settings": {"train.sampling-power": 1.0}},
            {**row, "settings": {"train.sample-weights": None}, "changed": False},
            {**row, "settings": both},
        ],
    }  # fmt: skip

    def told(data: ReportData) -> str:
        return page_of(data, tmp_path).text.replace("\N{NO-BREAK SPACE}", " ")

    text = told(make_data(rare_class_ablation=found))
    for said in (
        "Ablation: linear heads were trained",
        "The backbone was not trained again", "By 5-fold cross-validation", "test was not used",
        "each of 90 training and validation recordings", "Strix_aluco (6 recordings, 5 sources)",
        "train.sampling-power 1.0", "50 % → 80 %", "+30 (+10 to +45)", "-1 (-5 to +4)", "all together",
        "train.sample-weights changed no score: with the others on, it has no effect",
    ):  # fmt: skip
        assert said in text, said
    assert "window of each recording was used" not in text
    assert "every 2nd window of each recording was used" in told(make_data(rare_class_ablation={**found, "every": 2}))
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "<b>80" in page and "<b>90" not in page.partition("Rare classes")[2]  # bold where 0 is left out
    alone = {**found, "on": ["train.sampling-power"], "rows": found["rows"][:1]}
    one = told(make_data(rare_class_ablation=alone))
    assert (
        "Ablation" in one
        and "all together" not in one
        and "the others stay" not in one
    )
    reason = {"on": ["train.sampling-power"], "reason": "the backbone began from scratch"}
    why = told(make_data(rare_class_ablation=reason))
    assert "The effect of this setting on rare classes was not measured: the backbone began from scratch." in why
    assert "Ablation" not in told(make_data())
    rare = {"classes": [], "untested": [{"class": "Strix_aluco", "recordings": 2}], "times": 40}
    metrics = {"val": None, "test": {**(make_data().metrics["test"] or {}), "rare_classes": rare}}
    by_file = told(make_data(metrics=metrics, diagnostics=[], rare_class_ablation=found))
    assert "train.sample-weightsquality.csvhow much" in by_file  # cells of a row; it is on without being set
    assert "(none is on" not in by_file


def test_what_a_score_means_is_said_from_data() -> None:
    around = {"score": 0.8, "lo": 0.7, "hi": 0.9, "count": 12, "right": 9, "share": 0.75, "share_ci": [0.5, 0.9]}
    said = meaning_sentence(around, "test recording").replace("\N{NO-BREAK SPACE}", " ")
    assert said.startswith("Of the 12 test recordings with a score between 0.7 and 0.9, 9 were right: 75 % (95 %")
    assert "50 to 90 %" in said and said.endswith("That is what a score of 0.8 means here.")
    few = {**around, "count": 9, "share_ci": None}
    assert meaning_sentence(few, "test recording").endswith("So few say little of what a score of 0.8 means here.")
    none = {**around, "count": 0, "right": 0, "share": None, "share_ci": None}
    assert "is not known: no test recording" in meaning_sentence(none, "test recording")


def test_the_page_shows_calibration_thresholds_and_false_alarms(tmp_path: Path) -> None:
    data = trusted_data()
    text = page_of(data, tmp_path).text
    for told in (
        "Of the 11 test recordings with a score between 0.7 and 0.9, 10 were right", "before calibration",
        "as served",
        "at most 2 false alarms an hour", "too few held-out", "0.50 for the mean", "1 false alarm: 60.0 an hour",
        "pink noise", "Strix_aluco (1)", "would give a better estimate. An alarm is",
    ):  # fmt: skip
        assert told in text, told
    write_tables(tmp_path, data)
    rows = {row["class"]: row for row in read_csv(tmp_path / "per_class.csv")}
    assert [rows[name]["threshold"] for name in CLASSES[:3]] == ["0.85", "0.5", ""]
    assert [rows[name]["threshold_from"] for name in CLASSES[:3]] == ["class", "all classes", "background"]
    answers = [row["decision"] for row in read_csv(tmp_path / "predictions.csv")]
    # What was taken for the first class with 0.5 is below its threshold.
    assert Counter(answers)["unknown"] == 4 and answers[0] == "Strix_aluco"


def test_the_class_table_can_be_sorted_by_keyboard_and_its_values_are_exact(tmp_path: Path) -> None:
    page = page_of(make_data(), tmp_path)
    table = re.search(r'<table id="by-class">(.*?)</table>', page.source, re.DOTALL)
    assert table is not None
    assert table[1].count("<th scope=") - table[1].count('<th scope="row"') == table[1].count("<button")
    assert 'data-v="0.88"' in table[1]  # 44 of 50 found
    assert "not tested" in table[1] and "Strix_<wbr>aluco (6)" in table[1]


def test_long_lists_of_files_are_cut_and_the_cut_is_reported(tmp_path: Path) -> None:
    row = {"class": "a", "problem": "corrupt", "used": False, "detail": "d", "advice": "Copy it again."}
    remark = {**row, "recording": "fine.wav", "used": True, "detail": "holds FLAC"}
    problems = [{**row, "recording": f"file{k}.wav"} for k in range(2_100)]
    data = make_data(
        problems=[*problems, remark], books={"found": 9, "used": 9, "left_out": {"corrupt": 2_100}}
    )
    text = page_of(data, tmp_path).text
    assert "The first 2,000 of 2,100 are listed here; all are in problems.csv" in text
    assert "file1999.wav" in text and "file2000.wav" not in text
    assert "Used, with a remark (1)" in text and "holds FLAC" in text
    assert re.search(r"corrupt\s?2,100\s?Copy it again", text)


def test_rows_of_tables_are_no_files_that_are_not_used(tmp_path: Path) -> None:
    row = {"class": "a", "used": False, "detail": "marks.txt, row 3: no end", "advice": "Correct the row."}
    problems = [{**row, "recording": f"night{k}.wav", "problem": "row-invalid"} for k in range(17)]
    data = make_data(
        problems=[*problems, {**row, "recording": "bad.wav", "problem": "corrupt", "detail": "no header"}],
        books={"found": 241, "used": 240, "left_out": {"corrupt": 1}},
        label_rows={"found": 100, "used": 83, "left_out": {"row-invalid": 17}},
    )
    text = words.plain(page_of(data, tmp_path).text)
    assert re.search(r"files not used\s*1\b", text) and "241 files found, 240 used, 1 not used:" in text
    assert "83 of 100 rows of labels used; not used: 17 row-invalid" in text and "marks.txt, row 3: no end" in text
    none = page_of(make_data(problems=problems, books={"found": 240, "used": 240, "left_out": {}}), tmp_path).text
    assert "All 240 files found were used." in none and "Rows of labels not used: 17." in none


def test_a_large_confusion_matrix_names_every_class_and_every_cell_and_has_a_close_up() -> None:
    n = 195
    counts = 5 * np.eye(n, dtype=np.int64)
    counts[3, 7], counts[100, 150] = 4, 9
    names = tuple(f"Genus_species{k:03d}" for k in range(n))
    both = class_section.confusion({"confusion": counts.tolist()}, names)
    assert Counter(re.findall(r"<g class=\"(\w+)", both["whole"])) == {"hit": n, "miss": 2}
    assert "<title>Genus_species100: 9 of 14 predicted as Genus_species150</title>" in both["whole"]
    assert all(both["whole"].count(f">{name}</text>") == 2 for name in names)
    assert both["zoom"].count('class="row"') == class_section.MOST_ZOOMED
    for kept in (3, 7, 100, 150):
        assert f">{names[kept]}</text>" in both["zoom"]
    assert "any other class" in both["zoom"] and ">9</text>" in both["zoom"]


def test_a_small_confusion_matrix_carries_its_numbers() -> None:
    drawn = figures.confusion(np.array([[12, 3], [0, 5]]), ["a", "b"], ["a", "b"])
    assert re.findall(r">(\d+)</text>", drawn) == ["12", "3", "5"]
    assert "a: 3 of 15 predicted as b" in drawn


def test_figures_follow_the_theme_keep_their_letters_and_repeat_exactly() -> None:
    rows = [("top-1 accuracy, test", 0.84, [0.78, 0.89], False), ("baseline", 0.08, None, True)]
    drawn = figures.headline(rows)
    assert isinstance(drawn, Markup) and drawn.startswith('<svg role="img" aria-label=')
    assert (
        "var(--accent)" in drawn
        and "var(--ink)" in drawn
        and "#0a0b0" not in drawn
        and "#000000" not in drawn
    )
    assert ">top-1 accuracy, test</text>" in drawn and ">84 %</text>" in drawn
    assert "<metadata" not in drawn and "<style" not in drawn and 'id="figure' not in drawn
    assert figures.headline(rows) == drawn


def test_a_spectrogram_has_hertz_and_the_seconds_of_the_recording() -> None:
    # A tone of 2 kHz lies in the band whose tick is 2,000: its row is the brightest of the picture.
    tone = np.sin(2 * np.pi * 2000 * np.arange(96_000) / 16_000).astype(np.float32)
    look = display(16_000)
    frames = log_mel(tone, look)
    drawn = html.unescape(str(figures.spectrogram(frames, look, 10.0, (10.5, 11.46))))
    labels = re.findall(r">([^<>]+)</text>", drawn)
    assert {"250", "1,000", "2,000", "7,000", "Hz", "11 s"} <= set(labels)
    assert "data:image/png;base64" in drawn
    tick = re.search(r'translate\([\d.]+ ([\d.]+)\)">2,000<|y="([\d.]+)"[^>]*>2,000<', drawn)
    assert tick is not None
    height = 1.85 * 72
    _, bottom, _, share = figures.SPECTROGRAM_BOX
    band = int(np.argmax(frames.mean(axis=0)))  # 0 … 63 from below
    expected = height * (1 - bottom - share * (band + 0.5) / 64)
    assert float(tick[1] or tick[2]) == pytest.approx(expected, abs=0.03 * height)


def test_the_tables_hold_every_recording_and_pair_and_the_very_names_of_the_classes(tmp_path: Path) -> None:
    data = make_data()
    write_tables(tmp_path, data)
    predictions = read_csv(tmp_path / "predictions.csv")
    assert len(predictions) == 100
    first = predictions[0]
    assert (first["recording"], first["class"], first["split"]) == (HOSTILE, "Parus_major", "test")
    assert (first["predicted"], first["correct"], first["rank"]) == ("Strix_aluco", "no", "2")
    assert float(first["score"]) == pytest.approx(0.95125, abs=1e-5)
    assert (first["second"], first["third"]) == ("Parus_major", "Turdus_merula")
    assert sum(row["correct"] == "yes" for row in predictions) == 90
    pairs = {
        (row["true"], row["predicted"]): int(row["count"]) for row in read_csv(tmp_path / "confusion.csv")
    }
    assert pairs == {
        ("Parus_major", "Parus_major"): 44,
        ("Parus_major", "Strix_aluco"): 6,
        ("Strix_aluco", "Strix_aluco"): 46,
        ("Turdus_merula", "Parus_major"): 4,
    }
    classes = read_csv(tmp_path / "per_class.csv")
    assert [row["class"] for row in classes] == list(CLASSES)
    assert (classes[0]["test_recall"], classes[0]["val_recall"], classes[3]["test_recall"]) == (
        "0.88",
        "",
        "",
    )
    assert float(classes[0]["test_recall_lo"]) < 0.88 < float(classes[0]["test_recall_hi"])
    assert '\n"=HYPERLINK(1)",' in (tmp_path / "per_class.csv").read_text("utf-8")


def test_two_classes_have_no_third_prediction(tmp_path: Path) -> None:
    full = make_data()
    scores = full.scores["test"]
    two = dataclasses.replace(
        scores,
        classes=CLASSES[:2],
        targets=one_hot(np.minimum(scores.labels, 1), 2),
        window_scores=scores.window_scores[:, :2],
    )
    judged = evaluate_part(two, train_counts=np.array([3, 2]), n_bootstrap=10, seed=0)
    data = make_data(
        classes=CLASSES[:2], class_rows=full.class_rows[:2], scores={"test": two}, metrics={"test": judged}
    )
    write_tables(tmp_path, data)
    assert read_csv(tmp_path / "predictions.csv")[0]["third"] == ""
    assert "top 3" not in page_of(data, tmp_path).source


def test_where_no_epoch_was_kept_the_page_says_so_and_draws_what_there_is(tmp_path: Path) -> None:
    first = {"epoch": 0, "train_loss": None, "learning_rate": None, "val_loss": 0.5, "val_accuracy": 0.9, "seconds": 1}
    later = {"epoch": 1, "train_loss": 1.5, "learning_rate": 0.1, "val_loss": 0.6, "val_accuracy": 0.8, "seconds": 2}
    page = page_of(make_data(history=[first, later], best_epoch=0), tmp_path)
    assert "Trained without improvement on 120 recordings" in page.text and "0 of 1" in page.text
    assert "the model has that classifier's weights" in page.text
    cells = r"learning ratetime 0-0\.500090\s%- 1 s11\.50000\.600080\s%0\.1 2 s"
    assert re.search(cells, page.text.replace(words.UNKNOWN, "-"))


def test_sentences_keep_flags_and_units_together_and_markup_out() -> None:
    assert report.prose("<b> 41 to 87 % --train.epochs 5") == (
        '&lt;b&gt; 41 to 87\N{NO-BREAK SPACE}% <code class="flag">--train.epochs</code> 5'
    )


@pytest.mark.parametrize(
    ("value", "low", "high", "at", "side"),
    [(0.4, 0.3, 0.6, 0.625, "left"), (0.9, 0.7, 1.0, 0.675, "right"), (0.44, 0.04, 0.92, 0.475, "left"),
     (0.9, 0.1, 1.0, 0.865, "right")],
)  # fmt: skip
def test_a_figure_of_a_wide_interval_stands_on_it_and_not_on_the_name_of_its_row(
    value: float, low: float, high: float, at: float, side: str
) -> None:
    place, where = figures._beside(value, low, high)
    assert (round(place, 6), where) == (at, side)


def test_a_recording_counts_for_each_of_its_classes() -> None:
    both = dataclasses.replace(recording("Owl/2.wav", duration_s=30.0), labels=(Label("Owl"), Label("Tit")))
    recordings = [recording("Owl/1.wav", duration_s=60.0), both]
    places = {"Owl/1.wav": Place("a", "train"), "Owl/2.wav": Place("b", "test")}
    owl, tit, wren = class_rows(Dataset(VGGISH, ("Owl", "Tit", "Wren"), recordings, places, [], [], {}))
    assert (owl["recordings"], owl["sources"], owl["minutes"], owl["train"], owl["test"]) == (2, 2, 1.5, 1, 1)
    assert (tit["recordings"], tit["minutes"], tit["train"], tit["test"]) == (1, 0.5, 0, 1)
    assert (wren["recordings"], wren["sources"], wren["minutes"]) == (0, 0, 0)
