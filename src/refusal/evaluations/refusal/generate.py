"""What the model writes under every condition, of the direction itself and of the controls.

completions/<set>.<condition>.jsonl           each completion with its verdict
completions/<set>.<control>-<action>.jsonl    with a control in the direction's place
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from refusal.config.engines import EngineOptions
from refusal.config.run_config import RunConfig
from refusal.core import parallel
from refusal.core.errors import ConfigError
from refusal.core.records import Completion, Metric, Prompt, PromptSplits, to_json
from refusal.core.storage import file_sha256, write_jsonl
from refusal.core.thinking import split
from refusal.core.work import Ask, Work, Write, side_by_side
from refusal.engines import ENGINES
from refusal.engines.protocol import Engine
from refusal.evaluations.refusal.completions import (
    Wanted,
    controls_wanted,
    generate_together,
    generate_under,
    judged_again,
)
from refusal.evaluations.refusal.controlled import FITTED
from refusal.evaluations.refusal.gates import (
    acts_by_prompt,
    check_unseen,
    monitor_inputs,
    monitor_of,
)
from refusal.evaluations.refusal.matching import check_completions
from refusal.evaluations.refusal.pairs import actions_on, plain_pairs
from refusal.interventions.conditional import Gate, gate_of
from refusal.interventions.conditions import BASELINE, conditions, in_order
from refusal.model.chat_model import ChatModel
from refusal.prompts.over_refusal import halves
from refusal.runs.files import read_completions
from refusal.runs.folder import RunFolder, Step, prompts_hash
from refusal.runs.identity import program
from refusal.runs.inputs import check_prompts
from refusal.runs.stage import Asked, Plan, Run, Stage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Part:
    """Completions that are kept as one step: those of a condition, or of all controls of an action.

    Attributes:
        about: what the step is called. depends: its inputs, beside the prompts.
    """

    about: str
    wanted: Sequence[Wanted]
    depends: Mapping[str, Any]

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """What is completed under each condition."""
        return self.wanted[0].prompts

    @property
    def controls(self) -> int:
        """How many directions stand in the direction's place; 0 where it is itself meant."""
        return len(self.wanted) if "controls" in self.depends else 0


