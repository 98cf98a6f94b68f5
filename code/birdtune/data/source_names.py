"""The source recording that one file name gives: the table of rules, and how a name is read by it.

    path below the class folder ─▶ read ─▶ Reading(source, rule, …) ─▶ source_numbers decides what is still open

Three kinds of rules, in this order. *Marks* stand before or after the name of the recording and are taken off: a rank,
a copy mark, a time span, a keyword with a number. *Identities* name a recording wherever they stand: an id of a
collection, the date and time at which a recorder began. What is left, with a bare number at its end, may be clip 3 of
a recording or the third recording: *numbers* are decided by all names of the folder, in `source_numbers`.
"""

import re
import unicodedata
from dataclasses import dataclass, replace
from typing import Final

from birdtune.audio.container import SOUND_ENDINGS
from birdtune.data.scan import Recording

_GAP = r"[\s_\-.,+~#@]"
_NUMBER = r"\d+(?:[.,p]\d+)?"
_STROKE = "[\"'\u2019\u201d\u2032]"
_SECONDS = r"(?:ms|msec|s|sec|secs|seconds?)"
_KEYWORDS = (
    "segment|segm|seg|chunk|chk|part|slice|split|cut|window|win|frame|snippet|snip|piece|excerpt|crop|selection|selec|"
    "sel|detection|det|fragment|frag|abschnitt|teil|extrait|ch|channel|chan|aug|augmented"
)
# Words for clips that people also give to recordings: `merula_take2`.
_LOOSE_KEYWORDS = "clip|take|sample|out|output|syllable|syl|phrase"
_MONTH_DAY = r"(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12]\d|3[01])"
_DATE = rf"(?:19|20)\d\d[-_.]?{_MONTH_DAY}"
_DATE_BACKWARDS = r"(?:0[1-9]|[12]\d|3[01])[-_.](?:0[1-9]|1[0-2])[-_.](?:19|20)\d\d"
_SHORT_DATE = r"[0-3]\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
_HOUR, _SIXTY = r"(?:[01]\d|2[0-3])", r"[0-5]\d"
_STAMPS = (
    # 20230501_050000, 2023-05-01T05:00:00+0200, 2023-05-01-birdnet-05:00:00, 01-05-2023 05.00.00
    rf"(?:{_DATE}|{_DATE_BACKWARDS})(?:\s+at\s+|-birdnet-(?:RTSP_\d+-)?|[T_\-.@\s]{{1,3}})?"
    rf"{_HOUR}[-_.:h]?{_SIXTY}[-_.:m]?{_SIXTY}s?(?:Z|[+-]\d\d:?\d\d(?!\d))?",
    # 230501_050000, as Zoom and Tascam write it
    rf"{_SHORT_DATE}[-_T]{_HOUR}{_SIXTY}{_SIXTY}",
    # 2023-05-01_0001 and 230501_0042, counted by the day, and 20230501_0500
    rf"(?:{_DATE}|{_DATE_BACKWARDS}|{_SHORT_DATE})[-_T]\d{{4}}(?!\d)",
    rf"{_DATE}(?:[T_\-\s]{{1,2}}{_HOUR}[-.:h]|\s{_HOUR}_){_SIXTY}(?!\d)",
)


# Words that recorders and people put before a counter of recordings.
_COUNTED_TEXT = """
    rec recs record recording recordings audio sound sounds track file voice memo new neue aufnahme enregistrement
    grabación grabacion registrazione zoom tascam dsc img mvi vid dr ste ds dm ls ws dvt vn clip take sample song songs
    call calls alarm drum drumming flight male female juvenile adult bird birds noise background test untitled output
    out merlin mono stereo lr"""
_COUNTED: Final = frozenset(_COUNTED_TEXT.split())
# Words whose number says where or by what was recorded: recordings there are not of one source.
_PLACES_TEXT = """
    site plot point pt station stn location loc recorder aru transect nest grid cell zone area sector stop sm smm
    audiomoth am device unit mic sensor swift bar standort punkt dr day visit year survey card"""
