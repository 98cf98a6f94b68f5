"""birdtune.errors: exit codes that a scheduler acts on, and text from outside made safe to print."""

import signal
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from birdtune import errors
from birdtune.errors import BirdtuneError, Interrupted, shown


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.BirdtuneError, 1), (errors.ExportError, 1), (errors.UsageError, 2), (errors.InputError, 42),
        (errors.SettingsError, 42), (errors.CheckpointError, 42), (errors.DivergedError, 42),
        (errors.RetryableError, 75),
    ],
)  # fmt: skip
def test_each_kind_of_error_has_its_exit_code(error: type[BirdtuneError], code: int) -> None:
    assert error("why").exit_code == code
    assert issubclass(error, BirdtuneError)


def test_a_signal_ends_with_128_and_its_number() -> None:
    assert Interrupted(signal.SIGTERM).exit_code == 143
    assert Interrupted(signal.SIGINT).exit_code == 130
    # What turns all exceptions into an error of its own, as the reader of checkpoints does, must not swallow it.
    assert not issubclass(Interrupted, Exception)
    assert "SIGTERM" in str(Interrupted(signal.SIGTERM))


def test_what_a_user_can_mend_is_distinguished_from_what_passes() -> None:
    assert issubclass(errors.SettingsError, errors.InputError)
    assert not issubclass(errors.RetryableError, errors.InputError)
    assert not issubclass(errors.ExportError, errors.InputError)


@pytest.mark.parametrize("text", ["Turdus merula", "Grünling", "夜鶯", "l'oiseau \"bleu\"", "50% <b>&amp;", "a\\b"])
def test_ordinary_names_are_shown_as_they_are(text: str) -> None:
    assert shown(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb", r"a\nb"), ("a\rb", r"a\rb"), ("a\tb", r"a\tb"), ("\x1b[31mred", r"\x1b[31mred"), ("\x00", r"\x00"),
        ("\x7f", r"\x7f"), ("\x9b", r"\x9b"), ("\u202egpj.wav", r"\u202egpj.wav"), ("\u2066", r"\u2066"),
        ("\udcff", r"\udcff"), ("\u2028", r"\u2028"), ("\ufeff", r"\ufeff"), ("\U000e0001", r"\U000e0001"),
    ],
)  # fmt: skip
def test_what_could_fake_or_hide_text_becomes_an_escape(text: str, expected: str) -> None:
    assert shown(text) == expected


def test_anything_can_be_shown() -> None:
    assert shown(ValueError("a\nb")) == r"a\nb"
    assert shown(None) == "None"


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.text(st.characters(min_codepoint=0, max_codepoint=0x10FFFF), max_size=20))
def test_what_is_shown_is_one_line_that_can_be_written_anywhere(text: str) -> None:
    safe = shown(text)
    assert len(safe.splitlines()) <= 1
    assert safe.encode("utf-8").decode() == safe
    assert not any(unicodedata.category(character) in ("Cc", "Cf", "Cs") for character in safe)
