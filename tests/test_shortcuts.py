"""The metadata baseline: what tells classes without song, what the verdict makes of it, and what people are told."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from test_job import record, run, settings
from test_report import make_data

from birdtune.audio.decode import SoundFacts
from birdtune.audio.logmel import VGGISH
from birdtune.audio.measures import BAND_EDGES_HZ, Measures, encode_bands
from birdtune.data import properties
from birdtune.data.dataset import Dataset
from birdtune.data.labels import Label
from birdtune.data.scan import Recording
from birdtune.data.split import Place
from birdtune.errors import Interrupted
from birdtune.evaluation import diagnostics, shortcuts
from birdtune.evaluation.diagnostics import MILD, STRONG
from birdtune.evaluation.scores import Scores, one_hot
from birdtune.reporting.report import write_report
from birdtune.reporting.shortcut_section import limit_hz, line, of_shortcuts, section
from birdtune.reporting.verdict import all_diagnostics, verdict
from birdtune.runtime.files import read_json

A, B = "Apus apus", "Bubo bubo"
Change = Callable[[int, str, np.random.Generator], dict[str, Any]]


def measures(rng: np.random.Generator, **changes: Any) -> Measures:
    bands = 10 ** (rng.normal(-6, 0.3, len(BAND_EDGES_HZ) - 1))
    usual = {
        "level_db": round(float(rng.normal(-25, 4)), 1), "offset": 0.0, "clipped": 0.0, "click": 0.1, "empty": 0.0,
        "gaps": 0.0, "leading": 0.0, "bandwidth_hz": 20_000, "spectrum": encode_bands(10 * bands),
        "floor": encode_bands(bands),
    }  # fmt: skip
    return Measures(**{**usual, **changes})


def made(change: Change, *, each: int = 40, classes: Sequence[str] = (A, B)) -> Dataset:
    """Recordings, each its own source, that are alike but for `change(number, class, rng)`: of facts, or measures."""
    rng = np.random.default_rng(5)
    recordings, places = [], {}
    for label in classes:
        for k in range(each):
            given = change(k, label, rng)
            of_name = given.pop("below", f"rec{k}.wav")
            facts = {"rate_hz": 44_100, "channels": 1, "duration_s": round(float(rng.uniform(3, 30)), 2),
                     "peak_db": -8.0, "format": "WAV PCM_16"}  # fmt: skip
            of_facts = {key: given.pop(key) for key in list(given) if key in facts}
            known = SoundFacts(**{**facts, **of_facts}, measures=measures(rng, **given))
            name = f"{label}/{of_name}"
            recordings.append(Recording(name, Path(name), (Label(label),), name, known))
            places[name] = Place(name, ("train", "train", "val", "test")[k % 4])
    return Dataset(VGGISH, tuple(sorted(classes)), recordings, places, [], [], {})


def answers(dataset: Dataset, right: Callable[[Recording, int], bool]) -> Scores:
    """What a model says that is right where it is asked to be; else the next class."""
    part = dataset.part("test")
    labels = np.array([dataset.classes.index(recording.label) for recording in part])
    n = len(dataset.classes)
    said = [label if right(r, k) else (label + 1) % n for k, (r, label) in enumerate(zip(part, labels, strict=True))]
    return Scores(
        dataset.classes, tuple(r.name for r in part), tuple(dataset.places[r.name].group for r in part),
        one_hot(labels, n),
        np.eye(n, dtype=np.float32)[said], np.arange(len(part)), np.zeros(len(part), np.float32),
    )  # fmt: skip


def always(recording: Recording, k: int) -> bool:
    del recording, k
    return True


def measured(dataset: Dataset, right: Callable[[Recording, int], bool] = always) -> dict[str, Any]:
    return shortcuts.measure(
        dataset, answers(dataset, right), "test", n_bootstrap=200, seed=1, check=lambda: None
    )


def of(row: dict[str, Any]) -> tuple[str, str] | None:
    """Property and severity of the warning, if there is one."""
    found = list(of_shortcuts(row))
    assert all(doubt.code == "shortcut" for doubt in found)
    return (row["shortcut"]["property"], found[0].severity) if found else None


def nothing(k: int, label: str, rng: np.random.Generator) -> dict[str, Any]:
    del k, label, rng
    return {}


def by_class(first: dict[str, Any], second: dict[str, Any]) -> Change:
    return lambda k, label, rng: dict(first if label == A else second)


def low_floor(rng: np.random.Generator, mean: float) -> str:
    return encode_bands(10 ** rng.normal(mean, 0.1, len(BAND_EDGES_HZ) - 1))


RECORDERS: dict[str, Change] = {
    "rate": by_class({"rate_hz": 8_000, "bandwidth_hz": 4_000}, {"rate_hz": 22_050, "bandwidth_hz": 11_025}),
    "bandwidth": lambda k, label, rng: {"bandwidth_hz": int(rng.integers(3_300, 3_700) * (1 if label == A else 3))},
    "format": by_class({"format": "MP3 MPEG_LAYER_III"}, {}),
    "channels": by_class({"channels": 2}, {}),
    "length": by_class({"duration_s": 3.0}, {"duration_s": 5.0}),
    "level": lambda k, label, rng: {"level_db": float(rng.normal(-45 if label == A else -20, 2))},
    "faults": lambda k, label, rng: {"offset": round(float(rng.uniform(0.02, 0.03)), 4) if label == A else 0.0},
    "place": lambda k, label, rng: {"below": f"SITE{1 if label == A else 2}_20230501_0500{k:02d}.wav"},
}


@pytest.mark.parametrize("key", RECORDERS)
def test_a_property_of_the_recorder_that_alone_tells_the_classes_is_a_strong_warning(key: str) -> None:
    row = measured(made(RECORDERS[key]))
    assert of(row) == (key, STRONG)
    assert row["shortcut"]["conflict"]["recordings"] == 0
    found = next(of_shortcuts(row))
    assert "On no test recording does it point to a wrong class" in found.text
    assert all(each["recall"] == 1.0 for each in row["shortcut"]["values"])


def test_of_several_classes_a_property_is_right_where_it_points_to_any_of_them() -> None:
    # Half of the first class's recordings hold a third class, too, which is named first.
    made_of = made(RECORDERS["rate"])
    second = {r.name for k, r in enumerate(r for r in made_of.recordings if r.label == A) if k % 2}
    recordings = [
        dataclasses.replace(r, labels=(Label("Corvus"), Label(A))) if r.name in second else r
        for r in made_of.recordings
    ]
    dataset = dataclasses.replace(made_of, recordings=recordings, classes=(A, B, "Corvus"))
    part = dataset.part("test")
    targets = dataset.targets(part).of_recordings()[0]
    scores = Scores(
        dataset.classes, tuple(r.name for r in part), tuple(dataset.places[r.name].group for r in part), targets,
        targets, np.arange(len(part)), np.zeros(len(part), np.float32),
    )  # fmt: skip
    row = shortcuts.measure(dataset, scores, "test", n_bootstrap=200, seed=1, check=lambda: None)
    assert (row["several"], row["reason"], row["model"]) == (True, "", 1.0)
    (rate,) = (each for each in row["rows"] if each["property"] == "rate")
    assert rate["accuracy"] == rate["test_accuracy"] == 1.0 and of(row) == ("rate", STRONG)


OWN: dict[str, Change] = {
    "floor": lambda k, label, rng: {"floor": low_floor(rng, -8 if label == A else -5)},
    "hour": lambda k, label, rng: {"below": f"R_20230501_{(3 if label == A else 22):02d}00{k:02d}.wav"},
    "date": lambda k, label, rng: {"below": f"R_2023{(2 if label == A else 6):02d}{1 + k % 28:02d}_05{k:02d}00.wav"},
}


@pytest.mark.parametrize("key", OWN)
def test_what_may_be_the_species_own_is_a_mild_warning_and_the_verdict_is_fair(key: str) -> None:
    row = measured(made(OWN[key]))
    assert of(row) == (key, MILD)
    assert "may be the species' own" in next(of_shortcuts(row)).advice


def test_recordings_that_differ_in_nothing_that_goes_with_the_class_raise_no_warning() -> None:
    def mixed(k: int, label: str, rng: np.random.Generator) -> dict[str, Any]:
        del label
        rate = int(rng.choice([22_050, 44_100, 48_000]))
        place = f"SITE{k % 5}_20230501_0{k % 10}00{k:02d}.wav"
        return {"rate_hz": rate, "channels": int(rng.integers(1, 3)), "below": place}

    row = measured(made(mixed))
    assert of(row) is None
    assert row["shortcut"] is None
    best = max(row["rows"], key=lambda each: each["accuracy"])
    assert best["accuracy"] < 0.7
    assert "metadata baseline" in line(row)


def test_a_model_that_knows_clearly_more_than_the_recorder_raises_none() -> None:
    half: Change = lambda k, label, rng: {"rate_hz": 8_000 if (label == A) == (k % 10 < 7) else 22_050}  # noqa: E731
    row = measured(made(half, each=120))
    assert of(row) is None
    assert next(each for each in row["rows"] if each["property"] == "rate")["accuracy"] > 0.6


def partly(k: int, label: str, rng: np.random.Generator) -> dict[str, Any]:
    """Nine in ten recordings of a class are by its own recorder."""
    del rng
    return {"rate_hz": 8_000 if (label == A) == (k % 10 != 7) else 22_050, "bandwidth_hz": 4_000}


def right_elsewhere(recording: Recording, k: int) -> bool:
    """Right where the recorder points to a wrong class; elsewhere it errs, or it would be clearly better."""
    return (recording.facts.rate_hz == 8_000) != (recording.label == A) or k % 8 != 0


def test_who_follows_the_recorder_where_it_points_to_a_wrong_class_is_not_cleared() -> None:
    row = measured(made(partly, each=200), lambda r, k: (r.facts.rate_hz == 8_000) == (r.label == A))
    counter = row["shortcut"]["conflict"]
    assert of(row) == ("rate", STRONG)
    assert counter["recordings"] == counter["followed"] == 20
    assert counter["right"] == 0
    assert "follows it for 20" in next(of_shortcuts(row)).text


def test_who_is_right_where_the_recorder_points_to_a_wrong_class_knows_more() -> None:
    row = measured(made(partly, each=200), right_elsewhere)
    assert row["shortcut"]["conflict"]["cleared"]
    assert of(row) == ("rate", MILD)
    few = measured(made(partly, each=40), right_elsewhere)
    assert not few["shortcut"]["conflict"]["cleared"]  # of four sources, that is luck


def test_clips_of_one_source_count_once() -> None:
    dataset = made(partly, each=200)
    four = {
        name: Place(f"source {k % 4}", "test") if place.split == "test" else place
        for k, (name, place) in enumerate(dataset.places.items())
    }
    row = measured(dataclasses.replace(dataset, places=four), right_elsewhere)
    assert row["shortcut"] is None or not row["shortcut"]["conflict"]["cleared"]


def test_a_model_that_guesses_has_other_warnings() -> None:
    assert of(measured(made(RECORDERS["rate"]), lambda r, k: k % 2 == 0)) is None


def test_a_band_limit_that_leaves_what_all_have_makes_it_mild_and_one_above_does_not() -> None:
    dataset = made(RECORDERS["rate"])
    row = measured(dataset)
    assert limit_hz(row) == 3600
    assert "--audio.band-limit 3600" in next(of_shortcuts(row)).advice
    limited = dataclasses.replace(dataset, spec=dataclasses.replace(VGGISH, limit_hz=3600.0))
    assert of(measured(limited)) == ("rate", MILD)
    above = dataclasses.replace(dataset, spec=dataclasses.replace(VGGISH, limit_hz=6000.0))
    assert of(measured(above)) == ("rate", STRONG)


def test_no_limit_is_advised_where_all_recordings_reach_above_the_backbones_band() -> None:
    row = measured(made(by_class({"rate_hz": 44_100}, {"rate_hz": 48_000})))
    assert of(row) == ("rate", STRONG)
    assert limit_hz(row) is None
    assert "band-limit" not in next(of_shortcuts(row)).advice


def test_many_classes_with_a_recorder_each_are_reported_and_one_odd_class_of_many_is_not_all() -> None:
    names = [f"Class {letter}" for letter in "abcdefghij"]
    own: Change = lambda k, label, rng: {"below": f"site {names.index(label)}/rec{k}.wav"}  # noqa: E731
    assert of(measured(made(own, each=12, classes=names))) == ("place", STRONG)
    odd: Change = lambda k, label, rng: {"rate_hz": 8_000 if label == names[0] else 44_100}  # noqa: E731
    assert of(measured(made(odd, each=12, classes=names))) is None
    notices = list(properties.recorder_notices(made(odd, each=12, classes=names).recordings))
    assert len(notices) == 1
    assert "Class a has 8,000 Hz in 12 of 12" in notices[0]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("apusapus_{}.wav", "bubobubo_{}.wav"),  # no place, and no time
        ("APAP_20230501_0500{:02d}.wav", "BUBO_20230501_0500{:02d}.wav"),
        ("BLBI_20230501_0500{:02d}.wav", "TAOW_20230501_0500{:02d}.wav"),  # codes in another language
        ("Apus/rec{}.wav", "Bubo/rec{}.wav"),
    ],
)
def test_the_class_in_a_name_is_no_place(first: str, second: str) -> None:
    dataset = made(lambda k, label, rng: {"below": (first if label == A else second).format(k)})
    assert "place" not in {each.key for each in properties.properties_of(dataset.recordings)}


def test_too_few_sources_are_reported_and_old_records_without_measures_do_no_harm() -> None:
    few = made(RECORDERS["rate"], each=2)
    row = measured(dataclasses.replace(few, places={n: Place(p.group, "test") for n, p in few.places.items()}))
    assert row["reason"]
    assert section(row) is not None and not list(of_shortcuts(row))
    dataset = made(RECORDERS["rate"])
    bare = [dataclasses.replace(r, facts=dataclasses.replace(r.facts, measures=None)) for r in dataset.recordings]
    assert of(measured(dataclasses.replace(dataset, recordings=bare))) == ("rate", STRONG)


def test_it_is_the_same_each_time_and_can_be_stopped() -> None:
    dataset = made(nothing)
    assert measured(dataset) == measured(dataset)

    def stop() -> None:
        raise Interrupted(15)

    with pytest.raises(Interrupted):
        shortcuts.measure(dataset, answers(dataset, always), "test", n_bootstrap=20, seed=1, check=stop)


def test_check_says_nothing_where_recorders_are_mixed_and_names_are_shown_safely() -> None:
    assert list(properties.recorder_notices(made(nothing).recordings)) == []
    hostile = "A\x1b[31m"
    of_one = made(RECORDERS["rate"], classes=(A,)).recordings
    recordings = [dataclasses.replace(r, labels=(Label(hostile),)) for r in of_one]
    notices = list(properties.recorder_notices([*recordings, *made(nothing, classes=(B,)).recordings]))
    assert notices and "\x1b" not in "".join(notices)


def test_thousands_of_places_take_no_memory_each() -> None:
    many: Change = lambda k, label, rng: {"below": f"site {rng.integers(10**9)}/rec{k}.wav"}  # noqa: E731
    place = next(p for p in properties.properties_of(made(many, each=300).recordings) if p.key == "place")
    assert place.columns.shape == (600, 1)


# ---- what comes of it ---------------------------------------------------------------------------

FIGURES = make_data().metrics


@pytest.mark.parametrize(("key", "level"), [("rate", "poor"), ("floor", "fair"), (None, "good")])
def test_the_verdict_falls_as_far_as_the_warning_is_strong(key: str | None, level: str) -> None:
    change = nothing if key is None else {**RECORDERS, **OWN}[key]
    found = [
        doubt for doubt in all_diagnostics({"best_epoch": None, "epochs": []}, {"shortcuts": measured(made(change))})
        if doubt.code == "shortcut"
    ]  # fmt: skip
    told = verdict({"test": {"n_sources": 50}}, found)
    assert told.level == level
    if key:
        assert "recording conditions" in told.title
    assert "shortcut" in diagnostics.CODES


def test_the_report_tells_it_on_its_first_screen_and_in_a_section(tmp_path: Path) -> None:
    row = measured(made(RECORDERS["rate"]))
    found = list(of_shortcuts(row))
    data = make_data(shortcuts=row, diagnostics=found, verdict=verdict(FIGURES, found))
    write_report(tmp_path / "report.html", data)
    page = (tmp_path / "report.html").read_text("utf-8")
    header = page[: page.index("</header>")]
    assert "The sample rate alone predicts the classes about as well as the model" in header
    assert "From the sample rate alone, without the song, 100" in header
    body = page[page.index('id="shortcuts"') : page.index('id="calibration"')]
    assert "8,000 Hz in 40 of 40 recordings" in body
    assert "model right where it is wrong" in body
    assert "--audio.band-limit 3600" in body
    write_report(tmp_path / "without.html", make_data())
    assert 'id="shortcuts"' not in (tmp_path / "without.html").read_text("utf-8")


def test_white_noise_by_two_recorders_ends_in_the_verdict_poor(tmp_path: Path) -> None:
    data, rng = tmp_path / "in" / "data", np.random.default_rng(0)
    for label, rate in (("Aves_a", 8_000), ("Aves_b", 22_050)):
        (data / label).mkdir(parents=True)
        for letter in "abcdefghijklmnopqrst":
            soundfile.write(data / label / f"{3 * letter}.wav", 0.1 * rng.standard_normal(2 * rate), rate)
    changes = {
        "train__epochs": 6, "train__head_lr_multiplier": 1.0, "model__dropout": 0.0, "evaluate__label_issues": False,
    }  # fmt: skip
    assert run(settings(data, tmp_path / "out", **changes), until="evaluate") == 0
    figures = read_json(tmp_path / "out" / "reports" / "1" / "metrics.json")
    assert figures["test"]["clip"]["accuracy"] == 1.0
    assert figures["shortcuts"]["shortcut"]["property"] == "rate"
    assert figures["verdict"] == record(tmp_path / "out")["verdict"] == "poor"
    assert "shortcut" in {row["code"] for row in figures["warnings"] if row["severity"] == STRONG}
