"""Hooks, weights and exports of the real embedded model agree, in float32.

In a file of its own: in float32 the model and its copies in the processor's order take 13 GB, the
process that reads an export 7 more, and another test's model beside them would be too much for 24.
"""

from pathlib import Path

import pytest
from cores import all_cores
from fresh import reload

import refusal
from refusal import ChatModel

pytestmark = pytest.mark.embedded


def test_weights_agree_with_the_hooks_and_exports_with_the_weights(tmp_path: Path) -> None:
    with all_cores():
        exact = refusal.load("embedded", dtype="float32")
        agree(exact, tmp_path)


def agree(exact: ChatModel, tmp_path: Path) -> None:
    """Hooks, adapter and edited folder write the completions of each other."""
    prompts = refusal.load_prompts("builtin", seed=42)
    texts = [prompt.text for prompt in (*prompts.test.harmful[:8], *prompts.test.harmless[:8])]
    tokens = refusal.tokens_for(exact, prompts.train, ("I",))
    means = refusal.collect(exact, prompts.train, n=8, filtered=False, tokens=tokens, layers=17)
    direction = refusal.difference_in_means(means).at(-1, 16)

    with exact.apply(refusal.Ablate(direction)):
        hooked = exact.generate(texts, 8)
    adapter = refusal.export_lora(exact, direction, tmp_path / "adapter", texts[4:12])
    edited = refusal.export_model(exact, direction, tmp_path / "edited")
    assert exact.generate(texts, 8) == hooked
    assert adapter.report is not None
    assert edited.report is not None
    assert adapter.report.parameters == edited.report.parameters
    assert adapter.report.gap is not None
    assert adapter.report.gap.logits < 1e-2
    assert adapter.report.gap.same_argmax == 1

    some, expected = [texts[0], texts[-1]], [hooked[0], hooked[-1]]
    assert reload(tmp_path / "edited", None, "float32", some, 8) == expected
    assert (
        reload(Path(str(exact.hf.name_or_path)), tmp_path / "adapter", "float32", some, 8)
        == expected
    )
