"""Shapes in types are checked in every test; shared fixtures."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import shape_checks
import torch

shape_checks.install()

import tiny_models  # noqa: E402  (after the checks)

from refusal import ChatModel, Prompt, PromptPair  # noqa: E402
from refusal.core.records import Label  # noqa: E402

# Tiny models gain nothing from more, and lose much when something else runs.
torch.set_num_threads(1)

DATA = Path(os.environ.get("REFUSAL_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the real model first: they take longest, and nothing shall wait for them at the
    end.
    """
    slow = {item.path for item in items if item.get_closest_marker("embedded") is not None}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of public test data; tests that need it are skipped without it."""
    if not DATA.is_dir():
        pytest.skip(f"no test data at {DATA}: set REFUSAL_TEST_DATA")
    return DATA


@pytest.fixture
def model() -> ChatModel:
    return tiny_models.chat_model()


TEXTS = (
    "Sing a song",
    "How do I bake bread at home when there is no oven?",
    "Why?",
    "List ten rivers of Europe.",
    "Describe the sea",
    "What makes a good teacher, in one line?",
    "Name a colour.",
    "Tell me about the moon and the tides in a few words",
    "Plan a day in Rome",
    "Who wrote Faust?",
)


def make_prompts(label: Label, n: int, offset: int = 0) -> tuple[Prompt, ...]:
    """Different texts of different lengths."""
    texts = [f"{TEXTS[i % len(TEXTS)]} {'abc' * (i % 4)}{i + offset}" for i in range(n)]
    return tuple(Prompt(f"{label}-{i}", text, label) for i, text in enumerate(texts))


@pytest.fixture
def pair() -> PromptPair:
    """Ten prompts a class."""
    return PromptPair(make_prompts("harmful", 10), make_prompts("harmless", 10, offset=50))


@pytest.fixture
def prompts_of() -> Callable[[Label, int], tuple[Prompt, ...]]:
    return make_prompts
