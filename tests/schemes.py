"""Ways in which tools and people name clips and recordings: the table that test_source_names tries."""

from collections.abc import Callable
from datetime import datetime, timedelta

_WORDS = (
    "creek",
    "pond",
    "meadow",
    "hedge",
    "barn",
    "ridge",
    "valley",
    "orchard",
    "lake",
    "dune",
    "heath",
    "quarry",
)


def word(rec: int) -> str:
    """The name of a recording as a person gives it, another for each, without a number."""
    more, letters = divmod(rec, len(_WORDS))
    return _WORDS[letters] + ("-" + "".join("abcdefghij"[int(digit)] for digit in str(more)) if more else "")


def stamp(rec: int, form: str = "%Y%m%d_%H%M%S") -> str:
    """When a recorder began: another hour for each recording."""
    return (datetime(2023, 5, 1, 5) + timedelta(hours=rec)).strftime(form)


# Title → name of clip k (from 0) of recording rec (from 0), below the class folder. All clips of a recording are one
# source, and each recording is another.
CLIPS: dict[str, Callable[[int, int], str]] = {
    # the list of found.md
    "BirdNET segments": lambda r, k: (
        f"0.{950 - 7 * k}_{k + 1}_SITE{r:02}_{stamp(r)}_{3 * k}.0s_{3 * k + 3}.0s"
    ),
    "BirdNET times": lambda r, k: f"REC_{stamp(r)}_{3 * k}.0s_{3 * k + 3}.0s",
    "Audacity of a recorder's file": lambda r, k: f"REC_{stamp(r)}-{k + 1:02}",
    "XC _seg": lambda r, k: f"XC{123400 + r}_seg{k}",
    "XC -n": lambda r, k: f"XC{123400 + r}-{k}",
    "XC start end": lambda r, k: f"XC{123400 + r}_{5 * k}_{5 * k + 5}",
    "XC long name": lambda r, k: f"XC{123400 + r} - Common Blackbird - Turdus merula_{k}",
    "chunk": lambda r, k: f"rec{r}_chunk_{k}",
    "XC _chunk": lambda r, k: f"XC{123400 + r}_chunk{k}",
    "XC .part": lambda r, k: f"XC{123400 + r}.part{k}",
    "Song Meter start end": lambda r, k: f"S4A03895_{stamp(r)}_{5 * k}_{5 * k + 5}",
    "XC _n": lambda r, k: f"XC{123400 + r}_{k}",
    "BirdCLEF soundscape": lambda r, k: f"soundscape_{1446779 + r}_{5 * k + 5}",
    "Song Meter Mini": lambda r, k: f"SMM05_{stamp(r)}_{k:03}",
    "words and %03d": lambda r, k: f"{word(r)}_{k:03}",
    # tools' documents
    "BirdNET before times were in names": lambda r, k: f"0.{950 - 7 * k}_{k + 1}_{word(r)}",
    "opensoundscape": lambda r, k: f"{word(r)}_{5.0 * k}s_{5.0 * k + 5}s",
    "opensoundscape without unit": lambda r, k: f"{word(r)}_{5.0 * k}_{5.0 * k + 5}",
    "avutils in ms": lambda r, k: f"{word(r)}_{5000 * k:06}_{5000 * k + 5000:06}",
    "warbleR cut_sels": lambda r, k: f"{word(r)}.wav-{k + 1}",
    "ohun split": lambda r, k: f"Phae.long{r}-{k + 1}",
    "sox after an id": lambda r, k: f"XC{123400 + r}{k + 1:03}",
    "sox after a stamp": lambda r, k: f"{stamp(r)}{k + 1:03}",
    "Kaleidoscope split": lambda r, k: f"SITE3_{stamp(r)}_{k:03}",
    "AudioMoth with times": lambda r, k: f"{stamp(r)}T_{5 * k}_{5 * k + 5}",
    "AudioMoth hexadecimal": lambda r, k: f"{0x5CE2B1A0 + 3600 * r:08X}_{k}",
    "Frontier Labs": lambda r, k: f"{stamp(r, '%Y%m%dT%H%M%S')}+1000_REC_{k}",
    "BirdCLEF 2021": lambda r, k: f"{2782 + r}_SSW_20170701_{5 * k + 5}",
    "ESC-50 takes": lambda r, k: f"1-{17367 + r}-{'ABCDEF'[k]}-10",
    "UrbanSound8K": lambda r, k: f"{100032 + r}-3-0-{k}",
    "Freesound": lambda r, k: f"{345600 + r}__someone__dawn-chorus_{k}",
    "Macaulay Library": lambda r, k: f"ML{20123400 + r}_{k}",
    "iNaturalist": lambda r, k: f"iNat{123400 + r}_{k}",
    "jibjib": lambda r, k: f"Turdus_merula-{123400 + r}_{k}",
    "warbleR query_xc": lambda r, k: f"Turdus-merula-{123400 + r}_{k}",
    "Raven selections": lambda r, k: f"{word(r)}.Selection {k + 1:02}",
    "Zoom and start end": lambda r, k: f"ZOOM{r + 1:04}_{5 * k}_{5 * k + 5}",
    "Zoom multitrack": lambda r, k: f"ZOOM{r + 1:04}_Tr{k + 1}",
    "a folder a recording": lambda r, k: f"XC{123400 + r}/{k:03}",
    "a folder a recorder's file": lambda r, k: f"REC_{stamp(r)}/clip_{k + 1:02}",
    "a folder with a name": lambda r, k: f"{word(r)}/{k:03}",
    "a folder with times": lambda r, k: f"{word(r)}/{5 * k}.0s_{5 * k + 5}.0s",
    "copies": lambda r, k: word(r) + ("", " - Copy", " - Copy (2)", " copy 2", " (1)", " (2)")[k],
    "copies of an id": lambda r, k: f"XC{123400 + r}" + (f" ({k})" if k else ""),
    "minutes and seconds": lambda r, k: f"{word(r)}_00-{5 * k:02}_00-{5 * k + 5:02}",
    "minutes and seconds with letters": lambda r, k: f"{word(r)}_1m{5 * k}s",
    "start alone": lambda r, k: f"{word(r)}_t{5 * k + 0.5}",
    "start with unit": lambda r, k: f"{word(r)}_{5 * k}s",
    "start in words": lambda r, k: f"{word(r)}_start_{5 * k}",
    "from to": lambda r, k: f"{word(r)}_from_{5 * k}_to_{5 * k + 5}",
    "brackets": lambda r, k: f"{word(r)} [{5 * k}-{5 * k + 5}]",
    "parentheses": lambda r, k: f"{word(r)} ({5 * k}s-{5 * k + 5}s)",
    "start end with one unit": lambda r, k: f"{word(r)}_{5 * k}-{5 * k + 5}s",
    "start end in one word": lambda r, k: f"rec{r:02}_{5 * k}_{5 * k + 5}",
    "segment": lambda r, k: f"{word(r)}_segment_{k}",
    "clip": lambda r, k: f"{word(r)}-clip-{k + 1}",
    "slice": lambda r, k: f"{word(r)} slice{k}",
    "split": lambda r, k: f"{word(r)}.split-{k}",
    "cut": lambda r, k: f"{word(r)}_CUT{k}",
    "window": lambda r, k: f"{word(r)}_window_{k}",
    "frame": lambda r, k: f"{word(r)}_frame_{k * 16000}",
    "take": lambda r, k: f"{word(r)}_take{k}",
    "keyword and no gap": lambda r, k: f"XC{123400 + r}seg{k}",
    "part of": lambda r, k: f"{word(r)} part {k + 1} of 6",
    "numbered recordings": lambda r, k: f"blackbird{r + 1:03}_{k + 1}",
    "numbered recordings of the class": lambda r, k: f"Turdus_merula_{r + 1}_{k + 1}",
    "processed": lambda r, k: (
        f"{word(r)}" + ("", "_denoised", "_filtered", "_16k", "_normalized", "_trimmed")[k]
    ),
    "augmented": lambda r, k: f"{stamp(r)}_aug{k}",
    "channels": lambda r, k: f"{stamp(r)}_ch{k + 1}",
    "hour 0": lambda r, k: f"{word(r)}_00-0{k}-30",
    "ids that programs draw": lambda r, k: f"3f2a1b{r:03}c-9d0e-4f00-8a1b-0c2d3e4f5a6b_{k}",
    "number before": lambda r, k: f"{k + 1:02}-{word(r)}",
    "keyword before": lambda r, k: f"chunk{k}_{word(r)}",
    "n of m": lambda r, k: f"{word(r)}_{k + 1}of6",
    "ffmpeg out": lambda r, k: f"{word(r)}_out{k:03}",
    "a folder and its name": lambda r, k: f"{word(r)}/{word(r)}_{k}",
    "species before the recorder's file": lambda r, k: f"Turdus merula_REC_{stamp(r)}_{k}",
    "confidence behind": lambda r, k: f"REC_{stamp(r)}_{3 * k}.0s_{3 * k + 3}.0s_0.{95 - k}",
    "samples": lambda r, k: f"{word(r)}_{48000 * k}_{48000 * k + 144000}",
    "mp3splt": lambda r, k: f"{word(r)}_00m_{3 * k:02}s__00m_{3 * k + 3:02}s",
    "mp3splt with hundredths": lambda r, k: f"{word(r)}_00m_{3 * k:02}s_50h__00m_{3 * k + 3:02}s_50h",
    "part of, in parentheses": lambda r, k: f"{word(r)} (part {k + 1} of 6)",
    "copies of GNOME": lambda r, k: word(r) + ("", " (copy)", " (3rd copy)", " (Kopie)", " (3. Kopie)", " - Kopie")[k],
    "start end and a unit apart": lambda r, k: f"{word(r)}_{3000 * k}_{3000 * k + 3000}_ms",
    "syllables": lambda r, k: f"{word(r)}_syllable{k + 1}",
    "split stereo": lambda r, k: f"{word(r)}" + ("", "_L", "_R", "_left", "_right", "_trimmed")[k],
    "augmented in words": lambda r, k: (
        f"{word(r)}" + ("", "_noise", "_pitchshift", "_pitch_shift2", "_timestretch", "_noisy")[k]
    ),
    "BirdNET segments after the species": lambda r, k: (
        f"Turdus merula_0.{95 - k}_{k + 1}_{word(r)}_{3 * k}.0s_{3 * k + 3}.0s"
    ),
    "minutes and seconds without an end": lambda r, k: f"{word(r)} 00m{5 * k:02}",
    "minutes and seconds with strokes": lambda r, k: f"{word(r)} 00'{5 * k:02}" + ('"', "", "\u2033")[k % 3],
    "decimals with p": lambda r, k: f"{word(r)}_{5 * k}p5",
    "start end with p": lambda r, k: f"{word(r)}_{5 * k}p0_{5 * k + 5}p0",
    "Unicode": lambda r, k: f"größe {word(r)} Ключ–chunk{k}",  # noqa: RUF001
    "dashes": lambda r, k: f"{word(r)} {5 * k}.0 – {5 * k + 5}.0",  # noqa: RUF001
}

