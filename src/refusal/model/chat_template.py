"""Render an instruction through the tokenizer's own chat template, and find the post-instruction
tokens.

The template renders BOS itself, so tokenisation adds no special tokens. What is done about thoughts
is a `Thinking`, which `thinking_form` finds. Positions are found by tokenising several very
different instructions, never by slicing strings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from refusal.core.day import Day, day_of
from refusal.core.errors import ChatTemplateError
from refusal.core.thinking import opens
from refusal.core.turns import Question, Turns, turns_of

# Very different first and last characters, so that what they share can only come from the template.
PROBES = (
    "a",
    "Who are you?",
    "12 + 7 = 19",
    "«¡Olé!»",
    "Compare:\n- x\n- y",
    "日本語の文",
    "END.",
    "(x)",
)


@dataclass(frozen=True)
class Thinking:
    """What prompts do about thoughts.

    Attributes:
        mode: ``off`` by the template's switch; ``closed``: prompts end with ``block``; ``on``: so
            do those that are read, while completions begin without it; ``None``: nothing is done.
        variables: what the template is told, by name.
        block: text after the template's own that ends an empty thought.
        marks: what opens and what closes a thought, as this model writes it.
        source: where that was found.
        found: pairs of marks that the tokenizer or the template knows.
        tokens: longest thought under ``on``.
        unsure: only the model's own first tokens can say whether it thinks.
    """

    mode: Literal["off", "closed", "on"] | None = None
    variables: tuple[tuple[str, Any], ...] = (("enable_thinking", False),)
    block: str = ""
    marks: tuple[str, str] | None = None
    source: str = ""
    found: tuple[tuple[str, str], ...] = ()
    tokens: int = 1024
    unsure: bool = False

    @property
    def freely(self) -> "Thinking":
        """How prompts end that are completed: under ``on`` without the block."""
        return replace(self, block="") if self.mode == "on" else self

    @property
    def described(self) -> dict[str, Any] | None:
        """As a manifest has it; ``None`` where nothing is done."""
        if self.mode is None:
            return None
        tokens = {"tokens": self.tokens} if self.mode == "on" else {}
        return {"mode": self.mode, "block": self.block, "source": self.source, **tokens}


AS_WRITTEN = Thinking()


@dataclass(frozen=True)
class Around:
    """What stands around every prompt beside a system prompt: ``turns`` before it, as roles and
    texts, and ``prefill``, how the answer begins.
    """

    turns: Turns = ()
    prefill: str = ""


ALONE = Around()


@dataclass(frozen=True)
class ChatFormat:
    """What surrounds an instruction in a prompt of this tokenizer.

    ``prefix`` and ``suffix`` are token ids: what every prompt starts with, and the post-instruction
    tokens, which hold the closed thought and the answer's beginning where there is one.
    ``opened``: completions begin inside a thought.
    """

    system: str | None
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    suffix_tokens: tuple[str, ...]
    thinking_switch: bool
    starts_with_bos: bool
    day: Day
    thinking: Thinking = AS_WRITTEN
    opened: bool = False
    around: Around = ALONE


def render(
    tokenizer: PreTrainedTokenizerBase,
    question: Question,
    system: str | None = None,
    day: Day | None = None,
    thinking: Thinking = AS_WRITTEN,
    around: Around = ALONE,
) -> str:
    """The prompt text for a question after the turns ``around`` it, generation prompt, closed
    thought and the answer's beginning included; ``day`` (default: today) is the template's date.

    Raises:
        ChatTemplateError: there is no template, or it rejects the conversation (a system role,
            say).
    """
    begin = () if system is None else (("system", system),)
    turns = (*begin, *around.turns, *turns_of(question))
    return render_turns(tokenizer, turns, day, thinking) + around.prefill


def render_turns(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[tuple[str, str]],
    day: Day | None = None,
    thinking: Thinking = AS_WRITTEN,
) -> str:
    """The prompt text for turns of a conversation, the last of them the user's, generation prompt
    and closed thought included.

    Raises:
        ChatTemplateError: there is no template, it rejects the conversation (a system role, say),
            or leaves a turn before the last out.
    """
    if not tokenizer.chat_template:
        raise ChatTemplateError(
            "The tokenizer has no chat template: this looks like a base model. "
            "Use an instruction-tuned model, or set tokenizer.chat_template."
        )
    refused: Exception | None = None
    lost: list[tuple[str, str]] = []
    for in_parts in (False, True):  # templates of vision-language models may want content in parts
        try:
            text = _apply(tokenizer, turns, in_parts, day or day_of(None), thinking)
        except Exception as error:  # a template is a program, and may raise anything
            refused = refused or error
            continue
        lost = [(role, said) for role, said in turns if said.strip() not in text]
        if not lost:
            return text + thinking.block
    if refused is None and turns[-1] in lost:  # a template that changes what it is given
        return _apply(tokenizer, turns, False, day or day_of(None), thinking) + thinking.block
    roles = ", ".join(role for role, _ in turns)
    if len(turns) == 1:
        what, mend = "a single user turn", "Check the model's chat template."
    elif len(turns) == 2 and turns[0][0] == "system":
        what, mend = "a system prompt", "Run without --system."
    else:
        what = f"a conversation of the turns {roles}"
        mend = "Leave such prompts out, or run without --system and --turns."
    if refused is None:
        role, said = lost[0]
        raise ChatTemplateError(
            f"The chat template leaves the {role} turn {said[:60]!r} out of {what}. {mend}"
        )
    raise ChatTemplateError(
        f"The chat template rejects {what} ({' '.join(str(refused).split())[:200]}). {mend}"
    ) from refused


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[tuple[str, str]],
    in_parts: bool,
    day: Day,
    thinking: Thinking,
) -> str:
    """The template's text for a conversation; content as strings or as lists of one text part."""
    messages: list[Any] = []
    for role, text in turns:
        content = [{"type": "text", "text": text}] if in_parts else text
        messages.append({"role": role, "content": content})
    return apply(tokenizer, messages, day, dict(thinking.variables), True)


