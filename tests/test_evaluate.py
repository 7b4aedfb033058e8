"""Rates over verdicts, and what each condition does."""

import pytest
import tiny_models
import torch

from refusal import (
    Completion,
    Direction,
    LeakageError,
    PromptPair,
    control_directions,
    evaluate,
)
from refusal.detector.accuracy import DETECTOR
from refusal.directions.controls import cosines
from refusal.evaluations.refusal.rates import measure, measure_all
from refusal.interventions.conditions import CONDITIONS, interventions_for, random_group
from refusal.model.generation import generate

ASK = "Write a poem about the sea."


def completions(*verdicts: str) -> list[Completion]:
    return [Completion(str(i), ASK, "text", v) for i, v in enumerate(verdicts)]  # type: ignore[arg-type]


def test_rates_count_whole_and_partial_refusals_and_never_degenerate_text() -> None:
    found = {
        m.name: m
        for m in measure(
            completions("refusal", "partial", "degenerate", "compliance"), "harmful", "x"
        )
    }
    assert found["refusal_rate"].value == 0.5
    assert found["degenerate_rate"].value == 0.25
    assert found["partial_rate"].value == 0.25
    assert all(m.low <= m.value <= m.high and m.n == 4 for m in found.values())
    assert measure([], "harmful", "x")[0].value == 0.0


def test_every_condition_is_what_its_name_says(pair: PromptPair) -> None:
    model = tiny_models.chat_model()
    vector = torch.randn(tiny_models.WIDTH, generator=torch.Generator().manual_seed(2))
    direction = Direction(vector / vector.norm(), 5.0, -1, 2)
    found = evaluate(model, direction, pair, n=3, max_new_tokens=5)
    assert set(found.completions) == set(CONDITIONS)
    for set_name, condition in CONDITIONS:
        prompts = getattr(pair, set_name)[:3]
        with model.apply(*interventions_for(condition, direction)):
            expected = generate(model, [p.text for p in prompts], 5)
        assert [c.completion for c in found.completions[set_name, condition]] == expected
        assert found.rate(set_name, condition).n == 3
    texts = {
        c: [x.completion for x in found.completions["harmful", c]]
        for c in ("baseline", "ablation", "subtraction")
    }
    assert texts["baseline"] != texts["ablation"] != texts["subtraction"]
    with pytest.raises(KeyError, match="no refusal_rate for harmful prompts under addition"):
        found.rate("harmful", "addition")


def test_changes_are_paired_by_prompt_and_random_directions_stand_together() -> None:
    base = completions("refusal", "refusal", "refusal", "compliance")
    some = [base[2], base[0]]  # a control is run on some of the prompts, and order does not matter
    found = measure_all(
        {
            ("harmful", "baseline"): base,
            ("harmful", "ablation"): completions(
                "compliance", "compliance", "compliance", "compliance"
            ),
            ("harmful", "random-1-ablation"): some,
            ("harmful", "random-2-ablation"): [Completion("2", ASK, "text", "compliance"), base[0]],
        }
    )
    by_key = {(m.name, m.condition): m for m in found}
    change = by_key["refusal_rate_change", "ablation"]
    assert (change.value, change.n, change.p_value) == (
        -0.75,
        4,
        0.25,
    )  # three of three changed: 2 / 2^3
    assert by_key["refusal_rate_change", "random-1-ablation"].value == 0.0
    assert by_key["refusal_rate", "random-ablation"].value == 0.75
    assert by_key["refusal_rate_change", "random-ablation"].value == -0.25
    assert ("refusal_rate_change", "baseline") not in by_key


