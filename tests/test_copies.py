"""birdtune.data.copies: augmented copies that are embedded once, and what an epoch is given of them."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import StopAt
from test_augment import ALL, CLASSES, Sounds, augmenter
from test_job import record, run, settings, write_data

from birdtune.data.batches import Batch
from birdtune.data.copies import CopyOf, FromCopies
from birdtune.errors import Interrupted

pytestmark = pytest.mark.usefixtures("in_one_process")


class Numbers:
    """A source that gives the numbers it is asked for."""

    def __len__(self) -> int:
        return 12

    def features(self, windows: Any, shift: Any = None) -> Any:
        return windows


def test_a_window_of_a_copy_is_the_same_whatever_lies_beside_it() -> None:
    sounds: Any = Sounds()
    copy = CopyOf(augmenter(ALL, sounds), sounds, 2)
    whole = copy.features(np.arange(12))
    assert not np.array_equal(whole, sounds.frames)
    for some in ([5], [3, 4, 9], [11, 0, 1]):
        np.testing.assert_array_equal(copy.features(np.array(some)), whole[some])
    other = dataclasses.replace(copy, number=3)
    assert not np.array_equal(other.features(np.arange(12)), whole)


def test_a_copy_is_known_by_what_it_is_made_of_and_not_by_how_many_there_are(tmp_path: Path) -> None:
    sounds: Any = Sounds()
    sounds.contents, sounds.hop_rows = ("a", "b"), 96

    def digest(number: int = 1, **changes: Any) -> str:
        return CopyOf(augmenter(ALL.model_copy(update=changes), sounds), sounds, number).digest()

    assert digest() == digest(copies=9) != digest(2) and digest() != digest(mixup=0.1)
    (tmp_path / "a.wav").write_bytes(b"one response")
    before = digest(impulse_responses=str(tmp_path))
    (tmp_path / "a.wav").write_bytes(b"another")
    assert digest(impulse_responses=str(tmp_path)) != before


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_an_epoch_has_the_windows_and_the_targets_of_its_copy(kind: str) -> None:
    sounds: Any = Sounds()
    made = augmenter(ALL, sounds, kind)
    given = FromCopies(made, sounds, Numbers(), 2)
    windows = np.array([7, 2, 4, 8])
    batch = Batch(windows, np.ones(4, np.float32), windows, *sounds.targets(kind).of(windows))
    assert given(batch, 0, 0, np.arange(12)) is batch and given(batch, 3, 0, np.arange(12)) is batch
    targets = []
    for epoch, number in ((1, 1), (2, 2), (4, 1)):
        found = given(batch, epoch, 40, np.arange(12))
        assert found.features.tolist() == (windows + 12 * number).tolist()
        # As if all windows of the copy were augmented as a batch.
        everything = np.arange(12)
        all_of_it = Batch(sounds.frames, np.ones(12, np.float32), everything, *sounds.targets(kind).of(everything))
        wanted = made(all_of_it, number, 0, everything)
        np.testing.assert_array_equal(found.targets, wanted.targets[windows])
        np.testing.assert_array_equal(found.known, wanted.known[windows])
        targets.append(found.targets)
    assert np.array_equal(targets[0], targets[2]) and not np.array_equal(targets[0], targets[1])
    assert targets[0].shape == (4, CLASSES)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("input") / "data")


def augmented(data: Path, output: Path, **changes: Any) -> Any:
    return settings(
        data, output, model__freeze="all-but-head", train__learning_rate=1e-2, train__epochs=5, augment__mixup=0.5,
        augment__pink_noise=0.5, **{"augment__copies": 2, **changes},
    )  # fmt: skip


def test_copies_are_embedded_once_and_a_run_that_was_stopped_ends_with_the_same_weights(
    data: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    assert run(augmented(data, whole), until="train") == 0
    folders = sorted(path.name for path in whole.glob("cache/**/frozen-*"))
    assert sum("-copy-" in name for name in folders) == 2
    assert "training, copy 2 of 2: the frozen layers are computed once" in (whole / "logs/1/run.log").read_text("utf-8")
    stopped = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        run(augmented(data, stopped), StopAt(30), until="train")
    assert run(augmented(data, stopped), until="train") == 0
    assert record(stopped)["weights_sha256"] == record(whole)["weights_sha256"]
    weights = {record(whole)["weights_sha256"]}
    for name, changes in (("other", {"augment__copies": 1}), ("none", {"augment__copies": 0})):
        assert run(augmented(data, tmp_path / name, **changes), until="train") == 0
        weights.add(record(tmp_path / name)["weights_sha256"])
    assert len(weights) == 3
