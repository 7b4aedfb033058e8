"""Every form of ablation in weights does what its hooks do, in memory, as an adapter and streamed."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
from torch import Tensor

from refusal import (
    Ablate,
    ChatModel,
    Direction,
    DirectionError,
    ExportError,
    UnsupportedModelError,
    export_lora,
    export_model,
    orthogonalise,
    orthogonalised,
)
from refusal.config.exports import ExportEdit
from refusal.core.subspace import orthonormal, spanned
from refusal.interventions.forms import projected
from refusal.interventions.kernel import Kernel
from refusal.model.forward import last_logits
from refusal.pipeline.export import ablation_of
from refusal.weights.agreement import Agreement
from refusal.weights.checkpoint_stream import stream_model
from refusal.weights.edit import edit_of
from refusal.weights.parameters import find_parameters
from refusal.weights.projection import Removal, check_kept, project_weight, share_read, size_before
from refusal.weights.verify import check_lost

PROMPTS = ("Why?", "Name three rivers of Europe, please.", "How do birds find their way home?")
# plain, post-norm, fused experts in both orientations, parallel, tied, read past the stream
FAMILIES = ["llama", "gemma2", "olmo2", "mixtral", "gpt_oss", "phi", "gpt2", "zamba2"]
KERNEL = Kernel.of((1.2, 0.75, 0.3, 0.5, 0.6, 0.25, 0.1, 1.0))


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one(seed: int, name: str = "", width: int = tiny_models.WIDTH) -> Direction:
    vector, layers = drawn(seed, width), drawn(seed + 500, tiny_models.LAYERS, width)
    layers = layers / layers.norm(dim=1, keepdim=True)
    layers[0] = 0
    known = {"harmless_mean": drawn(seed + 1000, width), "by_layer": layers}
    return Direction(vector / vector.norm(), 2.0, -1, 1, model=name, **known)


def forms(name: str = "") -> dict[str, Ablate]:
    three = spanned([one(seed, name) for seed in (1, 2, 3)])
    return {
        "half": Ablate(one(1, name), 0.5),
        "reflection": Ablate(one(1, name), 2.0),
        "rank 3": Ablate(three),
        "half of rank 3": Ablate(three, 0.5),
        "projected": projected(one(1, name)),
        "per layer": Ablate(one(1, name), per_layer=True),
        "kernel": Ablate(three, kernel=KERNEL),
    }


def fits(form: str, family: str) -> bool:
    """Zamba's blocks share one weight, which cannot differ from layer to layer."""
    return family != "zamba2" or form not in ("per layer", "kernel")


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_do_what_the_hooks_do(family: str) -> None:
    model = tiny_models.chat_model(family)
    parameters = find_parameters(model.hf, model.sites)
    before, hash_before = last_logits(model, PROMPTS), model.weight_hash()
    for form, ablation in forms(model.name).items():
        if not fits(form, family):
            continue
        with model.apply(ablation):
            expected = last_logits(model, PROMPTS)
        edit = edit_of(model.hf, model.sites, parameters, ablation)
        agreement = Agreement(model.hf, model.sites, ablation)
        agreement.check(edit, agreement.edited(edit))
        with orthogonalised(model, ablation, parameters=parameters):
            edited = last_logits(model, PROMPTS)
        effect = float((before - expected).norm())
        # behind a post-norm the norm rescales what is left: near, not equal
        limit = 1.0 if any(p.norm for p in parameters) else 2e-3
        assert float((edited - expected).norm()) < limit * effect, form
        assert effect > 0.1, form
    assert model.weight_hash() == hash_before


