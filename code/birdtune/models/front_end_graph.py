"""What a front end does, as TensorFlow operations: for graphs that are served, and for what is fed to networks.

    waveform [samples] ─▶ rows [n, ...];  windows as they are stored ─▶ float32;  windows ─▶ how much each counts

The export compares them with `audio/`, which computes the same with numpy.
"""

from functools import singledispatch
from typing import Any

import tensorflow as tf

from birdtune.audio.front_end import SILENT, FrontEnd
from birdtune.audio.logmel import LogMel, hann_window, mel_matrix
from birdtune.audio.waveform import FULL_SCALE, Waveform


def as_float(windows: Any) -> Any:
    """Windows as they are stored, or float32 already, as a network is fed with them: float32."""
    found = tf.cast(windows, tf.float32)
    return found / FULL_SCALE if tf.as_dtype(windows.dtype) == tf.int16 else found


@singledispatch
def rows(spec: FrontEnd, waveform: Any) -> Any:
    """Rows of waveforms [..., samples] float32. [..., n, *row_shape] float32"""
    raise NotImplementedError(spec.kind)


@singledispatch
def sounding(spec: FrontEnd, windows: Any) -> Any:
    """`FrontEnd.sounding`: which rows hold any sound. float32 windows [n, window_rows, ...] → [n, window_rows]"""
    raise NotImplementedError(spec.kind)


def held(spec: FrontEnd, windows: Any) -> Any:
    """`FrontEnd.held`: how much each window counts in a mean over a recording. [n] float32"""
    return tf.reduce_mean(tf.cast(sounding(spec, windows), tf.float32), axis=1) + SILENT


@rows.register
def _(spec: LogMel, waveform: Any) -> Any:
    # In float64 up to the logarithm. A float32 transform differs by up to 3e-4 where a band is quiet beside
    # a loud one (measured: sine of 0.9 with one of 1e-4), in float64 by 1e-6; and a float32 matrix product
    # on a GPU would be computed in TF32, with a thousandth of error.
    frames = tf.signal.frame(tf.cast(waveform, tf.float64), spec.frame, spec.frame_hop)  # [..., frames, frame]
    spectrum = tf.signal.rfft(frames * hann_window(spec), [spec.fft])  # [..., frames, n_bins] complex128
    mel = tf.matmul(tf.abs(spectrum), tf.constant(mel_matrix(spec), tf.float64))  # [..., frames, n_mels]
    return tf.cast(tf.math.log(mel + spec.log_offset), tf.float32)  # [..., frames, n_mels]


@rows.register
def _(spec: Waveform, waveform: Any) -> Any:
    return tf.signal.frame(waveform, spec.row_width, spec.row_width)  # [..., rows, row_width]


@sounding.register
def _(spec: LogMel, windows: Any) -> Any:
    return tf.reduce_max(windows, axis=2) > spec.floor


@sounding.register
def _(spec: Waveform, windows: Any) -> Any:
    return tf.reduce_max(tf.abs(windows), axis=2) > spec.faintest