class Generate(Stage):
    """Completions of every set under the baseline, each action of the direction and of each control
    (of its first prompts).
    """

    name = "generate"

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked)
        if not asked.config.sampling.greedy and asked.config.engine != "own":
            raise ConfigError(
                f"--temperature needs --engine own: {asked.config.engine} could not draw the same "
                "numbers under every condition."
            )
        options = {name: getattr(asked.config, name) for name in EngineOptions.model_fields}
        kind = ENGINES[asked.config.engine]
        self.engine: Engine = kind(EngineOptions(**options), asked.folder)
        self.pairs = plain_pairs(asked.measured, asked.config.interventions)
        self.monitor = monitor_of(asked.config)
        self.gate: Gate | None = None
        check_unseen(self.monitor, asked)

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """Every completion; what a server writes takes its time, not this machine's."""
        config, found = plan.config, list[Work]()
        for name, n in sizes_of(plan).items():
            actions = actions_on(name, config.interventions)
            found += [_cost(plan, n, condition) for condition in (BASELINE, *actions)]
            if config.controls:
                some, controls = min(config.n_control, n), config.controls + FITTED
                found += [_cost(plan, some, action, controls) for action in actions]
        return side_by_side(found)

    def check(self, model: ChatModel) -> None:
        """Every prompt with its completion must fit into the model's context, and the monitor must
        be of this model.
        """
        if self.monitor is not None:
            self.gate = gate_of(model, self.monitor)
        for pool in self.asked.measured.values():
            check_prompts(model, pool, self.asked.config.new_tokens)

    def work(self, run: Run) -> Iterable[Metric]:
        """What another engine serves, condition by condition, since it may have to start anew for
        each; all else side by side.
        """
        parts = [*self._plain(run), *self._of_controls(run)]
        served = [part for part in parts if self._is_served(part)]
        try:
            for part in served:
                self._ask(run, part)
        finally:
            self.engine.close()
        self._write(run, [part for part in parts if part not in served])
        for part in parts:
            paths = [_path(run, one) for one in part.wanted]
            refresh_verdicts(run.folder, f"generate {part.about}", paths)
        for name in self.asked.measured:
            warn_of_no_answers(read_completions(run.folder.completions(name, BASELINE)), name)
        return ()

    def _plain(self, run: Run) -> Iterator[_Part]:
        """Every set under the baseline and each action of the direction."""
        for name, condition in sorted(self.pairs, key=lambda pair: in_order(pair[1])):
            direction = None if condition == BASELINE else run.direction_hash
            prompts = self.asked.measured[name]
            about = (run.direction, prompts, run.config.sampling, self.gate)
            depends: dict[str, Any] = {"direction": direction}
            if condition != BASELINE:
                depends |= monitor_inputs(run.config, condition)
            yield _Part(f"{name}.{condition}", (Wanted(name, condition, *about),), depends)

    def _of_controls(self, run: Run) -> Iterator[_Part]:
        """The first prompts of every set under each action of each control."""
        if not run.controls:
            return
        depends = {"controls": file_sha256(run.folder.path / "controls.safetensors")}
        for name, prompts in self.asked.measured.items():
            some = prompts[: run.config.n_control]
            for action in actions_on(name, run.config.interventions):
                wanted = controls_wanted(run.controls, some, action, name, run.config.sampling)
                wanted = [replace(one, gate=self.gate) for one in wanted]
                more = monitor_inputs(run.config, action)
                yield _Part(f"{name}.controls-{action}", wanted, {**depends, **more})

    def _is_served(self, part: _Part) -> bool:
        """Whether an engine other than this package's own writes it."""
        if self.asked.config.engine == "own" or part.controls:
            return False
        condition = part.wanted[0].condition
        if condition != BASELINE and acts_by_prompt(condition):
            return False
        return self.engine.serves(condition)

    def _step(self, run: Run, part: _Part) -> Step:
        given, condition = run.config, part.wanted[0].condition
        inputs = {
            "prompts": prompts_hash(part.prompts),
            "max_new_tokens": given.max_new_tokens,
            **given.sampling.inputs,
            **part.depends,
        }
        if given.thinking == "on":
            inputs["thinking_tokens"] = given.thinking_tokens
        if self._is_served(part):
            options = (given.engine_model, given.engine_ablated, given.engine_arguments)
            inputs["engine"] = [given.engine, *options]
        outputs = [_path(run, one) for one in part.wanted]
        cost = _cost(run.plan, len(part.prompts), condition, part.controls)
        return self.step(part.about, inputs, outputs, [cost])

    def _ask(self, run: Run, part: _Part) -> None:
        """Have the engine write a condition."""
        (one,) = part.wanted

        def write() -> None:
            new = run.config.max_new_tokens
            about = (one.direction, one.prompts, one.condition, new, one.set_name)
            write_jsonl(_path(run, one), to_json(generate_under(run.model, *about, self.engine)))

        step = self._step(run, part)
        alone = self.engine.elsewhere
        run.folder.do(step, lambda: parallel.only_writer(write) if alone else write())

    def _write(self, run: Run, parts: Sequence[_Part]) -> None:
        """Write side by side whatever is not there yet; each part is kept when it is complete."""
        steps = [self._step(run, part) for part in parts]

        def work(missing: Sequence[Step], finished: Callable[[Step], None]) -> None:
            todo = [(s, part) for s, part in zip(steps, parts, strict=True) if s in missing]
            step_of = {_path(run, one): step for step, part in todo for one in part.wanted}
            left = Counter(step.name for step in step_of.values())

            def keep(one: Wanted, completions: tuple[Completion, ...]) -> None:
                path = _path(run, one)
                write_jsonl(path, to_json(completions))
                step = step_of[path]
                left[step.name] -= 1
                if not left[step.name]:
                    finished(step)

            wanted = [one for _, part in todo for one in part.wanted]
            generate_together(run.model, wanted, run.config.max_new_tokens, keep)

        run.folder.do_together(steps, work)


def _path(run: Run, one: Wanted) -> Path:
    return run.folder.completions(one.set_name, one.condition)


def sizes_of(plan: Plan) -> dict[str, int]:
    """Prompts of every set that is completed, by its name."""
    config = plan.config
    sizes = {"harmful": config.n_test, "harmless": config.n_test}
    for name in config.over_refusal:
        sizes |= dict.fromkeys(halves(name), config.n_over_refusal)
    return sizes


def _cost(plan: Plan, n: int, condition: str, controls: int = 0) -> Work:
    """Of ``n`` prompts under a condition of the direction, or under one of each control."""
    config, length = plan.config, plan.lengths.test
    engine = ENGINES[config.engine]
    if not controls and engine.elsewhere and engine.serves(condition):
        return Ask(n, plan.lengths.begins + length, config.new_tokens)
    each = max(1, controls)
    rows, samples = n * each * config.samples, config.samples
    return Write(rows, config.new_tokens, length, each, samples)


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
    if not baseline or any(row.verdict not in ("degenerate", "unfinished") for row in baseline):
        return
    thinking = sum(not split(row.completion).finished for row in baseline)
    if thinking:
        why, mend = (
            f"{thinking} are still thinking when the limit comes",
            "Raise --thinking-tokens, or use --thinking closed.",
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
