"""Texts to measure drift on, from the user's files: running text, or pairs of an instruction and
its output.

A ``.txt`` file is running text, cut into passages at line ends. A ``.jsonl`` file holds rows with
``text``, or with ``instruction``, ``output`` and perhaps ``input`` or ``context``.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from refusal.core.data_files import find_data_file
from refusal.core.errors import PromptError
from refusal.core.text_files import is_file, json_lines, read_user_text, user_path
from refusal.evaluations.drift.measure import ForcedText, answers, running_text
from refusal.model.chat_model import ChatModel
from refusal.prompts.columns import checked, read_prompt

PASSAGE = 2000  # characters: several hundred tokens


@dataclass(frozen=True)
class Corpus:
    """A file's texts by id: either running text or pairs."""

    name: str
    running: dict[str, str]
    pairs: tuple[tuple[str, str, str], ...]  # (id, instruction, output)

    def forced(self, model: ChatModel, tokens: int) -> list[ForcedText]:
        """As token ids for this model, ``tokens`` of each text at most."""
        return running_text(model, self.running, tokens) + answers(model, self.pairs, tokens)


def read_corpus(name: str, n: int, seed: int = 0, data_dir: Path | None = None) -> Corpus:
    """``n`` texts of a file, drawn by the seed; all of them if there are fewer.

    Args:
        name: a path, or the name of a file in ``data_dir`` or one folder below it.

    Raises:
        PromptError: missing, of another kind, without texts, or a row that cannot be used.
    """
    path = user_path(name, PromptError)
    if not is_file(path):
        found = find_data_file(data_dir, name) if data_dir is not None else None
        if found is None:
            where = "" if data_dir is None else f", nor in {data_dir}"
            raise PromptError(
                f"There is no text file {name}{where}. Check the path given with --texts."
            )
        path = found
    kind = path.suffix.lower()
    if kind not in (".txt", ".jsonl"):
        raise PromptError(
            f"{path} cannot be read as texts: unknown kind of file {kind!r}. Give a .txt or "
            ".jsonl file."
        )
    content = read_user_text(path, "text file", PromptError)
    try:
        rows = list(_passages(content) if kind == ".txt" else _json_rows(content, path))
    except ValueError as error:
        raise PromptError(f"{path} cannot be read as texts ({error}). Mend the file.") from error
    if not rows:
        raise PromptError(
            f"{path} holds no texts. Give passages of text, or rows with `text` or `instruction`."
        )
    named = [(f"{path.stem}-{i}", row) for i, row in enumerate(rows)]
    drawn = random.Random(seed).sample(named, min(n, len(named)))
    running = {key: row for key, row in drawn if isinstance(row, str)}
    pairs = tuple((key, *row) for key, row in drawn if not isinstance(row, str))
    return Corpus(path.stem, running, pairs)


def _passages(text: str) -> Iterator[str]:
    """Whole lines, joined until they make a passage; a short rest is left out unless it is all
    there is.
    """
    passage, yielded = "", False
    for line in text.split("\n"):
        passage += line + "\n"
        if len(passage) >= PASSAGE:
            yield passage.strip()
            passage, yielded = "", True
    if not yielded and passage.strip():
        yield passage.strip()


def _json_rows(content: str, path: Path) -> Iterator[str | tuple[str, str]]:
    for number, row in json_lines(content):
        where = f"{path}, line {number}"
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is no object")
        row = {key.lower(): value for key, value in row.items()}
        if isinstance(row.get("instruction"), str) and isinstance(row.get("output"), str):
            read = read_prompt(row, "instruction", where)
            if read.before:
                raise PromptError(
                    f"{where} is a conversation, which texts are not read as. Leave such rows out."
                )
            if read.system is not None:
                raise PromptError(
                    f"{where} has a system prompt, which texts are not read with. Leave such rows "
                    "out."
                )
            yield read.text, checked(row["output"], "output", where)
        elif isinstance(row.get("text"), str):
            yield checked(row["text"], "text", where)
        else:
            raise ValueError(f"line {number} has neither `text` nor `instruction` and `output`")
