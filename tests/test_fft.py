"""birdtune.audio.fft: scipy's transforms without scipy's packages."""

import subprocess
import sys

import numpy as np
import pytest
import scipy.fft

from birdtune.audio import fft


@pytest.fixture(autouse=True)
def afresh() -> None:
    fft._rfft.cache_clear()


FRAMES = np.random.default_rng(0).standard_normal((7, 512)).astype(np.float32)


def test_it_is_scipys_to_the_bit() -> None:
    found = fft.rfft(FRAMES)
    assert found.dtype == np.complex64 and np.array_equal(found, scipy.fft.rfft(FRAMES, axis=1))


@pytest.mark.parametrize("extension", ("scipy.fft._pocketfft.elsewhere", "scipy.fft._pocketfft.helper"))
def test_a_scipy_that_is_made_otherwise_is_used_as_documented(
    monkeypatch: pytest.MonkeyPatch, extension: str
) -> None:
    monkeypatch.setattr(fft, "_EXTENSION", extension)
    assert np.array_equal(fft.rfft(FRAMES), scipy.fft.rfft(FRAMES, axis=1))


@pytest.mark.parametrize("first", ("scipy.fft", "birdtune.audio.fft"))
def test_no_package_is_imported_for_it_and_both_go_together(first: str) -> None:
    code = f"""
import sys
import numpy as np
import {first}
from birdtune.audio.fft import rfft
x = np.ones((2, 8), np.float32)
found = rfft(x)
assert ("scipy.fft" in sys.modules) == {first == "scipy.fft"}, "what a worker imports"
import scipy.fft
assert np.array_equal(scipy.fft.rfft(x, axis=1), found) and np.array_equal(rfft(x), found)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
