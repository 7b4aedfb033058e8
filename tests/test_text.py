"""What a model wrote drives no terminal and turns no text around; letters of every script stay."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusal.core.text import sanitised


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("red \x1b[31m bell \x07\nnext\tline", "red ␛[31m bell ␇\nnext\tline"),
        ("a\r\nb\rc", "a\nb␍c"),
        ("\x7f\x00\x9b31m", "␡␀⟨U+009B⟩31m"),
        ("abc\u202edcba\u202c", "abc⟨U+202E⟩dcba⟨U+202C⟩"),
        ("\u2066x\u2069\u200f\u061c", "⟨U+2066⟩x⟨U+2069⟩⟨U+200F⟩⟨U+061C⟩"),
        ("a\u2028b\u2029c\ufeff\u200bd\u00ade", "a⟨U+2028⟩b⟨U+2029⟩c⟨U+FEFF⟩⟨U+200B⟩d⟨U+00AD⟩e"),
        ("\ud800\ue000", "⟨U+D800⟩⟨U+E000⟩"),
        *((same, same) for same in ("می\u200cخواهم", "क्\u200dष", "👨\u200d👩\u200d👧 ❤️", "é 日本 שלום", "<b>&amp;")),
    ],
)  # fmt: skip
def test_what_is_shown(text: str, shown: str) -> None:
    assert sanitised(text) == shown


@given(st.text())
def test_nothing_that_drives_or_turns_is_left(text: str) -> None:
    left = sanitised(text)
    assert not any(
        unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in "\n\t" for c in left
    )
    assert not any(
        unicodedata.bidirectional(c)
        in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
        for c in left
    )
    assert sanitised(left) == left
