"""Benchmarks of ability as a stage of a run: one for each task and condition, kept item by item.

    capability/<task>.<condition>.jsonl   one row an item and metric
    capability/<task>.<condition>.json    lm-eval's aggregates, worked examples, hashes of the data

Baseline, ablation and subtraction get ``n_items`` items, the controls the first ``n_control`` of
the same.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

from refusal.config.run_config import RunConfig
from refusal.core.direction import Direction
from refusal.core.errors import ConfigError
from refusal.core.records import Metric, finite, to_json
from refusal.core.storage import file_sha256, write_json, write_jsonl
from refusal.core.work import Score, Work, Write
from refusal.evaluations.capability.rates import capability_metrics
from refusal.evaluations.capability.results import TaskRun, file_name, read_task_run
from refusal.evaluations.capability.run import HowToRun, load_benchmarks, run_benchmark
from refusal.evaluations.capability.tasks import Benchmark, Spec
from refusal.evaluations.refusal.gates import monitor_inputs, monitor_of
from refusal.interventions.conditional import Gate, gate_of
from refusal.interventions.conditions import BASELINE, Condition, interventions_for, stopping
from refusal.model.chat_model import ChatModel
from refusal.model.chat_template import AS_WRITTEN
from refusal.model.edits import Intervention
from refusal.runs.stage import Asked, Plan, Run, Stage

CONTROLS = 2  # controls that are no random directions
# Of a benchmark's item, for estimates: counted on MMLU, ARC and GSM8K.
ITEM_TOKENS = 90.0  # of a question with its choices, or of a worked example
CHOICES, CHOICE_TOKENS = 4, 6.0
SHOTS = 0  # worked examples, where the task is not asked for with a number
ANSWER_TOKENS = 256  # lm-eval's longest written answer
WRITTEN_TASKS = ("gsm8k", "drop", "triviaqa", "ifeval", "minerva", "bbh", "humaneval", "mbpp")
log = logging.getLogger(__name__)


class Benchmarking(Stage):
    """The benchmarks that are asked for."""

    name = "capability"

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked)
        self.benchmarks = benchmarks_of(asked.config)


class Capability(Benchmarking):
    """Every benchmark under the direction's conditions and those of its controls."""

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked)
        self.monitor = monitor_of(asked.config) if self.benchmarks else None
        self.gate: Gate | None = None
        if self.monitor is not None and not asked.config.task_chat:
            raise ConfigError(
                "A monitor reads prompts as the chat template writes them, and benchmarks are not "
                "put into it by default. Add --task-chat."
            )

    def check(self, model: ChatModel) -> None:
        """The monitor must be of this model."""
        if self.monitor is not None:
            self.gate = gate_of(model, self.monitor)

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """The items of every benchmark, once a condition. How many there are is looked up in the
        data, unless the options say.
        """
        config, sized = plan.config, sized_tasks(plan.config)
        controls = config.controls + CONTROLS if config.controls else 0
        found: list[Work] = []
        actions = stopping(config.interventions)
        for spec, n in sized:
            some = len(actions) * controls * min(n, config.n_control)
            found.append(work_of((1 + len(actions)) * n + some, spec, config))
        return found

    def work(self, run: Run) -> Iterable[Metric]:
        """Run what was not run yet."""
        actions = stopping(run.config.interventions)
        for benchmark in self.benchmarks:
            plain = (BASELINE, *actions)
            runs = {name: self._run(run, benchmark, name, run.direction) for name in plain}
            if not runs[BASELINE].items:  # there is nothing to pair
                text = "%s gave no valid answer of the unmodified model: nothing is measured."
                log.warning(text, benchmark.spec.text)
            else:
                for action in actions:
                    for name, control in run.controls.items():
                        condition = Condition(action, name).name
                        runs[condition] = self._run(run, benchmark, condition, control)
            yield from capability_metrics(runs)

    def _run(self, run: Run, benchmark: Benchmark, condition: str, direction: Direction) -> TaskRun:
        config = run.config
        control = Condition.named(condition).control is not None
        of = "controls.safetensors" if control else "direction.safetensors"
        limit, n = benchmark.spec.items or config.n_items, config.n_control
        if control:
            limit = n if limit is None else min(n, limit)
        made = None if condition == BASELINE else file_sha256(run.folder.path / of)
        about: dict[str, object] = {"direction": made}
        action = Condition.named(condition).intervention
        if action is not None:
            about |= monitor_inputs(config, action)
        gate = self.gate
        under = Under(condition, about, lambda: interventions_for(condition, direction, gate))
        return do_benchmark(self, run, benchmark, under, limit)


