"""The demonstration's sounds and files: what was asked for is there, and nothing gives the answer away."""

import dataclasses
import pickle

import numpy as np
import pytest
import scipy.signal
import soundfile
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from birdtune.audio import demo_songs
from birdtune.audio.logmel import VGGISH, log_mel
from birdtune.data import scan
from birdtune.data.file_index import FileIndex, examine_all, identify
from birdtune.data.label_map import read_label_map
from birdtune.data.selection import select
from birdtune.data.sources import find_sources
from birdtune.errors import InputError, Interrupted
from birdtune.pipeline import demo
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.settings import AudioSettings

RATE_HZ = 16_000
SONGS = {song.species: song for song in demo_songs.SONGS}
SMALL = {"sources_per_class": 2, "calls_per_source": (1, 1)}


def a_voice(**changes):
    voice = demo_songs.draw_voice(np.random.default_rng(5), scene=0)
    return dataclasses.replace(voice, **({"pitch": 0.5, "tempo": 1.0, "tilt": 1.0} | changes))


def sung(species, seconds=6.0, seed=3, **voice):
    rng = np.random.default_rng(seed)
    return demo_songs.sing(SONGS[species], a_voice(**voice), round(seconds * RATE_HZ), RATE_HZ, rng)


def spectrogram(sound):
    """Magnitudes [frames, bins] and the bins' frequencies; 5 ms a frame."""
    hertz, _, spectrum = scipy.signal.stft(sound, RATE_HZ, nperseg=256, noverlap=176)
    return np.abs(spectrum).T, hertz


def pitch_track(sound):
    """Loudest frequency of each frame, NaN where hardly anything sounds. [frames] in hertz"""
    magnitude, hertz = spectrogram(sound)
    energy = magnitude.max(axis=1)
    return np.where(energy > 0.3 * energy.max(), hertz[magnitude.argmax(axis=1)], np.nan)


def beats_hz(sound, low_hz=2.0, high_hz=60.0):
    """Strongest rate at which the energy goes up and down."""
    energy = np.abs(scipy.signal.hilbert(sound))
    power = np.abs(np.fft.rfft((energy - energy.mean()) * np.hanning(energy.size))) ** 2
    hertz = np.fft.rfftfreq(energy.size, 1 / RATE_HZ)
    inside = (hertz > low_hz) & (hertz < high_hz)
    return hertz[inside][power[inside].argmax()]


# ---- songs --------------------------------------------------------------------------------------


def test_there_are_twelve_species_each_with_a_name_of_its_own_and_noise():
    assert len(SONGS) == 12
    assert len(demo.CLASSES) == 13
    assert demo_songs.NOISE_CLASS in demo.CLASSES
    assert list(demo.CLASSES) == sorted(demo.CLASSES)


@pytest.mark.parametrize(("species", "low", "high"), [
    ("Fictavis_cadens", -12_000, -2_500), ("Fictavis_surgens", 2_500, 12_000), ("Fictavis_sibilans", -200, 200),
])  # fmt: skip
def test_whistles_fall_rise_and_stay_as_their_names_say(species, low, high):
    steps = np.diff(pitch_track(sung(species)))
    within_notes = steps[np.abs(steps) < 300]  # hertz in 5 ms; NaN at the ends of notes drops out
    assert low < np.mean(within_notes) / 0.005 < high  # hertz a second


def test_the_fast_and_the_slow_trill_differ_in_tempo_alone():
    fast, slow = sung("Imaginatrix_crepitans"), sung("Imaginatrix_lenta")
    assert 12 < beats_hz(fast, 8) < 20
    assert 4 < beats_hz(slow, 3, 12) < 7
    assert 12 * 1.1 < beats_hz(sung("Imaginatrix_crepitans", tempo=1.14), 8) < 20 * 1.14


