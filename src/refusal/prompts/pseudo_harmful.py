"""Prompts that only look harmful, to find out with what makes a model refuse them.

None of them is measured: what a run measures of over-refusal sets, and what is nearly the same, is
left out.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from refusal.config.run_config import RunConfig
from refusal.core.errors import ConfigError
from refusal.core.records import Prompt
from refusal.prompts.files import read_file
from refusal.prompts.over_refusal import SETS, load_over_refusal
from refusal.prompts.similarity import drop_near_duplicates

Name = tuple[str, int, str | None, str | None, str | None]
Measured = tuple[tuple[str, ...], int]


def pseudo_harmful(config: RunConfig) -> tuple[Prompt, ...]:
    """The pool that a configuration names, in drawing order; the label is that of prompts which are
    to be refused, so that the filter keeps those that are.

    Of a public set the order is the reverse of that in which it is measured.

    Raises:
        PromptError: a file is missing or cannot be used.
        ConfigError: XSTest, which is kept for the report.
    """
    if config.pseudo_harmful == "xstest":
        raise ConfigError(
            "--pseudo-harmful xstest: XSTest is what false refusals are measured on. Use "
            "orbench-hard, or a file of your own."
        )
    about = (config.seed, config.data_dir, config.column, config.system)
    measured = (tuple(dict.fromkeys(config.over_refusal)), config.n_over_refusal)
    return _pool((config.pseudo_harmful, *about), measured)


@lru_cache(maxsize=4)
def _pool(name: Name, measured: Measured) -> tuple[Prompt, ...]:
    source, seed, data_dir, column, system = name
    folder = Path(data_dir).expanduser() if data_dir is not None else None
    order: list[Prompt]
    if source in SETS:
        halves = load_over_refusal(source, seed=seed, data_dir=folder)
        order = [p for half in halves.values() for p in half if p.label == "harmless"][::-1]
    else:
        order = [row.prompt for row in read_file(f"harmless={source}", column, system)]
        random.Random(seed).shuffle(order)
    sets, n = measured
    tested: list[Prompt] = []
    for each in sets:
        for some in load_over_refusal(each, n=n, seed=seed, data_dir=folder).values():
            tested += some
    kept: Sequence[Prompt] = drop_near_duplicates(order, tested)[0] if tested else order
    return tuple(replace(prompt, label="harmful") for prompt in kept)
