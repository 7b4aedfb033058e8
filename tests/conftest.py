"""Shapes in types are checked in every test; shared fixtures."""

import os
from collections import Counter
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


# Of a sweep over all families `make test` takes these, one for each way in which families differ:
# norms, attention, experts, wrappers, recurrence; `make test-all` takes every one.
FEW = {
    *("llama", "gemma2", "gpt2", "falcon-new", "qwen3_moe", "gpt_oss", "gemma3", "llama4"),
    *("mistral-sliding", "paligemma", "gpt_neo", "mamba", "jamba", "qwen3_5", "zamba2"),
}
SWEPT = {*tiny_models.FAMILIES, *tiny_models.OTHERS} - FEW
SWEEP = 12  # families from which on a test is a sweep


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what only `make test-all` takes, and puts the longest files first, so that nothing waits
    for them at the end.
    """
    families = Counter(_test(item) for item in items if _family(item) is not None)
    for item in items:
        if _family(item) in SWEPT and families[_test(item)] >= SWEEP:
            item.add_marker(pytest.mark.slow)
    real = {item.path for item in items if item.get_closest_marker("embedded") is not None}
    items.sort(key=lambda item: item.path not in real)


def _test(item: pytest.Item) -> str:
    return item.nodeid.partition("[")[0]


def _family(item: pytest.Item) -> str | None:
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("family") if callspec is not None else None


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
