"""Benchmarks of ability as a stage of a run: one for each task and condition, kept item by item.

    capability/<task>.<condition>.jsonl   one row an item and metric
    capability/<task>.<condition>.json    lm-eval's aggregates, worked examples, hashes of the data

Baseline, ablation and subtraction get ``n_items`` items, the controls the first ``n_control`` of
the same.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from refusal.config.run_config import RunConfig
from refusal.core.direction import Direction
from refusal.core.records import Metric, finite, to_json
from refusal.core.storage import file_sha256, write_json, write_jsonl
from refusal.evaluations.capability.rates import capability_metrics
from refusal.evaluations.capability.results import TaskRun, file_name, read_task_run
from refusal.evaluations.capability.run import load_benchmarks, run_benchmark
from refusal.evaluations.capability.tasks import Benchmark
from refusal.interventions.conditions import BASELINE, STOPPING, interventions_for
from refusal.model.chat_model import ChatModel
from refusal.runs.folder import RunFolder

log = logging.getLogger(__name__)


def benchmarks_for(config: RunConfig) -> tuple[Benchmark, ...]:
    """The benchmarks that a configuration names; before anything slow, so that a wrong name stops a
    run at once.

    Raises:
        ConfigError: lm-eval is not installed, an unknown task, or data that are missing or
            malformed.
    """
    return load_benchmarks(
        config.tasks, Path(config.data_dir).expanduser() if config.data_dir is not None else None
    )


@dataclass(frozen=True)
class Capability:
    """The benchmarks of a run, with the direction and its controls."""

    folder: RunFolder
    config: RunConfig
    model: ChatModel
    direction: Direction
    controls: Mapping[str, Direction]
    benchmarks: tuple[Benchmark, ...]

    def metrics(self) -> tuple[Metric, ...]:
        """Every task under every condition, run where it was not yet."""
        found: list[Metric] = []
        for benchmark in self.benchmarks:
            runs = {
                condition: self._run(benchmark, condition, self.direction)
                for condition in (BASELINE, *STOPPING)
            }
            if runs[BASELINE].items:  # else there is nothing to pair
                controls = (
                    (f"{name}-{action}", it)
                    for action in STOPPING
                    for name, it in self.controls.items()
                )
                runs |= {
                    condition: self._run(benchmark, condition, it) for condition, it in controls
                }
            else:
                log.warning(
                    "%s gave no valid answer of the unmodified model: nothing is measured.",
                    benchmark.spec.text,
                )
            found += capability_metrics(runs)
        return tuple(found)

    def _run(self, benchmark: Benchmark, condition: str, direction: Direction) -> TaskRun:
        rows = (
            self.folder.path / "capability" / f"{file_name(benchmark.spec.text)}.{condition}.jsonl"
        )
        about = rows.with_suffix(".json")
        control = condition not in (BASELINE, *STOPPING)
        of = "controls.safetensors" if control else "direction.safetensors"
        limit, n = benchmark.spec.items or self.config.n_items, self.config.n_control
        options: dict[str, Any] = {
            "limit": (n if limit is None else min(n, limit)) if control else limit,
            "seed": self.config.seed,
            "apply_chat_template": self.config.task_chat,
            "max_gen_toks": self.config.task_tokens,
            "exact": self.config.task_exact,
        }
        inputs = {
            **options,
            "task": benchmark.spec.text,
            "files": benchmark.files,
            "lm_eval": version("lm_eval"),
            "direction": None if condition == BASELINE else file_sha256(self.folder.path / of),
        }

        def work() -> None:
            interventions = interventions_for(condition, direction)
            done = run_benchmark(self.model, interventions, benchmark, **options, name=condition)
            write_jsonl(rows, to_json(done.items))
            write_json(about, finite(to_json(replace(done, items=()))))

        self.folder.stage(
            f"capability {benchmark.spec.text}.{condition}", inputs, [rows, about], work
        )
        return read_task_run(rows, about)
