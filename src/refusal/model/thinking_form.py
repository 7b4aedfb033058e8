"""Whether a model thinks before it answers, and how a prompt can end after an empty thought.

Asked in this order: the template's own switch, what the template writes before an answer when it is
given a thought, the tokenizer's marks, and what the model itself begins to write.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from refusal.core.day import Day, day_of
from refusal.core.errors import ConfigError
from refusal.core.thinking import opens, thought_mark
from refusal.core.thinking_marks import MARK, mark_of
from refusal.model.chat_template import AS_WRITTEN, Thinking, apply, render
from refusal.model.thinking_tokens import AROUND, special_marks

Mode = Literal["off", "closed", "on"]
Variables = dict[str, Any]
Switch = tuple[Variables, Variables]  # what the template is told: thinking off, thinking on
Form = tuple[str, str]  # what stands before and after a thought

QUESTION, THOUGHT, ANSWER = "What is asked here?", "Whatisthought", "Whatisanswered"
# A template's own variables with such a word in their name may be a switch; rendering decides.
VARIABLE = re.compile(r"(?<![\w.'\"])[a-z_]*(?:think|thought|reason)[a-z_]*\b(?!['\"])")
AGAINST = re.compile(r"(?:no|not|disable|skip|without|hide|suppress)_")
OFF = ("none", "off", "disabled", "no_think", "nothink", "no")
ROLE = re.compile(r"\A<\|start\|>\w*")  # of harmony: part of a turn, not of a mark
FIELDS = ("reasoning_content", "reasoning", "thinking")


def find_thinking(
    tokenizer: PreTrainedTokenizerBase,
    wanted: Mode | None = None,
    tokens: int = AS_WRITTEN.tokens,
    system: str | None = None,
    day: Day | None = None,
    ask: Callable[[], Sequence[str]] | None = None,
) -> Thinking:
    """What prompts of this tokenizer should do about thoughts.

    Without a wish: ``off`` where the template has a switch; else ``closed`` where its prompts end
    inside a thought, or where marks are known and the model begins with one of them; else nothing.

    Args:
        tokens: longest thought under ``on``.
        ask: gives some of the model's own beginnings, special tokens included. It is called only
            where nothing else decides; without it the result is then ``unsure``.

    Raises:
        ConfigError: ``off`` without a switch; ``closed`` or ``on`` where no marks can be found.
        ChatTemplateError: there is no template, or it rejects a conversation.
    """
    day = day or day_of(None)
    switch = find_switch(tokenizer, system, day)
    off, on = switch or ({}, {})
    if wanted == "off" or (wanted is None and switch):
        if switch is None:
            raise ConfigError(
                "--thinking off: the chat template has no switch that turns thinking off. Use "
                "--thinking closed, which ends an empty thought before the answer."
            )
        return Thinking("off", _told(off), source="the template's switch", found=_pairs(tokenizer))
    told = _told(on) if wanted is not None else AS_WRITTEN.variables
    prompt = render(tokenizer, QUESTION, system, day, Thinking(variables=told))
    opened, known = _inside(prompt), _known(tokenizer)
    pairs = tuple(pair for form in known if (pair := marks_of("".join(form))) is not None)
    form, source = _from_switch(tokenizer, switch, system, day), "the template's switch"
    if form is None:
        form, source = _from_turn(tokenizer, prompt, dict(told), system, day), "the template"
    if form is None and opened:
        form, source = _of_opened(prompt, known), "the tokenizer's marks"
    decided = opened or (wanted is not None and form is not None)
    if not decided and ask is None:
        unsure = wanted is not None or bool(known) or form is not None
        return Thinking(variables=told, found=pairs, tokens=tokens, unsure=unsure)
    if not decided and (wanted is not None or known or form is not None):
        written = _opening(ask() if ask is not None else ())
        if written is None and wanted is None:
            said = "the model's first tokens, which open no thought"
            return Thinking(variables=told, found=pairs, source=said, tokens=tokens)
        if form is None and (written is not None or known):
            form, source = _chosen(written, known)
    if form is None:
        if wanted is None:
            return Thinking(variables=told, found=pairs, tokens=tokens)
        raise ConfigError(
            f"--thinking {wanted}: neither template nor tokenizer nor the model's first tokens "
            "have marks of thinking. Run without --thinking."
        )
    before, after = form
    block = after if opened else before + after
    marks = marks_of(before + after)
    return Thinking(wanted or "closed", told, block, marks, source, pairs, tokens)


def find_switch(
    tokenizer: PreTrainedTokenizerBase, system: str | None = None, day: Day | None = None
) -> Switch | None:
    """The template's variable that turns thinking off, with its two values, if it has one.

    Its name only makes it a candidate: prompts must differ by it, those with thinking off must not
    end inside a thought, and the value itself must not be what is written.

    Raises:
        ChatTemplateError: there is no template, or it rejects a conversation.
    """
    day = day or day_of(None)

    def say(variables: Variables) -> str:
        return render(tokenizer, QUESTION, system, day, Thinking(variables=_items(variables)))

    plain, template = say({}), str(tokenizer.get_chat_template())
    names = sorted(set(VARIABLE.findall(template)), key=lambda name: name != "enable_thinking")
    for name in names:
        no, yes = ({name: value} for value in (False, True))
        without, with_it = say(no), say(yes)
        if without != with_it and without.replace("False", "True") != with_it:
            swapped = AGAINST.match(name) or (_inside(without) and not _inside(with_it))
            off, on = (yes, no) if swapped else (no, yes)
            if not _inside(say(off)):
                return off, on
        for value in OFF:
            if f"'{value}'" in template or f'"{value}"' in template:
                text = say({name: value})
                if text not in (plain, say({name: "else"})) and not _inside(text):
                    return {name: value}, {}
    return None


def marks_of(text: str) -> tuple[str, str] | None:
    """The marks that open and close the first thought of a text, which holds nothing else."""
    opening = None
    for match in MARK.finditer(text):
        mark = mark_of(match)
        if mark is None:
            continue
        if opening is None and mark.kind == "open" and mark.strong:
            opening = ROLE.sub("", match[0])
        elif opening is not None and (
            (mark.kind == "close" and mark.strong)
            or (mark.kind == "answer" and mark.name == "channel")
        ):
            return opening.strip(), ROLE.sub("", match[0]).strip()
    return None


def _inside(prompt: str) -> bool:
    """Whether a prompt ends inside a thought; what stands before the question is not looked at."""
    return opens(prompt.rpartition(QUESTION)[2])


def _items(variables: Variables) -> tuple[tuple[str, Any], ...]:
    return tuple(variables.items())


def _told(switch: Variables) -> tuple[tuple[str, Any], ...]:
    """A switch's value beside what every template is told."""
    return _items({**dict(AS_WRITTEN.variables), **switch})


