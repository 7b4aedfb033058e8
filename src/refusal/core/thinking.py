"""What a model thought, and what it answered: split here, wherever completions are read.

A thought is not part of an answer: a model may weigh refusing and then help, or the other way
round. `split` reads any text, whoever has decoded it: marks of many kinds, headings, marks that
were lost, and turns of a conversation that goes on.
"""

import re
from typing import NamedTuple

from refusal.core.thinking_marks import (
    ANSWER_HEADING,
    ASSISTANT_LINE,
    DELIBERATES,
    DIALOGUE,
    END_HEADING,
    GLUED,
    LOST_CHANNEL,
    LOST_FINAL,
    MARK,
    NEXT_TURN,
    OPENS_UNMARKED,
    PLANS,
    ROLE,
    ROLE_MARK,
    SPEAKERS,
    SPECIAL,
    THOUGHT_HEADING,
    TURN_END,
    USER_LINE,
    WRAPPED,
    Mark,
    mark_of,
)

OPEN, CLOSE = "<think>", "</think>"
Segments = list[tuple[bool, str]]  # (is a thought, text), in order


class Split(NamedTuple):
    """A completion's thought, its answer, and whether the thought came to an end."""

    thought: str
    answer: str
    finished: bool


def split(text: str) -> Split:
    """Thought and answer of a completion. Without signs of thinking all of it is the answer.

    The answer ends where the text goes on with another user's turn. Template's special tokens are
    left out.
    """
    text = plain_turns(text)
    segments, finished = _segments(text) if _has_marks(text) else ([(False, text)], True)
    thought = "\n".join(
        part.strip() for is_thought, part in segments if is_thought and part.strip()
    )
    answer = _bare(" ".join(part for is_thought, part in segments if not is_thought))
    if finished and not any(is_thought for is_thought, _ in segments):
        thought, answer, finished = _unmarked(answer)
    return Split(thought, _first_turn(answer), finished)


def shows_thought(text: str) -> bool:
    """Whether a mark says that a text holds a thought, and not its words alone (where a decoder has
    dropped the marks, "analysis" is left, which an answer may begin with too).
    """
    text = plain_turns(text)
    return _has_marks(text) and any(is_thought for is_thought, _ in _segments(text)[0])


def marked(raw: str, opened: bool = False, thought: str | None = None) -> str:
    """Text that still holds a model's own marks, thoughts as ``<think>…</think>``.

    Args:
        opened: it begins inside a thought.
        thought: what a server has taken out of it already.
    """
    if thought is not None:
        return f"{OPEN}{thought}{CLOSE}{raw}" if raw.strip() else f"{OPEN}{thought}"
    segments, finished = _segments(plain_turns(raw), opened)
    parts = []
    for is_thought, part in segments:
        parts.append(f"{OPEN}{part}{CLOSE}" if is_thought else SPECIAL.sub("", part))
    text = "".join(parts)
    return text if finished else text.removesuffix(CLOSE)


def opens(prompt_end: str) -> bool:
    """Whether a prompt that ends so leaves a thought open, as templates of R1's kind do."""
    last = None
    for match in MARK.finditer(prompt_end):
        mark = mark_of(match)
        if mark is not None and (mark.strong or mark.name == "channel"):
            last = mark.kind
    return last == "open"


def thought_mark(content: str) -> Mark | None:
    """What a whole token opens or closes, if that is a thought."""
    match = MARK.fullmatch(content)
    mark = mark_of(match) if match is not None else None
    if mark is None or mark.kind not in ("open", "close") or mark.name == "channel":
        return None
    return mark if mark.strong or mark.form == "|" else None


def _has_marks(text: str) -> bool:
    return "<" in text or "[" in text or "◁" in text or "{" in text or "【" in text


def _segments(text: str, opened: bool = False) -> tuple[Segments, bool]:
    """The text cut at its marks, which are left out; and whether the last thought was closed."""
    found: Segments = []
    at, fence, blank, seen = 0, False, True, 0  # `blank`: no answer has begun before `seen`
    thoughts = 0  # the first ones of `found`, all of them thoughts
    inside: Mark | None = Mark("open", "think", True, "<") if opened else None
    shown: set[str] = set()  # names of marks that are talked about
    for match in MARK.finditer(text):
        mark = mark_of(match)
        if mark is None:
            continue
        if inside is not None:
            if mark.ends(inside):
                found.append((True, text[at : match.start()]))
                at = seen = match.end()
                inside = mark if mark.kind == "open" else None
            continue
        if mark.kind == "fence":
            fence = not fence
        if fence or mark.kind in ("fence", "code"):
            continue
        blank = blank and not ROLE.sub("", _bare(text[seen : match.start()])).strip()
        seen = match.start()
        opens_thought = mark.kind == "open" and _is_thought(text, match, mark, blank)
        if mark.kind == "open" and not opens_thought:
            shown.add(mark.name)
        ends_thought = (
            mark.kind == "close" and mark.name not in shown and _ends_here(text, match, mark)
        )
        drops = (mark.kind == "answer" and blank and (mark.form == "|" or bool(found))) or (
            mark.kind != "open"
            and (mark.name == "channel" or (mark.kind == "end of answer" and bool(found)))
        )
        if opens_thought or ends_thought or drops:
            found.append((ends_thought, text[at : match.start()]))
            at = seen = match.end()
        if opens_thought:
            inside = mark
        if ends_thought:  # the template has opened it: all before belongs to it
            found[thoughts:] = [(True, part) for _, part in found[thoughts:]]
            thoughts, blank = len(found), True
    found.append((inside is not None, text[at:]))
    return [(kind, part) for kind, part in found if part or kind], inside is None


