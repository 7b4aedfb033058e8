"""Run benchmarks of ability on a loaded model under interventions, in this process."""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from refusal.core.errors import ConfigError, NonFiniteError, OutOfMemoryError
from refusal.evaluations.capability.harness import hosted, require
from refusal.evaluations.capability.results import ItemResult, TaskRun
from refusal.evaluations.capability.tasks import Benchmark, Spec, choose_items, load_task
from refusal.model.batch_size import BatchSize, is_out_of_memory
from refusal.model.chat_model import ChatModel
from refusal.model.edits import Intervention

log = logging.getLogger(__name__)

FEWSHOT_SEED = 1234  # lm-eval's default
# where a task has it (ARC, HellaSwag): what the paper's table and the leaderboards report
PREFERRED = "acc_norm"


def load_benchmarks(tasks: Sequence[str], data_dir: Path | None = None) -> tuple[Benchmark, ...]:
    """lm-eval's tasks by name, their data read; no model is needed.

    Args:
        tasks: names of lm-eval's tasks, groups or tags; ``name:N`` for N worked examples instead of
            the task's own, ``name@M`` for M items where the caller gives no limit.
        data_dir: a folder of data files; tasks whose files it holds (docs/capability.md) need no
            network.

    Raises:
        ConfigError: lm-eval is not installed, an unknown task, or data that are missing or
            malformed.
    """
    if not tasks:
        return ()
    require()
    specs = {
        spec.text: spec for spec in map(Spec.parse, tasks)
    }  # one that is named again may ask for other items
    found = []
    for spec in specs.values():
        with hosted(f"capability: {spec.text}"):
            found.append(load_task(spec, data_dir))
    return tuple(found)


@dataclass(frozen=True)
class HowToRun:
    """How a benchmark is run; lm-eval's words.

    Attributes:
        limit: items per task or group, a seeded random choice; by default what the task was asked
            for with, else all. A smaller limit gives some of the same.
        seed: of the choice of items: the same ones whatever the model and the interventions.
        apply_chat_template: put prompts into the model's chat format, thoughts switched off or
            closed as in all prompts that are read; lm-eval's default is not to.
        max_gen_toks: longest generated answer in tokens; by default what the task says, else
            lm-eval's 256.
        exact: run lm-eval's own ``HFLM`` as it is, bit for bit; by default what requests begin with
            in common is read once, which is faster and changes numbers by rounding only.
        batch_size: prompts at once under ``exact``; lm-eval's default is 1.
    """

    limit: int | None = None
    seed: int = 42
    apply_chat_template: bool = False
    max_gen_toks: int | None = None
    exact: bool = False
    batch_size: int | None = None


AS_ASKED = HowToRun()


def run_benchmark(
    model: ChatModel,
    interventions: Sequence[Intervention],
    benchmark: Benchmark,
    how: HowToRun = AS_ASKED,
    *,
    name: str = "capability",
) -> TaskRun:
    """Run a benchmark with ``interventions`` active, and give lm-eval's numbers item by item.

    Args:
        name: of the progress.

    Raises:
        ConfigError: a limit under 1, or answers that leave no room for a prompt.
        NonFiniteError: a log-likelihood is NaN or infinite.
        OutOfMemoryError: one prompt alone does not fit.
    """
    limit, chat = how.limit, how.apply_chat_template
    if limit is not None and limit < 1:
        raise ConfigError(
            f"There is nothing to run with a limit of {limit} items. Give one over 0."
        )
    from refusal.evaluations.capability.shared import counted, make_harness

    label = f"{name}: {benchmark.spec.text}"
    with hosted(label), ExitStack() as stack:
        items = choose_items(
            benchmark, limit if limit is not None else benchmark.spec.items, how.seed
        )
        lm = make_harness(model, label, how.exact, how.batch_size)
        _limit_answers(benchmark, how.max_gen_toks, lm)
        if how.exact:
            stack.enter_context(counted(model))
        with model.apply(*interventions):
            results = _evaluate(lm, benchmark, items, chat, model.chat.system)
    return _task_run(benchmark, results)


