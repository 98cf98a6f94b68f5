"""birdtune.training.health: what is dead is seen, and what lives is not called dead."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

from birdtune.audio.logmel import VGGISH, log_mel
from birdtune.evaluation.scores import one_hot
from birdtune.training.health import LiveUnits, class_inputs, distances, sampled


class MadeStore:
    """Stands in for the frame store: frames by name, with a checksum that is given."""

    spec = VGGISH

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}
        self.sums: dict[str, int] = {}
        self.read = 0

    def add(self, content: str, frames: Any, crc: int | None = None) -> str:
        self.kept[content] = np.asarray(frames, np.float16)
        self.sums[content] = len(self.sums) if crc is None else crc
        return content

    def entry(self, content: str) -> Any:
        return SimpleNamespace(crc=self.sums[content], n_rows=len(self.kept[content]))

    def rows(self, content: str, first: int = 0, n: int | None = None) -> Any:
        self.read += 1
        return self.kept[content][first : None if n is None else first + n]


def noise(seconds: float, loudness: float) -> Any:
    return log_mel(loudness * np.random.default_rng(0).standard_normal(round(16_000 * seconds)))


SILENCE = log_mel(np.zeros(48_000, np.float32))
OFFSET = log_mel(np.full(48_000, 0.5, np.float32))


def rows(store: MadeStore, **classes: list[str]) -> dict[str, dict[str, Any]]:
    contents = [content for inside in classes.values() for content in inside]
    labels = [column for column, inside in enumerate(classes.values()) for _ in inside]
    positive = csr_array(one_hot(labels, len(classes)) > 0)
    return {row["class"]: row for row in class_inputs(store, tuple(classes), contents, positive)}  # type: ignore[arg-type]


def test_silence_and_a_constant_offset_hold_nothing_but_the_faintest_noise_does() -> None:
    store = MadeStore()
    rounded = SILENCE + 0.004 * (np.arange(len(SILENCE)) % 2)[:, None]  # the spacing of float16 there
    dead = [store.add("zeros", SILENCE), store.add("offset", OFFSET), store.add("rounded", rounded)]
    # 70 dB below full scale; and a sound in the last third only.
    faint = store.add("faint", noise(3, 10 ** (-70 / 20)))
    late = store.add("late", np.concatenate([SILENCE, noise(1, 0.1)]))
    found = rows(store, Dead=dead, Alive=[faint, late], None_=[])
    assert found["Dead"] == {"class": "Dead", "recordings": 3, "silent": 3, "distinct": 3}
    assert found["Alive"]["silent"] == 0
    assert found["None_"] == {"class": "None_", "recordings": 0, "silent": 0, "distinct": 0}


def test_copies_are_one_sound_and_a_large_class_is_looked_at_in_part() -> None:
    store = MadeStore()
    copies = [store.add(f"copy{k}", SILENCE, crc=7) for k in range(3)]
    many = [store.add(f"{k}", noise(1.2, 0.1)) for k in range(100)]
    found = rows(store, Copies=copies, Many=many)
    assert found["Copies"]["distinct"] == 1
    assert (found["Many"]["recordings"], found["Many"]["distinct"]) == (16, 100)
    assert store.read <= 3 * 4 + 16 * 4


def test_layers_that_moved_are_distinguished_from_those_that_did_not() -> None:
    rng = np.random.default_rng(0)
    before = {f"backbone/{name}/kernel": rng.standard_normal((64, 640)).astype(np.float32) for name in "abc"}
    after = {**before, "backbone/b/kernel": before["backbone/b/kernel"] + 1e-4}
    first = sampled({**before, "backbone/a/bias": np.ones(3, np.float32)})
    assert set(first) == {"backbone/a", "backbone/b", "backbone/c"} and first["backbone/a"].size <= 4096 + 64
    found = distances(first, sampled(after))
    assert found["backbone/a"] == found["backbone/c"] == 0.0
    assert found["backbone/b"] == pytest.approx(1e-4, rel=0.05)


def test_weights_of_zero_that_stay_zero_have_not_moved() -> None:
    zeros = {"x/kernel": np.zeros((3, 3), np.float32)}
    assert distances(sampled(zeros), sampled(zeros)) == {"x": 0.0}
    assert distances(sampled(zeros), sampled({"x/kernel": np.ones((3, 3), np.float32)}))["x"] > 1


def test_samples_do_not_change_with_what_they_were_taken_from() -> None:
    array = np.ones((2, 2), np.float32)
    first = sampled({"x/kernel": array})
    array[:] = 5
    assert (first["x"] == 1).all()


def test_units_are_alive_if_any_two_windows_differ() -> None:
    units = LiveUnits()
    assert units.count() is None
    units.note(np.float32([[0, 5, 1, 2], [0, 5, 1, 2]]))
    assert units.count() == 0
    units.note(np.float32([[0, 5.0001, 1, 3]]))  # 0.002 % is rounding
    assert units.count() == 1
    units.note(np.float32([[-1, 5, 2, 2]]))
    assert units.count() == 3
