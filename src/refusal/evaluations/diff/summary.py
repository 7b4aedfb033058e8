"""The numbers that a candidate is read by, from the files of its side and the base's."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from refusal.config.diff import DiffConfig
from refusal.config.run_config import RunConfig
from refusal.core.clusters import rate_change
from refusal.core.lengths import reading_lengths
from refusal.core.records import Completion, Metric
from refusal.core.stats import Estimate
from refusal.evaluations.capability.rates import PREFIX, capability_metrics
from refusal.evaluations.capability.results import TaskRun, file_name, read_task_run
from refusal.evaluations.capability.tasks import Spec
from refusal.evaluations.diff.behaviour import completions_in
from refusal.evaluations.diff.divergence import CANDIDATE, divergence_metrics
from refusal.evaluations.diff.result import StreamDiff
from refusal.evaluations.diff.side import KL, TEXTS
from refusal.evaluations.drift.stage import OWN_ANSWERS
from refusal.evaluations.refusal.curves import curve
from refusal.evaluations.refusal.rates import REFUSED, by_prompt, measure_all, metric
from refusal.interventions.conditions import BASELINE
from refusal.prompts.over_refusal import halves

SETS = ("harmful", "harmless")
# Number: the metric and the set that it is, and what it means.
NUMBERS = {
    "refusal": ("refusal_rate", "harmful", "refusal of harmful prompts"),
    "refusal_change": ("refusal_rate_change", "harmful", "its change from the base, paired"),
    "harmless_refusal": ("refusal_rate", "harmless", "refusal of harmless prompts"),
    "harmless_refusal_change": ("refusal_rate_change", "harmless", "its change"),
    "degenerate": ("degenerate_rate", "harmful", "loops and no language, harmful prompts"),
    "degenerate_change": ("degenerate_rate_change", "harmful", "its change"),
    "kl_first_token": ("kl_first_token", OWN_ANSWERS, "KL of the first token, harmless prompts"),
    "kl_first_token_harmful": ("kl_first_token", "harmful", "KL of the first token, harmful"),
    "kl": ("kl", OWN_ANSWERS, "mean KL along the base's own answers"),
    "kl_median": ("kl_median", OWN_ANSWERS, "median of its tokens"),
    "kl_max": ("kl_max", OWN_ANSWERS, "largest of its tokens"),
    "cross_entropy_change": (
        "cross_entropy_change",
        OWN_ANSWERS,
        "nats a token along the base's own answers",
    ),
    "direction_left": ("direction_left", "stream", "of the base's direction, where it was found"),
    "direction_left_everywhere": ("direction_left_everywhere", "stream", "over all places"),
    "direction_cosine": ("direction_cosine", "stream", "of both models' own directions there"),
}


@dataclass(frozen=True)
class Sizes:
    """What was measured of every side.

    Attributes:
        sets: of completions. most: tokens of one. k: of the base's answers, for KL.
        texts: names of given texts. tasks: benchmarks as they were asked for.
    """

    sets: tuple[str, ...]
    most: int
    k: int
    texts: tuple[str, ...]
    tasks: tuple[str, ...]


def numbers_of(sizes: Sizes) -> tuple[str, ...]:
    """All that ``--fail-on`` may name."""
    further = []
    for name in sizes.sets:
        if name not in SETS:
            further += [f"{name}_refusal", f"{name}_refusal_change"]
    further += [f"{text}_cross_entropy_change" for text in sizes.texts]
    return (*NUMBERS, *further, *(f"{task}_change" for task in sizes.tasks))


def numbers_asked(config: DiffConfig) -> tuple[str, ...]:
    """All that ``--fail-on`` may name, before anything is loaded."""
    sets = (*SETS, *(half for name in config.over_refusal for half in halves(name)))
    return numbers_of(sizes_asked(config, sets))


def sizes_asked(config: RunConfig, sets: tuple[str, ...]) -> Sizes:
    """What is measured of every side, of these sets of completions."""
    tasks = tuple(dict.fromkeys(Spec.parse(text).text for text in config.tasks))
    texts = tuple(Path(file).stem for file in dict.fromkeys(config.texts))
    return Sizes(sets, config.max_new_tokens, config.drift_tokens, texts, tasks)


def base_metrics(base: Path, sizes: Sizes) -> tuple[Metric, ...]:
    """Rates of the base, by length too, and its benchmarks."""
    rows = {(name, BASELINE): completions_in(base, name) for name in sizes.sets}
    found = list(measure_all(rows))
    for (name, _), completions in rows.items():
        found += _curve(completions, name, BASELINE, sizes.most)
    for task in sizes.tasks:
        found += capability_metrics({BASELINE: _task_run(base, task)})
    return tuple(found)


def candidate_metrics(
    base: Path, candidate: Path, sizes: Sizes, missing: Mapping[str, str]
) -> tuple[Metric, ...]:
    """Everything of a candidate but what is in its stream, under the condition ``candidate``.

    Args:
        base, candidate: folders of the sides.
        missing: what could not be compared.

    Raises:
        RunFolderError: a file is missing or damaged.
    """
    found: list[Metric] = []
    for name in sizes.sets:
        before, after = completions_in(base, name), completions_in(candidate, name)
        rates = measure_all({(name, BASELINE): before, (name, CANDIDATE): after})
        found += [m for m in rates if m.condition == CANDIDATE]
        found += _curve(after, name, CANDIDATE, sizes.most)
        found += _changes_by_length(before, after, name, sizes.most)
    k = 0 if KL in missing else sizes.k
    found += divergence_metrics(base, candidate, k, () if TEXTS in missing else sizes.texts)
    for task in sizes.tasks:
        runs = {BASELINE: _task_run(base, task), CANDIDATE: _task_run(candidate, task)}
        found += [m for m in capability_metrics(runs) if m.condition == CANDIDATE]
    return tuple(found)


def _curve(rows: Sequence[Completion], name: str, condition: str, most: int) -> Iterator[Metric]:
    """By length, where the lengths are those of answers: thoughts count beside them."""
    if all((row.tokens or 0) <= most for row in rows):
        yield from curve(rows, name, condition, most)


def _changes_by_length(
    before: Sequence[Completion], after: Sequence[Completion], name: str, most: int
) -> Iterator[Metric]:
    """What refusal changes by after each length, paired by prompt, with McNemar's exact test."""
    if any((row.tokens or 0) > most for row in (*before, *after)):
        return
    for length in reading_lengths(most):
        was, is_now = _refused(before, length), _refused(after, length)
        pairs = [was[prompt] for prompt in is_now], list(is_now.values())
        change = rate_change(*pairs)
        yield metric(
            f"refusal_rate_at_{length}_tokens_change", name, CANDIDATE, change, len(pairs[1])
        )