PLACES: Final = frozenset(_PLACES_TEXT.split())
_DASHES = re.compile("[\u2010-\u2015\u2212]")
_ENDINGS = re.compile(rf"(?:{'|'.join(map(re.escape, sorted(SOUND_ENDINGS)))})(?![^\W_])", re.IGNORECASE)


def _any_case(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


@dataclass(frozen=True)
class Rule:
    """One way in which tools name clips or recordings."""

    name: str  # as `check` prints it
    tools: str  # who names files so
    pattern: re.Pattern[str] | None  # None: decided by the names of the whole folder
    clips: tuple[str, ...]  # examples: names of one recording, below the class folder
    source: str  # its key

    def search(self, text: str) -> re.Match[str] | None:
        """Where a name shows the rule; None also for rules of whole folders."""
        return None if self.pattern is None else self.pattern.search(text)


# Marks, taken off again and again until none is left; only what is left before or after them names the recording.
RANK: Final = Rule(
    "rank or confidence", "BirdNET-Analyzer segments",
    re.compile(
        # What follows names a recording: a number alone is the end of a time span.
        rf"^[01][.,]\d+{_GAP}(?:\d{{1,5}}_)?(?!{_NUMBER}\s*{_SECONDS}?$)(?=\S)|"
        r"^(?:[^\W\d_]+[\s_\-]+){1,4}[01][.,]\d{2,}_\d{1,5}_(?=[^\W\d_]|\d{6})"
    ),
    ("0.812_1_REC_20230501_050000_12.0s_15.0s.wav", "0.731_2_REC_20230501_050000_30.0s_33.0s.wav",
     "Turdus merula_0.91_1_REC_20230501_050000_0.0s_3.0s.wav"),
    "REC_20230501_050000",
)  # fmt: skip
COPY: Final = Rule(
    "copy mark", "Windows Explorer, macOS Finder, GNOME, browsers",
    _any_case(
        r"(?:\s*-\s*(?:copy|kopie|copie|copia|cópia|kopia|kopi|копия|副本)|\s+copy|[_-]copy|(?<=.)\s+kopie)"
        r"(?:\s*\d{1,3}|\s*\(\d{1,3}\))?$|"
        r"\s*\((?:[^\W_]+\.?\s+)?(?:copy|kopie|copie|copia|cópia|kopia)(?:\s*\d{1,3})?\)$|"
        r"^(?:copy of|kopie von|copie de|copia de)\s+"
    ),
    ("creek - Copy.wav", "creek copy 2.wav", "creek (3rd copy).wav", "creek.wav"), "Class/creek",
)  # fmt: skip
SPAN: Final = Rule(
    "time span", "BirdNET-Analyzer, opensoundscape split_and_save, avutils split_audio, Raven, mp3splt, scripts",
    _any_case(
        "|".join(
            (
                rf"{_GAP}*[\[(]\s*{_NUMBER}\s*{_SECONDS}?\s*(?:-|_|,|to|\.\.)\s*{_NUMBER}\s*{_SECONDS}?\s*[\])]$",
                rf"{_GAP}*(?:from|start|begin|off|offset|t)[\s_\-=]*{_NUMBER}\s*{_SECONDS}?{_GAP}*"
                rf"(?:to|end|stop|until|till|dur|duration|len|length|t)[\s_\-=]*{_NUMBER}\s*{_SECONDS}?$",
                rf"{_GAP}+{_NUMBER}\s*{_SECONDS}?[\s_\-]*(?:to|bis)[\s_\-]*{_NUMBER}\s*{_SECONDS}?$",
                rf"(?:{_GAP}+|^){_NUMBER}\s*{_SECONDS}[\s_\-]+{_NUMBER}\s*{_SECONDS}$",
                rf"(?:{_GAP}+|^)\d+[.,p]\d+[\s_\-]+\d+[.,p]\d+\s*{_SECONDS}?$",
                r"(?:[\s_.@]+|^)(?:\d{1,2}[-:.])?\d{1,2}([-:.])[0-5]\d[\s_-](?!\d{1,2}$)(?:\d{1,2}\1)?\d{1,2}\1[0-5]\d$",
                rf"(?:{_GAP}+|^)(?:\d+h)?\d+m\d+s{_GAP}*(?:\d+h)?\d+m\d+s$",
                # mp3splt, with hundredths or without
                r"_+\d+m_\d+s(?:_\d+h)?_+\d+m_\d+s(?:_\d+h)?$",
            )
        )
    ),
    ("creek_0.0s_5.0s.wav", "creek_5.0_10.0.wav", "creek_from_10_to_15.wav", "creek [15-20].wav",
     "creek_20000_25000ms.wav", "creek_00-25_00-30.wav", "creek_00m_30s__00m_35s.wav"), "Class/creek",
)  # fmt: skip
START: Final = Rule(
    "start time", "scripts",
    _any_case(
        "|".join(
            (
                rf"(?:{_GAP}+|^)(?:start|offset|off|begin|from|at)[\s_\-=]*{_NUMBER}\s*{_SECONDS}?$",
                rf"(?:{_GAP}+|^)t[\s_\-=]?\d+[.,]\d+\s*{_SECONDS}?$",
                # After another number it may be an end or a length: source_numbers sees.
                rf"(?<!\d)(?:{_GAP}+|^){_NUMBER}\s*{_SECONDS}$",
                r"(?:[\s_\-@]+|^)(?!(?:19|20)\d\d[.,]|\d{3,}p)\d+[.,p]\d+$",
                rf"(?:{_GAP}+|^)(?:\d+h)?\d+m\d+s$|{_GAP}+\d{{1,3}}(?:m|{_STROKE})[0-5]\d{_STROKE}{{0,2}}$",
                # With another hour it may be the time of the day.
                r"[\s_@]+0?0([-:.])[0-5]\d\1[0-5]\d$|[\s_@]+\d{1,3}:[0-5]\d$",
            )
        )
    ),
    ("creek_t12.5.wav", "creek_17.5s.wav", "creek_start_20.wav", "creek_03m12s.wav", "creek 03'12.wav",
     "creek_12p5.wav"), "Class/creek",
)  # fmt: skip
KEYWORD: Final = Rule(
    "clip keyword", "pydub and librosa scripts, Audacity labels, Raven selections, ffmpeg -f segment",
    _any_case(
        rf"(?:(?:{_GAP}+|^|(?-i:(?<=[a-z])(?=[A-Z]))|(?<=\d))[(\[]?(?:{_KEYWORDS}|{_LOOSE_KEYWORDS})|"
        rf"segment|chunk|snippet|excerpt){_GAP}*[(\[]?\d+[)\]]?(?:{_GAP}*(?:of|von|de){_GAP}*\d+)?[)\]]?$|"
        rf"{_GAP}+[(\[]?\d+\s*(?:of|von)\s*\d+[)\]]?$|^(?:{_KEYWORDS}){_GAP}*\d+{_GAP}+(?=\S)"
    ),
    ("creek_chunk_0.wav", "creek.part1.wav", "creek seg 2.wav", "creek-clip3.wav",
     "creek (part 1 of 4).wav"), "Class/creek",
)  # fmt: skip
PROCESSED: Final = Rule(
    "processed, or one track of several", "audio editors, augmentation, Zoom multitrack, split stereo",
    _any_case(
        rf"{_GAP}+(?:denoised|filtered|normali[sz]ed|resampled|trimmed|augmented|edited|noise|noisy|"
        rf"left|right|\d+k(?:hz)?)$|{_GAP}+(?:pitch[\s_-]?shift|time[\s_-]?stretch)(?:ed)?[\s_\-+]*\d*$|"
        r"(?<=[^\W_])_(?-i:[LR])$|(?<=\d)_(?-i:Tr\d{1,2}|LR|MS|XY)$"
    ),
    ("creek_denoised.wav", "creek_16k.wav", "creek_pitchshift.wav", "creek_L.wav", "creek_R.wav",
     "creek.wav"), "Class/creek",
)  # fmt: skip
MARKS: Final = (COPY, SPAN, START, KEYWORD, PROCESSED)

# Identities: the first that is met, in this order, names the recording in every class and folder.
XENO_CANTO: Final = Rule(
    "xeno-canto id", "xeno-canto downloads, BirdCLEF",
    _any_case(r"(?<![^\W_])XC[\s_-]?(?P<id>\d+)"),
    ("XC1234 - Common Blackbird - Turdus merula_0.wav", "XC1234_0_5.wav", "XC1234-seg2.wav"), "XC1234",
)  # fmt: skip
COLLECTION: Final = Rule(
    "collection id", "Macaulay Library, iNaturalist, Colección de Sonidos Ambientales (BirdCLEF)",
    _any_case(r"(?<![^\W_])(?P<of>ML|iNat|CSA)[\s_-]?(?P<id>\d{3,})"),
    ("ML12345678_0.wav", "ML12345678 (1).wav"), "ML12345678",
)  # fmt: skip
TAKE: Final = Rule(
    "Freesound id", "ESC-50 and ESC-10 takes, UrbanSound8K slices, Freesound downloads",
    re.compile(r"^(?:\d-(?P<take>\d+)-[A-Z](?:-\d+)?|(?P<slice>\d{3,7})-\d{1,2}-\d{1,2}-\d{1,3}|(?P<user>\d{2,7})__.+__.+)$"),
    ("1-17367-A.wav", "1-17367-B.wav"), "id 17367",
)  # fmt: skip
CLASS_ID: Final = Rule(
    "id after the class name", "jibjib, warbleR query_xc",
    re.compile(r"^(?P<head>.*)-(?P<id>[1-9]\d{3,7})(?!\d)"),
    ("Class-12345_1.wav", "Class-12345_2.wav"), "id 12345",
)  # fmt: skip
SOUNDSCAPE: Final = Rule(
    "soundscape id", "BirdCLEF soundscapes",
    _any_case(r"^(?:soundscape[\s_-]?\d+|\d+_[A-Z]{2,4}_(?:19|20)\d{6})(?!\d)"),
    ("soundscape_123_20_5.wav", "soundscape_123_25_5.wav"), "soundscape_123",
)  # fmt: skip
YOUTUBE: Final = Rule(
    "YouTube id", "segments of AudioSet (`collect audioset`)",
    re.compile(r"^Y[A-Za-z0-9_-]{11}(?=_\d+(?:\.\d+)?s_\d+(?:\.\d+)?s$)"),
    ("Y-0PJHxphWEs_30s_40s.flac", "Y-0PJHxphWEs_50.5s_60.5s.flac"), "Y-0PJHxphWEs",
)  # fmt: skip
STAMP: Final = Rule(
    "date and time",
    "AudioMoth, Song Meter (Wildlife Acoustics), Swift, BAR, Zoom, Tascam, Kaleidoscope, BirdNET-Pi, sox, Audacity",
    _any_case(rf"(?<!\d)(?:{'|'.join(_STAMPS)})(?:T(?![^\W\d_]))?"),
    ("S4A03895_20190522_205002_0_5.wav", "S4A03895_20190522_205002-01.wav"), "S4A03895_20190522_205002",
)  # fmt: skip
UNIX_STAMP: Final = Rule(
    "date and time in hexadecimal", "AudioMoth with older firmware",
    re.compile(r"^(?=\d*[A-F])(?:5[6-9A-F]|6[0-9A-F])[0-9A-F]{6}(?![^\W_])"),
    ("5CE2B1A0_0.wav", "5CE2B1A0_1.wav"), "5CE2B1A0",
)  # fmt: skip
IDENTITIES: Final = (YOUTUBE, XENO_CANTO, COLLECTION, TAKE, STAMP, UNIX_STAMP, SOUNDSCAPE, CLASS_ID)

# Decided by the names of the whole folder, in source_numbers.
NUMBER_SPAN: Final = Rule(
    "start and end number", "scripts (`name_start_end`)", None,
    ("creek_0_5.wav", "creek_5_10.wav", "pond_0_5.wav", "pond_5_10.wav"), "Class/creek",
)  # fmt: skip
CLIP_NUMBER: Final = Rule(
    "clip number", "ffmpeg `%03d`, Audacity export, warbleR cut_sels, ohun, sox `newfile : restart`", None,
    ("creek_000.wav", "creek_001.wav", "pond_000.wav", "pond_001.wav"), "Class/creek",
)  # fmt: skip
FOLDER: Final = Rule(
    "a folder for each recording", "scripts, Raven, Audacity", None,
    ("XC1234/000.wav", "XC1234/001.wav"), "XC1234",
)  # fmt: skip
RULES: Final = (RANK, *MARKS, *IDENTITIES, NUMBER_SPAN, CLIP_NUMBER, FOLDER)


@dataclass(frozen=True)
class Reading:
    """The name of one recording, read by itself."""

    recording: Recording
    stem: str  # of the file name, in NFKC
    folder: str  # below the class folder, "" where there is none
    text: str  # what names the recording, without marks; "" where there are only marks
    rule: str = ""  # the rule by which it is a clip; "" where the name shows none
    key: str = ""  # of an identity: the source key, in every class
    loose: bool = False  # its only mark is a word that people also give to whole recordings
    span: bool = False  # a mark says when the clip begins
    bare: bool = False  # the key is nothing but the time when a recorder began
    whole: bool = False  # and nothing says that it is a clip

    def source(self, text: str | None = None) -> str:
        """Key of the source recording that is named by a text (default: that of the reading)."""
        named = self.text if text is None else text
        return self.key or "/".join(filter(None, (self.recording.label, self.folder, named)))


def read(recording: Recording) -> Reading:
    """Read the path below the class folder by the rules for single names."""
    path = recording.below_class
    folder = "" if str(path.parent) == "." else unicodedata.normalize("NFKC", path.parent.as_posix())
    stem = _DASHES.sub("-", unicodedata.normalize("NFKC", path.stem))
    text = _ENDINGS.sub("", stem) or stem  # without that of the file that it was cut from, as in `rec.wav-1`
    reading = Reading(recording, stem, folder, text)
    if len(text) > 1 and (mark := RANK.search(text)):
        reading = replace(reading, text=text[mark.end() :], rule=RANK.name, span=True)
    if identified := _identify(reading):
        return identified
    unmarked = _without_marks(reading)
    if unmarked is not reading and (identified := _identify(unmarked)):
        return identified
    reading = unmarked
    for name in reversed(folder.split("/")) if folder else ():
        of_folder = _identify(replace(reading, folder="", text=name, rule=""))
        # `XC2023` may hold what was downloaded in a year.
        if of_folder and (not _OF_A_YEAR.search(of_folder.key) or not words(reading.text)):
            return replace(reading, key=of_folder.key, rule=FOLDER.name)
    return reading


_OF_A_YEAR = re.compile(r"^[A-Z]+(?:19|20)\d\d$", re.IGNORECASE)


# What all marks end in: most of the time goes to names that have none.
_HINT = re.compile(
    rf"(?P<number>\d\s*(?:{_SECONDS}|h|{_STROKE}{{1,2}})?[)\]]?$|^[^\W\d_]+{_GAP}*\d)|[^\W\d_]$|^(?:cop|kopie)|\)$",
    re.IGNORECASE,
)
_WITHOUT_NUMBER: Final = (COPY, PROCESSED)
# Marks that whole recordings have too: `merula_take2`, `Turdus_2.1`.
_MAY_BE_WHOLE: Final = {KEYWORD.name: _any_case(_LOOSE_KEYWORDS), START.name: _any_case(r"^[\s_\-@]+\d+[.,p]\d+$")}


def _without_marks(reading: Reading) -> Reading:
    while hint := _HINT.search(reading.text):
        for rule in MARKS if hint["number"] else _WITHOUT_NUMBER:
            if (mark := rule.search(reading.text)) and mark[0]:
                loose = _MAY_BE_WHOLE[rule.name].search(mark[0]) if rule.name in _MAY_BE_WHOLE else None
                text = reading.text[: mark.start()] + reading.text[mark.end() :]
                reading = replace(
                    reading, text=text.rstrip(" _-.,+~#@"), rule=reading.rule or rule.name,
                    loose=loose is not None and not reading.rule, span=reading.span or rule in (SPAN, START),
                )  # fmt: skip
                break
        else:
            break
    return reading


def _identify(reading: Reading) -> Reading | None:
    """The reading with the key of an identity, if its text holds one."""
    text = reading.text
    for rule in IDENTITIES:
        match = rule.search(text)
        if match is None:
            continue
        if rule is STAMP:
            return _stamped(reading, match)
        if rule is XENO_CANTO or rule is COLLECTION:
            key = f"{'XC' if rule is XENO_CANTO else match['of']}{match['id']}"
        elif rule is TAKE:
            key = f"id {next(filter(None, match.groups()))}"
        elif rule is CLASS_ID:
            if words(match["head"]) != words(reading.recording.label) or is_year(match["id"]):
                continue
            key = f"id {match['id']}"
        else:
            key = match[0]
        return replace(reading, key=key, rule=rule.name)
    return None


def _stamped(reading: Reading, match: re.Match[str]) -> Reading:
    """The reading of a recording that is named after the time it began at: what stands before that, and the time.

    Class names around it are left out, as a soundscape may be cut for several species; a word behind it stays, as it
    may be the site or the recorder.
    """
    label = set(words(reading.recording.label))
    before, after = reading.text[: match.start()], reading.text[match.end() :]
    class_name = r"[\W_]*".join(map(re.escape, words(reading.recording.label)))
    before = re.sub(rf"^{class_name}[\W_]+", "", before, flags=re.IGNORECASE) if class_name else before
    # BirdNET-Pi and BirdNET-Go put the species and their confidence there.
    if (
        (words(before) and set(words(before)) <= label)
        or "-birdnet-" in match[0]
        or re.search(r"(?:^|_)\d{1,3}p_$", before)
    ):
        before = ""
    tail = re.sub(rf"(?:{_GAP}*\(?\d+\)?)+$", "", after)
    if set(words(tail)) <= label or not _without_marks(replace(reading, text=tail)).text:
        tail = ""
    folder = f"{reading.folder}/" if reading.folder else ""
    around = f"{folder}{before}{tail}"
    bare = not re.search(r"\d", around) and not naming_words(around, reading)
    key = f"{folder}{before}{match[0]}{tail}"
    whole = after == tail and not reading.rule
    return replace(reading, key=key, rule=STAMP.name, bare=bare, whole=whole)


def words(text: str) -> tuple[str, ...]:
    """The words of a name, without digits and in one case."""
    return tuple(re.findall(r"[^\W\d_]+", unicodedata.normalize("NFKC", text).casefold()))


def naming_words(text: str, reading: Reading) -> frozenset[str]:
    """The words that are neither the class nor what stands before counters and places."""
    others = frozenset(words(text)) - set(words(reading.recording.label)) - _COUNTED
    return frozenset(word for word in others if not is_place(word))


def is_place(word: str) -> bool:
    """Whether a word says where or by what was recorded, with a letter as its number or none: `site`, `siteA`."""
    return word in PLACES or (len(word) > 4 and word[:-1] in PLACES)


def is_year(digits: str) -> bool:
    """Whether a number can be a year of recording."""
    return len(digits) == 4 and digits.startswith(("19", "20"))


# 01.05.23, 1-5-23, 23-05-01, 01052023
_OTHER_DATES = (
    r"(?:0?[1-9]|[12]\d|3[01])(?P<dot>[-.])(?:0?[1-9]|1[0-2])(?P=dot)\d\d|\d\d(?P<dash>[-.])(?:0[1-9]|1[0-2])(?P=dash)"
    r"(?:0[1-9]|[12]\d|3[01])|(?:0[1-9]|[12]\d|3[01])(?:0[1-9]|1[0-2])(?:19|20)\d\d"
)
_ENDS_IN_DATE = re.compile(rf"(?<!\d)(?:{_DATE}|{_DATE_BACKWARDS}|{_SHORT_DATE}|{_OTHER_DATES})$")


def is_date(text: str) -> bool:
    """Whether a text ends in a date, which may have two digits for the year."""
    return _ENDS_IN_DATE.search(text) is not None
