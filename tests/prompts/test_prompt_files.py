"""Prompt files that other projects publish, and damaged ones: read whole, or refused with what is
wrong and where.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusal import PromptError
from refusal.core.csv_files import read_table
from refusal.prompts.files import read_file

Save = Callable[..., str]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write a file; what ``--prompts`` takes for it."""

    def save(name: str, content: str) -> str:
        (tmp_path / name).write_text(content, encoding="utf-8")
        return f"harmless={tmp_path / name}"

    return save


SYSTEM = '{"role": "system", "content": "Be brief."}'
USER = '{"role": "user", "content": "Who are you?"}'
ANSWER = '{"role": "assistant", "content": "I am a pirate."}'


@pytest.mark.parametrize(
    ("name", "content", "prompt"),
    [
        (
            "alpaca.json",
            '[{"instruction": "Add.", "input": "1, 2", "output": "3"}]',
            "Add.\n\n1, 2",
        ),
        (
            "alpaca.json",
            '[{"instruction": "Add 1 and 2.", "input": "", "output": "3"}]',
            "Add 1 and 2.",
        ),
        (
            "dolly.jsonl",
            '{"instruction": "When?", "context": "In 1937.", "response": "1937"}',
            "When?\n\nIn 1937.",
        ),
        (
            "squad.jsonl",
            '{"id": 5, "question": "When?", "Context": "In 1937."}',
            "When?\n\nIn 1937.",
        ),
        (
            "harmbench.csv",
            'Behavior,Tags,ContextString\nSum it up,context,"A, b"\n',
            "A, b\n\n---\n\nSum it up",
        ),
        ("harmbench.csv", "Behavior,Tags,ContextString\nSay hello,,\n", "Say hello"),
        ("openai.jsonl", f'{{"messages": [{USER}]}}', "Who are you?"),
        ("openai.jsonl", f'{{"messages": [{USER}, {ANSWER}]}}', "Who are you?"),
        ("prompt.jsonl", f'{{"prompt": [{USER}]}}', "Who are you?"),
        ("openai.csv", 'messages\n"[' + USER.replace('"', '""') + ']"\n', "Who are you?"),
        (
            "parts.jsonl",
            '{"messages": [{"role": "user", "content": [{"type": "text", "text": "A b"}]}]}',
            "A b",
        ),
        ("sharegpt.json", '[{"conversations": [{"from": "human", "value": "A b"}]}]', "A b"),
        ("history.json", '[{"instruction": "A b", "history": []}]', "A b"),
        (
            "semicolon.csv",
            'label;prompt\nharmless;"Rain; or snow, then?"\n',
            "Rain; or snow, then?",
        ),
        ("semicolon.csv", "PROMPT;ID\nRain, or snow?;1\n", "Rain, or snow?"),
        ("tab.csv", "label\tprompt\nharmless\tRain, or snow?\n", "Rain, or snow?"),
        ("tab.tsv", "id\tprompt\n1\tRain, or snow?\n", "Rain, or snow?"),
        ("quotes.csv", 'id, prompt\n1, "Rain, ""or"" snow?"\n', 'Rain, "or" snow?'),
        ("lines.csv", 'id,prompt\n1,"One\ntwo"\n', "One\ntwo"),
        ("long.csv", f'id,prompt\n1,"{"a" * 200_000}"\n', "a" * 200_000),
        ("blank.csv", "prompt,text\nA b,\n", "A b"),
    ],
)
def test_what_other_projects_publish_is_read_whole(
    save: Save, name: str, content: str, prompt: str
) -> None:
    assert [row.prompt.text for row in read_file(save(name, content))] == [prompt]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('prompt,id\n"A b,1\nC d,2\n', "quote that opens in line 2 is never closed"),
        ('prompt,id\nA b,1\nC d,"2\nE f,3\n', "quote that opens in line 3 is never closed"),
        ('prompt,id\n"A\nb",1\nC d,"2\nE f,3\n', "quote that opens in line 4 is never closed"),
        ('prompt,id\n"A b,1\n"C d",2\n', "opens in line 2 closes in line 3, but its cell goes on"),
        (
            'prompt,id\n"A b,1\nC d,2"\n',
            "line 2 to 3, where a quote is still open at the end of line 2, has 1 of 2 cells",
        ),
        ('prompt,id\n"A b,1\n' + "C d,2\n" * 30_000, "quote that opens in line 2 is never closed"),
        ('prompt,id\n"A "b" c",1\n', "opens in line 2 closes in line 2"),
        ('"prompt\nA b\n', "quote that opens in line 1 is never closed"),
        ("prompt,id\nA, b,1\n", "line 2, row 1 has more cells than the header"),
        ("prompt,id\nA b;1\n", "row 1 has fewer cells than the header"),
        ("prompt,Prompt\nA,b\n", "two columns are called 'prompt'"),
        ("prompt,tag,tag\nA,b,c\n", "two columns are called 'tag'"),
        ("prompt;x,label\nA;b,c\n", "can be read with commas and with semicolons"),
        (
            "prompt,instruction\nA,b\n",
            "columns prompt and instruction, and each may be the prompt. Name one with --col",
        ),
        ("prompt,input,context\nA,b,c\n", "row 1 has input and context"),
        ("instruction,input\nA,b\n,d\n", "row 2 has input but no instruction"),
        ("prompt,label\nA b,benign\n", "row 1: unknown label 'benign'"),
        ("messages\nA b\n", "row 1: messages is no list of messages in JSON"),
    ],
)
def test_a_damaged_table_is_refused(save: Save, content: str, says: str) -> None:
    with pytest.raises(PromptError) as caught:
        read_file(save("a.csv", content))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            f'{{"messages": [{USER}, {ANSWER}, {USER}, {ANSWER}]}}',
            "the conversation (user, assistant, user, assistant) ends with the assistant turn",
        ),
        (
            f'{{"messages": [{{"role": "user", "content": " "}}, {ANSWER}, {USER}]}}',
            "message 1: the content of this user turn is ' '",
        ),
        (f'{{"messages": [{USER}, {SYSTEM}]}}', "a system message stands after the first"),
        (f'{{"messages": [{SYSTEM}]}}', "no message is a user's"),
        ('{"messages": ["A"]}', "message 1 is 'A'"),
        ('{"messages": [{"role": "tool", "content": "A"}]}', "unknown role 'tool'"),
        ('{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', "not a text"),
        ('{"messages": {"role": "user", "content": "A"}}', "not a text"),
        (f'{{"prompt": "A", "messages": [{USER}]}}', "columns prompt and messages"),
        ('{"prompt": "A", "history": [["B", "C"]]}', "row 1 has earlier turns in history"),
        ('{"prompt": "A"}\n{"text": "B"}', "columns prompt and text"),
        ('{"prompt": "A"}\n{"request": "B"}', "row 2: no column prompt, only request"),
        ('{"prompt": "A", "prompt": "B"}', "key 'prompt' stands twice in one object: line 1"),
        ('{"prompt": "A", "Prompt": "B"}', "differ only in case"),
        ('{"prompt": "A"}\n{"prompt": NaN}', "NaN is no JSON number: line 2"),
        ('{"prompt": "A", "weight": -Infinity}', "-Infinity is no JSON number"),
        ('{"prompt": "A \\ud83d"}', "row 1: prompt holds half of a surrogate pair"),
        ('{"prompt": "A", "id": "\\udc00"}', "row 1: id holds half of a surrogate pair"),
        ('{"prompt": "A \\u0000"}', "row 1: prompt holds a NUL character"),
        ('{"prompt": "A", "category": ["B"]}', "row 1: category is ['B'], not a text"),
        ('{"prompt": "A", "input": {"B": 1}}', "row 1: input is {'B': 1}, not a text"),
        ("[" * 100_000, "nested too deeply: line 1"),
        ('{"prompt": ' * 100_000 + '"A"' + "}" * 100_000, "nested too deeply: line 1"),
        ('{"prompt": "\\u200b\\ufeff "}', "holds no prompts"),
    ],
)
def test_a_row_that_is_no_single_prompt_is_refused(save: Save, content: str, says: str) -> None:
    with pytest.raises(PromptError) as caught:
        read_file(save("a.jsonl", content))
    assert says in str(caught.value)


