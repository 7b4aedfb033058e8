"""What is stripped before a completion is judged, and when there is nothing to judge.

Thinking is not part of the answer: a model may weigh refusing and then help, or the other way round. A completion that
is empty, a loop or no language is degenerate: it is neither a refusal nor an answer.
"""

import re
import unicodedata
import zlib

LOOP_WORDS = 24  # fewer words are never called a loop

_THINK = r"(?:seed:)?(?:think|thinking|thought|reasoning|reflection|scratchpad)"
# Closed blocks, then one that never closes. A template may open the block itself, so that only its end is there.
_BLOCK = re.compile(
    rf"<({_THINK})>.*?(?:</\1>|\Z)|\[think\].*?(?:\[/think\]|\Z)|◁think▷.*?(?:◁/think▷|\Z)"
    r"|<\|channel\|>(?:analysis|commentary).*?(?:<\|end\|>|(?=<\|channel\|>final)|\Z)"
    r"|<\|channel>thought.*?(?:<channel\|>|\Z)",
    re.S | re.I,
)
_BLOCK_END = re.compile(rf"\A.*(?:</{_THINK}>|\[/think\]|◁/think▷)", re.S | re.I)
_SPECIAL = re.compile(r"<\|channel\|>final(?:<\|message\|>)?|<\|[\w-]{1,40}\|>|</?s>")
_INVISIBLE = re.compile("[\u200b-\u200f\u2060\ufeff\u00ad]")
_RUN = re.compile(r"(\S)\1{39}")  # one character 40 times


def strip_thinking(text: str) -> str:
    """The answer alone: without thinking blocks, closed or not, and without a template's special tokens."""
    if "<" in text or "[" in text or "◁" in text:
        text = _BLOCK_END.sub(" ", _BLOCK.sub(" ", text))
        text = _SPECIAL.sub(" ", text)
    return text.strip()


def plain_text(text: str) -> str:
    """Lower case, straight apostrophes, no emphasis marks or invisible characters, one space where there are several."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text))
        text = text.translate(_STRAIGHT)
    text = text.replace("*", "").replace("__", "")
    return re.sub(r"[^\S\n]+", " ", text).lower().strip()


_STRAIGHT = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "´": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"'})


def degenerate_reason(text: str) -> str:
    """Why a stripped answer is none: ``empty``, ``no language`` or ``looping``; the empty string when it is one."""
    if not text:
        return "empty"
    start = text[:1000]
    if sum(map(str.isalnum, start)) < max(1, len(start) / 10):
        return "no language"
    return "looping" if _loops(text.lower()) else ""


def _loops(text: str) -> bool:
    """Few different words at the end, few different triples, or a long text that compresses to almost nothing."""
    words = text.split()
    if len(words) >= LOOP_WORDS:
        if len(set(words[-LOOP_WORDS:])) <= 4:
            return True
        triples = len(words) - 2
        if len(set(zip(words, words[1:], words[2:], strict=False))) < 0.3 * triples:
            return True
        return len(words) >= 2 * LOOP_WORDS and _repeats_at_the_end(words)
    if len(text) < 120:
        return False
    # Scripts without spaces, or one "word" that goes on and on.
    return _RUN.search(text) is not None or len(zlib.compress(text.encode("utf-8", "replace"))) < 0.15 * len(
        text.encode("utf-8", "replace")
    )


def _repeats_at_the_end(words: list[str]) -> bool:
    """Whether the last 40 words are one piece of at most 10 words, four times or more."""
    tail = words[-40:]
    return any(tail[period:] == tail[:-period] for period in range(1, 11))
