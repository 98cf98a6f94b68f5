"""predict in bfloat16: compared with float32 when a model is exported, and used where both agree."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from birdtune.audio.logmel import VGGISH
from birdtune.config import Config
from birdtune.evaluation.decision import NOMINAL, Thresholds
from birdtune.models.registry import BACKBONES
from birdtune.pipeline import detection_model, precision, stages
from birdtune.pipeline import predict as prediction
from birdtune.pipeline.detection_model import Asked
from birdtune.runtime import bfloat16
from birdtune.runtime.signals import Interrupts
from birdtune.serving import verify
from birdtune.serving.predict import Outcome
from birdtune.serving.verify import InBfloat16
from birdtune.settings import PredictSettings
from birdtune.training import devices
from tests.makers import Here, Said
from tests.test_export import THRESHOLDS, exported_to, made_classifier, made_patches, made_waveform

HALF = Thresholds((0.5, 0.5), (NOMINAL, NOMINAL), "", "")
AGREES = InBfloat16(100, 0.004, 0)
MODEL: Any = verify.ExportedModel(("a", "b"), {}, VGGISH, *[None] * 5)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def classifier() -> Any:
    return made_classifier()


@pytest.mark.parametrize(
    "narrow, difference, others, agrees",
    [
        ([[0.803, 0.197], [0.3, 0.7]], 0.003, 0, True),
        ([[0.82, 0.18], [0.3, 0.7]], 0.02, 0, False),  # further away than a hundredth
        ([[0.8, 0.2], [0.3, 0.7], [0.499, 0.501]], 0.002, 1, False),  # near, and on the other side of the threshold
        ([[0.8, 0.2], [np.nan, 0.7]], 1.0, 0, False),
    ],
)
def test_scores_agree_to_a_hundredth_and_with_the_same_decisions(
    narrow: list[list[float]], difference: float, others: int, agrees: bool
) -> None:
    exact = np.array([[0.8, 0.2], [0.3, 0.7], [0.501, 0.499]])[: len(narrow)]
    found = InBfloat16.between(exact, np.array(narrow), HALF)
    assert found.windows == len(narrow)
    assert found.largest_difference == pytest.approx(difference)
    assert found.other_decisions == others
    assert found.agrees is agrees


def test_an_export_compares_both_on_windows_of_validation_and_stays_in_float32(tmp_path: Path, classifier: Any) -> None:
    windows = made_patches(made_waveform(12.0, seed=5))
    folder = tmp_path / "4"
    exported_to(folder, classifier, validation=windows)  # in a fresh process
    row = json.loads((folder / "model.json").read_text("utf-8"))["bfloat16"]
    assert row["windows"] == len(windows)
    assert row["largest_difference"] < 0.1
    model = verify.open_model(folder)
    assert model.in_bfloat16 == InBfloat16.of(row)
    before = np.asarray(model.scores(windows)[0])
    with bfloat16.used():
        narrow = np.asarray(model.scores(windows)[0])
    np.testing.assert_array_equal(np.asarray(model.scores(windows)[0]), before)
    if bfloat16.instructions() is not None:  # elsewhere TensorFlow may keep to float32
        assert row["largest_difference"] > 0
        assert np.abs(narrow - before).max() == pytest.approx(row["largest_difference"], rel=0.5)
        assert row["other_decisions"] == (THRESHOLDS.decide(narrow) != THRESHOLDS.decide(before)).sum()


def test_without_windows_to_compare_nothing_is_known(tmp_path: Path, classifier: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(verify, "Isolated", Here)
    exported_to(tmp_path / "4", classifier)
    assert verify.open_model(tmp_path / "4").in_bfloat16 is None


class Windows:
    """Windows whose features are their numbers."""

    def __init__(self, n: int) -> None:
        self._n = n

    def __len__(self) -> int:
        return self._n

    def features(self, numbers: Any) -> Any:
        return numbers


@pytest.mark.parametrize(
    "flags, backbone, n, expected",
    [
        ("amx_bf16", "vggish-small", 4, [0, 1, 2, 3]),
        ("avx512_bf16", "vggish", 5000, np.linspace(0, 4999, 500).astype(int)),  # from the first to the last
        ("avx2", "vggish", 4, None),  # in float32 this CPU is faster
        ("amx_bf16", "yamnet", 4, None),
        ("amx_bf16", "vggish", 0, None),
    ],
)
def test_windows_of_all_of_validation_are_compared_where_bfloat16_is_a_gain(
    monkeypatch: pytest.MonkeyPatch, flags: str, backbone: str, n: int, expected: Any
) -> None:
    monkeypatch.setattr(bfloat16, "cpuinfo", lambda key: flags)
    monkeypatch.setattr(stages, "as_float", lambda features: features)
    job: Any = SimpleNamespace(
        dataset=SimpleNamespace(part=lambda name: ["recording"] * bool(n) if name == "val" else []),
        store=SimpleNamespace(spec=VGGISH), windows=lambda part: Windows(n),
    )  # fmt: skip
    found = stages._to_compare(job, SimpleNamespace(backbone=BACKBONES[backbone]))  # type: ignore[arg-type]
    assert found is None if expected is None else found is not None and list(found) == list(expected)


def settled(
    monkeypatch: pytest.MonkeyPatch, measured: InBfloat16 | None, flags: str = "amx_bf16", asked: str = "bfloat16",
    gpu: bool = False,
) -> tuple[bool, list[str], list[bool]]:  # fmt: skip
    """Whether it is used, what is said, and what TensorFlow is set to."""
    used: list[bool] = []
    monkeypatch.setattr(bfloat16, "cpuinfo", lambda key: flags)
    monkeypatch.setattr(bfloat16, "use", lambda on=True: used.append(on))
    monkeypatch.setattr(devices, "has_gpu", lambda: gpu)
    model = verify.ExportedModel(("a", "b"), {}, *[None] * 6, in_bfloat16=measured)  # type: ignore[arg-type]
    config = Config(data="in", output="out", predict={"precision": asked})
    journal = Said()
    return precision.settle(config, model, journal), journal.lines, used


def test_it_is_used_where_it_is_asked_for_and_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    on, said, used = settled(monkeypatch, AGREES)
    assert on and used == [True]
    assert said == [
        "  precision: bfloat16 (amx_bf16); on 100 windows of validation scores differ by at most 0.0040, and no "
        "decision does"
    ]


def test_float32_is_the_default_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PredictSettings().precision == "float32"
    assert settled(monkeypatch, AGREES, asked="float32") == (False, [], [False])


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"flags": "avx2"}, "no instructions"),
        ({"gpu": True}, "a GPU"),
        ({"measured": None}, "did not compare"),
        ({"measured": InBfloat16(50, 0.02, 0)}, "by up to 0.0200 (allowed: 0.01) and 0 decisions change"),
        ({"measured": InBfloat16(50, 0.002, 3)}, "3 decisions change"),
    ],
)
def test_where_it_will_not_do_the_reason_is_said(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], reason: str
) -> None:
    on, said, used = settled(monkeypatch, **({"measured": AGREES} | changes))
    assert not on and used == [False]
    assert len(said) == 1 and reason in said[0]


def test_detections_in_bfloat16_are_others_than_those_in_float32(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "model.json").write_text("{}", "utf-8")
    asked = Asked([], tmp_path / "out", "csv", tmp_path, None)

    def key(flags: str, **predict: str) -> str:
        monkeypatch.setattr(bfloat16, "cpuinfo", lambda key: flags)
        return detection_model._key(Config(data="in", output="out", predict=predict), asked, tmp_path)

    assert key("amx_bf16") == key("avx2")
    assert len({key("amx_bf16"), key("amx_bf16", precision="bfloat16"), key("avx2", precision="bfloat16")}) == 3


def test_predict_settles_the_precision_before_anything_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(prediction, "scorer_in", lambda place: MODEL)
    monkeypatch.setattr(precision, "settle", lambda *_: done.append("settled"))
    monkeypatch.setattr(prediction, "predict_files", lambda *_, **__: done.append("scored") or Outcome(1, 1, ()))
    asked = (Config(data="in", output="out"), Path("m"), [], Path("p.csv"), None, Said(), Interrupts())
    assert prediction.predict(*asked) == 0
    assert done == ["settled", "scored"]


def test_detections_are_known_by_the_precision_that_was_settled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(prediction, "scorer_in", lambda place: MODEL)
    made_by = set()
    for settles in (True, False):
        monkeypatch.setattr(precision, "settle", lambda *_, settles=settles: settles)
        asked = Asked([], tmp_path / "out", "csv", tmp_path, None)
        model = detection_model.Model(Config(data="in", output="out"), asked, Said())
        assert model.used.in_bfloat16 is settles
        made_by.add(model.described.made_by)
    assert len(made_by) == 2
