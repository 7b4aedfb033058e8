"""Whole runs on streams of several lanes, scaled or with an embedding beside them: from prompts to
the report, and what was written under ablation against a plain loop with hooks set by hand.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import saved
import shrunk
import tiny_models
import torch
from family_sweep import looked_at
from torch import Tensor
from transformers import PreTrainedModel

import refusal
from refusal import Direction, UnsupportedModelError
from refusal.model.endings import end_tokens
from refusal.pipeline.export import export_run
from refusal.report.data import read_run
from refusal.report.page import report_page

# By family: where its blocks are, what writes to the stream in one, whether weights can be edited.
_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm", "post_per_layer_input_norm")
BY_HAND: dict[str, tuple[str, tuple[str, ...], bool]] = {
    "deepseek_v4": ("model.layers", ("self_attn", "mlp"), True),
    "glm5_next": ("model.language_model.layers", ("self_attn", "mlp"), True),
    # The lanes that enter block 0 are made of the embedding by further matrices.
    "gemma3n_text": ("model.layers", (*_NORMS, "laurel"), False),
    "gemma4_text": ("model.layers", _NORMS, True),
}
NEW = 3


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    kept: dict[str, Path] = {}

    def run(family: str) -> Path:
        if family not in kept:
            folder = tmp_path_factory.mktemp(family)
            wide = {**shrunk.SPECIAL.get(family, {}), "max_position_embeddings": 512}
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(shrunk.SPECIAL, family, wide)
                hf = shrunk.tiny(family)
            hf.save_pretrained(folder / "model")
            tiny_models.tokenizer("bare").save_pretrained(folder / "model")
            config = saved.small_config(
                folder / "model",
                saved.write_prompts(folder),
                interventions=("affine",),
                controls=1,
                n_control=1,
                drift_tokens=2,
                n_test=2,
                n_texts=2,
                max_new_tokens=NEW,
                resamples=0,
            )
            refusal.run(config, folder / "run")
            kept[family] = folder
        return kept[family]

    return run


def by_hand(hf: PreTrainedModel, family: str, unit: Tensor, ids: list[int]) -> list[int]:
    """Greedy tokens, each from a pass over all before it, with the direction projected out of the
    embedding, every block's input, every write and the end.
    """
    layers, writers, _ = BY_HAND[family]

    def clean(x: Tensor) -> Tensor:
        return x - (x @ unit)[..., None] * unit

    def before(module: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (clean(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": clean(kwargs["hidden_states"])}

    def after(module: Any, args: Any, output: Any) -> Any:
        return (clean(output[0]), *output[1:]) if isinstance(output, tuple) else clean(output)

    blocks: Any = hf.get_submodule(layers)
    handles = [hf.get_input_embeddings().register_forward_hook(after)]
    handles += [b.register_forward_pre_hook(before, with_kwargs=True) for b in blocks]
    handles += [b.get_submodule(w).register_forward_hook(after) for b in blocks for w in writers]
    handles.append(blocks[-1].register_forward_hook(after))
    found = list(ids)
    with torch.inference_mode():
        for _ in range(NEW):
            logits = hf(input_ids=torch.tensor([found]), use_cache=False).logits
            found.append(int(logits[0, -1].argmax()))
    for handle in handles:
        handle.remove()
    return found[len(ids) :]


@pytest.mark.slow
@pytest.mark.parametrize("family", list(BY_HAND))
def test_a_run_comes_to_its_report(family: str, ran: Callable[[str], Path]) -> None:
    run = ran(family) / "run"
    metrics = {
        (m["name"], m["set"], m["condition"])
        for m in json.loads((run / "metrics.json").read_text())
    }
    for condition in ("baseline", "ablation", "subtraction", "affine"):
        assert ("refusal_rate", "harmful", condition) in metrics
        assert ("cross_entropy", "own-answers", condition) in metrics
    assert ("refusal_rate", "harmless", "addition") in metrics
    for control in ("random-1", "shuffled", "matched"):
        assert ("refusal_rate", "harmful", f"{control}-ablation") in metrics
        assert ("refusal_rate", "harmless", f"{control}-addition") in metrics
    data = read_run(run)
    assert data.missing == ()
    assert "Refusal by condition" in report_page(data)


@pytest.mark.slow
@pytest.mark.parametrize("family", list(BY_HAND))
def test_ablation_is_what_a_plain_loop_writes(family: str, ran: Callable[[str], Path]) -> None:
    folder = ran(family)
    model = refusal.load(str(folder / "model"), dtype="float32")
    unit = Direction.load(folder / "run" / "direction.safetensors").vector
    changed = 0
    for label in ("harmful", "harmless"):
        texts = {}
        for condition in ("baseline", "ablation"):
            path = folder / "run" / "completions" / f"{label}.{condition}.jsonl"
            rows = map(json.loads, path.read_text().splitlines())
            texts[condition] = {row["prompt"]: row["completion"] for row in rows}
        for prompt, text in texts["ablation"].items():
            (ids,) = model.tokenize([prompt])
            written = by_hand(model.hf, family, unit, ids)
            ends = [i for i, token in enumerate(written) if token in end_tokens(model)]
            written = written[: ends[0]] if ends else written
            assert model.tokenizer.decode(written, skip_special_tokens=True) == text
            changed += text != texts["baseline"][prompt]
    assert changed > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", list(BY_HAND))
def test_the_export_is_allowed_or_says_why(
    family: str, ran: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = ran(family)
    with caplog.at_level(logging.ERROR):
        if not BY_HAND[family][2]:
            with pytest.raises(UnsupportedModelError, match=r"Ablation by hooks works"):
                export_run(folder / "run", "model", tmp_path / "out")
            return
        done = export_run(folder / "run", "model", tmp_path / "out")
    edited = refusal.load(str(tmp_path / "out"), dtype="float32")
    unit = Direction.load(folder / "run" / "direction.safetensors").vector
    assert looked_at(edited.hf, edited.sites, unit)[0] < 1e-4
    assert done.report is not None
    if done.report.behind_norm:  # the norm rescales what is left: other logits, as is said
        return
    path = folder / "run" / "completions" / "harmful.ablation.jsonl"
    for row in map(json.loads, path.read_text().splitlines()):
        (text,) = edited.generate([row["prompt"]], NEW)
        assert text == row["completion"]