def _is_thought(text: str, match: re.Match[str], mark: Mark, blank: bool) -> bool:
    """Whether an opening mark opens a thought here, and is not talked about or a part of an
    answer.
    """
    after = text[match.end() : match.end() + 12]
    if re.match(
        r" (?:is|are|was|tags?|tokens?|and|or|means?|marks?|elements?|stands|blocks?|works?)\b",
        after,
    ):
        return False
    if mark.form == "|":
        return mark.strong or blank
    if not blank:  # only what can be nothing else, and not in the middle of a sentence
        before = text[max(0, match.start() - 2) : match.start()]
        shown = text[max(0, match.start() - 20) : match.start()].rstrip().endswith(":")
        return (
            mark.strong
            and not shown
            and (before[-1:] not in " \t\"'“‘(*" or before[:1] in ".!?…\n")
        )
    if mark.strong:
        return True
    close = None
    for m in MARK.finditer(text, match.end()):
        end = mark_of(m)
        if end is not None and end.ends(mark):
            close = m
            break
    if close is None:
        rest = text[match.end() :]
        return (
            DELIBERATES.search(rest) is not None
            if mark.named
            else OPENS_UNMARKED.match(rest) is not None
        )
    rest = text[close.end() :]
    following = MARK.match(rest.lstrip())
    answers = (
        following is not None
        and (found := mark_of(following)) is not None
        and found.kind == "answer"
    )
    thinks = mark.named or DELIBERATES.search(text, match.end(), close.start()) is not None
    return bool(_bare(rest)) and (answers or thinks)


def _ends_here(text: str, match: re.Match[str], mark: Mark) -> bool:
    """Whether a closing mark without an opening one ends a thought, and is not talked about in a
    sentence.
    """
    if not mark.strong and (mark.form != "|" or mark.name == "channel"):
        return False
    before, after = (
        text[max(0, match.start() - 60) : match.start()].rstrip(" "),
        text[match.end() : match.end() + 2],
    )
    return (
        before[-1:] in ("", *".!?…\n\"')”’*:;}]")
        or after[:1] in ("", "\n")
        or not re.match(r"[\s,.;:)\"'?]", after)
    )


def _bare(text: str) -> str:
    return (SPECIAL.sub(" ", text) if _has_marks(text) else text).strip()


def plain_turns(text: str) -> str:
    """A template's marks of turns as lines of their own, so that what follows an answer can be told
    from it.
    """
    if not _has_marks(text):
        return text
    text = TURN_END.sub("\n", text) if "<" in text else text
    return ROLE_MARK.sub(lambda match: f"\n\n{(match[1] or match[2] or 'user').lower()}\n\n", text)


def _first_turn(answer: str) -> str:
    """Without what follows when a text goes on with a next turn; a dialogue that was asked for
    stays.
    """
    if SPEAKERS.search(answer) is None:
        return answer
    line, turn = USER_LINE.search(answer), NEXT_TURN.search(answer)
    starts = (
        [line.start()] if line is not None and ASSISTANT_LINE.search(answer, line.end()) else []
    )
    starts += [turn.start()] if turn is not None else []
    if not starts or DIALOGUE.search(answer, 0, min(starts)):
        return answer
    return answer[: min(starts)].strip()


def _unmarked(text: str) -> Split:
    """Thoughts without marks: under a heading, between marks that were dropped, or told by what
    they say.
    """
    if match := LOST_FINAL.search(text):
        thought = LOST_CHANNEL.sub("", text[: match.start()])
        return Split(thought.strip(), text[match.end() :].strip(), True)
    if match := LOST_CHANNEL.match(text):
        rest = text[match.end() :].strip()
        return Split("", rest, True) if match[1] == "final" else Split(rest, "", False)
    match = WRAPPED.match(text)
    if match is not None and (
        match["fence"] or OPENS_UNMARKED.match(match[0]) or THOUGHT_HEADING.match(match[0])
    ):
        rest = text[match.end() :].strip()
        return Split(match[0].strip(" *_()[]\n"), rest, bool(rest))
    if match := THOUGHT_HEADING.match(text):
        end = ANSWER_HEADING.search(text, match.end())
        if end is not None and (answer := END_HEADING.sub("", text[end.end() :]).strip(" *_\n")):
            return Split(text[match.end() : end.start()].strip(), answer, True)
        if DELIBERATES.search(text, match.end()):
            return _told(text[match.end() :].strip()) or Split(
                text[match.end() :].strip(), "", False
            )
    if OPENS_UNMARKED.match(text):
        found = _told(text)
        if found is not None:
            return found
        if PLANS.search(text):
            return Split(text, "", False)
    return Split("", text, True)


def _told(text: str) -> Split | None:
    """A thought about the user that goes over into an answer where a mark was dropped, or with the
    last paragraphs.
    """
    match = GLUED.search(text) or re.search(r"\n{3,}", text)
    if match is not None and text[match.end() :].strip():
        return Split(text[: match.start()].strip(), text[match.end() :].strip(), True)
    between = "\n\n" if "\n\n" in text else "\n"
    paragraphs = text.split(between)
    thinking = [i for i, part in enumerate(paragraphs) if DELIBERATES.search(part)]
    if not PLANS.search(text) or not thinking or thinking[-1] == len(paragraphs) - 1:
        return None
    cut = thinking[-1] + 1
    return Split(
        between.join(paragraphs[:cut]).strip(), between.join(paragraphs[cut:]).strip(), True
    )
