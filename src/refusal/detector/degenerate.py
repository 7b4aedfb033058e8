"""How a text is made plain before it is judged, and when there is nothing to judge.

An answer that is empty, a loop or no language is degenerate: it is neither a refusal nor an answer.
"""

import re
import unicodedata
import zlib

LOOP_WORDS = 24  # fewer words are no loop of words
LONGEST_PERIOD = 60  # characters of a piece that repeats
TAIL = 60  # characters; a text that ends in so many of few kinds may be a loop of characters

_INVISIBLE = re.compile("[\u200b-\u200f\u2060\ufeff\u00ad]")
_RUN = re.compile(r"(\S)\1{39}")  # one character 40 times
_PERIOD = re.compile(r"(.{1,12}?)\1{3,}.{0,12}\Z", re.S)
_SCRIPT = re.compile(
    "([a-z]+)|([\u0370-\u03ff]+)|([\u0400-\u052f]+)|([\u0590-\u05ff]+)|([\u0600-\u06ff]+)|([\u0900-\u0dff]+)|"
    "([\u0e00-\u0eff]+)|([\u3040-\u30ff\u3400-\u9fff]+)|([\uac00-\ud7af]+)"
)


def plain_text(text: str) -> str:
    """Lower case, straight quotes, single spaces; no marks of emphasis, headings and quotation,
    nothing invisible.
    """
    if not text.isascii():
        # In pieces: a run of combining marks is put in order by an insertion sort, quadratic in its
        # length.
        pieces = _PIECE.findall(_INVISIBLE.sub("", text))
        text = "".join(unicodedata.normalize("NFKC", piece) for piece in pieces)
        text = text.translate(_STRAIGHT)
    if "*" in text:
        text = _EMOTE.sub(" ", _BULLET.sub("- ", text))
    text = text.replace("*", "").replace("__", "").replace("\t", " ").replace("\r", "\n")
    text = _SPACES.sub(" ", text).lower().strip()
    return _ROLE.sub("", _LINE_MARKS.sub("", text), count=1)


# A gesture: *adjusts glasses*.
_EMOTE = re.compile(
    r"(?i)(?<!\*)\*(?!(?:thi|hi|ye|a|wa|ha|i|it|doe)s\b)[a-z]+s [^*\n]{1,40}\*(?!\*)"
)
_BULLET = re.compile(r"(?m)^ *\* ")
_LINE_MARKS = re.compile(r"(?m)^[#>\s]+")
_ROLE = re.compile(r"\A\W*(?:assistant|response|answer|output|ai|bot)(?: response)?\s*[:\n]\s*")
_SPACES = re.compile(" {2,}")
_PIECE = re.compile(r"(?s).{1,400}(?:(?<=\s)|\Z)|.{1,400}")
_STRAIGHT = str.maketrans(
    {"’": "'", "‘": "'", "ʼ": "'", "´": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"'}
)


def degenerate_reason(text: str) -> str:
    """Why a stripped answer is none: ``empty``, ``no language`` or ``looping``; the empty string
    when it is one.
    """
    if not text:
        return "empty"
    start = text[:200]
    if sum(map(str.isalnum, start)) < max(1, len(start) / 10) or (
        not text.isascii() and _is_mixed(text[:800].lower())
    ):
        return "no language"
    return "looping" if _loops(text.lower()) else ""


def _is_mixed(text: str) -> bool:
    """Whether letters of three pairs of scripts touch, as in random tokens; a language mixes with
    one other at most.
    """
    seams = set()
    end, before = -1, 0
    for match in _SCRIPT.finditer(text):
        script = match.lastindex or 0
        if match.start() == end:
            seams.add(frozenset((before, script)))
        end, before = match.end(), script
    return len(seams) >= 3


def _repeats(text: str) -> bool:
    """Whether a text is, but for a few words before, one piece of up to 60 characters over and over
    to its end.
    """
    text = text[-6 * LONGEST_PERIOD :]
    for period in range(1, min(LONGEST_PERIOD, len(text) // 3) + 1):
        if text[-8:] != text[-8 - period : -period]:
            continue
        repeated = period
        while repeated < len(text) and text[-1 - repeated] == text[-1 - repeated + period]:
            repeated += 1
        piece = text[-period:]
        if piece.strip().isdigit() or not any(map(str.isalnum, piece)):
            return False  # 0.333333, a ruler of dashes
        times = 3 if period >= 20 else 4 if period >= 6 else 6 if period > 1 else 12
        return repeated >= max(14, times * period - 1) and 2 * repeated >= len(text)
    return False


def _loops(text: str) -> bool:
    """Few different words at the end, few different triples, or a long text that compresses to
    almost nothing.
    """
    tail = text[-TAIL:]
    kinds = len(set(tail)) if len(tail) == TAIL else TAIL
    if kinds == 1 or (kinds <= 8 and any(map(str.isalnum, tail)) and _PERIOD.search(tail)):
        return True
    if _repeats(text):
        return True
    words = text.split()
    if (
        12 <= len(words) < LOOP_WORDS
        and 4 * len(set(words)) <= len(words)
        and not any(map(str.isdigit, text))
    ):
        return True
    if len(words) >= LOOP_WORDS:
        if len(set(words[-LOOP_WORDS:])) <= 4 or (len(words) >= 40 and len(set(words[-40:])) <= 10):
            return True
        if len(set(words)) > 0.5 * len(words):
            return False  # there are at least as many different triples
        return len(set(zip(words, words[1:], words[2:], strict=False))) < 0.3 * len(words)
    if len(text) < 120:
        return False
    # Scripts without spaces, or one "word" that goes on and on.
    encoded = text.encode("utf-8", "replace")
    return _RUN.search(text) is not None or len(zlib.compress(encoded)) < 0.15 * len(encoded)