def _from_switch(
    tokenizer: PreTrainedTokenizerBase, switch: Switch | None, system: str | None, day: Day
) -> Form | None:
    """What the switch adds to a prompt, if that is an empty thought."""
    if switch is None:
        return None
    told = [Thinking(variables=_told(value)) for value in switch]
    without, with_it = (render(tokenizer, QUESTION, system, day, one) for one in told)
    if not without.startswith(with_it) or _inside(without):
        return None
    block = without[len(with_it) :]
    if _inside(with_it):
        return _opening_end(with_it), block
    return ("", block) if marks_of(block) else None


def _from_turn(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    variables: Variables,
    system: str | None,
    day: Day,
) -> Form | None:
    """What the template writes around a thought that it is given with an answer."""
    parts = [{"type": "thinking", "thinking": THOUGHT}, {"type": "text", "text": ANSWER}]
    turns: list[Any] = [
        {"role": "assistant", "content": ANSWER, **dict.fromkeys(FIELDS, THOUGHT)},
        *({"role": "assistant", "content": ANSWER, field: THOUGHT} for field in FIELDS),
        {"role": "assistant", "content": parts},
    ]
    begin = [] if system is None else [{"role": "system", "content": system}]
    for turn in turns:
        messages = [*begin, {"role": "user", "content": QUESTION}, turn]
        try:
            text = apply(tokenizer, messages, day, variables, False)
        except Exception:  # a template is a program, and may raise anything
            continue
        head, found, _ = text.partition(ANSWER)
        own = prompt if head.startswith(prompt) else prompt.rstrip()
        if not found or not head.startswith(own) or head.count(THOUGHT) != 1:
            continue
        before, after = head[len(own) :].split(THOUGHT)
        if _inside(own + before) and not _inside(own + before + after):
            return (_opening_end(own) if _inside(own) else "") + before, after
    return None


