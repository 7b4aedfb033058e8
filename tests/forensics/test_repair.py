"""What was projected out is put back; what was not is left, and what cannot be is said."""

from pathlib import Path
from typing import Any

import pytest
import torch
import weight_edits as edits
from edited import Tiny, read
from transformers import AutoModelForCausalLM
from weight_edits import Tensors, everywhere, projection, then

from refusal import ExportError
from refusal.audits.forensics.examine import compare_weights
from refusal.audits.forensics.repair import repair
from refusal.audits.forensics.repair_adapter import repair_adapter
from refusal.cli.entry import main
from refusal.core.direction import Direction
from refusal.weights.checkpoint_stream import stream_model

FAMILIES = ("llama", "gemma2", "gpt2", "mixtral", "gpt_oss", "falcon-new")


def worst(found: Tensors, meant: Tensors) -> float:
    """The largest difference of a tensor, relative to its size."""
    gaps = []
    for name, tensor in meant.items():
        gap = (found[name].double() - tensor.double()).norm() / tensor.double().norm()
        gaps.append(float(gap))
    return max(gaps)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edited_checkpoint_is_the_base_again(family: str, tmp_path: Path) -> None:
    tiny = Tiny(tmp_path, family, shard="40KB")
    stream_model(tiny.folder, Direction(tiny.u, 1.0, -1, 2), tiny.out)
    before = worst(read(tiny.out), tiny.tensors)
    done = repair(str(tiny.out), str(tiny.folder), tmp_path / "repaired")
    found = read(done.path)
    assert before > 0.05
    # Behind a post-norm the export writes beside the direction where gains are small.
    behind = tiny.writers[-1].gain is not None
    assert worst(found, tiny.tensors) < (0.1 * before if behind else 1e-5)
    assert done.layers == 6
    shards = [len(list(folder.glob("*.safetensors"))) for folder in (done.path, tiny.out)]
    assert shards[0] == shards[1] > 1
    AutoModelForCausalLM.from_pretrained(done.path)
    assert "a projection undone" in (done.path / "README.md").read_text()


@pytest.mark.parametrize("strength", [0.5, 1.5, 2.0, -1.0])
def test_any_strength_and_two_directions(strength: float, tmp_path: Path) -> None:
    tiny = Tiny(tmp_path, "llama", dtype=torch.bfloat16)
    one = projection(tiny.u, everywhere(strength))
    two = edits.two_directions(tiny.u, tiny.v, 1.0, strength)
    for name, edit in (("one", one), ("two", two)):
        tiny.candidate(edit)
        done = repair(str(tiny.out), str(tiny.folder), tmp_path / name)
        assert worst(read(done.path), tiny.tensors) < 4e-3  # bfloat16


def test_a_fine_tune_keeps_all_but_its_own_component(tmp_path: Path) -> None:
    tiny = Tiny(tmp_path, "llama")
    tuned = tiny.trained(1e-3)(tiny.tensors, tiny.places)
    tiny.write(projection(tiny.u, everywhere(1.0))(tuned, tiny.places))
    done = repair(str(tiny.out), str(tiny.folder), tmp_path / "repaired")
    found = read(done.path)
    for place in tiny.places:
        if tuned[place.name].dim() == 2:
            old, new, base = (
                edits.matrix(t[place.name], place.axis) for t in (tuned, found, tiny.tensors)
            )
            u = tiny.u.double()
            across = (new - old) - torch.outer(u, u @ (new - old))
            taken = float((u @ base).norm())
            assert float(across.norm()) < 0.02 * taken, place.name
            assert float((u @ new - u @ base).norm() / (u @ base).norm()) < 0.05, place.name
    assert "a fine-tune's own part" in done.lost[0]


def test_layers_that_are_not_verified_stay_as_they_are(tmp_path: Path) -> None:
    tiny = Tiny(tmp_path, "llama")
    window = projection(tiny.u, lambda place: 1.0 if place.layer in (1, 2) else 0.0)
    tiny.candidate(then(window, edits.noise(0.01, 1)))
    done = repair(str(tiny.out), str(tiny.folder), tmp_path / "repaired")
    before, after = read(tiny.out), read(done.path)
    changed = {name for name, t in before.items() if not torch.equal(t, after[name])}
    assert changed
    assert all(".layers.1." in name or ".layers.2." in name for name in changed)
    assert done.layers == 2
    assert any("4 layers are changed in another way" in line for line in done.lost)


def test_nothing_to_repair_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = Tiny(tmp_path, "llama")
    tiny.candidate(edits.lora(2, 0.1, 1))
    with pytest.raises(ExportError, match="no projection to undo"):
        repair(str(tiny.out), str(tiny.folder), tmp_path / "repaired")
    tiny.candidate(projection(tiny.u, everywhere(1.0), "column"))
    before = worst(read(tiny.out), tiny.tensors)
    out = tmp_path / "through the command line"
    assert main(["repair", str(tiny.out), "--base", str(tiny.folder), "--out", str(out)]) == 0
    assert "norms were kept" in capsys.readouterr().err
    assert worst(read(out), tiny.tensors) < before / 2


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_as_an_adapter_for_the_edited_checkpoint(family: str, tmp_path: Path) -> None:
    from peft import PeftModel

    bare = {"mlp_bias": False, "attention_bias": False}
    changes: dict[str, Any] = bare if family == "llama" else {}
    tiny = Tiny(tmp_path, family, **changes)

    def matrices_alone(tensors: Any, places: Any) -> Tensors:
        return edits.two_directions(tiny.u, tiny.v, 1.0, 0.5)(tensors, places)

    tiny.candidate(matrices_alone)
    done = repair_adapter(str(tiny.out), str(tiny.folder), tmp_path / "adapter")
    ids = torch.arange(1, 13)[None]
    base, edited = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for folder in (tiny.folder, tiny.out)
    )
    with torch.inference_mode():
        meant, before = base(input_ids=ids).logits, edited(input_ids=ids).logits
        mended = PeftModel.from_pretrained(edited, done.path)(input_ids=ids).logits
    assert float((before - meant).abs().max()) > 0.1
    if family == "llama":  # of GPT-2's tied embedding the head is edited too, which LoRA is not
        torch.testing.assert_close(mended, meant, atol=2e-3, rtol=1e-3)
    again = compare_weights(str(done.path), str(tiny.out))
    assert all(layer.rank == 2 for layer in again.record.layers)


def test_fused_experts_have_no_place_in_an_adapter(tmp_path: Path) -> None:
    tiny = Tiny(tmp_path, "gpt_oss")
    tiny.candidate(projection(tiny.u, everywhere(1.0)))
    with pytest.raises(ExportError, match="no place for it"):
        repair_adapter(str(tiny.out), str(tiny.folder), tmp_path / "adapter")
