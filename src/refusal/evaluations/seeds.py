"""Repeat a run's split, extraction and selection with other seeds: does the same direction come
out?

Training and validation prompts are dealt out anew; the test prompts stay, so that the rates can be
compared. Each seed leaves ``seeds/<seed>.json`` (the choice),
``seeds/<seed>.direction.safetensors`` and its completions.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from refusal.core.direction import Direction
from refusal.core.errors import NoCandidateError
from refusal.core.records import CandidateScore, Metric, PromptSplits, finite, to_json
from refusal.core.storage import write_json, write_jsonl
from refusal.core.strict_files import Saved, damaged, read_one
from refusal.core.work import Work, Write
from refusal.evaluations.refusal.completions import Wanted, complete
from refusal.evaluations.refusal.generate import refresh_verdicts
from refusal.evaluations.refusal.rates import measure
from refusal.prompts.load import redealt
from refusal.runs.files import SavedScore, read_completions
from refusal.runs.finding import Extract, Select, chooser_of, method_of, named
from refusal.runs.folder import prompts_hash
from refusal.runs.sorting import Sorting, dealt_anew
from refusal.runs.stage import Plan, Run, Stage

log = logging.getLogger(__name__)


class _Choice(Saved):
    seed: int
    score: SavedScore | None
    qualified: bool


class Seeds(Stage):
    """The choice with other seeds: its scores, its cosine with the run's direction, and refusal
    under its ablation.
    """

    name = "seed"

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """Extraction, selection and one condition's completions, for each further seed."""
        return [*cls._one(plan)] * (plan.config.seeds - 1)

    @staticmethod
    def _one(plan: Plan) -> Sequence[Work]:
        samples = plan.config.samples
        rows = plan.config.n_test * samples
        write = Write(rows, plan.config.new_tokens, plan.lengths.test, samples=samples)
        return (*Sorting.costs(plan), *Extract.costs(plan), *Select.costs(plan), write)

    def work(self, run: Run) -> Iterable[Metric]:
        """One seed after the other; the run's own comes first."""
        config = run.config
        if config.seeds == 1:
            return
        for name, value in _values(run.chosen.score).items():
            yield _exact(name, f"seed-{config.seed}", value)
        for seed in range(config.seed + 1, config.seed + config.seeds):
            yield from self._seed(run, redealt(self.asked.prompts, seed), seed)

    def _seed(self, run: Run, prompts: PromptSplits, seed: int) -> list[Metric]:
        base, config, model = run.folder.path / "seeds", run.config, run.model
        ends = (".json", ".direction.safetensors", ".ablation.jsonl")
        summary, file, written = (base / f"{seed}{end}" for end in ends)
        test = prompts.test.harmful[: config.n_test]
        how = run.finding
        method, chooser = method_of(config), chooser_of(how)
        thresholds = asdict(how.config.rule)
        filtered, step = method.filters(how.config), config.layer_step
        rule = [config.n_train, config.n_val, filtered, thresholds, step]
        if config.selection_risk:
            rule.append(config.selection_risk)
        if how.config.filter == "completions":
            rule += [how.rule, config.judged_tokens]
        pairs = (prompts.train, prompts.val)
        inputs: dict[str, Any] = {
            "main": run.direction_hash,
            "tokens": run.token_ids,
            "options": rule,
            "prompts": prompts_hash([p for pair in pairs for p in (*pair.harmful, *pair.harmless)]),
            "test": prompts_hash(test),
            "max_new_tokens": config.max_new_tokens,
            **config.sampling.inputs,
            **named(config),
        }
        if config.thinking == "on":
            inputs["thinking_tokens"] = config.thinking_tokens

        def work() -> None:
            options = {"seed": seed, "resamples": 0, "full_map": False, "strict": False}
            once = how.config.model_copy(update=options)
            there = dealt_anew(run, prompts)
            candidates = method.extract(model, there.train, run.tokens, once)
            candidates = replace(candidates, seen=candidates.seen | there.seen)
            try:
                chosen = chooser.select(model, candidates, there.val, once)
                pairs = (there.train, there.val)
                chosen = method.refine(model, candidates, chosen, pairs, once)
            except NoCandidateError as error:
                log.warning("Seed %d: %s", seed, error)
                write_json(summary, {"seed": seed, "score": None, "qualified": False})
                write_jsonl(written, [])
                return
            score = finite(to_json(chosen.score))
            write_json(summary, {"seed": seed, "score": score, "qualified": chosen.qualified})
            chosen.direction.save(file)
            new, about = config.max_new_tokens, f"seed {seed}"
            own = (chosen.direction, tuple(test), config.sampling)
            done = complete(model, Wanted(about, "ablation", *own), new)
            write_jsonl(written, to_json(done))

        self.do(run, str(seed), inputs, [summary, written], work, self._one(run.plan))
        refresh_verdicts(run.folder, f"seed {seed}", [written])
        score: CandidateScore | None = read_one(summary, _Choice).score
        if score is None:
            return []
        condition = f"seed-{seed}"
        found = [_exact(name, condition, value) for name, value in _values(score).items()]
        other, main = Direction.load(file).vector, run.direction.vector
        if other.shape != main.shape:
            raise damaged(
                file,
                f"direction: {len(other)} numbers, where the run's direction has {len(main)}",
            )
        found.append(_exact("cosine", condition, float(main @ other)))
        return [*found, *measure(read_completions(written), "harmful", f"{condition}-ablation")]


def _values(score: CandidateScore) -> dict[str, float]:
    """A candidate's place and its scores, as far as they are known."""
    values = {"position": score.position, "layer": score.layer, **score.by_name}
    return {name: float(value) for name, value in values.items() if value is not None}


def _exact(name: str, condition: str, value: float) -> Metric:
    """A number that is not estimated from a sample."""
    return Metric(name, "direction", condition, value, value, value, 1)
