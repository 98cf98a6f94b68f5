"""birdtune.evaluation.genera: a genus where no species passes, and what it takes to be one."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_base_model import settings, write_data
from test_job import run

from birdtune.errors import InputError
from birdtune.evaluation import genera
from birdtune.evaluation.decision import NOMINAL, OWN, SHARED, UNKNOWN, Thresholds
from birdtune.evaluation.genera import Genera
from birdtune.evaluation.scores import Scores
from birdtune.reporting.calibration_section import genera_sentence
from birdtune.runtime.files import read_json
from birdtune.serving.verify import open_model

CLASSES = ("Setophaga coronata", "Setophaga pinus", "Parus major", "wind")
NAMES = {name: name for name in CLASSES}
FOUND = Genera(("Setophaga",), ((0, 1),), exclusive=True)


def scores_of(rows: list[tuple[float, ...]], columns: list[int]) -> Scores:
    """A recording of a source of its own for each row, with the class of a column."""
    n = len(rows)
    return Scores(
        CLASSES, tuple(f"r{k}" for k in range(n)), tuple(f"s{k}" for k in range(n)),
        np.eye(4, dtype=np.float32)[columns], np.asarray(rows, np.float32), np.arange(n), np.zeros(n, np.float32),
    )  # fmt: skip


def test_genera_are_of_several_classes_and_of_scientific_names_only() -> None:
    assert genera.find(CLASSES, NAMES, ("wind",), "softmax") == FOUND
    assert genera.find(CLASSES, {}, (), "softmax") is None
    assert genera.find(CLASSES, NAMES, ("Setophaga pinus",), "softmax") is None
    assert genera.find(CLASSES, {"Setophaga coronata": "Setophaga coronata"}, (), "softmax") is None
    named = {"a": "Setophaga coronata_Yellow-rumped Warbler", "b": "Setophaga_pinus", "c": "Setophaga"}
    found = genera.find(("a", "b", "c"), named, (), "sigmoid")
    assert found == Genera(("Setophaga",), ((0, 1),), exclusive=False)


@pytest.mark.parametrize(
    ("classes", "published", "said", "wanted"),
    [
        (("Song thrush", "Song sparrow"), {}, None, {}),
        (("Song thrush", "Song sparrow"), {"Song thrush": "Turdus philomelos_Song Thrush"}, None,
         {"Song thrush": "Turdus philomelos_Song Thrush"}),
        (("Turdus merula_Blackbird", "Wind_Rain"), {}, None, {"Turdus merula_Blackbird": "Turdus merula_Blackbird"}),
        (("Turdus merula", "Turdus pilaris"), {}, True, {name: name for name in ("Turdus merula", "Turdus pilaris")}),
        (("Turdus merula_Blackbird", "Wind"), {"Wind": "Wind"}, False, {}),
    ],
)  # fmt: skip
def test_a_name_counts_as_scientific_if_somebody_who_knows_says_so(
    classes: Any, published: Any, said: Any, wanted: Any
) -> None:
    assert genera.scientific_names(classes, published, are_scientific=said) == wanted


def test_scores_of_a_genus_are_sums_or_that_at_least_one_is_there() -> None:
    rows = np.array([[0.3, 0.4, 0.2, 0.1], [0.7, 0.6, 0.0, 0.0]])
    np.testing.assert_allclose(FOUND.scores(rows), [[0.7], [1.0]])
    apart = dataclasses.replace(FOUND, exclusive=False)
    np.testing.assert_allclose(apart.scores(rows), [[1 - 0.7 * 0.6], [1 - 0.3 * 0.4]])


def test_thresholds_are_chosen_as_those_of_classes_and_say_when_there_are_too_few() -> None:
    right = scores_of([(0.4, 0.3, 0.2, 0.1)] * 60 + [(0.2, 0.3, 0.4, 0.1)] * 60, [0] * 30 + [1] * 30 + [2] * 60)
    found = genera.choose(FOUND, right, precision=0.9, window_s=3.0)
    assert found.thresholds is not None
    assert 0.5 < found.thresholds.values[0] < 0.7 and found.thresholds.origins[0] in (OWN, SHARED)
    few = genera.choose(FOUND, scores_of([(0.4, 0.3, 0.2, 0.1)] * 3, [0] * 3), precision=0.9, window_s=3.0).thresholds
    assert few is not None and few.values == (0.9,) and few.origins == (NOMINAL,)
    again = Genera.of(found.row(CLASSES), CLASSES)
    earlier = {name: value for name, value in found.row(CLASSES).items() if name != "rank"}
    assert Genera.of(earlier, CLASSES) == found
    assert again == found and again.title(0) == "Setophaga sp."
    with pytest.raises(ValueError, match="genera without classes"):
        Genera.of({**found.row(CLASSES), "genera": {}}, CLASSES)


def test_a_genus_is_decided_for_where_no_class_passes_and_counts_as_right_for_any_of_its_classes() -> None:
    of_genera = Thresholds((0.6,), (OWN,), "", "")
    of_classes = Thresholds((0.8,) * 4, (OWN,) * 4, "", "")
    chosen = dataclasses.replace(FOUND, thresholds=of_genera)
    both = (0.4, 0.4, 0.1, 0.1)
    rows = [(0.9, 0.1, 0.0, 0.0), both, (0.4, 0.4, 0.2, 0.0), (0.3, 0.2, 0.3, 0.2), both]
    scores = scores_of(rows, [0, 1, 2, 0, 0])
    assert chosen.decide(np.asarray(rows)).tolist() == [0, 0, 0, UNKNOWN, 0]
    far = dataclasses.replace(scores, ood_score=np.array([0.0, 0.0, 0.0, 0.0, 2.0], np.float32))
    found = genera.evaluate(chosen, far, of_classes, n_bootstrap=50, seed=0)
    assert (found["decided"], found["right"], found["recordings"]) == (2, 1, 5)
    assert found["precision"] == 0.5 and found["of_classes_share"] == 0.2 and found["decided_share"] == 0.4
    said = genera_sentence({**chosen.row(CLASSES), "test": found})
    assert "Setophaga (2 classes)" in said and "2 of the 5 recordings got a genus so" in said
    assert genera_sentence(None) == ""


def test_families_are_of_several_classes_that_are_not_those_of_a_genus() -> None:
    family = {"Setophaga coronata": "Parulidae", "Setophaga pinus": "Parulidae", "Parus major": "Paridae"}
    assert genera.families(CLASSES, family, FOUND, "softmax") is None
    alone = genera.families(CLASSES, family, None, "softmax")
    assert alone == Genera(("Parulidae",), ((0, 1),), exclusive=True, rank="family")
    wide = genera.families(CLASSES, dict.fromkeys(CLASSES[:3], "Passeridae"), FOUND, "sigmoid")
    assert wide == Genera(("Passeridae",), ((0, 1, 2),), exclusive=False, rank="family")
    assert wide is not None and wide.title(0) == "Passeridae sp."


def test_a_family_is_decided_for_where_neither_a_class_nor_a_genus_passes() -> None:
    of_classes = Thresholds((0.8,) * 4, (OWN,) * 4, "", "")
    genus = dataclasses.replace(FOUND, thresholds=Thresholds((0.7,), (OWN,), "", ""))
    family = Genera(("Passeridae",), ((0, 1, 2),), True, Thresholds((0.6,), (OWN,), "", ""), "family")
    rows = [
        (0.9, 0.1, 0.0, 0.0), (0.4, 0.4, 0.1, 0.1), (0.3, 0.2, 0.4, 0.1), (0.2, 0.1, 0.2, 0.5), (0.3, 0.3, 0.3, 0.1),
    ]  # fmt: skip
    scores = scores_of(rows, [0, 1, 2, 0, 3])
    found = genera.evaluate(family, scores, of_classes, genus, n_bootstrap=50, seed=0)
    assert (found["decided"], found["right"], found["recordings"]) == (2, 1, 5)
    said = genera_sentence({**family.row(CLASSES), "test": found})
    assert "neither class nor genus passes, a family may" in said and "2 of the 5 recordings got a family so" in said


@pytest.mark.usefixtures("in_one_process")
def test_a_run_with_a_taxonomy_serves_a_model_that_decides_for_families(tmp_path: Path) -> None:
    tones = {"Parus_major": 1800, "Parus_ater": 2600, "Poecile_montanus": 3600, "Bubo_bubo": 900}
    data = write_data(tmp_path / "data", tones, range(6))
    table = tmp_path / "ebird.csv"
    table.write_text(
        "SCI_NAME,ORDER1,FAMILY\nParus major,Passeriformes,Paridae (Tits)\nParus ater,Passeriformes,Paridae (Tits)\n"
        "Poecile montanus,Passeriformes,Paridae (Tits)\n"
    )
    chosen = {"train__epochs": 1, "evaluate__bootstrap": 20, "evaluate__genera": True}
    with pytest.raises(InputError, match=r"--evaluate\.taxonomy .*missing\.csv"):
        run(settings(data, tmp_path / "out", evaluate__taxonomy=str(tmp_path / "missing.csv"), **chosen))
    assert run(settings(data, tmp_path / "out", evaluate__taxonomy=str(table), **chosen), until="export") == 0
    assert "has no family of Bubo_bubo" in (tmp_path / "out/logs/1/run.log").read_text()
    metrics = read_json(tmp_path / "out/reports/1/metrics.json")
    assert metrics["families"]["genera"] == {"Paridae (Tits)": ["Parus_ater", "Parus_major", "Poecile_montanus"]}
    assert metrics["families"]["test"]["recordings"] == metrics["genera"]["test"]["recordings"] > 0
    served = open_model(tmp_path / "out/model/birdtune/1")
    found = [(each.rank, each.names) for each in served.genera]
    assert found == [("genus", ("Parus",)), ("family", ("Paridae (Tits)",))]
    table.write_text(table.read_text() + "Bubo bubo,Strigiformes,Strigidae (Owls)\n")
    assert run(settings(data, tmp_path / "out", evaluate__taxonomy=str(table), **chosen), until="export") == 0
    assert read_json(tmp_path / "out/run.json")["version"] == 1  # the same weights, evaluated anew
