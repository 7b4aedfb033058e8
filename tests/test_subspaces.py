"""Subspaces, strengths, layers and kernels: the algebra against plain loops, side by side against
alone, and their place in files, names and a run.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from saved import save_model, small_config, write_prompts
from torch import Tensor

from refusal import Ablate, Add, Candidates, ChatModel, ConfigError, Direction, DirectionError, run
from refusal.core.storage import write_tensors
from refusal.core.subspace import orthonormal, spanned
from refusal.directions.controls import random_directions
from refusal.interventions.ablate_add import project_out
from refusal.interventions.conditions import Condition, action_of, in_order, interventions_for
from refusal.interventions.forms import project_direction
from refusal.interventions.kernel import Kernel, Tent
from refusal.interventions.side_by_side import SideBySide
from refusal.interventions.stream import Place, StreamEdit
from refusal.report.data import read_run

WIDTH, LAYERS = tiny_models.WIDTH, tiny_models.LAYERS
PROMPT = "Describe the water cycle."
KERNEL = Kernel.of((1.2, 0.75, 0.3, 0.5, 0.6, 0.25, 0.1, 1.0))


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one(seed: int, layer: int = 1) -> Direction:
    vector = drawn(seed, WIDTH)
    layers = drawn(seed + 500, LAYERS, WIDTH)
    layers = layers / layers.norm(dim=1, keepdim=True)
    layers[0] = 0  # a template token's embedding is the same in every prompt
    known = {"harmless_mean": drawn(seed + 1000, WIDTH), "by_layer": layers}
    return Direction(vector / vector.norm(), 4.0, -1, layer, seen=frozenset({str(seed)}), **known)


def several(rank: int, seed: int = 0) -> Direction:
    return spanned([one(seed + i, layer=i) for i in range(rank)])


@given(st.integers(0, 1000), st.integers(1, 6), st.randoms())
def test_the_order_of_rows_is_irrelevant(seed: int, rank: int, random: Any) -> None:
    vectors = drawn(seed, rank, 16) @ (0.3 * drawn(seed + 1, 16, 16) + torch.ones(16, 16))
    rows = orthonormal(vectors)
    torch.testing.assert_close(rows @ rows.T, torch.eye(rank), atol=1e-5, rtol=0)
    torch.testing.assert_close(rows[0], vectors[0] / vectors[0].norm(), atol=1e-5, rtol=0)
    order = random.sample(range(rank), rank)
    again = orthonormal(vectors[order])
    torch.testing.assert_close(rows.T @ rows, again.T @ again, atol=1e-5, rtol=0)


def test_correlated_rows_one_after_the_other_leave_much_of_the_first() -> None:
    cosine = 0.89
    sine = math.sqrt(1 - cosine**2)
    first, second = torch.eye(64)[0], torch.zeros(64)
    second[0], second[1] = cosine, sine
    x = drawn(1, 20_000, 64)
    left = project_out(project_out(x, first), second) @ first
    share = float(left.norm() / (x @ first).norm())
    assert share == pytest.approx(cosine * sine, rel=0.02)  # 41 %
    together = spanned([Direction(u, 1.0, -1, 0) for u in (first, second)])
    clean = Ablate(together)(x)
    assert float((clean @ first).norm() / (x @ first).norm()) < 1e-6
    assert float((clean @ second).norm() / (x @ first).norm()) < 1e-6


def test_dependent_rows_are_refused_in_one_sentence() -> None:
    a, b = drawn(1, WIDTH), drawn(2, WIDTH)
    with pytest.raises(DirectionError, match="do not span a subspace of 3 dimensions"):
        orthonormal(torch.stack([a, b, 2 * a - 3 * b]))
    with pytest.raises(DirectionError, match="do not span a subspace of 5 dimensions"):
        orthonormal(drawn(3, 5, 4))
    with pytest.raises(DirectionError, match="Row 1 of a subspace has length 0"):
        orthonormal(torch.stack([a, 0 * b]))
    with pytest.raises(DirectionError, match="Row 0 of a subspace has length nan"):
        orthonormal(torch.stack([a * torch.nan, b]))
    with pytest.raises(DirectionError, match="at least one direction"):
        spanned([])
    with pytest.raises(DirectionError, match="different models"):
        spanned([one(1), replace(one(2), model="another")])


@given(st.integers(0, 500), st.integers(1, 5), st.floats(-2, 2))
def test_ablation_is_the_formula(seed: int, rank: int, alpha: float) -> None:
    direction, x = several(rank, seed), 10 * drawn(seed + 9, 3, 4, WIDTH)
    q = direction.rows.double()
    expected = x.double() - alpha * (x.double() @ q.T) @ q
    got = Ablate(direction, alpha)(x)
    torch.testing.assert_close(got.double(), expected, atol=2e-4, rtol=1e-5)
    if rank == 1 and alpha == 1:
        assert torch.equal(got, project_out(x, direction.vector))


def test_the_ends_are_exact_to_the_bit(model: ChatModel) -> None:
    x = drawn(5, 3, 4, WIDTH)
    x[0, 0, :3] = -0.0
    for form in ({}, {"per_layer": True}, {"kernel": KERNEL}):
        nothing = Ablate(several(3), 0.0, **form)
        assert nothing.edits(model.hf, model.sites) == []
        assert torch.equal(nothing(x).view(torch.int32), x.view(torch.int32))
    ids = torch.tensor(model.tokenize([PROMPT] * 2))
    side = SideBySide([Ablate(several(2), 0.0), None])
    side.rows([0, 1])
    with torch.no_grad():
        plain = model.hf(input_ids=ids).logits
        with model.apply(side):
            assert torch.equal(model.hf(input_ids=ids).logits, plain)
    single, padded = Ablate(one(1)), Ablate(one(1)).vectors
    rows = torch.cat([padded, torch.zeros(4, WIDTH)])  # as beside one of rank 3
    assert torch.equal(single(x).view(torch.int32), Ablate.change(x, rows).view(torch.int32))
    assert torch.equal(single(x), project_out(x, one(1).vector))


def edits_of_all_forms() -> list[StreamEdit]:
    return [
        Ablate(one(1)),
        Ablate(several(3), 0.5),
        Ablate(several(2, 7)),
        Ablate(one(3), 2.0),
        Ablate(one(4), per_layer=True),
        Ablate(several(2, 4), kernel=KERNEL),
        Ablate(one(6), 0.7, kernel=KERNEL, per_layer=True),
        Add(one(2), 0.5),
        Ablate(one(1), 0.0),
    ]


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral", "gpt_oss", "phi", "zamba2"])
def test_side_by_side_each_row_is_under_its_own(family: str) -> None:
    model = tiny_models.chat_model(family)
    if family == "zamba2":
        model.hf.double()  # rounding in float32 grows in recurrent states
    edits = edits_of_all_forms()
    side = SideBySide([*edits, None])
    which = [*reversed(range(len(side))), 1, 1]
    ids = torch.tensor(model.tokenize([PROMPT]) * len(which))
    side.rows(which)
    with torch.no_grad(), model.apply(side):
        together = model.hf(input_ids=ids, use_cache=False).logits
    for row, i in zip(together, which, strict=True):
        alone = [] if i == len(edits) else [edits[i]]
        with torch.no_grad(), model.apply(*alone):
            expected = model.hf(input_ids=ids[:1], use_cache=False).logits[0]
        torch.testing.assert_close(row, expected, atol=3e-4, rtol=3e-4)


def plain_loop(model: ChatModel, edit: Ablate, ids: Tensor) -> Tensor:
    """Logits with every write changed by hand, in float64 where the change is made."""
    hf, depth = model.hf, model.sites.n_layers

    def changed(x: Tensor, place: Place) -> Tensor:
        rows, strength = edit.taken_at(place)
        wide, q = x.double(), rows.double()
        return (wide - strength * (wide @ q.T) @ q).to(x.dtype)

    def first(module: Any, args: Any, kwargs: Any) -> Any:
        place = Place(None, None, depth)
        if args:
            return (changed(args[0], place), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": changed(kwargs["hidden_states"], place)}

    def write(place: Place) -> Any:
        def hook(module: Any, args: Any, out: Any) -> Any:
            whole = isinstance(out, tuple)
            return (changed(out[0], place), *out[1:]) if whole else changed(out, place)

        return hook

    start = hf.get_submodule(model.sites.blocks[0])
    handles = [start.register_forward_pre_hook(first, with_kwargs=True)]
    for layer, (attention, mlp) in enumerate(model.sites.writers):
        for name, part in ((attention, "attention"), (mlp, "mlp")):
            place = Place(layer, part, depth)  # type: ignore[arg-type]
            handles.append(hf.get_submodule(name).register_forward_hook(write(place)))
    with torch.no_grad():
        logits: Tensor = hf(input_ids=ids, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "phi", "gpt_neox"])
def test_every_form_is_the_plain_loop(family: str) -> None:
    model = tiny_models.chat_model(family)
    model.hf.double()
    ids = torch.tensor(model.tokenize([PROMPT]))
    for edit in edits_of_all_forms():
        if isinstance(edit, Ablate):
            with torch.no_grad(), model.apply(edit):
                got = model.hf(input_ids=ids, use_cache=False).logits
            torch.testing.assert_close(got, plain_loop(model, edit, ids), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_an_embedding_that_is_read_twice_is_changed_once(alpha: float) -> None:
    model = tiny_models.chat_model("zamba2")
    assert model.sites.embedding_elsewhere
    direction, seen = one(3), []
    ids = torch.tensor(model.tokenize([PROMPT]))
    block = model.hf.get_submodule(model.sites.blocks[0])

    def look(module: Any, args: Any, kwargs: Any) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    for edits in ([], [Ablate(direction, alpha)]):
        with torch.no_grad(), model.apply(*edits):
            handle = block.register_forward_pre_hook(look, with_kwargs=True)
            model.hf(input_ids=ids, use_cache=False)
            handle.remove()
    along = [x @ direction.vector for x in seen]
    torch.testing.assert_close(along[1], (1 - alpha) * along[0], atol=1e-5, rtol=1e-4)


def test_a_stream_that_is_no_sum_takes_strength_one_only(model: ChatModel) -> None:
    other = replace(model.sites, additive=False)
    assert Ablate(several(2)).edits(model.hf, other)
    for edit in (Ablate(one(1), 0.5), Ablate(one(1), kernel=KERNEL)):
        with pytest.raises(DirectionError, match="no plain sum"):
            edit.edits(model.hf, other)


def test_a_tent_falls_in_a_straight_line_and_ends() -> None:
    tent = Tent(1.2, 0.5, 0.2, 0.3)
    heights = [tent.height(layer, 11) for layer in range(11)]
    assert heights == pytest.approx([0, 0, 0.2, 1.6 / 3, 2.6 / 3, 1.2, 2.6 / 3, 1.6 / 3, 0.2, 0, 0])
    both = Kernel.of((1, 0, 0.5, 1))
    assert both.attention == both.mlp
    assert KERNEL.at(Place(None, None, 5)) == 0
    assert KERNEL.at(Place(3, "attention", 5)) == pytest.approx(1.2)
    assert KERNEL.at(Place(3, "mlp", 5)) == pytest.approx(0.6 - 0.5 * 0.5)
    with pytest.raises(ConfigError, match="4 numbers"):
        Kernel.of((1, 2))
    for wrong in ((1, 1.5, 0, 0.5), (1, 0.5, 0, 0)):
        with pytest.raises(ConfigError, match="A tent of strengths"):
            Kernel.of(wrong)


def test_the_projected_direction_is_across_the_harmless_mean() -> None:
    direction = one(1)
    assert direction.harmless_mean is not None
    found = project_direction(direction)
    mean = direction.harmless_mean
    assert abs(float(found.vector @ mean)) < 1e-5 * float(mean.norm())
    raw = direction.vector * direction.norm
    expected = raw - (raw @ mean) / (mean @ mean) * mean
    torch.testing.assert_close(found.vector * found.norm, expected)
    with pytest.raises(DirectionError, match="harmless mean"):
        project_direction(replace(direction, harmless_mean=None))
    with pytest.raises(DirectionError, match="nothing to project"):
        project_direction(replace(direction, harmless_mean=3 * direction.vector))
    with pytest.raises(DirectionError, match="subspace of 2"):
        project_direction(several(2))


def test_layers_that_are_not_known_are_refused(model: ChatModel) -> None:
    with pytest.raises(DirectionError, match="per_layer needs"):
        interventions_for("per_layer", replace(one(1), by_layer=None))
    known = one(1).by_layer
    assert known is not None
    short = replace(one(1), by_layer=known[:3])
    with (
        pytest.raises(DirectionError, match="layers 0 to 2 alone"),
        model.apply(*interventions_for("per_layer", short)),
    ):
        pass
    vectors = drawn(1, 2, 4, WIDTH)
    vectors[1, 0], vectors[1, 3] = 0, torch.nan
    layers = Candidates(vectors, None, "tiny").by_layer(-1)
    assert layers.shape == (3, WIDTH)
    assert not layers[0].any()
    torch.testing.assert_close(layers[1:] * vectors[1, 1:3].norm(dim=1)[:, None], vectors[1, 1:3])


def test_a_subspace_is_saved_with_where_each_row_was_found(tmp_path: Path) -> None:
    direction = replace(several(3), model="tiny", seed=4)
    file = tmp_path / "direction.safetensors"
    direction.save(file)
    found = Direction.load(file)
    assert found.rank == 3
    assert found.places == ((-1, 0), (-1, 1), (-1, 2))
    assert found.seen == {"0", "1", "2"}
    for name, tensor in direction.tensors.items():
        assert torch.equal(found.tensors[name], tensor)
    one(1).save(file)
    assert Direction.load(file).basis is None
    assert direction.basis is not None
    tensors = direction.tensors
    about = {"norm": "1.0", "position": "-1", "layer": "0", "qualified": "true"}
    about["row_places"] = "[[-1, 0], [-1, 1], [-1, 2]]"
    bad: Sequence[tuple[dict[str, Tensor], dict[str, str], str]] = [
        ({"basis": tensors["basis"] * 2}, {}, "not orthonormal"),
        ({"basis": tensors["basis"].flip(0).clone()}, {}, "first row of its basis"),
        ({"basis": tensors["basis"][:, :9].clone()}, {}, "not rows of 32"),
        ({}, {"row_places": "[[-1, 0]]"}, "3 rows and 1 places"),
        ({}, {"row_places": "[[-1, 0], [-1, 1], [-1, null]]"}, "no pairs of whole numbers"),
        ({"by_layer": 2 * tensors["by_layer"]}, {}, "not of length 1 or 0"),
    ]
    for wrong, told, message in bad:
        write_tensors(file, {**tensors, **wrong}, {**about, **told})
        with pytest.raises(DirectionError, match=message):
            Direction.load(file)


def test_random_controls_are_as_large() -> None:
    plain, wide = random_directions(one(1), 3), random_directions(several(3), 3)
    for name, control in plain.items():
        assert control.rank == 1
        if name == "random-1":
            assert torch.equal(control.vector, wide[name].vector)
        assert wide[name].rank == 3
        rows, layers = wide[name].rows, wide[name].by_layer
        torch.testing.assert_close(rows @ rows.T, torch.eye(3), atol=1e-6, rtol=0)
        assert layers is not None
        assert layers.norm(dim=1).tolist() == pytest.approx([0, 1, 1, 1, 1])
    assert not torch.equal(wide["random-1"].rows, wide["random-2"].rows)


def test_numbers_stand_behind_names() -> None:
    direction = one(1)
    assert action_of("ablation").numbers == ()
    assert interventions_for("ablation@0.5", direction) == (Ablate(direction, 0.5),)
    assert interventions_for("subtraction@0.5", direction) == (Add(direction, -0.5),)
    assert interventions_for("random-2-addition@1.25", direction) == (Add(direction, 1.25),)
    (made,) = interventions_for("kernel@1,0.7,0.2,0.5", direction)
    assert made == Ablate(direction, kernel=Kernel.of((1, 0.7, 0.2, 0.5)))
    assert interventions_for("per_layer@0.5", direction) == (
        Ablate(direction, 0.5, per_layer=True),
    )
    assert Condition.named("shuffled-ablation@2").name == "shuffled-ablation@2"
    names = ["projected", "ablation@2", "ablation", "baseline", "ablation@0.5"]
    ordered = ["baseline", "ablation", "ablation@0.5", "ablation@2", "projected"]
    assert sorted(names, key=in_order) == ordered
    for wrong, message in (
        ("ablation@", "numbers are due"),
        ("ablation@half", "numbers are due"),
        ("ablation@.50", "is written ablation@0.5"),
        ("ablation@nan", "not finite"),
        ("ablation@1,2", r"takes 0 or 1 number\(s\)"),
        ("kernel", r"takes 4 or 8 number\(s\)"),
        ("ablatoin@1", "Did you mean 'ablation'"),
    ):
        with pytest.raises(ConfigError, match=message):
            action_of(wrong)


def test_a_run_measures_every_form_with_controls(tmp_path: Path) -> None:
    forms = ("ablation@0.5", "projected", "per_layer", "kernel@1,0.75,0.25,0.5")
    config = small_config(
        save_model(tmp_path / "model"),
        write_prompts(tmp_path),
        interventions=forms,
        controls=1,
        n_control=2,
        drift_tokens=2,
        n_texts=2,
        text_tokens=12,
    )
    result = run(config, tmp_path / "run")
    rates = {(m.set, m.condition) for m in result.metrics if m.name == "refusal_rate"}
    drifts = {m.condition for m in result.metrics if m.name == "kl_first_token"}
    lengths = {m.condition for m in result.metrics if m.name == "refusal_rate_at_4_tokens"}
    for form in forms:
        assert form in lengths or not lengths
        for control in ("", "random-1-", "shuffled-", "matched-"):
            assert {("harmful", control + form), ("harmless", control + form)} <= rates
            assert control + form in drifts
    told = {m.name: m.value for m in result.metrics if m.condition == "projected"}
    assert 0 < told["projected_norm_share"] <= 1
    data = read_run(tmp_path / "run")
    shown = [condition for set_name, condition in data.completions if set_name == "harmful"]
    assert shown == ["baseline", "ablation", forms[0], "subtraction", *forms[1:]]
    assert not data.missing
    direction = Direction.load(tmp_path / "run" / "direction.safetensors")
    assert direction.by_layer is not None
    assert direction.by_layer.shape == (LAYERS, WIDTH)
    torch.testing.assert_close(direction.by_layer[direction.layer], direction.vector)
