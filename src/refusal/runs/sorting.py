"""The filter by completions, as a stage of a run: which prompts the direction is found with.

Where the refusal metric decides, extraction and selection look at it themselves, and there is
nothing to do here.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from refusal.core.errors import TooFewPromptsError
from refusal.core.filters import (
    Calibration,
    FilterChoice,
    Judged,
    Passing,
    calibrate,
    fit_metric,
    passes_judged,
)
from refusal.core.progress import NOTE
from refusal.core.records import Label, Metric, Prompt, PromptPair, PromptSplits, finite, to_json
from refusal.core.storage import file_sha256, write_json, write_jsonl
from refusal.core.work import Work, Write
from refusal.directions.filter_choice import expected
from refusal.directions.judged_pool import Reading, draw_judged
from refusal.directions.method import DRAWN
from refusal.directions.pool_checks import MIN_PROMPTS, first_tokens
from refusal.directions.refusal_tokens import sampled
from refusal.model.chat_model import ChatModel
from refusal.runs.filtered import (
    SPLITS,
    UNFITTED,
    applied,
    calibration_file,
    judged_file,
    read_calibration,
    read_judged,
)
from refusal.runs.folder import prompts_hash
from refusal.runs.inputs import check_prompts
from refusal.runs.projections import LABELS
from refusal.runs.stage import Finding, Plan, Run, Stage

log = logging.getLogger(__name__)


class Sorting(Stage):
    """Completions of the training and validation prompts, and which of them pass."""

    name = "filter"

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """Completions where they were asked for; whether ``auto`` will want them is not known."""
        config, lengths = plan.config, plan.lengths
        if config.filter != "completions":
            return ()
        train, val = 2 * DRAWN * config.n_train, 2 * DRAWN * config.n_val
        new = config.judged_tokens
        return Write(train, new, lengths.train), Write(val, new, lengths.val)

    def check(self, model: ChatModel) -> None:
        """Where they are asked for, all completions must fit into the context."""
        config = self.asked.config
        if config.filter == "completions":
            for pair in (self.asked.prompts.train, self.asked.prompts.val):
                check_prompts(model, [*pair.harmful, *pair.harmless], config.judged_tokens)

    def work(self, run: Run) -> Iterable[Metric]:
        """Leave in ``run`` what the direction is found with."""
        prompts, choice = self.asked.prompts, run.filter
        assert choice is not None
        calibration = UNFITTED
        if choice.kind == "completions":
            for split in SPLITS:
                for label in LABELS:
                    self._judge(run, choice, split, label)
            calibration = self._calibrate(run, choice)
            log.log(NOTE, "%s", calibration.why)
        _to_manifest(run, choice, calibration)
        run.found_with = found_with(run, prompts, choice, calibration)
        return ()

    def _judge(self, run: Run, choice: FilterChoice, split: str, label: Label) -> None:
        config, folder, name = run.config, run.folder.path, f"{split}.{label}"
        path, pool = judged_file(folder, name), _pool(self.asked.prompts, split, label)
        n = config.n_train if split == "train" else config.n_val
        inputs = {
            "pool": prompts_hash(pool),
            "n": n,
            "tokens": run.token_ids,
            "new": config.judged_tokens,
        }
        cost = Write(DRAWN * n, config.judged_tokens, run.plan.lengths.train)

        def work() -> None:
            sample = judged_file(folder, "sample")
            known = read_judged(sample) if sample.is_file() else ()
            how = reading(run, choice, label, known)
            write_jsonl(path, to_json(draw_judged(run.model, pool, label, n, how)))

        self.do(run, name, inputs, [path], work, [cost])
        check_passed(run.model, pool, read_judged(path), label, n)

    def _calibrate(self, run: Run, choice: FilterChoice) -> Calibration:
        folder = run.folder.path
        path, files = calibration_file(folder), list(_files(folder).values())
        chosen_with = {prompt.id for prompt in sampled(self.asked.prompts.train)}

        def work() -> None:
            rows = [row for file in files for row in read_judged(file)]
            fresh = [row for row in rows if row.prompt_id not in chosen_with]
            some = rows if fit_metric(fresh) is None else fresh
            write_json(path, finite(to_json(calibrate(some))))

        self.do(run, "calibration", {"rows": [file_sha256(f) for f in files]}, [path], work)
        return read_calibration(folder, choice)


def reading(run: Run, choice: FilterChoice, label: Label, known: Iterable[Judged] = ()) -> Reading:
    """How a run completes prompts for its filter."""
    some: Passing | None = getattr(choice, label)
    share = some.passed / some.tried if some is not None and some.tried else 1.0
    rows = {row.prompt_id: row for row in known}
    return Reading(run.tokens, run.config.judged_tokens, rows, share)


def found_with(
    run: Run, prompts: PromptSplits, choice: FilterChoice, calibration: Calibration
) -> Finding:
    """The pools as they are, or, where completions decide, what has passed of them."""
    config = applied(run.config, choice, calibration)
    if choice.kind != "completions":
        return Finding(config, prompts.train, prompts.val)
    rows = {name: read_judged(file) for name, file in _files(run.folder.path).items()}
    return sorted_out(Finding(config, prompts.train, prompts.val, calibration.rule), rows)


def dealt_anew(run: Run, prompts: PromptSplits) -> Finding:
    """What a direction is found with where prompts were dealt out anew: completions that are there
    already are not written again.
    """
    old, choice, config = run.finding, run.filter, run.config
    found = replace(old, train=prompts.train, val=prompts.val, drawn={}, seen=frozenset())
    if choice is None or choice.kind != "completions":
        return found
    known = [row for file in _files(run.folder.path).values() for row in read_judged(file)]
    rows = {}
    for split in SPLITS:
        n = config.n_train if split == "train" else config.n_val
        for label in LABELS:
            pool, how = _pool(prompts, split, label), reading(run, choice, label, known)
            rows[f"{split}.{label}"] = draw_judged(run.model, pool, label, n, how)
            check_passed(run.model, pool, rows[f"{split}.{label}"], label, n)
    return sorted_out(found, rows)


def sorted_out(found: Finding, rows: Mapping[str, Sequence[Judged]]) -> Finding:
    """The pools of which completions are there, with those prompts that pass."""
    pairs: dict[str, PromptPair] = {}
    seen: set[str] = set()
    for split in SPLITS:
        passed: dict[str, tuple[Prompt, ...]] = {}
        for label in LABELS:
            by_id = {row.prompt_id: row for row in rows[f"{split}.{label}"]}
            drawn = [p for p in getattr(getattr(found, split), label) if p.id in by_id]
            seen |= {prompt.fingerprint for prompt in drawn}
            passed[label] = tuple(p for p in drawn if passes_judged(label, by_id[p.id]))
        pairs[split] = PromptPair(passed["harmful"], passed["harmless"])
    drawn_of = {name: len(some) for name, some in rows.items()}
    return replace(
        found, train=pairs["train"], val=pairs["val"], drawn=drawn_of, seen=frozenset(seen)
    )


def check_passed(
    model: ChatModel, pool: Sequence[Prompt], rows: Sequence[Judged], label: Label, n: int
) -> None:
    """Raise TooFewPromptsError unless as many pass as a direction takes."""
    passed, least = sum(passes_judged(label, row) for row in rows), min(MIN_PROMPTS, n)
    if passed >= least:
        return
    what = "refused" if label == "harmful" else "answered"
    raise TooFewPromptsError(
        f"Only {passed} of {len(rows)} {label} prompts are {what}, at least {least} are needed. "
        f"{_first(model, pool)} Use prompts that it does so with, read more of its answers "
        "(--filter-tokens), or switch the filter off with --no-filter."
    )


def check_expected(run: Run, choice: FilterChoice) -> None:
    """Before anything long: will enough prompts pass?

    What passed of the sample, with its 95 % interval, against the pools' sizes and what is wanted.

    Raises:
        TooFewPromptsError: not even the fewest that a direction takes will, at the upper limit.
    """
    config, prompts = run.config, run.asked.prompts
    few: list[str] = []
    for label in LABELS:
        some: Passing | None = getattr(choice, label)
        if some is None:
            continue
        for split, n in (("train", config.n_train), ("val", config.n_val)):
            pool = _pool(prompts, split, label)
            mean, low, high = expected(some, len(pool))
            kind = "training" if split == "train" else "validation"
            text = f"{mean:.0f} ({low:.0f} to {high:.0f}) of the {len(pool)} {label} {kind} prompts"
            least = min(MIN_PROMPTS, n)
            if high < least:
                raise TooFewPromptsError(
                    f"Only {some.passed} of {some.tried} {label} prompts pass the refusal filter, "
                    f"so that {text} should, and at least {least} are needed. "
                    f"{_first(run.model, pool)} {_advice(choice)}"
                )
            if high < min(n, len(pool)) or low < least:
                few.append(f"{text}, where {n} are wanted and {least} needed")
    if few:
        log.warning(
            "Fewer prompts than wanted may pass the filter: %s. %s",
            "; ".join(few),
            _advice(choice),
        )


def _advice(choice: FilterChoice) -> str:
    if choice.kind == "completions":
        return (
            "Give more prompts that the model refuses and answers, smaller --n-train and --n-val, "
            "or switch the filter off with --no-filter."
        )
    return (
        "Give matching --refusal-tokens, filter by judged completions (--filter completions), give "
        "more prompts or smaller --n-train and --n-val, or switch the filter off with --no-filter."
    )


def _first(model: ChatModel, pool: Sequence[Prompt]) -> str:
    return f"The model's most likely first tokens there: {first_tokens(model, pool[:16])}."


def _files(folder: Path) -> dict[str, Path]:
    """The completions of every pool, by its name."""
    names = [f"{split}.{label}" for split in SPLITS for label in LABELS]
    return {name: judged_file(folder, name) for name in names}


def _pool(prompts: PromptSplits, split: str, label: str) -> tuple[Prompt, ...]:
    found: tuple[Prompt, ...] = getattr(getattr(prompts, split), label)
    return found


def _to_manifest(run: Run, choice: FilterChoice, calibration: Calibration) -> None:
    """What was decided, in ``manifest.json``."""
    said: dict[str, Any] = {
        "kind": choice.kind,
        "automatic": choice.automatic,
        "why": " ".join(filter(None, (choice.why, calibration.why))),
        "rule": calibration.rule,
        "threshold": calibration.threshold,
    }
    if run.folder.manifest.get("filter") != said:
        run.folder.manifest["filter"] = said
        run.folder.save()