@pytest.mark.parametrize("family", ["gemma2", "olmo2"])
def test_a_write_behind_a_post_norm_loses_all_rows_at_once(family: str) -> None:
    model = tiny_models.chat_model(family)
    three = spanned([one(seed, model.name) for seed in (1, 2, 3)])
    seen: list[Tensor] = []
    writers = [model.hf.get_submodule(name) for names in model.sites.writers for name in names]
    with orthogonalised(model, three):
        handles = [w.register_forward_hook(lambda m, a, out: seen.append(out[0])) for w in writers]
        last_logits(model, PROMPTS[:1])
    for handle in handles:
        handle.remove()
    assert len(seen) >= len(writers)
    for x in seen:
        assert float((x @ three.rows.T).norm()) < 1e-4 * float(x.norm())


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral", "gpt_oss", "phi", "gpt2"])
def test_an_adapter_holds_every_form_exactly(family: str, tmp_path: Path) -> None:
    model = tiny_models.chat_model(family)
    for form in ("half of rank 3", "per layer", "kernel"):
        ablation, folder = forms(model.name)[form], tmp_path / form
        export_lora(model, ablation, folder)
        with orthogonalised(model, ablation):
            expected = last_logits(model, PROMPTS)
        wrapped = peft.PeftModel.from_pretrained(tiny_models.network(family), folder).eval()
        base: Any = wrapped.get_base_model()
        loaded = ChatModel(base, tiny_models.tokenizer(), sites=model.sites)
        assert (last_logits(loaded, PROMPTS) - expected).abs().max() < 1e-3
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        rank = 1 if form == "per layer" else 3
        assert (config["r"], config["lora_alpha"]) == (rank, rank)
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert f"rank {'one' if rank == 1 else rank} for" in card


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral", "gpt2"])
def test_streamed_is_to_the_bit_what_memory_gives(family: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    hf: Any = tiny_models.network(family)
    dtype = torch.float32 if family == "mixtral" else torch.bfloat16  # rounding changes routes
    hf.to(dtype).save_pretrained(source)
    tiny_models.tokenizer().save_pretrained(source)
    more = ("per layer", "row norms") if family == "llama" else ()
    for form in ("half of rank 3", "kernel", *more):
        ablation = forms(str(source)).get(form, Ablate(one(1, str(source))))
        norm: Any = "row" if form == "row norms" else None
        streamed = stream_model(source, ablation, tmp_path / f"streamed {form}", norm=norm)
        memory: Any = type(hf).from_pretrained(source, dtype="auto")
        model = ChatModel(memory, tiny_models.tokenizer(), name=str(source))
        kept = export_model(model, ablation, tmp_path / f"memory {form}", norm=norm)
        assert streamed.report is not None
        assert kept.report is not None
        assert set(streamed.report.parameters) == set(kept.report.parameters)
        assert streamed.report.untied == kept.report.untied
        both = [type(hf).from_pretrained(x.path, dtype="auto") for x in (streamed, kept)]
        tensors = [dict(x.state_dict()) for x in both]
        assert tensors[0].keys() == tensors[1].keys()
        assert all(torch.equal(x, tensors[1][name]) for name, x in tensors[0].items())


def test_the_card_says_what_was_done(tmp_path: Path) -> None:
    model = tiny_models.chat_model("llama")
    three = spanned([replace(one(s, model.name), position=-s, layer=s) for s in (1, 2, 3)])
    export_model(model, Ablate(three, kernel=KERNEL), tmp_path / "out", PROMPTS, norm="column")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for part in (
        "3 directions projected out of the weights that write",
        "a = 1.0 times the kernel below, rank 3",
        "attention: 1.2 at 0.75 of the depth, falling to 0.3 over 0.5, 0 beyond; mlp: 0.6 at",
        "found at (position, layer) -1, 1; -2, 2; -3, 3",
        "norms of what each input writes kept",
        "% of what it read before |",
    ):
        assert part in card
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["refusal"]
    assert (config["rank"], config["norms_kept"], config["strength"]) == (3, "column", 1.0)
    assert config["kernel"]["mlp"] == {"most": 0.6, "at": 0.25, "least": 0.1, "reach": 1.0}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_no_leak_in_any_form_and_a_leak_is_one(dtype: torch.dtype) -> None:
    for family in ("llama", "granite"):
        hf: Any = tiny_models.network(family)
        model = ChatModel(hf.to(dtype), tiny_models.tokenizer(), name=family)
        parameters = find_parameters(model.hf, model.sites)
        leaking = replace(model.sites, writers=tuple(n[:1] for n in model.sites.writers))
        for form in ("half", "rank 3", "per layer", "kernel"):
            ablation = forms(family)[form]
            edit = edit_of(model.hf, model.sites, parameters, ablation)
            agreement = Agreement(model.hf, model.sites, ablation)
            agreement.check(edit, agreement.edited(edit))
            wrong = Agreement(model.hf, leaking, ablation)
            with pytest.raises(UnsupportedModelError, match=r"limit 0\.1%"):
                wrong.check(edit, wrong.edited(edit))


def test_only_what_changes_is_edited() -> None:
    model = tiny_models.chat_model("gpt2")
    parameters = find_parameters(model.hf, model.sites)
    late = Ablate(one(1, model.name), kernel=Kernel.of((1, 1, 1, 0.3)))
    report = orthogonalise(model, late)
    assert not report.untied  # the embedding stays
    assert 0 < len(report.parameters) < len(parameters)
    assert all(".3." in name or ".4." in name for name in report.parameters)
    with pytest.raises(DirectionError, match="changes no weight"):
        orthogonalise(model, Ablate(one(1, model.name), 0.0))
    skewed = replace(one(1, model.name), basis=drawn(1, 2, 32) / 32**0.5)
    with pytest.raises(DirectionError, match="not orthonormal"):
        orthogonalise(model, skewed)


def test_column_norms_commute_and_row_norms_do_not() -> None:
    """Of a matrix with heavy and light rows, as a model's are, several percent come back."""
    random = drawn(1, 256, 1024) * (0.5 * drawn(2, 256, 1)).exp()
    rows = orthonormal(drawn(3, 2, 256))
    for removal in (Removal.of(rows[:1]), Removal.of(rows)):
        columns = project_weight(random, 0, removal, "column")
        torch.testing.assert_close(columns.norm(dim=0), random.norm(dim=0), rtol=1e-4, atol=1e-4)
        had, has = share_read(random, columns, 0, removal)
        assert math.sqrt(has / had) < 1e-5
        by_row = project_weight(random, 0, removal, "row")
        torch.testing.assert_close(by_row.norm(dim=1), random.norm(dim=1), rtol=1e-4, atol=1e-4)
        had, has = share_read(random, by_row, 0, removal)
        assert 0.002 < math.sqrt(has / had) < 0.3
        pieces = torch.stack([random.T, 2 * random.T])
        each = project_weight(pieces, 2, removal, "row")
        torch.testing.assert_close(each[0], by_row.T)
        torch.testing.assert_close(each[1], 2 * by_row.T)
        assert project_weight(random[:, 0], 0, removal, "row").shape == (256,)


def test_an_edit_that_leaves_another_share_is_refused() -> None:
    weight, removal = drawn(1, 32, 64).bfloat16(), Removal.of(orthonormal(drawn(2, 2, 32)), 0.5)
    half = project_weight(weight, 0, removal)
    check_kept("x", weight, half, 0, removal, None)
    size = size_before(weight, 0, removal)
    check_lost("x", half, 0, removal, size)  # nothing is said of it here
    for wrong in (weight, project_weight(half, 0, removal)):
        with pytest.raises(UnsupportedModelError, match=r"than an ablation of strength 0\.5"):
            check_kept("x", weight, wrong, 0, removal, None)
    whole = replace(removal, strength=1.0)
    with pytest.raises(ExportError, match="has kept"):
        check_lost("x", half, 0, whole, size)


@pytest.mark.parametrize(("width", "low", "high"), [(256, 5e-4, 4e-3), (1536, 2e-3, 8e-3)])
def test_what_rounding_to_bfloat16_leaves(width: int, low: float, high: float) -> None:
    weight = drawn(1, width, 512).bfloat16()
    removal = Removal.of(orthonormal(drawn(2, 1, width)))
    had, has = share_read(weight, project_weight(weight, 0, removal), 0, removal)
    assert low < math.sqrt(has / had) < high


def test_what_an_export_is_asked_for() -> None:
    three = spanned([one(seed) for seed in (1, 2, 3)])
    assert ablation_of(three, ExportEdit()) == Ablate(three)
    found = ablation_of(three, ExportEdit(strength=0.5, rank=2))
    assert (found.alpha, found.rank, found.direction.places) == (0.5, 2, three.places[:2])
    torch.testing.assert_close(found.direction.rows, three.rows[:2])
    assert ablation_of(one(1), ExportEdit("ablation@0.5")).alpha == 0.5
    kernel = ablation_of(one(1), ExportEdit("kernel@1,0.7,0.2,0.5", strength=0.5))
    assert (kernel.alpha, kernel.varies) == (0.5, True)
    with pytest.raises(DirectionError, match="from 1 to 3"):
        ablation_of(three, ExportEdit(rank=4))
    with pytest.raises(Exception, match="Weights cannot do affine"):
        ablation_of(one(1), ExportEdit("affine"))
    with pytest.raises(Exception, match="has a strength behind its name"):
        ablation_of(one(1), ExportEdit("ablation@0.5", strength=0.5))
