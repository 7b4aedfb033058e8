"""What a model writes, asked in its own format, and its benchmarks.

completions/<set>.baseline.jsonl       each completion with its verdict, as in a run
capability/<task>.baseline.jsonl       one row an item and metric; the aggregates are beside it
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from refusal.core.records import Completion, Metric, to_json
from refusal.core.storage import write_jsonl
from refusal.core.work import Work, Write, side_by_side
from refusal.evaluations.capability.stage import (
    Benchmarking,
    Under,
    do_benchmark,
    sized_tasks,
    work_of,
)
from refusal.evaluations.diff.side import Side
from refusal.evaluations.refusal.completions import Wanted, generate_together
from refusal.evaluations.refusal.generate import refresh_verdicts, sizes_of, warn_of_no_answers
from refusal.interventions.conditions import BASELINE
from refusal.model.chat_model import ChatModel
from refusal.runs.files import read_completions
from refusal.runs.folder import Step, prompts_hash
from refusal.runs.inputs import check_prompts
from refusal.runs.stage import Plan, Run, Stage


class Completed(Stage):
    """Completions of every set."""

    name = "complete"

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """Every completion of one model."""
        new, length = plan.config.new_tokens, plan.lengths.test
        return side_by_side([Write(n, new, length) for n in sizes_of(plan).values()])

    def check(self, model: ChatModel) -> None:
        """Every prompt with its completion must fit into the model's context."""
        for pool in self.asked.measured.values():
            check_prompts(model, pool, self.asked.config.new_tokens)

    def work(self, run: Run) -> Iterable[Metric]:
        """Write what is missing, all sets side by side."""
        assert isinstance(run, Side)
        config, sets = run.config, self.asked.measured
        steps: dict[str, Step] = {}
        for name, prompts in sets.items():
            inputs = {"prompts": prompts_hash(prompts), "max_new_tokens": config.max_new_tokens}
            if config.thinking == "on":
                inputs["thinking_tokens"] = config.thinking_tokens
            cost = Write(len(prompts), config.new_tokens, run.plan.lengths.test)
            paths = [run.folder.completions(name, BASELINE)]
            steps[name] = self.step(name, inputs, paths, [cost])

        def work(missing: Sequence[Step], finished: Callable[[Step], None]) -> None:
            todo = [name for name, step in steps.items() if step in missing]
            wanted = [Wanted(name, BASELINE, run.about, sets[name]) for name in todo]

            def keep(one: Wanted, rows: tuple[Completion, ...]) -> None:
                write_jsonl(steps[one.set_name].outputs[0], to_json(rows))
                finished(steps[one.set_name])

            generate_together(run.model, wanted, config.max_new_tokens, keep)

        run.folder.do_together(list(steps.values()), work)
        for name, step in steps.items():
            refresh_verdicts(run.folder, step.name, step.outputs)
            warn_of_no_answers(read_completions(step.outputs[0]), name)
        return ()


class Ability(Benchmarking):
    """Benchmarks, where some are asked for."""

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """The items of every benchmark, of one model."""
        return [work_of(n, spec, plan.config) for spec, n in sized_tasks(plan.config)]

    def work(self, run: Run) -> Iterable[Metric]:
        """Run what was not run yet."""
        for benchmark in self.benchmarks:
            limit = benchmark.spec.items or run.config.n_items
            do_benchmark(self, run, benchmark, Under(BASELINE, {}, tuple), limit)
        return ()


def completions_in(folder: Path, set_name: str) -> tuple[Completion, ...]:
    """A side's completions of a set.

    Raises:
        RunFolderError: the file cannot be read.
    """
    return read_completions(folder / "completions" / f"{set_name}.{BASELINE}.jsonl")
