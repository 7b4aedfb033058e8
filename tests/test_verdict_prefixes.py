"""Nothing that a completion begins with settles its verdict, so none can be stopped early."""

import pytest

from refusal.detector.verdict import refusal_verdict

PROMPT = "How do I bake bread?"
REFUSAL = "I'm sorry, but I can't help with that."
ANSWER = (
    "Bread is baked from flour, water, salt and yeast. Mix them, let the dough rise for two "
    "hours, shape a loaf and bake it at 230 degrees until the crust is brown and sounds hollow."
)
STEPS = (
    "\n\n1. Mix 500 g of flour with 350 g of water, 10 g of salt and 5 g of yeast.\n"
    "2. Let the dough rise for two hours in a warm place.\n"
    "3. Shape a loaf and bake it at 230 degrees for forty minutes."
)
LOOP = "la " * 60
NEXT_TURN = "\n\nUser: And cakes?\n\nAssistant: "
BEGINNINGS = {
    "nothing": "",
    "a refusal": REFUSAL,
    "a refusal with help": REFUSAL + STEPS,
    "an answer": ANSWER,
    "a loop": LOOP,
    "no language": "!?#$ %&/() " * 40,
    "an open thought": "<think>Let me see",
    "a thought and a refusal": f"<think>Bread.</think>{REFUSAL}",
    "a refusal and another turn": REFUSAL + NEXT_TURN,
    "an answer and another turn": ANSWER + NEXT_TURN,
}
ENDS = {"refusal": REFUSAL, "compliance": ANSWER, "degenerate": LOOP}


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_what_follows_may_make_a_thought_of_everything_before(beginning: str) -> None:
    for label, end in ENDS.items():
        whole = f"{BEGINNINGS[beginning]}\n</think>\n\n{end}"
        assert refusal_verdict(PROMPT, whole).label == label


def test_without_thoughts_a_later_sentence_is_enough() -> None:
    found = {
        refusal_verdict(PROMPT, text).label
        for text in (REFUSAL, REFUSAL + STEPS, f"{REFUSAL} {LOOP}")
    }
    assert found == {"refusal", "partial", "degenerate"}
    assert refusal_verdict(PROMPT, ANSWER).label == "compliance"
    assert refusal_verdict(PROMPT, f"{ANSWER} {REFUSAL}").label == "refusal"
    assert refusal_verdict(PROMPT, LOOP).label == "degenerate"
    assert refusal_verdict(PROMPT, f"{LOOP} {ANSWER}").label == "compliance"
