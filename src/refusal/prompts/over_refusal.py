"""Prompts that only look harmful, for measuring over-refusal, and truly unsafe ones where a set has
them too.
"""

import logging
import random
from collections.abc import Sequence
from pathlib import Path

from refusal.core.errors import ConfigError
from refusal.core.records import Prompt
from refusal.prompts.similarity import drop_near_duplicates
from refusal.prompts.sources import SOURCES, read_source

log = logging.getLogger(__name__)

# By name of the set: its halves, each with its source.
SETS: dict[str, dict[str, str]] = {
    "xstest": {
        "xstest-safe": "xstest_safe",
        "xstest-unsafe": "xstest_unsafe",
    },
    "orbench-hard": {"orbench-hard": "orbench_hard"},
}


def halves(name: str) -> tuple[str, ...]:
    """What the halves of a set are called.

    Raises:
        ConfigError: unknown set.
    """
    if name not in SETS:
        raise ConfigError(f"Unknown over-refusal set {name!r}. Use {' or '.join(SETS)}.")
    return tuple(SETS[name])


def load_over_refusal(
    name: str,
    *,
    n: int | None = None,
    seed: int = 42,
    data_dir: Path | None = None,
    apart_from: Sequence[Prompt] = (),
) -> dict[str, tuple[Prompt, ...]]:
    """The halves of a set by name (``xstest-safe``, ``xstest-unsafe``; ``orbench-hard``), ``n``
    prompts each.

    Args:
        apart_from: training and validation prompts; near-duplicates of them are left out.

    Raises:
        ConfigError: unknown set.
        PromptError: its file is missing, cannot be downloaded, or is not the pinned one.
    """
    found = {}
    for half in halves(name):
        source = SETS[name][half]
        label, rows = SOURCES[source].label, read_source(source, data_dir)
        prompts = [
            Prompt(f"{half}-{i}", text, label, category) for i, (text, category) in enumerate(rows)
        ]
        kept, dropped = drop_near_duplicates(prompts, apart_from)
        if dropped:
            log.info(
                "%s: %d prompts are near-duplicates of training or validation prompts, left out",
                half,
                dropped,
            )
        order = list(kept)
        random.Random(seed).shuffle(order)
        found[half] = tuple(order[:n])
    return found
