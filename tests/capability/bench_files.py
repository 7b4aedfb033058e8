"""Tiny benchmark files in the forms that are read, and the same items as lm-eval's own configs
would find them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tiny_models
import torch

from refusal import ChatModel, Direction
from refusal.evaluations.capability.results import TaskRun
from refusal.evaluations.capability.run import HowToRun, load_benchmarks, run_benchmark
from refusal.model.edits import Intervention

WORDS = ["salt", "rain", "glass", "wool", "tin", "chalk", "moss", "silk"]

Rows = list[dict[str, Any]]


def choices_of(i: int, n: int = 4) -> list[str]:
    return [
        f"{WORDS[(i * 3 + k) % 8]} {'of the sea' if (i + k) % 3 else 'and sand'}" for k in range(n)
    ]


def arc_flat(n: int) -> Rows:
    """ARC as flat rows, the right choice at different places."""
    return [
        {
            "centerpiece": f"Which of these is number {i}?",
            "options": choices_of(i),
            "correct_options": ["ABCD"[i % 4]],
            "correct_options_literal": [choices_of(i)[i % 4]],
            "correct_options_idx": [i % 4],
        }
        for i in range(n)
    ]


def arc_hub(n: int) -> Rows:
    """The same items in the columns of the data set on the hub."""
    return [
        {
            "id": f"x{i}",
            "question": f"Which of these is number {i}?",
            "choices": {"text": choices_of(i), "label": list("ABCD")},
            "answerKey": "ABCD"[i % 4],
        }
        for i in range(n)
    ]


def mmlu(subjects: list[str], each: int, start: int = 0) -> Rows:
    return [
        {
            "question": f"{subject} {i}? ",
            "subject": subject,
            "choices": choices_of(i),
            "answer": i % 4,
        }
        for subject in subjects
        for i in range(start, start + each)
    ]


def gsm8k(n: int) -> Rows:
    return [
        {
            "question": f"What is {i} and {i}?",
            "answer": f"{i}+{i}=<<{i}+{i}={2 * i}>>{2 * i}\n#### {2 * i}",
        }
        for i in range(n)
    ]


def write(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def bench_folder(folder: Path) -> Path:
    """ARC in its flat form one folder below, GSM8K beside it."""
    write(folder / "capability" / "arc_challenge_test.jsonl", arc_flat(7))
    write(folder / "gsm8k_test.jsonl", gsm8k(3))
    return folder


def roomy_model(family: str = "qwen2") -> ChatModel:
    """A tiny model with room for long prompts: its tokens are bytes."""
    return tiny_models.chat_model(family, max_position_embeddings=8192)


def some_direction() -> Direction:
    vector = torch.randn(tiny_models.WIDTH, generator=torch.Generator().manual_seed(5))
    return Direction(vector / vector.norm(), 4.0, -1, 2)


def run_tasks(
    model: ChatModel,
    interventions: Sequence[Intervention],
    tasks: list[str],
    data_dir: Path,
    **options: Any,
) -> dict[str, TaskRun]:
    """Several tasks at once, by what they were asked for."""
    return {
        benchmark.spec.text: run_benchmark(model, interventions, benchmark, HowToRun(**options))
        for benchmark in load_benchmarks(tasks, data_dir)
    }
