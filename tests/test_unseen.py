"""birdtune.tuning.unseen: the command on made sounds, its tables and its proof."""

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from makers import Said
from test_job import settings

from birdtune.config import Config
from birdtune.errors import InputError
from birdtune.evaluation.class_vectors import ClassNames
from birdtune.pipeline import commands
from birdtune.runtime.files import read_csv, read_json
from birdtune.runtime.signals import Interrupts
from birdtune.tuning import unseen

pytestmark = pytest.mark.usefixtures("in_one_process")

PITCHES = {
    "Parus_major": 500, "Parus_minor": 600, "Apus_apus": 2500, "Apus_affinis": 3000, "Bubo_bubo": 1000,
    "Bubo_scandiacus": 1200,
}  # fmt: skip


def write_data(folder: Path, pitches: dict[str, int] = PITCHES) -> Path:
    """Tones of a pitch for each class: five sources, two clips each."""
    rng = np.random.default_rng(0)
    for number, (name, pitch_hz) in enumerate(pitches.items()):
        (folder / name).mkdir(parents=True)
        for clip in range(10):
            t = np.arange(20_000) / 16_000
            tone = 0.3 * np.sin(2 * np.pi * (pitch_hz + 5 * clip) * t) + 0.02 * rng.standard_normal(t.size)
            soundfile.write(folder / name / f"{name}-{number + 3}00{clip // 2}_{clip % 2}.wav", tone, 16_000)
    return folder


def run(config: Config) -> list[str]:
    journal = Said()
    assert unseen.unseen(config, journal, Interrupts()) == 0
    return journal.lines


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_data(tmp_path_factory.mktemp("input") / "data")
    (folder.parent / "words.txt").write_text(
        "".join(f"{name.split('_')[1]} {np.log(hz)} {hz / 1000} 1\n" for name, hz in PITCHES.items()), "utf-8"
    )
    (folder.parent / "traits.csv").write_text(
        "class,mass\n" + "".join(f"{name},{hz}\n" for name, hz in PITCHES.items()), "utf-8"
    )
    return folder


def test_each_kind_of_vectors_has_a_row_beside_chance_and_the_proof_holds(data: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "unseen__words": str(data.parent / "words.txt"), "unseen__traits": str(data.parent / "traits.csv"),
        "unseen__seeds": 2, "unseen__shots": 2, "split__hold_out_classes": "2", "evaluate__genera": True,
    }  # fmt: skip
    lines = run(settings(data, tmp_path / "out", **given))

    found = read_json(tmp_path / "out" / "unseen.json")
    rows = read_csv(tmp_path / "out" / "unseen.csv")
    learnt = ("ridge", "compatibility", "two-layer")
    ways = [(kind, name) for kind in ("taxonomy", "traits", "words") for name in learnt]
    ways.append(("2 recordings", "prototype"))
    assert [(row["vectors"], row["map"]) for row in found["rows"]] == ways
    assert len(rows) == 2 * len(ways) and {float(row["chance"]) for row in rows} == {0.5}
    best = next(row for row in found["rows"] if row["map"] == "prototype")
    assert best["top1"] > 0.7 and best["ceiling"] == 1  # tones of different pitches: chance is 0.5
    for row in found["rows"]:
        own = [float(each["top1"]) for each in rows if (each["vectors"], each["map"]) == (row["vectors"], row["map"])]
        assert row["top1"] == pytest.approx(np.mean(own)) and row["top1_sd"] == pytest.approx(np.std(own, ddof=1))
    assert any("words without a vector: parus" in line for line in lines)

    proof = found["proof"]
    assert (proof["shared_contents"], proof["shared_sources"], proof["known_to_the_backbone"]) == (0, 0, {})
    assert {draw["seed"] for draw in proof["draws"]} == {1, 2} and len(proof["draws"]) == 2
    for draw in proof["draws"]:
        assert not set(draw["unseen"]) & set(draw["learnt_classes"])
        assert sorted(set(draw["unseen"]) | set(draw["learnt_classes"])) == sorted(PITCHES)
    assert proof["draws"][0]["unseen"] != proof["draws"][1]["unseen"]
    page = (tmp_path / "out/unseen.html").read_text()
    assert all(draw["learnt_contents_sha256"][:12] in page for draw in proof["draws"])
    assert "share <b>0</b> contents" in page and "They share <b>0</b> source recordings" in page
    assert page.count('<th scope="row">') == len(ways) and f"± {best['top1_sd']:.3f}" in page
    assert not (tmp_path / "out" / "model").exists()


