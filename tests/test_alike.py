"""birdtune.pipeline.alike: detections that sound alike, behind one another."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest
from makers import tone, write_sound

from birdtune.audio.logmel import VGGISH
from birdtune.pipeline import alike
from birdtune.reporting.review_page import Doubtful
from birdtune.serving import verify

NORTH, SOUTH, EAST = (1.0, 0.0, 0.0), (-1.0, 0.2, 0.0), (0.0, 0.0, 1.0)
UNREAD = (np.nan,) * 3


def doubtful(name: str, number: int, given: Path = Path("a.wav"), peak_s: float = 1.0) -> Doubtful:
    return Doubtful(f"{number}", given, 60.0, name, peak_s, peak_s + 1, peak_s, 0.5, 0.5)


def embed(*rows: Sequence[float]) -> alike.Embed:
    return lambda some: np.array(rows, np.float32)


def order(found: list[Doubtful]) -> list[str]:
    return [one.recording for one in found]


def test_a_group_stands_where_its_least_certain_detection_stood() -> None:
    some = [doubtful("Owl", k) for k in range(6)]
    near = (1.0, 0.1, 0.1)
    found = alike.grouped(some, embed(EAST, NORTH, SOUTH, near, EAST, (-1.0, 0.0, 0.0)))
    assert order(found) == ["0", "4", "1", "3", "2", "5"]


def test_groups_are_within_a_class_and_what_cannot_be_read_stays_in_its_place() -> None:
    some = [doubtful("Owl", 0), doubtful("Owl", 1), doubtful("Owl", 2), doubtful("Tit", 3), doubtful("Tit", 4)]
    found = alike.grouped(some, embed(NORTH, UNREAD, NORTH, NORTH, (0.0, 0.0, 0.0)))
    assert order(found) == ["0", "2", "1", "3", "4"]
    assert alike.grouped(some[:2], lambda _: pytest.fail("two are in order as they are")) == some[:2]


def test_a_model_embeds_the_window_with_the_highest_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    low, high = tone(4.0, frequency_hz=500.0), tone(4.0, frequency_hz=3000.0)
    path = write_sound(tmp_path / "a.wav", np.concatenate([low, high]), 44_100)

    def scores(windows: npt.NDArray[np.float32]) -> tuple[None, npt.NDArray[np.float32]]:
        return None, np.exp(windows).sum(axis=1)  # energy by band [n, 64]

    monkeypatch.setattr(verify, "open_model", lambda _: SimpleNamespace(front_end=VGGISH, scores=scores))
    sounds = [doubtful("Owl", 0, path, 0.2), doubtful("Owl", 1, path, 2.0), doubtful("Owl", 2, tmp_path / "gone.wav")]
    found = alike.embedder(tmp_path)(sounds)
    assert found.shape == (3, 64) and np.isnan(found[2]).all()
    bands = found[:2].argmax(axis=1)
    # Written as 44.1 kHz, the tones are 2.76 times as high and the first ends at 1.45 s.
    assert bands[1] > bands[0] + 10
