"""Every type of model with a text decoder that transformers ships, in one sweep: about two minutes
on one core.
"""

import family_sweep
import pytest
import shrunk


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


def test_a_shrunk_model_is_small_and_of_its_kind() -> None:
    hf = shrunk.tiny("qwen3_next")
    assert type(hf).__name__ == "Qwen3NextForCausalLM"
    assert sum(p.numel() for p in hf.parameters()) < 200_000
    assert set(hf.config.layer_types) == {"linear_attention", "full_attention"}