@pytest.mark.parametrize(("species", "falls"), [("Pseudornis_bina", True), ("Pseudornis_inversa", False)])
def test_two_note_phrases_come_in_their_order(species, falls):
    track = pitch_track(sung(species))
    at = np.flatnonzero(~np.isnan(track))  # frames in which a note sounds
    assert track[at].max() / track[at].min() == pytest.approx(1 / 0.74, rel=0.15)
    is_high = track[at] > (track[at].min() + track[at].max()) / 2
    changes = np.flatnonzero(is_high[:-1] != is_high[1:])
    silence = np.diff(at)[changes]  # frames between a note and one of the other pitch
    after_high, after_low = silence[is_high[changes]], silence[~is_high[changes]]
    assert min(after_high.size, after_low.size) >= 5
    # The second note of a phrase follows soon, the next phrase after a pause.
    assert (np.median(after_high) < 0.5 * np.median(after_low)) == falls
    assert (np.median(after_low) < 0.5 * np.median(after_high)) != falls


def test_the_buzz_beats_thirty_times_a_second():
    assert beats_hz(sung("Nullopica_stridens"), 20) == pytest.approx(30, abs=1.5)


def test_the_harmonic_song_sounds_at_multiples_of_a_low_pitch():
    magnitude, hertz = spectrogram(sung("Nullopica_harmonica"))
    loudest = magnitude[magnitude.sum(axis=1).argmax()]
    peaks, _ = scipy.signal.find_peaks(loudest, height=0.15 * loudest.max())
    spacing = np.diff(hertz[peaks])
    assert peaks.size >= 4
    assert 500 < np.median(spacing) < 1_000


def test_the_warble_swings_by_a_fifth_to_both_sides():
    track = pitch_track(sung("Somniavis_undans"))
    low, high = np.nanpercentile(track, (3, 97))
    assert high / low == pytest.approx(1.2 / 0.8, rel=0.12)


def test_the_hurrying_song_ends_faster_and_lower_than_it_began():
    song = dataclasses.replace(SONGS["Somniavis_festinans"], pause_s=(1.0, 1.0))
    sound = demo_songs.sing(song, a_voice(), 12 * RATE_HZ, RATE_HZ, np.random.default_rng(1))
    energy = scipy.signal.decimate(np.abs(sound), 80, ftype="fir")  # 5 ms
    onsets = np.flatnonzero(np.diff((energy > 0.1 * energy.max()).astype(int)) == 1) * 0.005
    gaps = np.diff(onsets)
    phrase_ends = np.flatnonzero(gaps > 0.6)
    second = gaps[phrase_ends[0] + 1 : phrase_ends[1]]  # from note to note within one whole phrase
    assert second.size >= 8
    assert second[0] > 1.6 * second[-1]


def test_individuals_differ_in_pitch_over_the_range_of_their_species():
    low, high = (np.nanmedian(pitch_track(sung("Fictavis_sibilans", pitch=pitch))) for pitch in (0.0, 1.0))
    assert low == pytest.approx(2_500, rel=0.06)
    assert high == pytest.approx(3_300, rel=0.06)


def test_two_calls_of_one_individual_are_not_the_same():
    one, other = sung("Fictavis_cadens", seed=1), sung("Fictavis_cadens", seed=2)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.5


# ---- recordings ---------------------------------------------------------------------------------


def recorded(species, seed=3, rate_hz=RATE_HZ, seconds=4.0, **voice):
    song = SONGS.get(species)
    return demo_songs.record(song, a_voice(**voice), seconds, rate_hz, np.random.default_rng(seed))


@pytest.mark.parametrize("rate_hz", [16_000, 22_050, 48_000])
def test_a_clip_has_the_length_and_the_level_that_were_asked_for(rate_hz):
    sound = recorded("Fictavis_cadens", rate_hz=rate_hz, seconds=3.3, level=0.5)
    assert sound.shape == (round(3.3 * rate_hz),)
    assert 0.5 * 10 ** (-1 / 20) <= np.abs(sound).max() <= 0.5 * 10 ** (1 / 20)


