"""The text of an answer while its tokens come: what of it will stay, and where it must stop."""

from collections.abc import Sequence

from refusal.model.base import LoadedModel
from refusal.model.endings import read_outputs, thought_opened
from refusal.model.thinking_tokens import special_marks

HOPELESS = "\ufffd"  # what an unfinished character is decoded as
OVERLAP = 8  # tokens that a window keeps, so that what follows them is decoded as in the whole text
WINDOW = 32


class Growing:
    """The text of tokens that come one by one, told as far as further tokens will not change it.

    Decoding everything at every token would take a time that grows with the square of the length,
    so only the last few are decoded again. Where marks of thinking or an answer's beginning are in
    the text, which are read as a whole, it is. (A tokenizer that writes bytes for what it has no
    word of may take characters back where a broken one follows; then nothing more is told.)
    """

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.tokens: list[int] = []
        self.marks = special_marks(model.tokenizer)
        self.whole = thought_opened(model) or bool(model.chat.around.prefill)
        self.start = 0  # of the window that is decoded
        self.shown = ""  # of what the window is decoded as

    def add(self, token: int) -> str:
        """What is new, now that this token stands at the end."""
        self.tokens.append(token)
        if not self.whole and token in self.marks:
            self._read_as_whole()
        text = self._text(self.start)
        stays = text.rstrip(HOPELESS)
        if not stays.startswith(self.shown):
            return ""
        new, self.shown = stays[len(self.shown) :], stays
        if stays == text and not self.whole and len(self.tokens) - self.start > WINDOW:
            self._move_on(text)
        return new

    def _text(self, start: int) -> str:
        if self.whole:
            return read_outputs(self.model, [self.tokens], freely=True)[0]
        tokens = self.tokens[start:]
        return str(self.model.tokenizer.decode(tokens, skip_special_tokens=True))

    def _read_as_whole(self) -> None:
        """Decode from the beginning from now on."""
        before = self.tokens[:-1]
        told = str(self.model.tokenizer.decode(before, skip_special_tokens=True))
        self.whole, self.start, self.shown = True, 0, told.rstrip(HOPELESS)

    def _move_on(self, text: str) -> None:
        """Let the window begin later, where that is decoded as it is in the whole."""
        later = len(self.tokens) - OVERLAP
        tail = self._text(later)
        if tail and HOPELESS not in tail and text.endswith(tail):
            self.start, self.shown = later, tail


class Stops:
    """Lets text through up to the first of some texts, which end it; what may be the beginning of
    one waits.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.waits = ""
        self.found = False

    def through(self, new: str) -> str:
        """What of the text so far is certain to stay, and was not let through before."""
        text = self.waits + new
        if (end := first_of(self.stops, text)) is not None:
            self.found, self.waits = True, ""
            return text[:end]
        held = max((_begun(stop, text) for stop in self.stops), default=0)
        self.waits = text[len(text) - held :]
        return text[: len(text) - held]


def first_of(stops: Sequence[str], text: str) -> int | None:
    """Where the first of some texts begins in another; ``None`` where none is in it."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return min(places, default=None)


def _begun(stop: str, text: str) -> int:
    """How much of the end of a text is the beginning of ``stop``."""
    most = min(len(stop) - 1, len(text))
    return next((n for n in range(most, 0, -1) if text.endswith(stop[:n])), 0)
