"""What a prompt asks for, as far as it changes the meaning of an answer's words.

All text here is plain (`plain_text`). Each question is answered only when a sentence of the answer
raises it.
"""

import re
from functools import cached_property

from refusal.detector import languages
from refusal.detector.answer_phrases import PERSONA_ASKED, REFUSAL_WORDS
from refusal.detector.phrases import (
    ABOUT_THE_REQUEST,
    ABOUT_YOU,
    ASKING,
    MEANING_ASKED,
    PRAISED,
    PRESUMES,
    PRIVACY_ASKED,
    PRIVATE_ASKED,
    SAYS_NO,
    VOICE_ASKED_FOR,
    WORDS_GIVEN,
    YES_OR_NO,
)

_STEM = 7
_LONG_WORD = re.compile(r"[a-z]{4,}")
_WORD = re.compile(r"[\w']+")
_FUNCTION_WORDS = frozenset(
    [
        "what",
        "when",
        "where",
        "which",
        "would",
        "should",
        "could",
        "does",
        "have",
        "that",
        "this",
        "with",
        "from",
        "them",
        "they",
        "best",
        "some",
        "your",
        "their",
        "into",
        "about",
    ]
)


class Asked:
    """What the prompt asks for, as far as it changes the meaning of an answer's words."""

    def __init__(self, prompt: str) -> None:
        self.text = prompt

    @cached_property
    def voice(self) -> bool:
        """A text in somebody's voice: "I cannot" may be that voice."""
        return VOICE_ASKED_FOR.search(self.text) is not None

    @cached_property
    def wording(self) -> bool:
        """A question about a question, a phrase, a term."""
        return ASKING.search(self.text) is not None

    @cached_property
    def meaning(self) -> bool:
        """What a word means: that the thing is bad belongs to the answer."""
        return MEANING_ASKED.search(self.text) is not None

    @cached_property
    def private(self) -> bool:
        """A fact about a person whom the asker knows."""
        return PRIVATE_ASKED.search(self.text) is not None

    @cached_property
    def privacy(self) -> bool:
        """Privacy is the topic."""
        return PRIVACY_ASKED.search(self.text) is not None

    @cached_property
    def yes_or_no(self) -> bool:
        """A question that "no" answers."""
        return YES_OR_NO.search(self.text) is not None

    @cached_property
    def about_you(self) -> bool:
        """Whether the model can or has something."""
        return ABOUT_YOU.search(self.text) is not None

    @cached_property
    def presumes(self) -> bool:
        """A question that takes something for granted, other than that something is not so."""
        return PRESUMES.search(self.text) is not None

    @cached_property
    def praises(self) -> bool:
        """It calls something good, right or best."""
        return PRAISED.search(self.text) is not None

    @cached_property
    def persona(self) -> bool:
        """A figure is to be played."""
        return PERSONA_ASKED.search(self.text) is not None

    @cached_property
    def refusal_words(self) -> bool:
        """Words of refusing or excusing are asked for, or given, in some language."""
        return (
            REFUSAL_WORDS.search(self.text) is not None
            or languages.ASKS_FOR_A_NO.search(self.text) is not None
        )

    @cached_property
    def long_words(self) -> set[str]:
        """Its words of four letters and more that say what it is about."""
        return set(_LONG_WORD.findall(self.text)) - _FUNCTION_WORDS

    def gives(self, phrase: str, sentence: str) -> bool:
        """Whether these words were given to be worked on: the phrase itself, or most words of the
        sentence.
        """
        task = WORDS_GIVEN.search(self.text)
        if task is None or task.group()[:_STEM] in phrase:
            return False
        if SAYS_NO.search(self.text):
            return phrase in self.text or not ABOUT_THE_REQUEST.search(sentence)
        words, given = set(_WORD.findall(sentence)), set(_WORD.findall(self.text))
        return "i" in given and 2 * len(words & given) >= len(words)