def test_a_better_snr_leaves_less_noise_between_the_notes():
    def floor_db(snr_db):
        magnitude, hertz = spectrogram(recorded("Fictavis_sibilans", snr_db=snr_db, echo=0.0, level=0.5))
        below_the_song = magnitude[:, (hertz > 500) & (hertz < 2_000)]
        return 20 * np.log10(np.median(below_the_song) / magnitude.max())

    assert floor_db(6.0) - floor_db(26.0) == pytest.approx(20, abs=3)


def test_distance_takes_the_treble_of_the_song():
    def treble(low_pass_hz):
        sound = recorded("Somniavis_garrula", snr_db=60.0, low_pass_hz=low_pass_hz, rate_hz=RATE_HZ)
        magnitude, hertz = spectrogram(sound)
        power = (magnitude**2).mean(axis=0)
        return power[hertz > 3_500].sum() / power[hertz < 3_000].sum()

    assert treble(2_000.0) < 0.8 * treble(12_000.0)


def test_echo_sounds_on_after_the_notes():
    def quiet_frames(echo):
        magnitude, _ = spectrogram(recorded("Pseudornis_bina", snr_db=80.0, echo=echo, echo_s=0.4))
        energy = magnitude.max(axis=1)
        return np.mean(energy < 0.003 * energy.max())

    assert quiet_frames(0.3) < 0.6 * quiet_frames(0.0)


@pytest.mark.parametrize("kind", demo_songs.SCENES)
def test_every_kind_of_noise_is_finite_and_new_each_time(kind):
    scene = demo_songs.SCENES.index(kind)
    voices = [demo_songs.draw_voice(np.random.default_rng(seed), scene) for seed in (1, 2)]
    one, other = (
        demo_songs.record(None, voice, 3.0, RATE_HZ, np.random.default_rng(seed)) for seed, voice in enumerate(voices)
    )
    assert voices[0].scenes[0] == kind != voices[0].scenes[1]
    assert np.isfinite(one).all()
    assert np.std(one) > 0.005
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.3


def test_a_mean_spectrum_tells_more_than_nothing_and_far_from_all():
    spectra, labels, sources = [], [], []
    for class_number, name in enumerate(demo.CLASSES):
        for source in range(8):
            voice = demo_songs.draw_voice(np.random.default_rng([1, class_number, source]), source)
            rng = np.random.default_rng([1, class_number, source, 0])
            sound = demo_songs.record(SONGS.get(name), voice, 3.0, RATE_HZ, rng)
            spectra.append(log_mel(sound).mean(axis=0))
            labels.append(class_number)
            sources.append(source)
    judge = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-2))
    accuracy = cross_val_score(judge, np.array(spectra), labels, groups=sources, cv=GroupKFold(4)).mean()
    assert 0.25 < accuracy < 0.80  # the majority baseline is 0.08


# ---- files --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "in"
    return demo.make_data(folder, sources_per_class=4, calls_per_source=(1, 2))


@pytest.fixture(scope="module")
def checked(made):
    """What birdtune's own check says of the folder: usable recordings, problems."""
    listing = scan.scan(made.data)
    file_index, journal, interrupts = FileIndex(None, AudioSettings()), Journal(quiet=True), Interrupts()
    unreadable = identify(listing.files, file_index, journal=journal, interrupts=interrupts)
    examine_all(
        listing.files, file_index, {}, longest_s=1e4, workers=1, journal=journal, interrupts=interrupts
    )
    return select(listing, file_index, unreadable, spec=VGGISH, short="pad", longest_s=1e4)


def test_the_folder_is_an_input_folder_with_a_class_folder_each(made):
    folders = sorted(entry.name for entry in made.data.iterdir())
    assert folders == sorted([*demo.CLASSES, demo.EMPTY_CLASS])
    assert made.classes == demo.CLASSES
    assert not list((made.data / demo.EMPTY_CLASS).iterdir())
    assert not list(made.folder.parent.glob(".unfinished*"))


def test_a_check_finds_every_file_that_was_broken_and_no_other(made, checked):
    _, problems = checked
    assert {problem.recording: problem.problem for problem in problems} == made.broken
    assert sorted(made.broken.values()) == [
        "duplicate-across-classes", "duplicate-across-classes", "duplicate-in-class", "empty", "metadata",
        "not-audio", "silent", "truncated",
    ]  # fmt: skip


