"""The sentences of a completion that are the writer's own: without what is quoted, or with it where
that is all.

All text here is plain (`plain_text`).
"""

import re

from refusal.detector.answer_phrases import LABEL
from refusal.detector.asked import Asked

_SENTENCE_END = re.compile(r"[.!?]+[\"')]*\s+|[。！？\n]+")
# Inside quoted speech or code the words are the text's, not the model's.
_QUOTED = re.compile(r'"[^"\n]{0,400}"|```.*?(?:```|\Z)|`[^`\n]{0,200}`', re.S)
_ALL_FENCE = re.compile(r"(?s)\A\W*```(?:[a-z+#]{1,12}\n)?(.*?)(?:```\W*)?\Z")
_STRUCTURE = re.compile(r"""["`{}\[\]<>\n]+|(?<=[\s:(,])'|'(?=[\s:),])""")
_SPEECH = re.compile(r"\b(?:said|says|asked|replied|wrote|answered|cried|whispered)\b")
_LETTER = re.compile(r"[^\W\d_]")
_WORD = re.compile(r"[\w']+")


def sentences_of(text: str, asked: Asked) -> list[str]:
    """The sentences, without what is quoted; where all is quoted or code, what stands in there."""
    if '"' in text or "`" in text:
        text = _unquoted(text, asked)
    return [piece for piece in _SENTENCE_END.split(text) if _LETTER.search(piece)]


def _unquoted(text: str, asked: Asked) -> str:
    """Quoted words are not the writer's, unless the quotation marks, the fence or the object are
    all there is.
    """
    if text[:1] == text[-1:] == '"' and text.count('"') == 2:
        return " x " if asked.refusal_words and asked.voice else text
    if fence := _ALL_FENCE.match(text):
        text = fence[1]
    bare = _QUOTED.sub(lambda match: _in_place_of(match.group(), asked), text)
    if _is_structure(bare):
        if asked.refusal_words:
            return " x "
        text = text.replace("\\n", "\n").replace('\\"', " ").replace("\\u2019", "'")
        return "\n".join(
            piece for piece in _STRUCTURE.split(text) if len(piece.split()) > 2 or _says_all(piece)
        )
    return bare


def _is_structure(bare: str) -> bool:
    """Whether next to nothing is left of a text without what it quotes: brackets, a call,
    numbers.
    """
    return len(
        [word for word in _WORD.findall(bare) if word != "x" and not word[0].isdigit()]
    ) <= 2 and not _SPEECH.search(bare)


def _says_all(piece: str) -> bool:
    """Whether a part of a structure is a text though it has few words."""
    return LABEL.search(piece) is not None or (not piece.isascii() and len(piece.strip()) >= 6)


def _in_place_of(quoted: str, asked: Asked) -> str:
    """What stands for quoted words: a sentence or more where a text was asked for, as that is
    it.
    """
    count = len(quoted.split()) // 12 if quoted[0] == '"' and asked.voice else 0
    return " x. " * min(count, 3) + " x "
