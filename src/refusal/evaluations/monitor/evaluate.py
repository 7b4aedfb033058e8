"""A monitor on prompts that it was not made with."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from refusal.core.errors import PromptError
from refusal.core.monitor import Monitor
from refusal.core.records import Label, Prompt
from refusal.core.stats import rate
from refusal.directions.monitor.fit import check_unseen
from refusal.directions.monitor.reading import places_of, read_at, scored
from refusal.evaluations.monitor.measure import contrast, reliability
from refusal.evaluations.monitor.records import Contrast, Evaluated, Kind, SetResult
from refusal.evaluations.monitor.sources import Source, leave_one_out
from refusal.model.chat_model import ChatModel
from refusal.model.fingerprint import check_monitor

Scores = Float[np.ndarray, "_"]
TEST: Kind = "test"
ALL = "all of them"
COARSE = 100  # harmless prompts below which 1 % of them is none


@dataclass(frozen=True)
class PromptSet:
    """Prompts of one class under a name."""

    name: str
    kind: Kind
    label: Label
    prompts: tuple[Prompt, ...]


def evaluate_monitor(
    model: ChatModel, monitor: Monitor, sets: Sequence[PromptSet], notes: Sequence[str] = ()
) -> Evaluated:
    """Score every set, and tell harmful from harmless ones.

    Raises:
        MonitorError: the monitor is of another model or template.
        LeakageError: it was made with one of the prompts.
        PromptError: no test set of a class, or two sets of one name.
    """
    check_monitor(monitor, model)
    _check(monitor, sets)
    places = places_of(monitor, model)
    logits: dict[str, Scores] = {}
    sources: list[Source] = []
    for one in sets:
        questions = [prompt.question for prompt in one.prompts]
        streams = read_at(model, questions, places, one.name)
        logits[one.name] = scored(monitor, streams).logits.double().numpy()
        if one.kind == TEST:
            sources.append(Source(one.name, one.label, one.prompts, streams))
    positive = _pooled(sources, logits, "harmful")
    negative = _pooled(sources, logits, "harmless")
    truth = np.arange(len(positive) + len(negative)) < len(positive)
    said = list(notes)
    if len(negative) < COARSE:
        said.append(
            f"Of {len(negative)} harmless test prompts none may fire at 1 %: what is found there "
            "is coarse."
        )
    left_out = tuple(leave_one_out(monitor, sources, said))
    return Evaluated(
        model=monitor.model,
        refusal=(monitor.refusal.layer, monitor.refusal.position),
        harmfulness=(monitor.harmfulness.layer, monitor.harmfulness.position),
        threshold=monitor.threshold,
        eps=monitor.eps,
        n_calibration=len(monitor.calibration),
        sets=tuple(_result(monitor, one, logits[one.name]) for one in sets),
        contrasts=tuple(_contrasts(sets, logits, positive, negative)),
        reliability=reliability(np.concatenate([positive, negative]), truth),
        left_out=left_out,
        notes=tuple(said),
    )


def _pooled(sources: Sequence[Source], logits: dict[str, Scores], label: Label) -> Scores:
    return np.concatenate([logits[one.name] for one in sources if one.label == label])


def _check(monitor: Monitor, sets: Sequence[PromptSet]) -> None:
    for label in ("harmful", "harmless"):
        if not any(one.prompts for one in sets if one.kind == TEST and one.label == label):
            raise PromptError(f"There are no {label} test prompts to evaluate on. Give some.")
    names = [one.name for one in sets]
    if twice := [name for name in names if names.count(name) > 1]:
        raise PromptError(f"Two sets are called {twice[0]!r}. Rename one of the files.")
    if empty := [one.name for one in sets if not one.prompts]:
        raise PromptError(f"The set {empty[0]!r} has no prompts. Leave it out.")
    for one in sets:
        check_unseen(monitor.seen, one.prompts, f"of {one.name}")


def _result(monitor: Monitor, one: PromptSet, logits: Scores) -> SetResult:
    fired = rate(monitor.fires(logits).tolist())
    spread = float(logits.std(ddof=1)) if len(logits) > 1 else None
    about = (one.name, one.kind, one.label)
    return SetResult(*about, fired, float(logits.mean()), spread, len(logits))


def _contrasts(
    sets: Sequence[PromptSet], logits: dict[str, Scores], positive: Scores, negative: Scores
) -> Iterable[Contrast]:
    """Every harmful test set against every harmless one, and the halves of further sets; all test
    sets together where there are several.
    """
    pairs = [(bad.name, good.name) for bad in sets for good in sets if _comparable(bad, good)]
    tests = [one for one in sets if one.kind == TEST]
    if len(tests) > 2:
        yield contrast((ALL, positive), (ALL, negative))
    for bad, good in pairs:
        yield contrast((bad, logits[bad]), (good, logits[good]))


def _comparable(bad: PromptSet, good: PromptSet) -> bool:
    if (bad.label, good.label) != ("harmful", "harmless"):
        return False
    family = bad.name.rpartition("-")[0]
    halves = bad.kind == "over-refusal" and family == good.name.rpartition("-")[0]
    return halves or (bad.kind == TEST and good.kind == TEST)
