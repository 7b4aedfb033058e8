"""The plans for large models: published sizes come out of their shapes, and the page shows what the
script prints.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
# Billions of parameters, in all and met by a token, as their makers publish them.
PUBLISHED = {
    "8B (Llama 3.1)": (8.03, 8.03),
    "70B (Llama 3.1)": (70.6, 70.6),
    "405B (Llama 3.1)": (405.9, 405.9),
    "235B, 22B active (Qwen 3)": (235.1, 22.0),
}


@pytest.fixture(scope="module")
def plans() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plans", ROOT / "benchmarks" / "plans.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["plans"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("shape", sorted(PUBLISHED))
def test_sizes_are_the_published_ones(plans: ModuleType, shape: str) -> None:
    size = plans.size(shape)
    weights, active = PUBLISHED[shape]
    embedding = size.head  # the published figures count both ends
    assert size.weights / 1e9 == pytest.approx(weights, rel=0.001)
    assert (size.active + 2 * embedding) / 1e9 == pytest.approx(active, rel=0.01)


def test_the_page_shows_what_the_script_prints(plans: ModuleType) -> None:
    text = (ROOT / "docs" / "plans.md").read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith("|")] == list(plans.table())
