"""The picture of what augmentation does."""

import io
import re
from collections.abc import Iterator
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from makers import quiet, tone, without_processes, write_sound
from test_augment import ALL, Sounds, augmenter

from birdtune.config import Config
from birdtune.data import augment, frame_worker
from birdtune.errors import InputError
from birdtune.reporting import augmentation_sheet
from birdtune.runtime.signals import Interrupts
from birdtune.settings import AugmentSettings


def pixels(png: bytes) -> np.ndarray:
    return matplotlib.image.imread(io.BytesIO(png), format="png")


def test_each_thing_that_is_on_has_a_column_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    drawn = augmentation_sheet._picture
    monkeypatch.setattr(
        augmentation_sheet,
        "_picture",
        lambda columns, spec: (seen.append([words for words, _ in columns]), drawn(columns, spec))[1],
    )
    chosen, order = np.array([0, 1, 4]), np.arange(12)
    wide = pixels(augmentation_sheet.sheet(augmenter(ALL), chosen, order))
    narrow = pixels(augmentation_sheet.sheet(augmenter(AugmentSettings(band_mask=9)), chosen, order))

    assert len(seen[0]) == len(augment.active(ALL)) + 2, "as it is, each alone, all together"
    assert len(seen[1]) == 2
    assert "9 bands" in seen[1][1]
    assert wide.shape[1] > 4 * narrow.shape[1]
    assert np.unique(narrow.reshape(-1, narrow.shape[2]), axis=0).shape[0] > 50


def test_the_start_jitter_has_a_column_with_windows_moved_that_far(monkeypatch: pytest.MonkeyPatch) -> None:
    class Moved(Sounds):
        def features(self, windows: np.ndarray, shift: np.ndarray | None = None) -> np.ndarray:
            return self.frames[windows] + np.float16(0) if shift is None else np.roll(self.frames[windows], 7, axis=1)

    columns: dict[str, np.ndarray] = {}
    monkeypatch.setattr(augmentation_sheet, "_picture", lambda made, spec: columns.update(made))
    some = np.array([0, 1, 4])
    augmentation_sheet.sheet(augmenter(AugmentSettings(gain_db=3), Moved()), some, np.arange(12), 0.48)
    plain, moved, louder, both = columns.values()
    assert "started elsewhere,\n± 0.48 s" in columns
    assert (np.roll(plain, 7, axis=1) == moved).all()
    # What is done alone is done to windows in their places, all together to moved ones.
    assert (np.roll(louder, 7, axis=1) == both).all() and (louder != plain).any()
    columns.clear()
    augmentation_sheet.sheet(augmenter(AugmentSettings(), Moved()), some, np.arange(12), 0.48)
    assert len(columns) == 2


def test_everything_that_can_be_on_has_a_title() -> None:
    everything = AugmentSettings(**dict.fromkeys(augment.NAMES, 1) | {"speed": 0.1, "tempo": 0.1})
    titles = [augmentation_sheet.title(name, everything) for name in augment.active(everything)]
    assert len(set(titles)) == len(augment.NAMES) and "pitch alone,\n± 1 semitone" in titles


def test_noise_that_is_louder_than_the_window_is_called_so() -> None:
    for low, words in ((5, "5 to 25 dB fainter"), (-5, "5 dB louder to 15 fainter"), (-30, "30 to 10 dB louder")):
        assert augmentation_sheet.title("pink_noise", AugmentSettings(pink_noise=0.5, snr_db=low)).endswith(words)


def test_the_picture_is_the_same_each_time() -> None:
    settings = AugmentSettings(white_noise=0.1, mixup=0.1)
    made = [augmentation_sheet.sheet(augmenter(settings), np.array([0, 5]), np.arange(12)) for _ in range(2)]
    assert made[0] == made[1]


def test_what_is_done_to_a_share_of_windows_is_shown_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {}
    monkeypatch.setattr(augmentation_sheet, "_picture", lambda made, spec: columns.update(made))
    augmentation_sheet.sheet(augmenter(AugmentSettings(pink_noise=0.01)), np.array([0, 1, 4, 7]), np.arange(12))
    plain, noisy = columns.values()
    assert (plain != noisy).any(axis=(1, 2)).all()


def test_loud_windows_of_several_classes_are_shown() -> None:
    class Windows(Sounds):
        class store:  # noqa: N801
            spec = augmenter(ALL).spec

    sounds = Windows()
    chosen = augmentation_sheet.loud_windows(sounds, sounds.label, without=(3,))  # type: ignore[arg-type]
    assert sounds.label[chosen].tolist() == [0, 1, 2]
    assert chosen[0] == 0, "the loudest of its class"
    found = augmentation_sheet.loud_windows(sounds, sounds.label, without=(0, 1, 2, 3))  # type: ignore[arg-type]
    assert sounds.label[found].size


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Frames made in this process, whose last shard is closed."""
    without_processes(monkeypatch)
    yield
    frame_worker.close_shard()


@pytest.mark.usefixtures("here")
def test_the_command_draws_from_a_folder_of_sounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for label in ("Owl", "Wren"):
        for take in range(3):
            sound = tone(1.5, frequency_hz=700 if label == "Owl" else 3000, seed=hash_of(label) + take)
            write_sound(tmp_path / "data" / label / f"XC{take}{len(label)}.wav", sound)
    said: list[str] = []
    journal = quiet()
    monkeypatch.setattr(journal, "say", said.append)
    out = tmp_path / "sheet.png"

    def draw(**settings: float) -> str:
        said.clear()
        config = Config(input=tmp_path, output=tmp_path / "out", augment=AugmentSettings(**settings))
        augmentation_sheet.draw_sheet(config, out, journal, Interrupts())
        return "\n".join(said)

    assert "strengths worth a try" in (said_of_all := draw()) and "--train.jitter-s 0.48: started" in said_of_all
    assert pixels(out.read_bytes()).ndim == 3
    line = draw(gain_db=3)
    assert re.search(r"--augment.gain-db 3: .*± 3 dB$", line, re.MULTILINE)
    with pytest.raises(InputError, match="background"):
        draw(background=0.5)


def hash_of(label: str) -> int:
    return sum(map(ord, label))
