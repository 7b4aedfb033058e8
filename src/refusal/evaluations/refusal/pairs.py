"""Which prompts are completed under which conditions."""

from collections.abc import Iterable

from refusal.core.records import Completion, Prompt
from refusal.interventions.conditions import ACTIONS, BASELINE, STOPPING
from refusal.runs.files import read_completions
from refusal.runs.stage import Pools, Run

Pair = tuple[str, str]  # a set and a condition


def actions_on(set_name: str) -> tuple[str, ...]:
    """What is done on a set of prompts: the method's claims on both classes; over-refusal sets are
    to be refused less.
    """
    return ACTIONS[set_name] if set_name in ("harmful", "harmless") else STOPPING  # type: ignore[index]


def plain_pairs(measured: Pools) -> list[Pair]:
    """The pairs of the direction itself, the baseline of each set first."""
    return [(name, condition) for name in measured for condition in (BASELINE, *actions_on(name))]


def control_pairs(measured: Pools, controls: Iterable[str]) -> list[Pair]:
    """The pairs of the control directions of these names."""
    names = list(controls)
    return [
        (set_name, f"{name}-{action}")
        for set_name in measured
        for action in actions_on(set_name)
        for name in names
    ]


def completions_of(run: Run, pairs: Iterable[Pair]) -> dict[Pair, tuple[Completion, ...]]:
    """The completions of a run that are there.

    Raises:
        RunFolderError: a file is missing or damaged.
    """
    return {pair: read_completions(run.folder.completions(*pair)) for pair in pairs}


def first(measured: Pools, n: int) -> list[Prompt]:
    """The first prompts of every set."""
    return [prompt for prompts in measured.values() for prompt in prompts[:n]]
