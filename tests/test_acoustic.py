"""birdtune.data.acoustic: made recordings with noise floors of their own, cut up and not."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from birdtune.audio.decode import SoundFacts
from birdtune.audio.measures import Meter
from birdtune.data import acoustic
from birdtune.data.labels import Label
from birdtune.data.scan import Recording
from birdtune.data.sources import find_sources, source_notices

RATE_HZ, CLIP = 16_000, 48_000
CLASSES = ("Aves_a", "Aves_b", "Aves_c")


def clip(floor: int | None, seed: int, *, tone_hz: float = 0.0) -> np.ndarray:
    """Three seconds of noise, shaped as recording number `floor` is (None: white), with a call. [48000]"""
    rng = np.random.default_rng([1, seed])
    spectrum = np.fft.rfft(rng.standard_normal(CLIP))
    if floor is not None:
        steps = 6 * np.random.default_rng([0, floor]).standard_normal(40).cumsum() / 3
        spectrum *= 10 ** (np.interp(np.linspace(0, 39, len(spectrum)), np.arange(40), steps) / 20)
    sound = np.fft.irfft(spectrum)
    sound *= 0.01 / sound.std()
    begin = int(rng.integers(0, CLIP // 2))
    sound[begin : begin + 6_000] += 0.1 * np.sin(2 * np.pi * rng.uniform(0.05, 0.3) * np.arange(6_000))
    return sound + 0.1 * np.sin(2 * np.pi * tone_hz / RATE_HZ * np.arange(CLIP))


def recording(name: str, sound: np.ndarray) -> Recording:
    meter = Meter(RATE_HZ, 1)
    block = np.clip(np.rint(32768 * sound), -32768, 32767).astype(np.int16)[:, None]
    meter.feed(block, (block[:, 0] / 32768).astype(np.float32), float(np.abs(sound).max()))
    facts = SoundFacts(RATE_HZ, 1, len(sound) / RATE_HZ, -20.0, "WAV PCM_16", measures=meter.measures())
    return Recording(name, Path(name), (Label(name.split("/", 1)[0]),), name, facts)


@cache
def cut_up(sources: int = 30, clips: int = 4) -> tuple[Recording, ...]:
    return tuple(
        recording(f"{CLASSES[source % 3]}/{source}-x{k}.wav", clip(source, 100 * source + k))
        for source in range(sources)
        for k in range(clips)
    )


def source_of(name: str) -> str:
    return name.split("/")[1].split("-")[0]


def linked(recordings: Iterable[Recording]) -> list[tuple[str, str]]:
    return [(link.first, link.second) for link in acoustic.links(list(recordings), "join") if link.joins]


def test_clips_of_one_recording_are_joined_and_those_of_others_are_not() -> None:
    found = linked(cut_up())
    assert all(source_of(a) == source_of(b) for a, b in found)
    sources = find_sources(cut_up(), links=acoustic.links(list(cut_up()), "join"))
    sizes = Counter(sources.keys.values())
    assert sum(size for size in sizes.values() if size > 1) >= 0.9 * len(cut_up())


def test_evidence_that_may_not_join_is_reported() -> None:
    links = acoustic.links(list(cut_up()), "warn")
    assert links and not any(link.joins for link in links)
    notices = source_notices(cut_up(), find_sources(cut_up(), links=links))
    assert any("nearly the same noise floor" in notice for notice in notices)


def test_independent_recordings_are_not_joined() -> None:
    one_each = [recording(f"{CLASSES[k % 3]}/{k}-x.wav", clip(k, k)) for k in range(90)]
    assert linked(one_each) == []


def test_recordings_of_one_recorder_or_one_noise_generator_are_not_joined() -> None:
    for floor in (7, None):
        station = [recording(f"{CLASSES[k % 3]}/{k}-x.wav", clip(floor, k)) for k in range(90)]
        assert acoustic.links(station, "join") == [], floor


def test_what_most_of_a_class_has_in_common_is_no_recording() -> None:
    """Each class by a recorder of its own, as near to each other as clips of one recording."""
    classes = [recording(f"Class_{k % 12}/{k}-x.wav", clip(k % 12, k)) for k in range(96)]
    assert acoustic.links(classes, "join") == []
    assert acoustic.near_training(classes[:72], classes[72:]) == ({}, 24)


def test_too_few_recordings_show_nothing() -> None:
    assert acoustic.links(list(cut_up()[:36]), "join") == []
    assert acoustic.near_training(cut_up()[:20], cut_up()[20:36]) == ({}, 0)


def test_test_recordings_find_the_training_recording_that_they_were_cut_from() -> None:
    test = [recording for k, recording in enumerate(cut_up()) if k % 4 == 0]
    train = [recording for k, recording in enumerate(cut_up()) if k % 4]
    near, compared = acoustic.near_training(train, test)
    assert compared == len(test) and len(near) >= 0.9 * len(test)
    assert all(source_of(name) == source_of(nearest) for name, (nearest, _) in near.items())


def test_test_recordings_of_other_sources_are_near_to_none() -> None:
    test, train = cut_up()[:24], cut_up()[24:]
    assert acoustic.near_training(train, test) == ({}, 24)


def test_noise_gates_leave_nothing_to_compare() -> None:
    gated = [recording(f"{CLASSES[k % 3]}/{k}-x.wav", clip(None, k) / 1_000) for k in range(60)]
    assert all(one.facts.measures and one.facts.measures.fingerprint for one in gated)
    assert acoustic.cohorts(gated) == []


# ---- samples that run on ------------------------------------------------------------------------


def continuous(seed: int, n: int) -> np.ndarray:
    """One recording: noise that is mostly below 800 Hz, as wind and traffic. [n]"""
    spectrum = np.fft.rfft(np.random.default_rng([2, seed]).standard_normal(n))
    spectrum *= 1 / (1 + (np.linspace(0, 8_000, len(spectrum)) / 800) ** 4)
    sound = np.fft.irfft(spectrum)
    return np.asarray(0.05 * sound / sound.std())


@cache
def side_by_side(gap: int = 0, fade: bool = False) -> tuple[Recording, ...]:
    """20 recordings of one spectrum, each cut into three clips of two seconds."""
    clips = []
    for source in range(20):
        sound = continuous(source, 4 * (32_000 + gap))
        for k in range(3):
            part = sound[k * (32_000 + gap) :][:32_000].copy()
            if fade:
                part[-400:] *= np.linspace(1, 0, 400)
                part[:400] *= np.linspace(0, 1, 400)
            clips.append(recording(f"{CLASSES[source % 3]}/{source}-x{k}.wav", part))
    return tuple(clips)


def place_of(name: str) -> int:
    return int(name.removesuffix(".wav").split("x")[1])


def seam_links(recordings: Iterable[Recording], how: str = "join") -> list[tuple[str, str]]:
    links = acoustic.links(list(recordings), how)
    return [(link.first, link.second) for link in links if link.rule == acoustic.SEAM_RULE]


def test_clips_that_lay_side_by_side_are_found_though_all_have_one_noise_floor() -> None:
    found = seam_links(side_by_side())
    assert len(found) >= 20  # of 40
    assert all(source_of(first) == source_of(second) for first, second in found)
    assert all(place_of(second) == place_of(first) + 1 for first, second in found)
    assert not any(link.joins for link in acoustic.links(list(side_by_side()), "warn"))


def test_samples_run_on_neither_over_a_gap_nor_over_a_fade() -> None:
    assert len(seam_links(side_by_side(gap=4_000))) <= 2
    assert seam_links(side_by_side(fade=True)) == []


def test_a_single_seam_between_two_classes_is_left_to_chance() -> None:
    pairs = [clip for clip in side_by_side() if place_of(clip.name) < 2]
    assert len(seam_links(pairs)) >= 8  # of 20
    other = (Label("other"),)
    apart = [replace(clip, labels=other) if place_of(clip.name) else clip for clip in pairs]
    assert seam_links(apart) == []


def test_clips_that_all_begin_alike_follow_on_none() -> None:
    tone = 0.1 * np.sin(2 * np.pi * 440 * np.arange(32_000) / RATE_HZ)
    alike = [
        recording(f"{CLASSES[k % 3]}/{k}-x.wav", tone + 1e-3 * np.random.default_rng(k).standard_normal(32_000))
        for k in range(60)
    ]
    assert seam_links(alike) == []


def test_test_recordings_that_run_on_from_a_training_recording_are_near_to_it() -> None:
    train = [recording for k, recording in enumerate(side_by_side()) if k % 3 != 1]
    test = [recording for k, recording in enumerate(side_by_side()) if k % 3 == 1]
    near, _ = acoustic.near_training(train, test)
    assert len(near) >= 5
    assert all(source_of(name) == source_of(nearest) for name, (nearest, _) in near.items())


def test_the_comparison_is_remembered(tmp_path: Path) -> None:
    kept = tmp_path / "acoustic.json"
    recordings = list(side_by_side())
    found = acoustic.kept_links(recordings, "warn", kept)
    assert found == acoustic.links(recordings, "warn")
    # What was kept is taken as it is while the recordings are the same.
    kept.write_text(kept.read_text().replace(acoustic.SEAM_RULE, "kept"))
    assert {link.rule for link in acoustic.kept_links(recordings, "warn", kept)} == {"kept"}
    assert acoustic.kept_links(recordings[:59], "warn", kept) == acoustic.links(recordings[:59], "warn")
    kept.write_text("{")
    assert acoustic.kept_links(recordings, "join", kept) == acoustic.links(recordings, "join")
