"""What lies beside a model for whoever gets it alone: README.md, its card, and croissant.json of its recordings."""

import csv
import hashlib
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from makers import quiet, recording
from test_metrics import evaluated, make_scores

from birdtune.audio.logmel import VGGISH
from birdtune.data import split
from birdtune.data.dataset import Dataset
from birdtune.data.labels import Label
from birdtune.data.scan import Recording
from birdtune.data.split import Place
from birdtune.evaluation.calibration import Calibration
from birdtune.evaluation.headline import headline_figures
from birdtune.models.known import KNOWN, OWN, Origin
from birdtune.reporting import attribution, croissant, model_card
from birdtune.runtime import configure
from birdtune.runtime.files import make_folder, read_csv, write_csv, write_json
from birdtune.runtime.runs import Run

CLASSES = ("<img src=x onerror=1>", "Bubo_bubo|*x*", "[Corvus](http:x) `y` # \\")
# Of each class 4 recordings in training, 1 in validation, 1 in test.
SIDES = ("train", "train", "train", "train", "val", "test")


@dataclass(frozen=True)
class Made:
    """An evaluated run of 18 recordings, and the folder of its model."""

    run: Run
    dataset: Dataset
    folder: Path
    test: dict[str, Any]

    def card(self, origin: Origin = OWN) -> str:
        row = Calibration("softmax", reason="too few sources: scores are not calibrated").row()
        limits = [{"class": name, "threshold": 0.9} for name in CLASSES]
        facts = {
            "name": "birdtune", "version": 1, "birdtune": "0.1.0", "backbone": "vggish", "head": "linear",
            "scores": "softmax", "front_end": VGGISH.row(), "calibration": row, "ood": None, "published": None,
            "thresholds": {"reason": "", "classes": limits}, "backbone_origin": origin.row(),
            "verification": {"differences": {"sound.scores": 0.0}},
        }  # fmt: skip
        return model_card.card(self.run, self.dataset, facts)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    run = Run(configure.load({"output": tmp_path, "data": tmp_path / "data", "train.epochs": 1}, {}), quiet())
    run.take_version("0" * 64)
    recordings, places = [], {}
    for column, name in enumerate(CLASSES):
        for number, side in enumerate(SIDES):
            one = recording(f"{column}/{number}.wav")
            recordings.append(Recording(one.name, one.path, (Label(name),), one.content, one.facts))
            places[one.name] = Place(f"id {column}{number}", side)
    dataset = Dataset(VGGISH, CLASSES, recordings, places, [], [], {})
    split.write(run.logs / "split.csv", recordings, places)
    test = evaluated(replace(make_scores(np.eye(3)[[0, 1, 1]], [0, 1, 2]), classes=CLASSES), [4, 4, 4])
    test["headline"] = headline_figures(test)
    write_json(make_folder(run.reports) / "metrics.json", {"test": test, "val": None})
    folder = make_folder(run.model)
    write_csv(folder / "labels.csv", ("column", "class"), [{"column": k, "class": n} for k, n in enumerate(CLASSES)])
    croissant.write(folder, run, dataset)
    run.record["head_start"] = {"backbone": "BirdNET 2.4", "classes": {CLASSES[1]: 7}}
    run.record["classes"] = list(CLASSES)
    return Made(run, dataset, folder, test)


def html(card: str) -> str:
    """The card without its head, as a reader of Markdown shows it."""
    from markdown_it import MarkdownIt

    return str(MarkdownIt("commonmark").enable("table").render(card.split("---\n", 2)[2]))


# ---- the model card ------------------------------------------------------------------------------


def test_the_head_has_the_figures_of_the_test_as_the_hub_reads_them(made: Made) -> None:
    head = yaml.safe_load(made.card().split("---\n")[1])
    assert (head["license"], head["pipeline_tag"], head["library_name"]) == (
        "unknown", "audio-classification", "tensorflow",
    )  # fmt: skip
    result = head["model-index"][0]["results"][0]
    assert result["task"]["type"] == "audio-classification" and result["dataset"]["split"] == "test"
    found = {each["type"]: each["value"] for each in result["metrics"]}
    assert found["accuracy"] == 0.6667 and found["macro_ap"] == round(made.test["clip"]["macro_ap"], 4)


def test_the_hub_s_own_reader_takes_the_card(made: Made) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    results = hub.ModelCard(made.card()).data.eval_results
    assert {"accuracy", "macro_ap"} <= {each.metric_type for each in results}


