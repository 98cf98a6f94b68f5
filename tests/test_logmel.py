"""birdtune.audio.logmel: VGGish's front end, to the published numbers and bit for bit in pieces."""

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import band_centres_hz

from birdtune.audio.logmel import (
    VGGISH,
    YAMNET,
    LogMel,
    hann_window,
    log_mel,
    mel_from_hz,
    mel_matrix,
)

Array = npt.NDArray[np.floating]


def sine(seconds: float, frequency_hz: float = 1000.0) -> npt.NDArray[np.float64]:
    return np.sin(2 * np.pi * frequency_hz * np.arange(0, seconds, 1 / 16_000))


def features(waveform: Array) -> npt.NDArray[np.float32]:
    """Those that are whole without overlap."""
    frames = log_mel(waveform)
    n = len(frames) // 96
    return frames[: n * 96].reshape(n, 96, 64)


def plain_log_mel(waveform: Array) -> npt.NDArray[np.float64]:
    """The definition, frame by frame in float64, without anything of the module's but its constants."""
    n = np.arange(400)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / 400)

    def mel(hertz: Array) -> Array:
        return 1127.0 * np.log(1.0 + hertz / 700.0)

    edges = np.linspace(mel(np.float64(125)), mel(np.float64(7500)), 66)
    bins = mel(np.arange(257) * 16_000 / 512)
    weights = np.zeros((257, 64))
    for band in range(64):
        low, centre, high = edges[band : band + 3]
        weights[:, band] = np.clip(np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)), 0, None)
    weights[0] = 0
    starts = range(0, len(waveform) - 400 + 1, 160)
    magnitudes = np.array([np.abs(np.fft.rfft(waveform[s : s + 400] * window, 512)) for s in starts])
    return np.log(magnitudes @ weights + 0.01)


def test_the_published_vector_comes_out() -> None:
    found = features(sine(3.0))
    assert found.shape == (3, 96, 64)
    assert found.dtype == np.float32
    assert found.mean(dtype=np.float64) == pytest.approx(-3.429619, abs=1e-5)
    assert found.std(dtype=np.float64) == pytest.approx(2.126577, abs=1e-5)
    assert found.min() == pytest.approx(-4.601163, abs=1e-5)
    assert found.max() == pytest.approx(4.811118, abs=1e-5)


def test_frames_follow_the_definition() -> None:
    waveform = np.random.default_rng(0).normal(0, 0.1, 5000) + 0.3 * sine(5000 / 16_000)
    assert log_mel(waveform) == pytest.approx(plain_log_mel(waveform), abs=1e-5)


def test_float32_samples_give_nearly_the_same_frames() -> None:
    waveform = sine(3.0)
    assert np.abs(log_mel(waveform.astype(np.float32)) - log_mel(waveform)).max() < 1e-3


def sound(loud: Array, noise: float = 0.0) -> npt.NDArray[np.float32]:
    """16-bit samples."""
    waveform = loud + noise * np.random.default_rng(3).standard_normal(len(loud))
    return (np.clip(np.rint(waveform * 32768), -32768, 32767) / 32768).astype(np.float32)


NOTHING = np.zeros(32_000)
CLICKS = np.where(np.arange(32_000) % 4001 == 0, 0.9, 0.0)
BROWN = 0.3 * np.cumsum(np.random.default_rng(4).standard_normal(32_000)) / 180


@pytest.mark.parametrize("noise", (0.0, 1e-4, 1e-3, 1e-2, 0.2))
@pytest.mark.parametrize(
    "loud",
    (NOTHING, NOTHING + 0.5, sine(2.0), 0.3 * sine(2.0, 3001.0), 0.01 * sine(2.0), 0.9 * sine(2.0, 150.0),
     CLICKS, BROWN),
    ids=("noise", "offset", "loud tone", "tone", "faint tone", "hum", "clicks", "brown"),
)  # fmt: skip
def test_float32_never_errs_by_more_than_a_twentieth_of_what_float16_does(loud: Array, noise: float) -> None:
    waveform = sound(loud, noise)
    assert log_mel(waveform) == pytest.approx(plain_log_mel(waveform.astype(np.float64)), abs=1e-4)