@dataclass(frozen=True)
class Under:
    """What a benchmark is run under.

    Attributes:
        name: in the files' names and the step's.
        inputs: what its results depend on beside the model, the benchmark and the options.
        interventions: made when they are needed, not where the step was done before.
    """

    name: str
    inputs: Mapping[str, object]
    interventions: Callable[[], Sequence[Intervention]]


def do_benchmark(
    stage: Stage, run: Run, benchmark: Benchmark, under: Under, limit: int | None
) -> TaskRun:
    """Run a benchmark as a step of a stage, if it is not done, and read what it wrote."""
    config, thinking = run.config, run.model.chat.thinking
    stem = f"{file_name(benchmark.spec.text)}.{under.name}"
    rows = run.folder.path / "capability" / f"{stem}.jsonl"
    about = rows.with_suffix(".json")
    how = HowToRun(limit, config.seed, config.task_chat, config.task_tokens, config.task_exact)
    asked = {name: value for name, value in asdict(how).items() if name != "batch_size"}
    inputs: dict[str, object] = {
        **asked,
        "task": benchmark.spec.text,
        "files": benchmark.files,
        "lm_eval": version("lm_eval"),
        **under.inputs,
    }
    if config.task_chat and (thinking.block or thinking.variables != AS_WRITTEN.variables):
        inputs["thinking"] = [thinking.block, dict(thinking.variables)]

    def work() -> None:
        done = run_benchmark(run.model, under.interventions(), benchmark, how, name=under.name)
        write_jsonl(rows, to_json(done.items))
        write_json(about, finite(to_json(replace(done, items=()))))

    costs = [work_of(benchmark.n_items(limit), benchmark.spec, config)]
    stage.do(run, f"{benchmark.spec.text}.{under.name}", inputs, [rows, about], work, costs)
    return read_task_run(rows, about)


def sized_tasks(config: RunConfig) -> list[tuple[Spec, int]]:
    """The benchmarks asked for, each with its items; looked up in the data where no option says."""
    specs = [Spec.parse(text) for text in dict.fromkeys(config.tasks)]
    if all(spec.items or config.n_items for spec in specs):
        return [(spec, spec.items or config.n_items or 0) for spec in specs]
    return [(b.spec, b.n_items(config.n_items)) for b in benchmarks_of(config)]


def benchmarks_of(config: RunConfig) -> tuple[Benchmark, ...]:
    """The benchmarks that a configuration names.

    Raises:
        ConfigError: lm-eval is not installed, an unknown task, or data that are missing or
            malformed.
    """
    folder = Path(config.data_dir).expanduser() if config.data_dir is not None else None
    return load_benchmarks(config.tasks, folder)


def work_of(items: int | float, spec: Spec, config: RunConfig) -> Work:
    """So many items of a task: answers are written where it asks for text, else scored."""
    shots = SHOTS if spec.shots is None else spec.shots
    if spec.name.startswith(WRITTEN_TASKS):
        new = config.task_tokens or ANSWER_TOKENS
        return Write(items, new, ITEM_TOKENS * (1 + shots))
    return Score(items * (ITEM_TOKENS * (1 + shots) + CHOICES * CHOICE_TOKENS))