def test_folds_are_averaged_within_a_seed_and_a_file_is_said(data: Path, tmp_path: Path) -> None:
    held = tmp_path / "held.csv"
    held.write_text("class\nApus apus\nBubo_bubo\n", "utf-8")
    lines = run(settings(data, tmp_path / "out", unseen__seeds=2, split__hold_out_classes=str(held)))
    assert any("held out: Apus_apus, Bubo_bubo; learnt from: " in line for line in lines)
    assert any("no taxonomy" in line for line in lines)  # nobody says that names are scientific
    run(settings(data, tmp_path / "out", unseen__seeds=1, split__hold_out_classes="3-fold"))
    rows = read_csv(tmp_path / "out" / "unseen.csv")
    assert [row["fold"] for row in rows] == ["0", "1", "2"]
    (row,) = unseen.summary([{**one, **{name: float(one[name]) for name in unseen._FIGURES}} for one in rows])
    assert row["top1"] == pytest.approx(np.mean([float(one["top1"]) for one in rows])) and row["top1_sd"] == 0


def test_other_commands_say_that_they_hold_nothing_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("birdtune.pipeline.run.run", lambda *given, **more: 0)
    journal = Said()
    config = settings(tmp_path / "data", tmp_path / "out", split__hold_out_classes="5")
    assert commands.job("report")(config, argparse.Namespace(keep=lambda: None), journal, Interrupts()) == 0
    assert any("--split.hold-out-classes plays no part here" in line for line in journal.lines)


def test_two_names_of_one_species_are_refused_before_anything_is_embedded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unseen, "embed", None)
    pitches = {"Parus major_Great Tit": 500, "Parus major minor": 700, "Apus apus": 2500, "Bubo bubo": 1000}
    folder = write_data(tmp_path / "in" / "data", pitches)
    with pytest.raises(InputError, match="Parus major minor and Parus major_Great Tit are one class by their names"):
        run(settings(folder, tmp_path / "out", evaluate__genera=True))
    few = write_data(tmp_path / "few" / "data", dict(list(PITCHES.items())[:3]))
    with pytest.raises(InputError, match=r"has 3 classes .* takes 4 at least"):
        run(settings(few, tmp_path / "out2"))


def test_a_source_of_several_classes_is_left_out_whole() -> None:
    positive = np.eye(3, dtype=bool)[[0, 0, 0, 1, 1, 1, 2, 0]]
    positive[7] = [True, True, False]  # of two classes itself, which spoils its source
    embedded: Any = SimpleNamespace(
        classes=("a", "b", "noise"), positive=positive, labels=np.array([0, 0, 0, 1, 1, 1, 2, -1]),
        groups=("s1", "s2", "s7", "s3", "s4", "s5", "s3", "s7"),
    )  # fmt: skip
    assert unseen.chosen_recordings(embedded, ("a", "b")) == [0, 1, 3, 4, 5]
    embedded.groups = ("s1", "s3", "s7", "s3", "s4", "s5", "s3", "s7")
    with pytest.raises(InputError, match="fewer have a"):
        unseen.chosen_recordings(embedded, ("a", "b"))


def test_what_is_shared_would_be_seen_in_the_proof() -> None:
    from birdtune.data.partitions import HeldOut
    from birdtune.tuning.class_maps import Generalised
    from birdtune.tuning.class_trials import Found, Recordings

    recordings = Recordings(np.zeros((4, 2)), np.array([0, 1, 2, 3]), np.array([0, 1, 1, 2]))
    sound = unseen._Sound(recordings, ("x", "y", "z", "x"), ClassNames(tuple("abcd"), {}), {})
    found = Found(1.0, 1.0, Generalised(1, 1), Generalised(1, 1), np.array([0, 1]), 2)
    proof = unseen._proof(sound, HeldOut(("c", "d")), found, 1, 0)
    assert (proof["shared_contents"], proof["shared_sources"]) == (1, 1) and proof["learnt_classes"] == ["a", "b"]
