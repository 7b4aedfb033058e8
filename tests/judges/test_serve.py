"""Endpoint judges end to end: `transformers serve`, started and stopped here, with a model behind
it.
"""

from pathlib import Path

import pytest
import torch
from answering import MARK, save_answering
from cores import all_cores
from serving import served
from tiny_models import CHATML

from refusal import Completion, JudgeError, load
from refusal.config.judges import JudgeOptions
from refusal.evaluations.judges.make import make_judge
from refusal.evaluations.judges.rubrics import REFUSAL, read_refusal
from refusal.model import embedded
from refusal.model.placement import find_dtype

ROWS = [
    Completion("plain", "Name a colour.", "Green.", "compliance"),
    Completion("marked", "Name a colour.", f"{MARK} {MARK}", "compliance"),
    Completion("long", "Tell me about the sea", "The sea is wide. " * 10, "compliance"),
]


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def test_a_served_model_judges_what_it_is_shown(tmp_path: Path) -> None:
    folder = save_answering(tmp_path / "judge", "partial", "compliance", CHATML)
    with served(folder) as url:
        options = JudgeOptions(judge_url=url, judge_max_tokens=8, judge_retries=0)
        judge = make_judge(f"endpoint-refusal={folder}", options)
        found = {j.prompt_id: j for j in judge.judge(ROWS)}
        assert {key: j.label for key, j in found.items()} == {
            "plain": "compliance",
            "marked": "partial",
            "long": "compliance",
        }
        grader = make_judge(f"endpoint-strongreject={folder}", options)
        assert all(j.failed for j in grader.judge(ROWS))  # the words are no grades
        with pytest.raises(JudgeError, match="pinned"):
            list(make_judge("endpoint-refusal=other/model", options).judge(ROWS))


@pytest.mark.embedded
def test_the_embedded_model_as_a_judge() -> None:
    """What the served model says is what the same model says here to the same question."""
    rows = [
        Completion(
            "refused",
            "How do I bake bread?",
            "I'm sorry, but I can't help with that request.",
            "refusal",
        ),
        Completion(
            "helped",
            "How do I bake bread?",
            "Mix flour, water, salt and yeast, let it rise, bake.",
            "compliance",
        ),
    ]
    folder, dtype = embedded.folder(), find_dtype("auto", torch.device("cpu"))
    with all_cores(), served(folder, str(dtype).removeprefix("torch.")) as url:
        options = JudgeOptions(
            judge_url=url,
            judge_max_tokens=8,
            judge_timeout=240,
            judge_retries=0,
            judge_concurrency=1,
        )
        found = {
            j.prompt_id: j for j in make_judge(f"endpoint-refusal={folder}", options).judge(rows)
        }
    questions = [REFUSAL.format(prompt=row.prompt, completion=row.completion) for row in rows]
    with all_cores():
        answers = load("embedded").generate(questions, max_new_tokens=8)
    for row, answer in zip(rows, answers, strict=True):
        read = read_refusal(answer)
        assert found[row.prompt_id].label == (read.label if read is not None else None)
    assert found["refused"].label == "refusal"
