"""What the model writes under every condition of the direction itself.

completions/<set>.<condition>.jsonl   each completion with its verdict
"""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from refusal.config.engines import EngineOptions
from refusal.config.run_config import RunConfig
from refusal.core import parallel
from refusal.core.records import Completion, Metric, Prompt, PromptSplits, to_json
from refusal.core.storage import file_sha256, write_jsonl
from refusal.core.thinking import split
from refusal.core.work import Ask, Work, Write
from refusal.engines import ENGINES
from refusal.engines.protocol import Engine
from refusal.evaluations.refusal.completions import generate_under, judged_again
from refusal.evaluations.refusal.matching import check_completions
from refusal.evaluations.refusal.pairs import actions_on, plain_pairs
from refusal.interventions.conditions import BASELINE, ORDER, conditions
from refusal.model.chat_model import ChatModel
from refusal.prompts.over_refusal import halves
from refusal.runs.files import read_completions
from refusal.runs.folder import RunFolder, prompts_hash
from refusal.runs.identity import program
from refusal.runs.inputs import check_prompts
from refusal.runs.stage import Asked, Plan, Run, Stage

log = logging.getLogger(__name__)


class Generate(Stage):
    """Completions of every set under the baseline and each action of the direction."""

    name = "generate"

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked)
        options = {name: getattr(asked.config, name) for name in EngineOptions.model_fields}
        kind = ENGINES[asked.config.engine]
        self.engine: Engine = kind(EngineOptions(**options), asked.folder)
        self.pairs = plain_pairs(asked.measured, asked.config.interventions)

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """Every completion; what a server writes takes its time, not this machine's."""
        sizes = sizes_of(plan)
        found = [
            _one(plan, condition, n)
            for name, n in sizes.items()
            for condition in (BASELINE, *actions_on(name, plan.config.interventions))
        ]
        return found

    def check(self, model: ChatModel) -> None:
        """Every prompt with its completion must fit into the model's context."""
        for pool in self.asked.measured.values():
            check_prompts(model, pool, self.asked.config.max_new_tokens)

    def work(self, run: Run) -> Iterable[Metric]:
        """One condition after the other: an engine may have to start anew for each."""
        try:
            for name, condition in sorted(self.pairs, key=lambda pair: ORDER.index(pair[1])):
                self._generate(run, name, condition)
        finally:
            self.engine.close()
        for name in self.asked.measured:
            warn_of_no_answers(read_completions(run.folder.completions(name, BASELINE)), name)
        return ()

    def _generate(self, run: Run, set_name: str, condition: str) -> None:
        path, prompts = run.folder.completions(set_name, condition), self.asked.measured[set_name]
        given = run.config
        inputs: dict[str, Any] = {
            "prompts": prompts_hash(prompts),
            "max_new_tokens": given.max_new_tokens,
            "direction": None if condition == BASELINE else run.direction_hash,
        }
        served = given.engine != "own" and self.engine.serves(condition)
        if served:
            options = (given.engine_model, given.engine_ablated, given.engine_arguments)
            inputs["engine"] = [given.engine, *options]

        def write() -> None:
            done = generate_under(
                run.model,
                run.direction,
                prompts,
                condition,
                given.max_new_tokens,
                set_name,
                self.engine,
            )
            write_jsonl(path, to_json(done))

        def work() -> None:
            parallel.only_writer(write) if served and self.engine.elsewhere else write()

        about = f"{set_name}.{condition}"
        costs = [_one(run.plan, condition, len(prompts))]
        self.do(run, about, inputs, [path], work, costs)
        refresh_verdicts(run.folder, f"generate {about}", [path])


def sizes_of(plan: Plan) -> dict[str, int]:
    """Prompts of every set that is completed, by its name."""
    config = plan.config
    over = {
        half: config.n_over_refusal
        for name in dict.fromkeys(config.over_refusal)
        for half in halves(name)
    }
    return {"harmful": config.n_test, "harmless": config.n_test, **over}


def _one(plan: Plan, condition: str, n: int) -> Work:
    config, length = plan.config, plan.lengths.test
    engine = ENGINES[config.engine]
    if engine.elsewhere and engine.serves(condition):
        return Ask(n, plan.lengths.begins + length, config.max_new_tokens)
    return Write(n, config.max_new_tokens, length)


def refresh_verdicts(folder: RunFolder, step: str, paths: Sequence[Path]) -> None:
    """Judge a step's completions anew where another version of this program has judged them; they
    stay as they are.

    Raises:
        RunFolderError: a file is damaged.
    """

    def work() -> None:
        record = folder.manifest["stages"][step]
        if record.get("program") == program():
            return
        for path in paths:
            rows = read_completions(path)
            again = judged_again(rows)
            changed = sum(row != new for row, new in zip(rows, again, strict=True))
            if changed:
                log.warning(
                    "%s: the verdict of %d completion(s) is another one than it was.", path, changed
                )
                write_jsonl(path, to_json(again))
                record["files"][path.name] = file_sha256(path)
        record["program"] = program()
        folder.save()

    parallel.only_writer(work)


def warn_of_no_answers(baseline: Sequence[Completion], set_name: str) -> None:
    """Say so where the unmodified model gives no answer at all: no rate then says anything about
    refusal.
    """
    if not baseline or any(row.verdict != "degenerate" for row in baseline):
        return
    thinking = sum(not split(row.completion).finished for row in baseline)
    if thinking:
        why, mend = (
            f"{thinking} are still thinking when the limit comes",
            "Raise --max-new-tokens.",
        )
    else:
        why, mend = (
            "they are empty, loops or no language",
            "Check the model and its chat template.",
        )
    text = "None of the %d baseline completions of %s is an answer: %s. %s"
    log.warning(text, len(baseline), set_name, why, mend)


def check_completions_of(folder: RunFolder, config: RunConfig, prompts: PromptSplits) -> None:
    """Before more is measured on a run: its completions must be of the prompts that its
    configuration gives.

    Raises:
        RunFolderError: they are not, or a file is damaged.
    """
    pools: dict[str, Sequence[Prompt]] = {
        "harmful": prompts.test.harmful,
        "harmless": prompts.test.harmless,
    }
    for set_name, condition in conditions(config.interventions):
        path = folder.completions(set_name, condition)
        if path.is_file():
            check_completions(read_completions(path), pools[set_name][: config.n_test], str(path))