def apply(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Any],
    day: Day,
    variables: dict[str, Any],
    generation_prompt: bool,
) -> str:
    """The template's text for messages, with that date and these variables.

    Raises:
        Exception: whatever a template raises.
    """
    template: Any = day.dated(tokenizer.get_chat_template())
    return str(
        tokenizer.apply_chat_template(
            messages,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=generation_prompt,
            **{**variables, **day.variables},
        )
    )


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of rendered text; the template has already written BOS."""
    ids: Any = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [int(i) for i in ids]


def find_format(
    tokenizer: PreTrainedTokenizerBase,
    system: str | None = None,
    day: Day | None = None,
    thinking: Thinking = AS_WRITTEN,
    around: Around = ALONE,
) -> ChatFormat:
    """The common prefix and suffix of prompts, in tokens.

    The suffix is the longest one that all probes share, and it must decode to the end of the
    template's own text after the instruction.

    Raises:
        ChatTemplateError: no template, or nothing follows the instruction.
    """
    day = day or day_of(None)
    texts = [render(tokenizer, probe, system, day, thinking, around) for probe in PROBES]
    ids = [tokenize(tokenizer, text) for text in texts]
    prefix = _common_prefix(ids)
    suffix = _common_suffix(ids)
    template_end = "".join(_common_suffix([list(text) for text in texts]))
    decoded = str(
        tokenizer.decode(
            list(suffix), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
    )
    if not suffix or not template_end.endswith(decoded.lstrip(" ")):
        raise ChatTemplateError(
            f"No post-instruction tokens were found: prompts share the text {template_end!r} "
            f"after the instruction but the tokens {decoded!r}. The method reads activations "
            "there; use a template that closes the user turn."
        )
    bos = tokenizer.bos_token_id
    return ChatFormat(
        system=system,
        prefix=tuple(prefix),
        suffix=tuple(suffix),
        suffix_tokens=tuple(tokenizer.convert_ids_to_tokens(list(suffix))),
        thinking_switch=thinking.mode == "off" or "enable_thinking" in str(tokenizer.chat_template),
        starts_with_bos=bos is not None and bool(prefix) and prefix[0] == bos,
        day=day,
        thinking=thinking,
        opened=opens(decoded.removesuffix(thinking.block) if thinking.mode == "on" else decoded),
        around=around,
    )


def _common_prefix(rows: Sequence[list[Any]]) -> list[Any]:
    same = takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))
    return [column[0] for column in same]


def _common_suffix(rows: Sequence[list[Any]]) -> list[Any]:
    return _common_prefix([row[::-1] for row in rows])[::-1]
