"""Which prompts are completed under which conditions."""

from collections.abc import Iterable

from refusal.core.records import Completion, Prompt
from refusal.interventions.conditions import BASELINE, Condition, actions, stopping
from refusal.runs.files import read_completions
from refusal.runs.stage import Pools, Run

Pair = tuple[str, str]  # a set and a condition


def actions_on(set_name: str, further: Iterable[str]) -> tuple[str, ...]:
    """What is done on a set of prompts: the method's claims on both classes, and ``further``
    interventions; over-refusal sets are to be refused less.

    Raises:
        ConfigError: there is no such intervention.
    """
    by_label = {str(label): names for label, names in actions(further).items()}
    return by_label.get(set_name, stopping(further))


def plain_pairs(measured: Pools, further: Iterable[str] = ()) -> list[Pair]:
    """The pairs of the direction itself, the baseline of each set first.

    Raises:
        ConfigError: there is no such intervention.
    """
    found = []
    for name in measured:
        found += [(name, condition) for condition in (BASELINE, *actions_on(name, further))]
    return found


def control_pairs(
    measured: Pools, controls: Iterable[str], further: Iterable[str] = ()
) -> list[Pair]:
    """The pairs of the control directions of these names."""
    names, found = list(controls), []
    for set_name in measured:
        for action in actions_on(set_name, further):
            found += [(set_name, Condition(action, name).name) for name in names]
    return found


def completions_of(run: Run, pairs: Iterable[Pair]) -> dict[Pair, tuple[Completion, ...]]:
    """The completions of a run that are there.

    Raises:
        RunFolderError: a file is missing or damaged.
    """
    return {pair: read_completions(run.folder.completions(*pair)) for pair in pairs}


def first(measured: Pools, n: int) -> list[Prompt]:
    """The first prompts of every set."""
    return [prompt for prompts in measured.values() for prompt in prompts[:n]]
