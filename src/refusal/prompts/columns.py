"""Which columns of a row make its prompt, and in which order.

The text, and what the text is about: after it, a blank line between them, as Alpaca (``input``) and
Dolly (``context``) put it; before it and a rule, as HarmBench puts its ``ContextString``. A system
prompt and the turns of a list of messages are handed on. Columns of earlier turns are refused:
without them the prompt asks something else.
"""

import reprlib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from refusal.core.errors import PromptError
from refusal.core.text_files import parse_json
from refusal.core.turns import Turns
from refusal.prompts.messages import Conversation, conversation

Fields = Mapping[str, Any]  # by lower-case name

TEXT_COLUMNS = ("prompt", "text", "instruction", "goal", "behavior", "question")
MESSAGE_COLUMNS = ("messages", "conversations", "conversation")
CONTEXTS = {
    "input": "{text}\n\n{context}",
    "context": "{text}\n\n{context}",
    "contextstring": "{context}\n\n---\n\n{text}",
}
SYSTEM_COLUMNS = ("system", "system_prompt")
HISTORY = "history"  # Alpaca's form of earlier turns
ABOUT = ("label", "split", "category", "id")
KNOWN = (*TEXT_COLUMNS, *MESSAGE_COLUMNS, *CONTEXTS, *SYSTEM_COLUMNS, HISTORY, *ABOUT)


def prompt_column(rows: Sequence[Fields], column: str | None, path: object) -> str:
    """The column of the prompts in all rows of a file; it may be blank throughout.

    Raises:
        PromptError: no such column, or several.
    """
    wanted = (column.strip().lower(),) if column is not None else (*TEXT_COLUMNS, *MESSAGE_COLUMNS)
    there = [name for name in wanted if any(name in row for row in rows)]
    if not there:
        raise _no_column(wanted if column is not None else TEXT_COLUMNS, rows[0], f"{path}, row 1")
    filled = [name for name in there if any(not blank(row.get(name)) for row in rows)]
    if len(filled) > 1:
        names = " and ".join(filled)
        raise PromptError(
            f"{path} has the columns {names}, and each may be the prompt. Name one with --column."
        )
    return (filled or there)[0]


def read_prompt(fields: Fields, name: str, where: str) -> Conversation:
    """The prompt of a row, empty if its cells are, with the turns before it and its system prompt.

    Raises:
        PromptError: no such column, content that is no text, an unclear conversation, or a context
            without its question.
    """
    if name not in fields:
        raise _no_column((name,), fields, where)
    value = fields[name]
    before: Turns = ()
    system: str | None = None
    if isinstance(value, str) and name in MESSAGE_COLUMNS and not blank(value):
        try:
            value = parse_json(value)
        except ValueError as error:
            raise PromptError(
                f"{where}: {name} is no list of messages in JSON ({error}). Mend the cell."
            ) from error
    if isinstance(value, list) and value:
        value, before, system = conversation(value, f"{where}, {name}")
        for _, earlier in before:
            checked(earlier, name, where)
    text = _text(value, name, where)
    if not blank(fields.get(HISTORY)):
        raise PromptError(
            f"{where} has earlier turns in {HISTORY}, which is not read. Write them as messages, "
            "or leave such rows out."
        )
    given = [name for name in SYSTEM_COLUMNS if not blank(fields.get(name))]
    systems = {name: _text(fields[name], name, where) for name in given}
    said = {found for found in (*systems.values(), (system or "").strip()) if found}
    if len(said) > 1:
        raise PromptError(
            f"{where} has two system prompts, {' and '.join(map(reprlib.repr, said))}. Leave one."
        )
    others = [key for key in CONTEXTS if key != name and not blank(fields.get(key))]
    contexts = {key: _text(fields[key], key, where) for key in others}
    if len(contexts) > 1:
        raise PromptError(
            f"{where} has {' and '.join(contexts)}. Only one can be told to belong to {name}: put "
            f"all into {name}."
        )
    for key, context in contexts.items():
        if not text:
            raise PromptError(f"{where} has {key} but no {name}. Fill it in, or leave the row out.")
        text = CONTEXTS[key].format(text=text, context=context)
    return Conversation(text, before, next(iter(said), None))


def what_is_read(rows: Sequence[Fields], name: str) -> tuple[list[str], list[str]]:
    """The columns that make the prompts, and those with something in them that nothing reads."""
    filled = dict.fromkeys(key for row in rows for key, value in row.items() if not blank(value))
    read = [name, *(key for key in (*CONTEXTS, *SYSTEM_COLUMNS) if key in filled and key != name)]
    return read, [key for key in filled if key not in (*read, *ABOUT)]


def _no_column(wanted: Sequence[str], fields: Fields, where: str) -> PromptError:
    there = ", ".join(str(name) for name in fields) or "nothing"
    return PromptError(
        f"{where}: no column {' or '.join(wanted)}, only {there}. Name one with --column."
    )


def blank(value: Any) -> bool:
    """Nothing, or nothing to be seen: spaces, marks of byte order or of width zero."""
    if isinstance(value, str):
        return all(letter.isspace() or unicodedata.category(letter) == "Cf" for letter in value)
    return value is None or value == []


def _text(value: Any, name: str, where: str) -> str:
    """A cell as text, stripped, the empty one if it is blank."""
    if blank(value):
        return ""
    if not isinstance(value, str):
        raise PromptError(
            f"{where}: {name} is {reprlib.repr(value)}, not a text. Give the prompt as a string."
        )
    return checked(value.strip().strip("\ufeff"), name, where)


def checked(text: str, name: str, where: str) -> str:
    """The text itself, if it can be written to a file and read by a tokenizer.

    Raises:
        PromptError: it holds half a surrogate pair, or NUL.
    """
    wrong = next(
        (letter for letter in text if letter == "\0" or "\ud800" <= letter <= "\udfff"), None
    )
    if wrong is not None:
        what = "a NUL character" if wrong == "\0" else f"half of a surrogate pair ({wrong!r})"
        raise PromptError(f"{where}: {name} holds {what}, which is no text. Mend the file.")
    return text