def test_rates_are_given_corrected_for_the_detector_s_errors_too() -> None:
    base, after = (
        completions(*["refusal"] * 70, *["compliance"] * 30),
        completions(*["refusal"] * 40 + ["partial"] * 60),
    )
    found = measure_all({("harmful", "baseline"): base, ("harmful", "ablation"): after})
    by_key = {(m.name, m.condition): m for m in found}
    sensitivity, specificity = (by_key[name, "detector"] for name in ("sensitivity", "specificity"))
    assert (sensitivity.set, sensitivity.n) == ("judges", DETECTOR.hits + DETECTOR.misses)
    assert sensitivity.low < sensitivity.value <= sensitivity.high
    expected = (0.7 + specificity.value - 1) / (sensitivity.value + specificity.value - 1)
    one = by_key["refusal_rate_corrected", "baseline"]
    assert one.value == pytest.approx(min(1.0, expected))
    raw = by_key["refusal_rate", "baseline"]
    assert (
        one.high - one.low > raw.high - raw.low
    )  # it knows less than one who takes the detector's word
    change = by_key["refusal_rate_corrected_change", "ablation"]
    assert change.value == pytest.approx(
        by_key["refusal_rate_corrected", "ablation"].value - one.value
    )
    assert change.p_value == by_key["refusal_rate_change", "ablation"].p_value
    assert measure_all({}) == ()


def test_the_detector_is_worth_correcting_by() -> None:
    assert DETECTOR.informedness > 0.5
    assert DETECTOR.source


def test_names_of_conditions() -> None:
    assert random_group("random-3-ablation") == "random-ablation"
    assert random_group("shuffled-ablation") is None
    direction = Direction(torch.eye(tiny_models.WIDTH)[0], 2.0, -1, 1)
    assert interventions_for("random-3-addition", direction) == interventions_for(
        "addition", direction
    )
    assert interventions_for("baseline", direction) == ()


def test_controls_have_the_norm_and_are_what_they_say(pair: PromptPair) -> None:
    model = tiny_models.chat_model()
    vector = torch.randn(tiny_models.WIDTH, generator=torch.Generator().manual_seed(2))
    direction = Direction(vector / vector.norm(), 5.0, -1, 2, seen=frozenset(["x"]))
    controls = control_directions(model, direction, pair, n_random=3, seed=7)
    assert list(controls) == ["random-1", "random-2", "random-3", "shuffled", "matched"]
    for name, control in controls.items():
        assert float(control.vector.norm()) == pytest.approx(1, abs=1e-5)
        assert (control.position, control.layer) == (-1, 2)
        assert control.norm == 5.0 or name == "matched"
        assert "x" in control.seen
    shuffled = {p.fingerprint for p in (*pair.harmful, *pair.harmless)}
    assert controls["shuffled"].seen == shuffled | {"x"}
    assert (
        max(abs(value) for name, value in cosines(direction, controls).items() if name != "matched")
        < 0.9
    )
    again = control_directions(model, direction, pair, n_random=3, seed=7)
    assert all(torch.equal(controls[name].vector, again[name].vector) for name in controls)
    assert control_directions(model, direction, pair, n_random=0) == {}


def test_every_control_is_evaluated_as_the_direction_is(pair: PromptPair) -> None:
    model = tiny_models.chat_model()
    vectors = torch.randn(3, tiny_models.WIDTH, generator=torch.Generator().manual_seed(2))
    direction, *others = (Direction(v / v.norm(), 5.0, -1, 2) for v in vectors)
    controls = {"random-1": others[0], "random-2": others[1]}
    found = evaluate(model, direction, pair, n=4, max_new_tokens=5, controls=controls, n_control=3)
    for name, control in controls.items():
        alone = evaluate(model, control, pair, n=3, max_new_tokens=5)
        for set_name, condition in CONDITIONS:
            if condition != "baseline":
                assert (
                    found.completions[set_name, f"{name}-{condition}"]
                    == alone.completions[set_name, condition]
                )
    assert found.rate("harmful", "random-ablation").n == 3


def test_a_prompt_that_the_direction_was_found_with_is_never_tested_on(pair: PromptPair) -> None:
    model = tiny_models.chat_model()
    seen = frozenset([pair.harmful[3].fingerprint])
    direction = Direction(torch.eye(tiny_models.WIDTH)[0], 5.0, -1, 2, seen=seen)
    with pytest.raises(LeakageError, match=r"1 of 10 prompts .* 'harmful-3'\. Test on prompts"):
        evaluate(model, direction, pair, max_new_tokens=2)
    evaluate(model, direction, pair, n=3, max_new_tokens=2)
