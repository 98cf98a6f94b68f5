"""The embedding map: nearest neighbours, the sample, the plane, and what the page shows of them."""

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_report import CLASSES, HOSTILE, make_data, page_of, tone

from birdtune.evaluation import embedding_map
from birdtune.evaluation.scores import clip_scores
from birdtune.reporting import report
from birdtune.reporting.embedding_map import COLOURED
from birdtune.runtime.files import read_csv, read_json


def clustered(n_classes: int, n_each: int, seed: int = 0) -> tuple[Any, Any]:
    """Embeddings [N, 16] around a centre of each class, and the classes [N, C]."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n_classes * n_each) % n_classes
    embeddings = rng.normal(size=(n_classes, 16))[labels] + 0.3 * rng.normal(size=(len(labels), 16))
    return embeddings.astype(np.float32), np.eye(n_classes)[labels] > 0


def measured(embeddings: Any, positive: Any, sources: list[str] | None = None) -> dict[str, Any]:
    n, n_classes = positive.shape
    names = [f"r{k}.wav" for k in range(n)]
    places = {
        name: SimpleNamespace(group=sources[k] if sources else name, split=("train", "val", "test")[k % 3])
        for k, name in enumerate(names)
    }
    return embedding_map.measure(
        embeddings, positive, recordings=names, classes=[f"c{k}" for k in range(n_classes)], places=places,
        n_bootstrap=50, seed=1,
    )  # fmt: skip


def test_a_neighbour_is_of_another_source_and_counts_only_where_one_of_the_class_could_be_found() -> None:
    angle = np.deg2rad([0, 1, 20, 24, 50, 90])
    embeddings = np.column_stack([np.cos(angle), np.sin(angle)]).astype(np.float32) * [[1], [9], [1], [1], [1], [1]]
    positive = np.eye(3)[[0, 0, 1, 0, 1, 2]] > 0
    found = measured(embeddings.astype(np.float32), positive, ["a", "a", "b", "c", "d", "e"])
    # r0 and r1 are of one source; c2 has no second source.
    assert [row["nearest"] for row in found["rows"]] == ["r2.wav", "r2.wav", "r3.wav", "r2.wav", "r3.wav", "r4.wav"]
    assert [row["same_class"] for row in found["rows"]] == ["no", "no", "no", "no", "no", None]
    assert found["rows"][1]["similarity"] == pytest.approx(np.cos(np.deg2rad(19)), abs=1e-4)
    assert (found["compared"], found["same"]) == (5, 0.0)
    assert found["same_by_chance"] == pytest.approx(np.mean([1 / 4, 1 / 4, 1 / 5, 2 / 5, 1 / 5]))
    several = positive | (np.arange(6) == 2)[:, None]  # r2 has all classes
    assert measured(embeddings, several, ["a", "a", "b", "c", "d", "e"])["same"] == pytest.approx(4 / 6)


def test_of_many_recordings_small_classes_are_drawn_whole_and_large_ones_alike() -> None:
    labels = np.repeat([0, 1, 2], [500, 300, 7])
    drawn = embedding_map.balanced_sample(labels, 57, seed=3)
    assert np.bincount(labels[drawn]).tolist() == [25, 25, 7]
    assert drawn.tolist() == sorted(set(drawn.tolist())) and drawn.max() > 57
    assert np.array_equal(drawn, embedding_map.balanced_sample(labels, 57, seed=3))
    assert np.array_equal(embedding_map.balanced_sample(labels, 2_000, seed=3), np.arange(807))


def test_the_plane_keeps_neighbours_and_comes_out_the_same_to_the_last_bit(tmp_path: Path) -> None:
    embeddings, positive = clustered(4, 20)
    found = measured(embeddings, positive)
    assert found["same"] == 1.0 and found["perplexity"] == pytest.approx(79 / 3, abs=0.01)
    plane = np.array([[row["x"], row["y"]] for row in found["rows"]])
    assert plane.min() == 0 and plane.max() == 1
    apart = np.linalg.norm(plane[:, None] - plane, axis=2) + 9 * np.eye(80)
    assert (positive[apart.argmin(axis=1)] == positive).all()
    assert measured(embeddings, positive) == found
    embedding_map.write(tmp_path, found)
    assert read_json(tmp_path / "embedding_map.json") == found
    row = read_csv(tmp_path / "embedding_map.csv")[5]
    assert tuple(row) == embedding_map.COLUMNS
    assert (row["class"], row["same_class"], float(row["x"])) == ("c1", "yes", found["rows"][5]["x"])


def test_five_recordings_make_a_map_and_fewer_or_dead_embeddings_say_why_there_is_none() -> None:
    embeddings, positive = clustered(2, 10)
    assert len(measured(embeddings[:5], positive[:5])["rows"]) == 5
    assert measured(embeddings[:4], positive[:4]) == {"reason": "there are only 4 recordings", "rows": []}
    assert "are the same" in measured(np.zeros_like(embeddings), positive)["reason"]


# ---- the page -----------------------------------------------------------------------------------


def mapped(n_classes: int = len(CLASSES)) -> dict[str, Any]:
    """A map of the recordings of `make_data`, two of them in no part with scores."""
    scores = make_data().scores["test"]
    names = [*scores.recordings[:20], "late.wav", "early.wav"]
    rows = [
        {
            "recording": name, "classes": [CLASSES[k % n_classes]], "class": "", "source_recording": f"s{k}",
            "split": "test" if k < 20 else "train", "x": k / 21, "y": 0.1, "nearest": names[0], "nearest_class": "",
            "similarity": 0.9, "same_class": "yes" if k % 2 else "no",
        }
        for k, name in enumerate(names)
    ]  # fmt: skip
    return {
        "reason": "", "recordings": 5_000, "with_times": 3, "perplexity": 7.0, "compared": 22, "same": 0.5,
        "same_ci": [0.3, 0.7], "same_by_chance": 0.25, "rows": rows,
    }  # fmt: skip


def section_of(data: Any, folder: Path) -> str:
    source = page_of(data, folder).source
    return source[source.index('<section id="map">') :].partition("</section>")[0]


def test_each_recording_is_a_point_with_its_class_part_prediction_errors_and_label_issue(tmp_path: Path) -> None:
    issue = {
        "rank": 1, "recording": "late.wav", "class": "a", "suggested": "<b>b</b>", "label_issue_score": 0.9,
        "class_score": 0.1, "suggested_score": 0.9, "source_recording": "g", "split": "train", "seconds": 5.0,
        "start_s": 0.0, "why": "so",
    }  # fmt: skip
    issues = {
        "reason": "", "scored": 9, "single_source": [], "rule": "", "with_times": 0, "several": False, "rows": [issue]
    }  # fmt: skip
    data = make_data(embedding_map=mapped(), label_issues=issues, listen=tone)
    source = page_of(data, tmp_path).source
    section = section_of(data, tmp_path)
    points = dict(re.findall(r"(<g class=[^>]*>)<title>(.*?)</title>", section, re.DOTALL))
    words = list(points.values())
    assert len(words) == 22 and section.count('<use href="#map-test"/></g>') == 14
    assert section.count('<use href="#map-error"/></g>') == 6  # the first six of `make_data`
    assert any(re.fullmatch(r"Parus_major/7.wav\n\S+, test\npredicted Parus_major \(90.%\)", said) for said in words)
    assert sum(said.endswith(": error") for said in words) == 6
    assert "<img" not in section and "<b>b</b>" not in section and HOSTILE not in section
    assert any(said.endswith("label issue: sounds like &lt;b&gt;b&lt;/b&gt;") for said in words)
    assert "Left out are 3 recordings whose labels have times" in section
    assert "shows 22 of 5,000 recordings" in section and re.search(r"50.%</b> of 22 recordings", section)

    # A point plays the clip of the card that it belongs to.
    worst = report.worst_errors(data.scores["test"], clip_scores(data.scores["test"]))[1]
    name = data.scores["test"].recordings[worst.index]
    (number,) = [re.search(r'data-clip="(\d+)"', tag) for tag, said in points.items() if said.startswith(name + "\n")]
    assert number is not None
    card = re.search(rf'<figure class="card"[^>]* data-clip="{number[1]}">(.*?)</figure>', source, re.DOTALL)
    assert card is not None and str(report.name(name)) in card[1] and "<audio" in card[1]


def test_of_many_classes_the_largest_have_colours_and_all_are_in_the_list(tmp_path: Path) -> None:
    names = [f"class {k:02d}" for k in range(30)]
    found = mapped()
    row = found["rows"][-1]
    found["rows"] = [{**row, "recording": f"{name}.wav", "classes": [name]} for name in names]
    rows = [{**make_data().class_rows[0], "class": name, "recordings": k} for k, name in enumerate(names)]
    section = section_of(make_data(embedding_map=found, class_rows=rows, metrics={"test": None}), tmp_path)
    assert section.count('<g class="rest" data-k="') == 30 - COLOURED
    assert re.search(r'<g class="k0" data-k="0"[^>]*><title>class 29.wav', section)
    assert section.count('class="pick"') == 30 and f"The {COLOURED} largest classes have colours" in section
    assert "error, " not in section


def test_where_there_is_no_map_the_section_says_why_or_is_not_there(tmp_path: Path) -> None:
    reason = embedding_map.no_map("the backbone began from scratch")
    assert "There is no map: the backbone began from scratch." in section_of(make_data(embedding_map=reason), tmp_path)
    assert 'id="map"' not in page_of(make_data(), tmp_path).source
    alone = dataclasses.replace(make_data(), embedding_map={**mapped(), "same": None, "same_ci": None, "compared": 0})
    assert "No class has recordings of two sources" in section_of(alone, tmp_path)
