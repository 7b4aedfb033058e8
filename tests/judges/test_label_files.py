"""Files of people's labels: read as they are, or refused with the row."""

from pathlib import Path

import pytest

from refusal import PromptError
from refusal.config.judges import JudgeOptions
from refusal.core.records import Completion
from refusal.evaluations.judges.labels import LabelsJudge


def test_a_completion_is_matched_with_its_spaces_and_lines(tmp_path: Path) -> None:
    """As spreadsheets write it: no quotes around a leading space, semicolons where commas are
    decimal.
    """
    said = [" I can, and will", 'Say "no"\nor yes; then go']
    for separator in ",;":
        path = tmp_path / "labels.csv"
        rows = [
            ("prompt_id", "completion", "label"),
            ("a", said[0], "safe"),
            ("b", said[1], "unsafe"),
        ]
        quoted = [
            [
                f'"{c}"' if separator in c or '"' in c else c
                for c in (x.replace('"', '""') for x in r)
            ]
            for r in rows
        ]
        path.write_text("\n".join(separator.join(row) for row in quoted))
        judge = LabelsJudge("labels", str(path), JudgeOptions())
        items = [
            Completion("a", "A", said[0], "compliance"),
            Completion("b", "B", said[1], "compliance"),
        ]
        assert [judgement.label for judgement in judge.judge(items)] == ["safe", "unsafe"]
        judge.finish()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "a.csv",
            'prompt_id,completion,label\na,"x,safe\nb,y,safe\n',
            "quote that opens in line 2 is never closed",
        ),
        ("a.csv", "prompt_id,completion,label\na,x\n", "row 1: unknown label None"),
        (
            "a.csv",
            "prompt_id,completion,label,Label\na,x,safe,unsafe\n",
            "two columns are called 'label'",
        ),
        (
            "a.csv",
            "id,completion,label\na,x,safe\n",
            "row 1 has no prompt_id, completion and label",
        ),
        (
            "a.jsonl",
            '{"prompt_id": "a", "completion": null, "label": "safe"}',
            "row 1 has no prompt_id or no completion",
        ),
        (
            "a.jsonl",
            '{"prompt_id": "a", "completion": "x", "label": ["safe"]}',
            "row 1: unknown label",
        ),
        (
            "a.jsonl",
            '{"prompt_id": "a", "completion": "x", "label": "safe", "label": "unsafe"}',
            "stands twice",
        ),
        ("a.jsonl", '{"prompt_id": NaN}', "NaN is no JSON number: line 1"),
        ("a.jsonl", "5", "row 1 has no prompt_id, completion and label"),
        ("a.jsonl", "[" * 100_000, "nested too deeply"),
        ("a.txt", "safe", "unknown kind of file '.txt'"),
        ("a.csv", "", "holds no labels"),
    ],
)
def test_a_damaged_file_of_labels_is_refused(
    tmp_path: Path, name: str, content: str, says: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(PromptError) as caught:
        LabelsJudge("labels", str(tmp_path / name), JudgeOptions())
    assert says in str(caught.value)
