"""The direction by gradient: every loss against finite differences, a cone of one, a planted
direction.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny_models
import torch
from conftest import make_prompts
from saved import save_model, small_config, times, write_prompts
from test_cosmic import planted
from torch import Tensor

from refusal import ChatModel, Direction, make_config, run
from refusal.directions.rdo import (
    ANSWER,
    first_rows,
    lessons_of,
    orthonormal_rows,
    step_gradient,
    train_rows,
)
from refusal.directions.rdo_losses import TERMS, WEIGHTS, Lesson, Lessons, Term, gradients, loss_of
from refusal.interventions.ablate_add import Ablate, Add
from refusal.model.endings import end_tokens
from refusal.model.forward import last_logits, read_from
from refusal.model.rows import padded

HARMFUL, HARMLESS = make_prompts("harmful", 6), make_prompts("harmless", 6, offset=50)


def unit(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    vector = torch.randn(
        tiny_models.WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    found: Tensor = (vector / vector.norm()).to(dtype)
    return found


def direction(vector: Tensor, norm: float = 2.0) -> Direction:
    return Direction(vector, norm, -1, 2)


def random_lessons(model: ChatModel, n: int = 4) -> Lessons:
    """Prompts followed by random tokens."""
    generator = torch.Generator().manual_seed(1)
    found: dict[Term, tuple[Lesson, ...]] = {}
    for term in TERMS:
        prompts = HARMFUL if term == "answer" else HARMLESS
        rows = model.tokenize([p.text for p in prompts[:n]])
        lessons: list[Lesson] = []
        for row in rows:
            more = torch.randint(5, 60, (3 + len(lessons),), generator=generator).tolist()
            lessons.append(Lesson((*row, *more), len(row)))
        found[term] = tuple(lessons)
    return found


@pytest.fixture(scope="module")
def double() -> ChatModel:
    model = tiny_models.chat_model("gpt2")  # its norms compute in float64 too
    model.hf.double()
    return model


@pytest.mark.parametrize("term", TERMS)
def test_the_gradient_of_each_loss_is_that_of_finite_differences(
    double: ChatModel, term: Term
) -> None:
    lessons, vector, step = random_lessons(double), unit(3), 1e-5
    leaf = vector.clone().requires_grad_(True)
    loss_of(double, term, direction(leaf), lessons[term]).backward()
    assert leaf.grad is not None
    with torch.no_grad():
        for seed in (7, 8, 9):
            along = unit(seed)
            up, down = (
                float(loss_of(double, term, direction(vector + sign * step * along), lessons[term]))
                for sign in (1, -1)
            )
            expected = (up - down) / (2 * step)
            assert abs(expected) > 1e-6
            assert float(leaf.grad @ along) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_losses_are_those_of_a_plain_loop(double: ChatModel) -> None:
    lessons, held = random_lessons(double), direction(unit(3))
    for term in TERMS:
        expected = []
        for lesson in lessons[term]:
            batch = padded(double, [list(lesson.row)], [0])
            (base,) = read_from(double, batch, [lesson.start])
            edit = Add(held) if term == "refuse" else Ablate(held)
            with double.apply(edit):
                (logits,) = read_from(double, batch, [lesson.start])
            said, due = logits.softmax(-1), lesson.row[lesson.start :]
            if term == "retain":
                p = base.softmax(-1)
                expected.append(float((p * (p / said).log()).sum(-1).mean()))
            else:
                chances = torch.stack([said[i, token] for i, token in enumerate(due)])
                expected.append(-float(chances.log().mean()))
        found = float(loss_of(double, term, held, lessons[term]).detach())
        assert found == pytest.approx(sum(expected) / len(expected), rel=1e-6)
    with torch.no_grad():
        nothing = direction(torch.zeros(tiny_models.WIDTH).double())
        assert float(loss_of(double, "retain", nothing, lessons["retain"])) == pytest.approx(0.0)


def test_the_gradient_is_that_of_the_weighted_sum_and_tokens_are_counted(
    double: ChatModel,
) -> None:
    lessons, vector = random_lessons(double), unit(3)
    leaf = vector.clone().requires_grad_(True)
    total = sum(
        (WEIGHTS[t] * loss_of(double, t, direction(leaf), lessons[t]) for t in TERMS),
        torch.zeros(()),
    )
    total.backward()
    double.hf.zero_grad()
    before = double.forward_tokens
    double.token_budget.value, budget = 64, double.token_budget.value  # several passes
    values, found = gradients(double, direction(vector), vector, lessons, range(4))
    double.token_budget.value = budget
    assert leaf.grad is not None
    torch.testing.assert_close(found, leaf.grad)
    assert sum(WEIGHTS[t] * values[t] for t in TERMS) == pytest.approx(float(total.detach()))
    read = double.forward_tokens - before
    tokens = sum(len(lesson.row) for t in TERMS for lesson in lessons[t])
    assert 1.2 * tokens < read < 3 * tokens  # there and back, some of it shared or padded
    assert all(weight.requires_grad for weight in double.hf.parameters())
    assert all(weight.grad is None for weight in double.hf.parameters())


def test_a_step_is_along_the_sphere_and_a_cone_of_one_is_the_vector(double: ChatModel) -> None:
    lessons, vector = random_lessons(double), unit(3)
    generator = torch.Generator().manual_seed(0)
    rows = vector[None].clone().requires_grad_(True)
    values, found = step_gradient(double, direction(vector), rows, (lessons, range(4)), generator)
    plain, whole = gradients(double, direction(vector), vector, lessons, range(4))
    assert values == pytest.approx(plain)
    torch.testing.assert_close(found[0], whole - (whole @ vector) * vector)
    mixtures = torch.randn(8, 1, generator=generator).abs()
    units = mixtures.double() * vector
    torch.testing.assert_close(units / units.norm(dim=1, keepdim=True), vector.expand(8, -1))


def test_a_cone_keeps_orthonormal_rows_and_its_mixtures_learn(double: ChatModel) -> None:
    lessons = random_lessons(double)
    config = make_config(rank=2, rdo_epochs=3, method="rdo")
    done = train_rows(double, direction(unit(3)), lessons, config)
    torch.testing.assert_close(done.rows @ done.rows.T, torch.eye(2).double())
    assert done.losses[-1] < done.losses[0]
    once = train_rows(double, direction(unit(3)), lessons, config.model_copy(update={"rank": 1}))
    assert once.rows.shape == (1, tiny_models.WIDTH)
    assert once.losses[-1] < once.losses[0]
    assert [round(x, 3) for x in once.losses] != [round(x, 3) for x in done.losses]


def test_rows_start_at_the_vector() -> None:
    rows = first_rows(unit(4), 3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(rows[0], unit(4))
    torch.testing.assert_close(rows @ rows.T, torch.eye(3).double())
    torch.testing.assert_close(orthonormal_rows(2 * rows), rows)


def refuser() -> tuple[ChatModel, Tensor, Lessons, Direction]:
    """Prompts with ``#`` are answered ``N``, because attention of block 0 writes them along one
    axis that the head reads; all others, and these without that axis, ``Y``.
    """
    model, axis = planted()
    yes, no = (model.tokenizer.encode(x, add_special_tokens=False)[0] for x in "YN")
    with torch.no_grad():
        model.hf.get_parameter("model.embed_tokens.weight")[:, 1] = 1.0
        head = model.hf.get_parameter("lm_head.weight")
        head.zero_()
        head[no, 0], head[yes, 1] = 3.0, 3.0
    bad = model.tokenize([f"### {p.text} ###" for p in HARMFUL])
    good = model.tokenize([p.text for p in HARMLESS])
    lessons: Lessons = {
        "answer": tuple(Lesson((*row, yes, yes, yes), len(row)) for row in bad),
        "refuse": tuple(Lesson((*row, no), len(row)) for row in good),
        "retain": tuple(Lesson((*row, yes, yes, yes), len(row) - 3) for row in good),
    }
    said = [int(last_logits(model, [text]).argmax()) for text in ("### a ###", "a")]
    assert said == [no, yes]
    off = unit(12, torch.float32)
    start = 0.5 * axis + 0.87 * (off - (off @ axis) * axis) / (off - (off @ axis) * axis).norm()
    return model, axis, lessons, Direction(start / start.norm(), 4.0, -1, 1)


@pytest.mark.slow
def test_a_planted_direction_is_found() -> None:
    model, axis, lessons, start = refuser()
    done = train_rows(model, start, lessons, make_config(rdo_epochs=60, method="rdo"))
    assert float(start.vector @ axis) == pytest.approx(0.5, abs=0.02)
    assert float(done.rows[0] @ axis) > 0.9
    assert done.losses[-1] < done.losses[0] / 3


def test_a_time_budget_ends_it(double: ChatModel) -> None:
    config = make_config(rdo_epochs=50, rdo_seconds=1e-9, method="rdo")
    done = train_rows(double, direction(unit(3)), random_lessons(double), config)
    assert len(done.losses) == 1


def test_lessons_are_answers_refusals_and_own_answers(model: ChatModel) -> None:
    start = replace(direction(unit(3, torch.float32)), norm=5.0)
    lessons = lessons_of(model, start, HARMFUL, HARMLESS)
    assert {len(lessons[term]) for term in TERMS} == {6}
    for row, lesson in zip(
        model.tokenize([p.text for p in HARMFUL]), lessons["answer"], strict=True
    ):
        assert list(lesson.row[: len(row)]) == row
        assert lesson.start == len(row)
        assert len(lesson.row) - len(row) <= ANSWER
    for lesson in lessons["retain"]:
        assert len(lesson.row) - lesson.start <= ANSWER


def test_an_empty_answer_is_learnt_as_an_end(
    model: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = end_tokens(model)[0]
    with monkeypatch.context() as patched:
        logits = torch.full((model.hf.config.vocab_size,), -9.0)
        logits[end] = 9.0
        head = model.hf.get_output_embeddings()
        patched.setattr(head, "forward", lambda x: logits.expand(*x.shape[:-1], -1))
        lessons = lessons_of(model, direction(unit(3, torch.float32)), HARMFUL, HARMLESS)
    for lesson in (*lessons["answer"], *lessons["refuse"]):
        assert lesson.row[lesson.start :] == (end,)


@pytest.mark.parametrize("rank", [1, 2])
def test_a_run_by_gradient(tmp_path: Path, rank: int) -> None:
    config = small_config(
        save_model(tmp_path / "model"), write_prompts(tmp_path), method="rdo", rank=rank
    )
    out = tmp_path / "run"
    result = run(config, out, until="generate")
    found = Direction.load(out / "direction.safetensors")
    assert found.rank == rank
    assert result.selection is not None
    assert result.selection.score.bypass is not None
    start = result.candidates.at(found.position, found.layer)
    assert 0.5 < float(found.vector @ start.vector) < 0.99999
    assert found.norm == pytest.approx(start.norm)
    before = times(out)
    run(config, out, until="generate")
    assert times(out) == before