def test_the_card_says_how_far_to_trust_it_with_intervals_warnings_and_classes(made: Made) -> None:
    low, high = made.test["clip"]["accuracy_ci"]
    card = made.card()
    assert f"| accuracy of recordings | 0.667 | {low:.3f} to {high:.3f} | 0.333 (always " in card
    assert "**Not shown to be better than guessing.**" in card
    assert "- **Strong.** On test, accuracy may be chance" in card
    assert card.count("| 4 | 1 | 1 | 6 |") == 3  # in training, validation and test, of sources
    assert "| 4 | 1 | 1 | 6 | 1.000 | 0.500 | 0.900 |\n" in card  # recall, precision, threshold
    assert "- Too few sources: scores are not calibrated.\n" in card
    assert "| trained on | no recordings but those of this model and its base models |" in card


def test_whose_recordings_they_are_is_on_the_card_and_beside_the_model(made: Made) -> None:
    assert "attribution" not in made.card()
    used = made.dataset.recordings
    rows = [{"recording": one.name, "author": f"Anna {'|*x*' if k else ''}", "licence": "CC BY 4.0", "source": "u"}
            for k, one in enumerate(used[:3])]  # fmt: skip
    rows += [{"recording": used[3].name, "author": "", "licence": ""}, {"recording": "gone.wav", "author": "Bert"}]
    data = make_folder(made.run.config.data_folder)
    write_csv(data / "attribution.csv", attribution.COLUMNS, rows)
    card = made.card()
    assert "| CC BY 4.0 | 3 | Anna \\|\\*x\\* (2), Anna (1) |\n| not said | 1 | not said (1) |\n" in card
    assert "Bert" not in card and "| `attribution.csv` |" in card and "<em>" not in html(card)
    attribution.write(made.folder, attribution.rows_of(made.run.config, made.dataset))
    kept = read_csv(made.folder / "attribution.csv")
    assert [row["recording"] for row in kept] == sorted(one.name for one in used[:4])


def test_no_name_becomes_markdown_or_html(made: Made) -> None:
    shown = html(made.card())
    for name in CLASSES:
        assert f"<td>{name.replace('<', '&lt;').replace('>', '&gt;')}</td>" in shown
    assert "<img" not in shown and "<a " not in shown and "<em>" not in shown


def test_the_licence_is_that_of_the_backbone_s_weights(made: Made) -> None:
    card = made.card(KNOWN["birdnet"])
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "cc-by-nc-sa-4.0"
    assert "may not be used commercially" in card and "Kahl, S." in card
    assert "It may have learnt from the same public recordings that are tested on here" in card


def test_a_model_that_was_not_measured_says_so(made: Made) -> None:
    write_json(made.run.reports / "metrics.json", {"val": None, "test": None})
    assert "Nothing was measured." in made.card() and "model-index" not in made.card()


# ---- croissant.json ------------------------------------------------------------------------------


def test_the_metadata_point_to_files_and_columns_that_are_there(made: Made) -> None:
    found = json.loads((made.folder / "croissant.json").read_text("utf-8"))
    columns = {}
    for each in found["distribution"]:
        path = made.folder / each["contentUrl"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == each["sha256"]
        with path.open(encoding="utf-8", newline="") as file:
            columns[each["@id"]] = set(csv.DictReader(file).fieldnames or ())
    sources = [field["source"] for each in found["recordSet"] for field in each["field"] if "source" in field]
    assert len(sources) == 7
    fields = {field["@id"]: field for each in found["recordSet"] for field in each["field"]}
    assert fields["recordings/split"]["references"]["field"]["@id"] in fields
    assert (made.folder / "split.csv").read_bytes() == (made.run.logs / "split.csv").read_bytes()
    assert all(each["extract"]["column"] in columns[each["fileObject"]["@id"]] for each in sources)
    assert "18 recordings of 3 classes (12 train, 3 val, 3 test)" in found["description"]


@pytest.mark.filterwarnings("ignore")
def test_the_reference_implementation_reads_every_recording(
    made: Made, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # For JSON, mlcroissant takes jsonpath-rw, which no lock can have as it is no wheel; this is what became of it.
    monkeypatch.setitem(sys.modules, "jsonpath_rw", pytest.importorskip("jsonpath_ng"))
    mlcroissant = pytest.importorskip("mlcroissant")
    dataset = mlcroissant.Dataset(jsonld=made.folder / "croissant.json")  # raises for what is not valid
    assert "not standard" not in caplog.text
    rows = list(dataset.records("recordings"))
    assert len(rows) == 18 and {row["recordings/class"].decode() for row in rows} == set(CLASSES)
    assert {row["recordings/split"] for row in rows} == {b"train", b"val", b"test"}
    assert [row["classes/column"] for row in dataset.records("classes")] == [0, 1, 2]
