"""Harmful prompts in other languages, from files that the user has: PolyRefuse's and MultiJail's.

``harmful_<split>_<language>.json`` (a list of objects with ``instruction``) holds translations of
the paper's prompts; where ``harmless_<split>_<language>.json`` lies beside it a direction can be
found in that language. ``MultiJail.csv`` has a column a language, and is only tested on.
"""

import csv
import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from refusal.core.data_files import find_data_file
from refusal.core.errors import PromptError
from refusal.core.records import Label, Prompt, PromptPair
from refusal.core.text_files import read_user_text
from refusal.prompts.similarity import drop_near_duplicates

MULTIJAIL = "MultiJail.csv"


@dataclass(frozen=True)
class LanguagePrompts:
    """Prompts in a language.

    Attributes:
        train, val: both classes; empty where there are no harmless prompts to compare with.
        test: harmful ones, in drawing order, that no direction was found with. source: their file.
    """

    train: PromptPair
    val: PromptPair
    test: tuple[Prompt, ...]
    source: str

    @property
    def findable(self) -> bool:
        """Whether there are prompts to find a direction with."""
        return bool(self.train.harmless and self.train.harmful and self.val.harmless)


def load_language(
    language: str,
    folder: Path | None,
    *,
    seed: int = 42,
    apart_from: Sequence[Prompt] = (),
    published: bool = False,
) -> LanguagePrompts:
    """Prompts in a language.

    The test prompts are MultiJail's where it has the language; else all harmful ones of the other
    files, unless a direction is to be found with them.

    Args:
        apart_from: prompts that directions are found with.
        published: those are the paper's own, of which the files hold translations: then only
            MultiJail is untouched.

    Raises:
        PromptError: no folder was given, it holds nothing in that language, or a file is damaged.
    """
    if folder is None:
        raise PromptError(
            f"Prompts in {language!r} are read from files. Give their folder with --data-dir."
        )

    def read(label: Label, split: str) -> tuple[Prompt, ...]:
        path = find_data_file(folder, f"{label}_{split}_{language}.json")
        return () if path is None else _instructions(path, label)

    train = PromptPair(read("harmful", "train"), read("harmless", "train"))
    val = PromptPair(read("harmful", "val"), read("harmless", "val"))
    found = LanguagePrompts(train, val, (), "")
    used = (*train.harmful, *val.harmful) if found.findable else ()
    if not found.findable:
        train = val = PromptPair((), ())
    test, source = _multijail(folder, language), MULTIJAIL
    if not test and not used and not published:
        test = (*read("harmful", "val"), *read("harmful", "train"))
        source = f"harmful_val_{language}.json, harmful_train_{language}.json"
    test, _ = drop_near_duplicates(test, [*apart_from, *used])
    if not test:
        why = (
            "those in harmful_*.json are translations of the prompts that directions are found with"
            if published or used
            else f"neither {MULTIJAIL} nor harmful_val_{language}.json has some"
        )
        raise PromptError(
            f"{folder} has no harmful prompts in {language!r} to test on: {why}. Leave that "
            "language out, or give another --data-dir."
        )
    order = list(test)
    random.Random(seed).shuffle(order)
    return LanguagePrompts(train, val, tuple(order), source)


def _instructions(path: Path, label: Label) -> tuple[Prompt, ...]:
    text = read_user_text(path, "prompt file", PromptError, "Check the path.")
    try:
        rows = json.loads(text)
        texts = [str(row["instruction"]).strip() for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise PromptError(
            f"{path} is no list of objects with an instruction ({error}). Mend the file."
        ) from error
    return tuple(Prompt(f"{path.stem}-{i}", t, label) for i, t in enumerate(texts) if t)


def _multijail(folder: Path, language: str) -> tuple[Prompt, ...]:
    path = find_data_file(folder, MULTIJAIL)
    if path is None:
        return ()
    text = read_user_text(path, "prompt file", PromptError, "Check the path.").lstrip("\ufeff")
    found = []
    for row in csv.DictReader(io.StringIO(text)):
        said = (row.get(language) or "").strip()
        if said and language not in ("id", "source", "tags"):
            found.append(Prompt(f"multijail-{row.get('id')}-{language}", said, "harmful"))
    return tuple(found)