def test_one_loud_frame_among_quiet_ones_leaves_the_quiet_ones_exact() -> None:
    waveform = sound(np.where(np.arange(32_000) // 800 % 10 == 5, sine(2.0), 0.0), 1e-5)
    assert log_mel(waveform) == pytest.approx(plain_log_mel(waveform.astype(np.float64)), abs=1e-4)


@pytest.mark.parametrize(
    ("n_samples", "n_frames"),
    [(0, 0), (399, 0), (400, 1), (559, 1), (560, 2), (15_599, 95), (15_600, 96), (160_000, 998)],
)
def test_frames_are_counted_without_padding(n_samples: int, n_frames: int) -> None:
    assert VGGISH.row_count(n_samples) == n_frames
    assert log_mel(np.zeros(n_samples, np.float32)).shape == (n_frames, 64)


@pytest.mark.parametrize(
    ("n_frames", "hop", "starts"),
    [(96, 96, [0]), (97, 96, [0, 1]), (192, 96, [0, 96]), (193, 96, [0, 96, 97]),
     (144, 48, [0, 48]), (143, 48, [0, 47]), (100, 1, [0, 1, 2, 3, 4]), (500, 250, [0, 250, 404]), (96, 250, [0])],
)  # fmt: skip
def test_the_last_patch_ends_with_the_sound(n_frames: int, hop: int, starts: list[int]) -> None:
    assert VGGISH.starts(n_frames, hop).tolist() == starts
    assert VGGISH.window_count(n_frames, hop) == len(starts)


@pytest.mark.parametrize("n_frames", [0, 1, 50, 95])
def test_fewer_frames_than_a_patch_has_give_none(n_frames: int) -> None:
    assert VGGISH.starts(n_frames).size == VGGISH.window_count(n_frames) == 0
    assert list(VGGISH.cut([np.zeros((n_frames, 64), np.float32)])) == []


@pytest.mark.parametrize("spec", (VGGISH, YAMNET), ids=lambda spec: spec.name)
@settings(derandomize=True, deadline=None)
@given(n=st.integers(0, 200_000))
def test_every_sample_is_in_a_patch(spec: LogMel, n: int) -> None:
    padded = spec.padded_samples(n)
    starts = spec.starts(spec.row_count(padded))
    assert spec.windows_in(n / spec.rate_hz) == starts.size
    assert n <= padded < max(n, spec.window_samples - spec.row_hop) + spec.row_hop + 1
    assert starts[-1] * spec.row_hop + spec.window_samples == padded, "nothing is behind the last one"
    assert starts[0] == 0 and (np.diff(starts) > 0).all() and (np.diff(starts) <= spec.hop_rows).all()


@settings(derandomize=True, max_examples=40, deadline=None)
@given(n=st.integers(96, 3000), hop=st.integers(1, 700), cuts=st.lists(st.integers(0, 3000), max_size=12))
def test_frames_in_blocks_are_cut_where_the_whole_is(n: int, hop: int, cuts: list[int]) -> None:
    frames = np.arange(n, dtype=np.float32)[:, None] * np.ones(64, np.float32)
    found = list(VGGISH.cut(np.split(frames, sorted(min(place, n) for place in cuts)), hop))
    assert [first for first, _ in found] == VGGISH.starts(n, hop).tolist()
    for first, patch in found:
        assert np.array_equal(patch, frames[first : first + 96])


def test_the_shortest_sound_with_a_patch_has_15600_samples() -> None:
    assert VGGISH.window_samples == 15_600
    assert VGGISH.window_s == pytest.approx(0.96)
    assert VGGISH.rows_per_s == 100


def test_silence_is_the_logarithm_of_the_offset() -> None:
    assert log_mel(np.zeros(1000)) == pytest.approx(np.full((4, 64), np.log(0.01)), abs=1e-6)


@pytest.mark.parametrize("band", [0, 5, 20, 40, 63])
def test_a_sine_is_loudest_in_the_band_around_it(band: int) -> None:
    frames = log_mel(0.5 * sine(0.5, band_centres_hz(VGGISH)[band]))
    assert set(frames.argmax(axis=1)) <= {max(0, band - 1), band, min(63, band + 1)}


def test_mel_is_by_the_htk_formula() -> None:
    assert mel_from_hz(700.0) == pytest.approx(1127 * np.log(2))


def test_the_mel_matrix_is_of_triangles_in_mel() -> None:
    weights = mel_matrix(VGGISH)
    assert weights.shape == (257, 64)
    assert weights.dtype == np.float32
    assert (weights >= 0).all()
    assert weights.max() <= 1
    assert (weights[0] == 0).all()
    bins_hz = np.arange(257) * 31.25
    assert (weights[(bins_hz <= 125) | (bins_hz >= 7500)] == 0).all()
    for band in range(64):
        peak, (rows,) = weights[:, band].argmax(), np.nonzero(weights[:, band])
        assert (np.diff(rows) == 1).all(), "a band is one piece"
        assert (np.diff(weights[rows[0] : peak + 1, band]) > 0).all()
        assert (np.diff(weights[peak : rows[-1] + 1, band]) < 0).all()
    # Within the outer centres, neighbours share each bin: the weights of a bin sum to one.
    inside = (bins_hz > band_centres_hz(VGGISH)[0]) & (bins_hz < band_centres_hz(VGGISH)[-1])
    assert weights[inside].sum(axis=1) == pytest.approx(1.0, abs=1e-5)


def test_what_is_kept_between_calls_cannot_be_changed() -> None:
    for array in (mel_matrix(VGGISH), hann_window(VGGISH)):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_the_window_is_the_periodic_one() -> None:
    window = hann_window(VGGISH)
    assert window[200] == 1
    assert window[0] == 0
    assert window[399] == pytest.approx(window[1])
    assert np.array_equal(window, scipy.signal.get_window("hann", 400, fftbins=True))
    assert not np.allclose(window, scipy.signal.get_window("hann", 400, fftbins=False))


def test_every_number_of_a_front_end_changes_its_digest() -> None:
    changed = [
        dataclasses.replace(VGGISH, **{field.name: (getattr(VGGISH, field.name) or 1800.0) * 2})
        for field in dataclasses.fields(VGGISH)
    ]
    digests = {spec.digest for spec in [VGGISH, *changed]}
    assert len(digests) == len(dataclasses.fields(VGGISH)) + 1
    assert all(len(digest) == 12 for digest in digests)
    assert dataclasses.replace(VGGISH).digest == VGGISH.digest


NOISE = np.random.default_rng(1).normal(0, 0.1, 200_000).astype(np.float32)


@settings(derandomize=True, max_examples=40, deadline=None)
@given(
    n=st.integers(0, NOISE.size), cuts=st.lists(st.integers(0, NOISE.size), max_size=12),
)  # fmt: skip
def test_blocks_of_any_size_give_the_very_bits_of_the_whole(n: int, cuts: list[int]) -> None:
    waveform = NOISE[:n]
    found = list(VGGISH.unpadded_rows(np.split(waveform, sorted(min(cut, n) for cut in cuts))))
    joined = np.concatenate(found) if found else np.zeros((0, 64), np.float32)
    assert np.array_equal(joined, log_mel(waveform))


def test_blocks_leave_as_soon_as_they_are_whole() -> None:
    taken: list[int] = []
    blocks = (taken.append(block.size) or block for block in np.split(NOISE, 20))
    made = [(len(rows), sum(taken)) for rows in VGGISH.unpadded_rows(blocks)]
    assert made == [(512, 90_000), (512, 170_000), (VGGISH.row_count(NOISE.size) - 1024, 200_000)]


@pytest.mark.parametrize("n", [0, 1, 399, 8000, 15_599])
def test_a_short_sound_is_filled_with_zeros_up_to_one_patch(n: int) -> None:
    filled = np.concatenate([NOISE[:n], np.zeros(15_600 - n, np.float32)])
    halves = np.array_split(NOISE[:n], 2)
    found = np.concatenate(list(VGGISH.rows_of(halves)))
    assert found.shape == (96, 64)
    assert np.array_equal(found, log_mel(filled))


def test_of_a_longer_sound_only_the_last_frame_is_filled() -> None:
    for n, filled in ((15_600, 15_600), (15_601, 15_760), (15_759, 15_760), (15_760, 15_760), (100_000, 100_080)):
        found = np.concatenate(list(VGGISH.rows_of(np.split(NOISE[:n], [n // 3]))))
        assert np.array_equal(found, log_mel(np.pad(NOISE[:n], (0, filled - n))))


# ---- YAMNet's -----------------------------------------------------------------------------------


def test_yamnets_frames_differ_in_the_offset_alone() -> None:
    waveform = NOISE[:5000]
    mel = np.exp(log_mel(waveform, VGGISH).astype(np.float64)) - 0.01
    assert log_mel(waveform, YAMNET) == pytest.approx(np.log(mel + 0.001), abs=1e-3)
    assert log_mel(np.zeros(1000), YAMNET) == pytest.approx(np.full((4, 64), np.log(0.001)), abs=1e-6)
    assert len({spec.digest for spec in (VGGISH, YAMNET)}) == len({spec.name for spec in (VGGISH, YAMNET)}) == 2


@pytest.mark.parametrize(
    ("n_samples", "n_windows"), [(0, 1), (15_600, 1), (15_601, 2), (23_280, 2), (23_281, 3), (160_000, 20)]
)
def test_yamnets_patches_overlap_by_half_and_are_as_many_as_googles(n_samples: int, n_windows: int) -> None:
    assert YAMNET.windows_in(n_samples / YAMNET.rate_hz) == n_windows