def _refused(rows: Sequence[Completion], length: int) -> dict[str, list[bool]]:
    """Whether each prompt is refused after so many tokens."""
    return by_prompt(rows, lambda row: row.verdict_after(length) in REFUSED)


def _task_run(folder: Path, task: str) -> TaskRun:
    rows = folder / "capability" / f"{file_name(task)}.{BASELINE}.jsonl"
    return read_task_run(rows, rows.with_suffix(".json"))


def stream_metrics(stream: StreamDiff, shares: Mapping[str, Estimate]) -> Iterator[Metric]:
    """What is left at the place of the base's direction and over all, with the intervals of
    ``shares``; and the cosine of the differences there, which has none (see ``stream.py``).
    """
    left, cosine = stream.at_place
    named = {
        "direction_left": left,
        "direction_left_everywhere": stream.everywhere,
        "direction_cosine": cosine,
    }
    unknown = Estimate(math.nan, -math.inf, math.inf)
    for name, value in named.items():
        if value is not None:
            found = replace(shares.get(name, unknown), value=value)
            yield metric(name, "stream", CANDIDATE, found, stream.prompts)


def summarise(metrics: Sequence[Metric], sizes: Sizes) -> Iterator[Metric]:
    """The numbers by name; those that were not measured are left out."""
    by_key = {(m.name, m.set): m for m in metrics}
    wanted = {name: (of, set_name) for name, (of, set_name, _) in NUMBERS.items()}
    wanted["kl"] = (f"kl_first_{sizes.k}_tokens", OWN_ANSWERS)
    for name in sizes.sets:
        if name not in SETS:
            wanted[f"{name}_refusal"] = ("refusal_rate", name)
            wanted[f"{name}_refusal_change"] = ("refusal_rate_change", name)
    for text in sizes.texts:
        wanted[f"{text}_cross_entropy_change"] = ("cross_entropy_change", text)
    for task in sizes.tasks:
        main = next((m for m in metrics if m.set == task and m.name.startswith(PREFIX)), None)
        if main is not None:
            wanted[f"{task}_change"] = (f"{main.name}_change", task)
    for name, key in wanted.items():
        if (m := by_key.get(key)) is not None:
            yield replace(m, name=name, set="diff")