def _opening_end(prompt: str) -> str:
    """The end of a prompt from the mark on that has opened a thought."""
    start = 0
    for match in MARK.finditer(prompt):
        mark = mark_of(match)
        if mark is not None and mark.strong and mark.kind == "open":
            start = match.start()
    return prompt[start:]


def _known(tokenizer: PreTrainedTokenizerBase) -> list[Form]:
    """What may stand around a thought by the marks that tokenizer and template know."""
    template = str(tokenizer.chat_template)
    special = list(special_marks(tokenizer).values())
    found = [AROUND[mark] for mark in AROUND if mark in special or mark in template]
    written = [match[0] for match in MARK.finditer(template)]
    for source in (special, written):
        texts = dict.fromkeys(text for text in source if thought_mark(text) is not None)
        for opening in texts:
            for closing in texts:
                one, two = thought_mark(opening), thought_mark(closing)
                if one and two and one.kind == "open" and two.ends(one):
                    found.append(_form(opening, closing))
    return list(dict.fromkeys(found))


def _form(opening: str, closing: str) -> Form:
    """Tags stand on lines of their own and are followed by an empty one; other marks close up."""
    if opening.startswith("<") and not opening.startswith("<|"):
        return f"{opening}\n", f"\n{closing}\n\n"
    return opening, closing


def _pairs(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[str, str], ...]:
    return tuple(
        pair for form in _known(tokenizer) if (pair := marks_of("".join(form))) is not None
    )


def _of_opened(prompt: str, known: Sequence[Form]) -> Form:
    """What ends the thought that a prompt ends in."""
    begun = _opening_end(prompt)
    opening = begun.strip()
    after = next((end for start, end in known if start.strip() == opening), None)
    if after is None:
        after = _form(opening, _closing(opening))[1]
    if after.startswith("\n") and not begun.endswith("\n"):
        after = "\n" + after
    return begun, after


def _closing(opening: str) -> str:
    """The mark that closes what one opens, by its form."""
    for begin, end in (("begin", "end"), ("BEGIN", "END"), ("start", "end"), ("START", "END")):
        if begin in opening:
            return opening.replace(begin, end)
    return opening[:1] + "/" + opening[1:]


def _opening(beginnings: Sequence[str]) -> str | None:
    """The mark that most of a model's own beginnings open a thought with."""
    found = []
    for text in beginnings:
        match = MARK.match(text.lstrip())
        mark = mark_of(match) if match is not None else None
        whole = match is not None and match.end() < len(text.lstrip())  # not cut in its name
        if match is not None and whole and mark is not None and mark.kind == "open" and mark.strong:
            found.append(match[0].strip())
    return max(found, key=found.count) if 2 * len(found) > len(beginnings) else None


def _chosen(written: str | None, known: Sequence[Form]) -> tuple[Form, str]:
    """The form of the mark that the model writes; without one the first that is known."""
    if written is None:
        return known[0], "the tokenizer's marks"
    for form in known:
        if form[0].strip() == written:
            return form, "the tokenizer's marks, as the model begins"
    return _form(written, _closing(written)), "the model's first tokens"