def _limit_answers(benchmark: Benchmark, max_gen_toks: int | None, lm: Any) -> None:
    """Set the length of generated answers, and make sure that it leaves room for a prompt."""
    for name, task in benchmark.tasks.items():
        if task.OUTPUT_TYPE != "generate_until":
            continue
        if max_gen_toks is not None:
            task.set_config("generation_kwargs", {"max_gen_toks": max_gen_toks}, update=True)
        wanted = task.config.generation_kwargs.get("max_gen_toks", lm.max_gen_toks)
        if not 0 < wanted < lm.max_length:
            raise ConfigError(
                f"{name} cannot write answers of {wanted} tokens with a model of {lm.max_length} "
                "tokens in all. Give another --task-tokens."
            )


def _evaluate(
    lm: Any, benchmark: Benchmark, items: dict[str, list[int]], chat: bool, system: str | None
) -> dict[str, Any]:
    """lm-eval's results for the chosen items; out of memory, once more with half as many prompts at
    once.
    """
    from lm_eval.evaluator import evaluate

    chosen = {name: benchmark.tasks[name] for name in items}
    size = BatchSize(int(lm.batch_size_per_gpu))
    while True:
        for task in chosen.values():
            task.set_fewshot_seed(FEWSHOT_SEED)
        try:
            results: dict[str, Any] = evaluate(
                lm,
                {"tasks": chosen, "groups": benchmark.groups},
                samples=items,
                bootstrap_iters=0,
                apply_chat_template=chat,
                fewshot_as_multiturn=True,
                system_instruction=system if chat else None,
            )
            return results
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if size.value == 1:
                raise OutOfMemoryError(
                    f"A single prompt of {benchmark.spec.text} does not fit into memory. Use a "
                    "smaller model, --dtype bfloat16, fewer worked examples (task:N), or a device "
                    "with more memory."
                ) from error
            size.halve(size.value)
            lm.batch_size_per_gpu = size.value


def _task_run(benchmark: Benchmark, results: dict[str, Any]) -> TaskRun:
    """One row an item and metric, the main metric, and the aggregate."""
    items: list[ItemResult] = []
    mains: Counter[str] = Counter()
    for task, samples in results["samples"].items():
        _check_finite(task, samples)
        rows = [row for sample in samples for row in _rows(task, sample)]
        metrics = list(dict.fromkeys(row.metric for row in rows))
        mains.update([PREFERRED] if PREFERRED in metrics else metrics[:1])
        items += rows
    aggregate: dict[str, dict[str, float | None]] = {}
    for name, row in results["results"].items():
        aggregate[name] = {k: float(value) for k, value in row.items() if isinstance(value, Real)}
    main = mains.most_common(1)[0][0] if mains else ""
    items.sort(key=lambda item: item.metric != main)  # stable
    shots = {
        name: int(benchmark.tasks[name].get_config("num_fewshot")) for name in results["samples"]
    }
    return TaskRun(benchmark.spec.text, main, tuple(items), aggregate, shots, benchmark.files)


def _rows(task: str, sample: dict[str, Any]) -> list[ItemResult]:
    ident = f"{task}/{sample['doc_id']}-{sample['doc_hash'][:8]}"
    suffix = "" if sample["filter"] == "none" else f",{sample['filter']}"
    found = []
    for metric in sample["metrics"]:
        value = sample[metric]
        if isinstance(value, Real):
            found.append(ItemResult(ident, float(value), metric + suffix))
    return found


def _check_finite(task: str, samples: Sequence[dict[str, Any]]) -> None:
    numbers = []
    for sample in samples:
        for response in sample["resps"]:
            for one in response:
                numbers += _parts(one)
    if not all(math.isfinite(number) for number in numbers):
        raise NonFiniteError(
            f"The model gives log-likelihoods on {task} that are no numbers. "
            "Use --dtype bfloat16 or float32, or a weaker intervention."
        )


def _parts(response: Any) -> list[float]:
    """The numbers in one response: a log-likelihood with its greedy flag, a log-likelihood alone,
    or a text (none).
    """
    parts = response if isinstance(response, tuple) else (response,)
    return [float(part) for part in parts if isinstance(part, Real)]
