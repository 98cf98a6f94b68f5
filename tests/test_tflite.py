"""birdtune.models.tflite: what stands in a TensorFlow Lite file, and that damage is refused."""

import os
from pathlib import Path

import numpy as np
import pytest
from helpers_yamnet import Array, Drawn

from birdtune.errors import CheckpointError
from birdtune.models import tflite, yamnet

STEPS = yamnet.BACKBONE.steps()[:3]


@pytest.fixture(scope="module")
def arrays() -> dict[str, Array]:
    random = np.random.default_rng(0)
    shapes = {name: shape for step in STEPS for name, shape in zip(
        yamnet.BACKBONE.variable_names(step.row), (step.kernel, (step.row.width,)), strict=True
    )}  # fmt: skip
    shapes |= {"logits/kernel": (64, 521), "logits/bias": (521,)}
    return {name: random.normal(0, 1, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def path(arrays: dict[str, Array], tmp_path: Path) -> Path:
    return Drawn(arrays, STEPS).write(tmp_path / "x.tflite")


@pytest.mark.parametrize("dequantizes", [True, False])
def test_the_operations_with_weights_come_in_their_order(
    arrays: dict[str, Array], tmp_path: Path, dequantizes: bool
) -> None:
    found = tflite.read_layers(Drawn(arrays, STEPS, dequantizes=dequantizes).write(tmp_path / "x.tflite"))
    assert [layer.kind for layer in found] == ["conv", "depthwise", "conv", "dense"]
    assert [layer.strides for layer in found] == [(2, 2), (1, 1), (1, 1), (0, 0)]
    assert [layer.padding for layer in found[:3]] == ["same"] * 3
    assert [layer.activation for layer in found] == ["relu", "relu", "relu", "none"]
    assert [layer.link for layer in found] == ["none", "direct", "direct", "through"]
    assert all(layer.is_quantized for layer in found)
    scopes = [*(step.row.scope for step in STEPS), "logits"]
    for layer, scope in zip(found, scopes, strict=True):
        kernel = arrays[f"{scope}/kernel"]
        assert layer.kernel.shape == kernel.shape
        assert layer.kernel.dtype == np.float32
        # Whole numbers of 8 bits, a step of 1/127 of the largest; of each output channel where these have their own.
        largest = np.abs(kernel).max(axis=None if layer.kind == "depthwise" else tuple(range(kernel.ndim - 1)))
        assert (np.abs(layer.kernel - kernel) <= 0.501 * largest / 127).all()
        np.testing.assert_array_equal(layer.bias, arrays[f"{scope}/bias"])


def test_wherever_a_file_ends_too_early_it_is_refused(path: Path) -> None:
    content = path.read_bytes()
    for size in (8, 9, 100, 1000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r"damaged or cut off .*get it again"):
            tflite.read_layers(path)


def test_no_damage_is_fatal(path: Path) -> None:
    content, refused = path.read_bytes(), 0
    random = np.random.default_rng(0)
    data = np.frombuffer(content, np.uint8)
    for _ in range(300):
        bad = bytearray(data)
        for place in random.integers(8, len(bad), 200):
            bad[place] = random.integers(256)
        path.write_bytes(bad)
        try:
            tflite.read_layers(path)
        except CheckpointError:
            refused += 1
    assert refused > 30


def test_a_file_far_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "film.tflite"
    path.write_bytes(b"\0\0\0\0TFL3")
    os.truncate(path, 1 << 40)
    with pytest.raises(CheckpointError, match=r"1,099,512 MB.*Likely cause: another file"):
        tflite.read_layers(path)
    with pytest.raises(CheckpointError, match=r"nowhere.tflite: cannot be read"):
        tflite.read_layers(tmp_path / "nowhere.tflite")