def test_the_counts_are_those_of_the_files(made, checked):
    usable, _ = checked
    assert len(usable) == made.clips
    assert made.files == made.clips + len(made.broken)
    assert made.sources == 13 * 4
    assert sum(recording.facts.duration_s for recording in usable) == pytest.approx(made.seconds, rel=0.02)
    assert all(2.9 < recording.facts.duration_s < 4.9 for recording in usable)


def test_names_tell_the_sources_apart_and_the_slices_together(made, checked):
    usable, _ = checked
    planned = {clip.path: clip.numbers[:2] for clip in demo._plan(1, 4, (1, 2))}
    keys = find_sources(usable).keys
    pairs = {(keys[recording.name], planned[recording.name]) for recording in usable}
    assert len(pairs) == len({group for group, _ in pairs}) == len({source for _, source in pairs}) == 13 * 4


def test_names_are_as_various_as_those_that_people_give(made):
    names = [path.relative_to(made.data).as_posix() for path in made.data.rglob("*") if path.is_file()]
    assert any(name.endswith(".WAV") for name in names)
    assert any(name.count("/") == 2 for name in names)
    assert any(all(sign in name for sign in "ü '") for name in names)
    assert any(name.startswith("Fictavis_cadens/Fictavis_cadens_2_") for name in names)
    assert any(name.startswith("Fictavis_cadens/Fictavis_cadens-100000_") for name in names)


def test_rates_channels_depths_and_formats_are_mixed(made, checked):
    usable, _ = checked
    infos = [soundfile.info(str(recording.path)) for recording in usable]
    assert {info.samplerate for info in infos} == {16_000, 22_050, 24_000, 32_000, 44_100, 48_000}
    assert {info.channels for info in infos} == {1, 2}
    assert {info.format for info in infos} == {"WAV", "FLAC", "OGG", "MP3"}
    assert {info.subtype for info in infos} == {recorder.subtype for recorder in demo.RECORDERS}


def test_no_class_is_known_by_its_recorder_or_by_its_size():
    clips = demo._plan(1, 12, (1, 3))
    for class_number in range(13):
        own = [clip for clip in clips if clip.numbers[0] == class_number]
        assert len({clip.recorder for clip in own}) == 12
        assert 18 <= len(own) <= 30


def test_the_whole_set_is_small_enough_to_train_on_within_minutes():
    clips = demo._plan(1, 12, (1, 3))
    features = len(clips) * np.mean(demo.CLIP_S) / 0.96
    assert 900 < features < 1_350


def test_the_second_microphone_hears_the_same_a_little_later_and_less(made, checked):
    usable, _ = checked
    stereo = [recording for recording in usable if recording.facts.channels == 2 and recording.path.suffix == ".wav"]
    left, right = soundfile.read(stereo[0].path)[0].T
    assert 0.4 < np.std(right) / np.std(left) < 0.95
    lags = [np.corrcoef(left[: left.size - lag], right[lag:])[0, 1] for lag in range(8)]
    assert 1 <= int(np.argmax(lags)) <= 4
    assert max(lags) > 0.9


def test_the_label_map_has_database_ids_without_noise(made):
    path = made.folder / demo.MAP_NAME
    ids = read_label_map(path)
    assert path.read_bytes()[:2] == b"\x80\x02"  # protocol 2
    assert pickle.loads(path.read_bytes()) == ids
    assert set(ids) == {*SONGS, demo.ABSENT_CLASS}
    assert len(set(ids.values())) == len(ids)
    assert sorted(ids, key=ids.get) != sorted(ids)
    assert not set(ids.values()) & set(range(len(demo.CLASSES)))