# Title → name of independent recording n (from 0): each is its own source.
RECORDINGS: dict[str, Callable[[int], str]] = {
    "year and counter": lambda n: f"merula_2020_{n + 1}",
    "site and counter": lambda n: f"site{1 + n // 8}_{n % 8 + 1}",
    "date and counter": lambda n: f"20230501_{n + 1}",
    "Zoom by date": lambda n: f"2023-05-01_{n + 1:04}",
    "Tascam": lambda n: f"230501_{42 + n:04}",
    "Zoom H series": lambda n: f"STE-{n:03}",
    "class and counter": lambda n: f"Turdus_merula-{n + 1:02}",
    "class, blank, counter": lambda n: f"Turdus merula {n + 1}",
    "common name and counter": lambda n: f"blackbird{n + 1:03}",
    "common name, underscore, counter": lambda n: f"blackbird_{n:03}",
    "rec": lambda n: f"rec{n}",
    "Zoom": lambda n: f"ZOOM{n + 1:04}",
    "Zoom F series": lambda n: stamp(n, "%y%m%d_%H%M%S"),
    "Tascam DR": lambda n: f"DR0000_{n:04}",
    "Sony": lambda n: f"DS_{n + 1:04}",
    "Olympus": lambda n: f"LS1{n + 1:05}",
    "camera": lambda n: f"DSC_{1020 + n}",
    "phone camera": lambda n: f"IMG_{1020 + n}",
    "iPhone": lambda n: f"New Recording {n + 1}",
    "Windows Voice Recorder": lambda n: "Recording" + (f" ({n + 1})" if n else ""),
    "Merlin": lambda n: stamp(n, "%Y-%m-%d %H_%M"),
    "AudioMoth": lambda n: stamp(n),
    "AudioMoth triggered": lambda n: f"{stamp(n)}T",
    "AudioMoth hexadecimal": lambda n: f"{0x5CE2B1A0 + 3600 * n:08X}",
    "Song Meter": lambda n: f"SITE4_{stamp(n)}",
    "Song Meter 3": lambda n: f"SM304_0+1_{stamp(n)}",
    "Frontier Labs": lambda n: f"{stamp(n, '%Y%m%dT%H%M%S')}+1000_REC",
    "BTO": lambda n: f"{stamp(n, '%Y%m%d-%H%M%S')}-ST4037-BTO-XM",
    "BirdNET-Pi": lambda n: f"Common_Blackbird-85-{stamp(n, '%Y-%m-%d-birdnet-%H:%M:%S')}",
    "xeno-canto": lambda n: f"XC{123400 + 3 * n} - Common Blackbird - Turdus merula",
    "Macaulay Library": lambda n: f"ML{20123400 + n}",
    "bare numbers": lambda n: f"{n:03}",
    "mass rename": lambda n: f"amsel ({n + 1})",
    "song and call": lambda n: f"blackbird_{('song', 'call')[n % 2]}_{n // 2 + 1}",
    "two common names": lambda n: f"{('blackbird', 'Common Blackbird')[n % 2]}_{n // 2 + 1:02}",
    "places by letter": lambda n: f"Plot{'ABC'[n // 6]}_{n % 6 + 1}",
    "Edirol": lambda n: f"R09_{n:04}",
    "ffmpeg without a name": lambda n: f"out{n:03}",
    "class and take": lambda n: f"merula_take{n + 1}",
    "BirdNET-Go": lambda n: f"turdus_merula_85p_{stamp(n, '%Y%m%dT%H%M%SZ')}",
    "hashes": lambda n: f"{n:02}a9f8e7d6c5b4a39281706f5e4d3c2b",
    "folders by site": lambda n: f"site{1 + n // 6}/{n % 6 + 1:03}",
    "folders by year": lambda n: f"{2019 + n // 6}/{n % 6 + 1:03}",
    "folders by recorder": lambda n: f"SD{1 + n // 6}/{stamp(n % 6)}",
    "words": lambda n: word(n),
    "length in the name": lambda n: f"amsel_{n + 1}_5s",
    "short date backwards and counter": lambda n: f"01.05.23_{n + 1:02}",
    "short date with dashes and counter": lambda n: f"1-5-23_{n + 1}",
    "date of eight digits backwards and counter": lambda n: f"01052023_{n + 1:02}",
    "class and two numbers": lambda n: f"Turdus_{n + 1}.1",
    "two counters after the class": lambda n: f"merula_{n + 1}_{n + 10}",
    "sector and counter": lambda n: f"S1-{n + 1}",
    "downloads of a year": lambda n: f"XC2023/{word(n)}",
    "versions": lambda n: f"{word(n)} v2.5",
}