def test_a_system_prompt_must_be_that_of_the_run(save: Save) -> None:
    """Some prompts under another system prompt than the rest would tell the classes apart by it."""
    column = save("a.jsonl", '{"system": "Be brief.", "prompt": "Who are you?"}')
    message = save("b.jsonl", f'{{"messages": [{SYSTEM}, {USER}]}}')
    for spec in (column, message):
        assert [row.prompt.text for row in read_file(spec, system="Be brief.")] == ["Who are you?"]
        with pytest.raises(
            PromptError, match=r"row 1 has a system prompt\..* give it with --system 'Be brief\.'"
        ):
            read_file(spec)
        with pytest.raises(
            PromptError, match=r"row 1 has the system prompt 'Be brief\.', and --system is 'Sing\.'"
        ):
            read_file(spec, system="Sing.")
    some = save("c.jsonl", '{"system": "Be brief.", "prompt": "A"}\n{"system": "", "prompt": "B"}')
    with pytest.raises(PromptError, match=r"row 2 has no system prompt, other rows have one"):
        read_file(some, system="Be brief.")
    two = save("d.jsonl", f'{{"system": "Sing.", "messages": [{SYSTEM}, {USER}]}}')
    with pytest.raises(PromptError, match="row 1 has two system prompts"):
        read_file(two, system="Sing.")
    assert len(read_file(save("e.jsonl", '{"system": "", "prompt": "A"}'), system="Be brief.")) == 1


