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
_SPECIAL = re.compile(r"<\|start\|>assistant|<\|channel\|>final(?:<\|message\|>)?|<\|[\w-]{1,40}\|>|</?s>")
_INVISIBLE = re.compile("[\u200b-\u200f\u2060\ufeff\u00ad]")
_RUN = re.compile(r"(\S)\1{39}")  # one character 40 times


def strip_thinking(text: str) -> str:
    """The answer alone: without thinking blocks, closed or not, and without a template's special tokens."""
    if "<" in text or "[" in text or "◁" in text:
        text = _BLOCK_END.sub(" ", _BLOCK.sub(" ", text))
        text = _SPECIAL.sub(" ", text)
    return text.strip()


def plain_text(text: str) -> str:
    """Lower case, straight quotes, no emphasis marks or invisible characters, one space where there are several."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text))
        text = text.translate(_STRAIGHT)
    text = text.replace("*", "").replace("__", "").replace("\t", " ").replace("\r", "\n")
    return _SPACES.sub(" ", text).lower().strip()


_SPACES = re.compile(" {2,}")
_STRAIGHT = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "´": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"'})


def degenerate_reason(text: str) -> str:
    """Why a stripped answer is none: ``empty``, ``no language`` or ``looping``; the empty string when it is one."""
    if not text:
        return "empty"
    start = text[:400]
    if sum(map(str.isalnum, start)) < max(1, len(start) / 10):
        return "no language"
    return "looping" if _loops(text.lower()) else ""


def _loops(text: str) -> bool:
    """Few different words at the end, few different triples, or a long text that compresses to almost nothing."""
    words = text.split()
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
