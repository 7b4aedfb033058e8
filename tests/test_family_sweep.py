"""Every type of model with a text decoder that transformers ships, in one sweep: about two minutes
on one core.
"""

import re
from pathlib import Path

import family_sweep
import pytest
import shrunk

from refusal import UnsupportedModelError, find_parameters, find_sites

PAGE = Path(__file__).parents[1] / "docs" / "family-sweep.md"


@pytest.mark.slow
def test_every_type_is_verified_or_refused_with_a_reason_and_no_export_is_wrong() -> None:
    with family_sweep.quiet():
        rows = list(family_sweep.sweep())
    said = "\n".join([family_sweep.HEAD, *map(str, rows), "", family_sweep.summary(rows)])
    assert [row.family for row in rows] == shrunk.model_types()
    assert not [row for row in rows if row.state == "crashed"], said
    assert all(row.why for row in rows if row.state in ("refused", "not buildable")), said
    verified = [row for row in rows if row.state == "verified"]
    assert all(row.hooks == "yes" for row in verified), said
    assert not [row for row in rows if row.export.startswith("WRONG")], said
    assert len(verified) >= 212, said
    found = {row.family for row in verified}
    assert {"gemma4", "gemma4_text", "deepseek_v4", "glm5_next"} <= found, said
    assert len(rows) >= 272, said
    written = PAGE.read_text(encoding="utf-8")
    assert f"{family_sweep.summary(rows)}." in written.splitlines(), said
    cells = [line.split(" | ") for line in written.splitlines() if line.startswith("| ")][2:]
    named = {
        first.removeprefix("| "): (state, export[:3]) for first, state, _, _, export, *_ in cells
    }
    assert named == {row.family: (row.state, row.export[:3]) for row in rows}, said


# By type: what its message says keeps the direction in what is written.
@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("xglm", "a part of it is made by no parameter (positions that are computed"),
        ("gemma3n_text", "it is made by model.embed_tokens.weight, model.altup_projections.0"),
        ("minimax", "it goes through model.layers.0.post_attention_layernorm.weight"),
        ("longcat_flash", "the module hands on a part of what it is given"),
    ],
)
def test_a_refused_export_says_what_brings_the_direction_back(family: str, why: str) -> None:
    hf = shrunk.tiny(family)
    with pytest.raises(UnsupportedModelError, match=re.escape(why)):
        find_parameters(hf, find_sites(hf))


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("gpt_neox_japanese", "adds a vector, the same for every token"),
        ("doge", "changes the stream, by a vector of gains"),
        ("openai-gpt", "naming one does not help"),
        ("xlnet", "it is an encoder, BERT-like"),
        ("diffusion_gemma", "a block at once, by diffusion"),
        ("hrm_text", "run 6 times in a pass"),
        ("reformer", "reversible residuals"),
    ],
)
def test_a_refused_type_says_which_cause_it_is(family: str, why: str) -> None:
    with pytest.raises(UnsupportedModelError, match=re.escape(why)):
        find_sites(shrunk.tiny(family))


def test_a_shrunk_model_is_small_and_of_its_kind() -> None:
    hf = shrunk.tiny("qwen3_next")
    assert type(hf).__name__ == "Qwen3NextForCausalLM"
    assert sum(p.numel() for p in hf.parameters()) < 200_000
    assert set(hf.config.layer_types) == {"linear_attention", "full_attention"}