def test_what_is_not_read_and_what_is_skipped_is_said(
    save: Save, caplog: pytest.LogCaptureFixture
) -> None:
    spec = save("a.csv", "instruction,input,output,notes,id\nAdd.,1,2,,7\n,,3,,8\n,,,,\n")
    assert [row.prompt.id for row in read_file(spec)] == ["7"]
    path = spec.removeprefix("harmless=")
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: 1 row(s) without a prompt skipped",
        f"{path}: prompts are read from instruction and input; not read: output",
    ]


def test_a_json_file_of_lines_is_told_from_a_damaged_one(save: Save) -> None:
    with pytest.raises(PromptError, match=r"Extra data: line 2.*or call it \.jsonl if"):
        read_file(save("a.json", '{"prompt": "A"}\n{"prompt": "B"}'))


def test_a_path_that_no_file_can_have_or_that_never_ends(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    for path, says in (
        (tmp_path / "pipe.txt", "is a pipe or a device, not a prompt file"),
        ("/dev/zero", "is a pipe or a device"),
        (tmp_path / "loop.txt", "cannot be read"),
        ("a\0b.txt", "holds a NUL character"),
        ("x/" * 3000 + "a.txt", "cannot be read"),
        (tmp_path / "pipe.txt" / "a.txt", "There is no prompt file"),
    ):
        with pytest.raises(PromptError, match=says):
            read_file(f"harmful={path}")


cells = st.text(st.sampled_from('ab ,;"\n\t|é'), max_size=8)


@given(st.lists(st.tuples(cells, cells), max_size=5), st.sampled_from(",;\t|"))
def test_a_table_with_every_cell_in_quotes_is_read_back(
    rows: list[tuple[str, str]], separator: str
) -> None:
    def line(row: tuple[str, str]) -> str:
        return separator.join('"' + cell.replace('"', '""') + '"' for cell in row)

    found = read_table("\n".join(map(line, [("prompt", "label"), *rows])), ("prompt", "label"))
    assert found == [
        dict(zip(("prompt", "label"), row, strict=True)) for row in rows if any(map(str.strip, row))
    ]
