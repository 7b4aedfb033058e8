"""Text that a model wrote, made harmless to look at: the one place for the terminal and for the
report.

A control character is shown as its picture (ESC as ␛), so that it drives no terminal; a character
that turns the direction of the text around it, or that cannot be seen at all, is shown by its
number (⟨U+202E⟩). Letters of every script stay what they are, and so do the joiners that they need.
"""

import unicodedata

KEPT = "\n\t\u200c\u200d"  # line ends, tabs, and the joiners of Arabic, Indic scripts and emoji
_SHOWN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # categories of what is not to be seen


def sanitised(text: str) -> str:
    """The text with its control characters, bidirectional controls and other unseen characters
    shown.

    Carriage returns before a line end are dropped. Escaping for HTML is another matter and left to
    the template.
    """
    return "".join(map(_shown, text.replace("\r\n", "\n")))


def _shown(character: str) -> str:
    if character in KEPT or unicodedata.category(character) not in _SHOWN:
        return character
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"
