"""The user's own files as pools: duplicates dropped, ids made unique, rows without a split dealt out by the seed."""

import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from refusal.errors import PromptError
from refusal.prompts.files import SPLITS, FileRow, read_file
from refusal.records import Prompt

log = logging.getLogger(__name__)

Pools = dict[str, tuple[Prompt, ...]]  # by split

SHARES = (0.6, 0.2)  # train and val share of the rows that name no split; the rest is test


def own_pools(specs: Sequence[str], column: str | None, seed: int) -> dict[str, Pools]:
    """The pools of the files, by class; a class that no file holds is empty.

    Raises:
        PromptError: a file cannot be read, or ``builtin`` or ``paper`` is given among the files.
    """
    for name in ("builtin", "paper"):
        if name in specs:
            raise PromptError(
                f"{name} cannot be combined with files ({', '.join(specs)}). Give {name} alone, or files."
            )
    rows = list(_unique([(spec, read_file(spec, column)) for spec in specs]))
    pools: dict[str, Pools] = {}
    for label in ("harmful", "harmless"):
        own = [row for row in rows if row.prompt.label == label]
        free = [row.prompt for row in own if row.split is None]
        random.Random(seed).shuffle(free)
        first = round(SHARES[0] * len(free))
        second = first + round(SHARES[1] * len(free))
        dealt = {"train": free[:first], "val": free[first:second], "test": free[second:]}
        pools[label] = {split: (*(r.prompt for r in own if r.split == split), *dealt[split]) for split in SPLITS}
    return pools


def refuse_overlap(harmful: Pools, harmless: Pools) -> None:
    """A text in both classes would cancel out of the difference in means: refuse it rather than guess.

    Raises:
        PromptError: with the number of such texts and the first of them.
    """
    texts = {prompt.text for pool in harmful.values() for prompt in pool}
    both = sorted({prompt.text for pool in harmless.values() for prompt in pool} & texts)
    if both:
        raise PromptError(
            f"{len(both)} prompt(s) are both harmful and harmless, the first is {both[0]!r}. "
            "Leave each prompt in one class only."
        )


def _unique(files: Sequence[tuple[str, list[FileRow]]]) -> Iterator[FileRow]:
    """The rows of all files, each text once per class and split, with unique ids.

    A row without a split gives way to one that names its split. The same text under two named splits is left to the
    de-duplication between splits, which counts it.
    """
    named = {(row.prompt.label, row.prompt.text) for _, rows in files for row in rows if row.split is not None}
    seen: set[tuple[str, str, str | None]] = set()
    ids: set[str] = set()
    for spec, rows in files:
        dropped = 0
        for row in rows:
            label, text = row.prompt.label, row.prompt.text
            if (label, text, row.split) in seen or (row.split is None and (label, text) in named):
                dropped += 1
                continue
            seen.add((label, text, row.split))
            yield replace(row, prompt=replace(row.prompt, id=_free_id(row.prompt.id, ids)))
        if dropped:
            log.warning("%s: %d duplicate prompt(s) dropped", spec, dropped)


def _free_id(wanted: str, taken: set[str]) -> str:
    """``wanted``, numbered where another prompt has it already (two files of one name, say); marked as taken."""
    found, number = wanted, 1
    while found in taken:
        number += 1
        found = f"{wanted}-{number}"
    taken.add(found)
    return found