def bytes_of(data):
    """File → content, but for Ogg streams: each has a serial number of its own."""
    files = [path for path in data.data.rglob("*") if path.is_file() and path.suffix != ".ogg"]
    return {path.relative_to(data.data): path.read_bytes() for path in files}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_sounds(tmp_path, monkeypatch):
    plan = demo._plan(1, 1, (1, 1))
    monkeypatch.setattr(demo, "_plan", lambda *_: [  # each class with a recorder of its own, so that all occur
        dataclasses.replace(clip, recorder=recorder, path=f"{clip.path}.{recorder.ending}")
        for clip, recorder in zip(plan, demo.RECORDERS, strict=True)
    ])  # fmt: skip
    one, same, other = (
        demo.make_data(tmp_path / name, seed=seed, **SMALL) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    first, again, others = bytes_of(one), bytes_of(same), bytes_of(other)
    assert sorted(first) == sorted(again)
    assert [name for name in first if first[name] != again[name]] == []
    unchanging = {name for name in first.keys() & others.keys() if first[name] == others[name]}
    assert {one.broken.get(name.as_posix()) for name in unchanging} == {"empty", "metadata", "not-audio", "silent"}


def test_what_an_earlier_call_made_is_taken_as_it_is(made):
    before = {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")}
    again = demo.make_data(made.folder, sources_per_class=4, calls_per_source=(1, 2))
    assert again == made
    assert {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")} == before


def test_another_demonstration_is_refused_with_what_differs(made):
    with pytest.raises(InputError, match=r"in: holds another demonstration \(seed 1, not 2\)"):
        demo.make_data(made.folder, seed=2, sources_per_class=4, calls_per_source=(1, 2))


def test_another_version_is_refused(made, monkeypatch):
    monkeypatch.setattr(demo, "DEMO_VERSION", demo.DEMO_VERSION + 1)
    with pytest.raises(InputError, match="version 1, not 2"):
        demo.make_data(made.folder, sources_per_class=4, calls_per_source=(1, 2))


def test_a_demonstration_with_files_missing_is_refused_with_the_counts(tmp_path):
    data = demo.make_data(tmp_path / "in", **SMALL)
    next(data.data.rglob("*.flac")).unlink()
    with pytest.raises(InputError, match=f"holds {data.files - 1} of the demonstration's {data.files} files"):
        demo.make_data(tmp_path / "in", **SMALL)


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_what_the_demonstration_did_not_make_is_refused_and_left_alone(tmp_path, kind):
    place = tmp_path / "my recordings"
    if kind == "folder":
        place.mkdir()
        (place / "mine.wav").write_bytes(b"mine")
    elif kind == "file":
        place.write_bytes(b"mine")
    else:
        place.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="my recordings: exists and was not made by the demonstration"):
        demo.make_data(place, **SMALL)
    assert kind != "folder" or (place / "mine.wav").read_bytes() == b"mine"
    assert kind != "file" or place.read_bytes() == b"mine"


class StopsAt(Interrupts):
    """Told to stop before the n-th clip."""

    def __init__(self, calls):
        super().__init__()
        self.left = calls

    def check(self):
        self.left -= 1
        if self.left <= 0:
            raise Interrupted(15)


def test_a_demonstration_whose_last_sound_swallowed_a_stop_is_not_kept(tmp_path, monkeypatch):
    stop, make = StopsAt(10_000), demo._break_things

    def stopped(*arguments):
        stop.left = 1
        return make(*arguments)

    monkeypatch.setattr(demo, "_break_things", stopped)
    with pytest.raises(Interrupted):
        demo.make_data(tmp_path / "in", **SMALL, interrupts=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_demonstration_leaves_nothing_and_the_next_one_is_whole(tmp_path):
    place = tmp_path / "in"
    place.mkdir()  # an empty folder may stand there
    with pytest.raises(Interrupted):
        demo.make_data(place, **SMALL, interrupts=StopsAt(5))
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]
    assert not list(place.iterdir())

    killed = tmp_path / ".unfinished-in" / "data"  # what a killed one leaves
    killed.mkdir(parents=True)
    (killed / "half.wav").write_bytes(b"half")
    data = demo.make_data(place, **SMALL, interrupts=StopsAt(10_000))
    assert len(list(data.data.rglob("*.*"))) == data.files
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]
