"""The user's own files as pools: duplicates dropped, ids made unique, rows without a split dealt
out by the seed.
"""

import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from refusal.core.errors import PromptError
from refusal.core.records import Prompt
from refusal.prompts.files import SPLITS, FileRow, read_file

log = logging.getLogger(__name__)

Pools = dict[str, tuple[Prompt, ...]]  # by split

SHARES = (0.6, 0.2)  # train and val share of the rows that name no split; the rest is test


def own_pools(
    specs: Sequence[str], column: str | None, seed: int, system: str | None = None
) -> dict[str, Pools]:
    """The pools of the files, by class; a class that no file holds is empty.

    ``system`` is the run's system prompt, which rows with one of their own must agree with.

    Raises:
        PromptError: a file cannot be read, or ``builtin`` or ``paper`` is given among the files.
    """
    for name in ("builtin", "paper"):
        if name in specs:
            raise PromptError(
                f"{name} cannot be combined with files ({', '.join(specs)}). Give {name} alone, "
                "or files."
            )
    rows = list(_unique([(spec, read_file(spec, column, system)) for spec in specs]))
    pools: dict[str, Pools] = {}
    for label in ("harmful", "harmless"):
        own = [row for row in rows if row.prompt.label == label]
        free = [row.prompt for row in own if row.split is None]
        random.Random(seed).shuffle(free)
        first = round(SHARES[0] * len(free))
        second = first + round(SHARES[1] * len(free))
        dealt = {"train": free[:first], "val": free[first:second], "test": free[second:]}
        pools[label] = {
            split: (*(r.prompt for r in own if r.split == split), *dealt[split]) for split in SPLITS
        }
    return pools


def refuse_overlap(harmful: Pools, harmless: Pools) -> None:
    """A prompt in both classes would cancel out of the difference in means: refuse it rather than
    guess.

    Case and spacing make no other prompt of it.

    Raises:
        PromptError: with the number of such prompts and the first of them.
    """
    known = {prompt.fingerprint for pool in harmful.values() for prompt in pool}
    found = [prompt for pool in harmless.values() for prompt in pool if prompt.fingerprint in known]
    if found:
        raise PromptError(
            f"{len({p.fingerprint for p in found})} prompt(s) are both harmful and harmless, the "
            f"first is {min(p.text for p in found)!r}. Leave each prompt in one class only."
        )


def _unique(files: Sequence[tuple[str, list[FileRow]]]) -> Iterator[FileRow]:
    """The rows of all files, each prompt once per class and split whatever its case and spacing,
    with unique ids.

    A row without a split gives way to one that names its split. The same prompt under two named
    splits is left to the de-duplication between splits, which counts it.
    """
    everything = [row for _, rows in files for row in rows]
    named = {
        (row.prompt.label, row.prompt.fingerprint) for row in everything if row.split is not None
    }
    seen: set[tuple[str, str, str | None]] = set()
    ids: set[str] = set()
    for spec, rows in files:
        dropped, renamed = 0, 0
        for row in rows:
            key = (row.prompt.label, row.prompt.fingerprint)
            if (*key, row.split) in seen or (row.split is None and key in named):
                dropped += 1
                continue
            seen.add((*key, row.split))
            free = _free_id(row.prompt.id, ids)
            renamed += row.named and free != row.prompt.id
            yield replace(row, prompt=replace(row.prompt, id=free))
        if dropped:
            log.warning("%s: %d duplicate prompt(s) dropped", spec, dropped)
        if renamed:
            log.warning(
                "%s: %d prompt(s) have the id of another, and got a number after it", spec, renamed
            )


def _free_id(wanted: str, taken: set[str]) -> str:
    """``wanted``, numbered where another prompt has it already (two files of one name, say); marked
    as taken.
    """
    found, number = wanted, 1
    while found in taken:
        number += 1
        found = f"{wanted}-{number}"
    taken.add(found)
    return found
