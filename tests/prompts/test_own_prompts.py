"""The user's own files: what is read, how it is dealt into splits, and a clear word for everything
that is wrong.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

import refusal
from refusal import Prompt, PromptError, PromptSplits
from refusal.prompts.files import FileRow, read_file

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, content: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
        return path

    return write


def lines(n: int, start: int = 0) -> str:
    """Prompts that are no near-duplicates of each other."""
    return "".join(f"Tell{i} me{i} more{i}\n" for i in range(start, start + n))


def sizes(splits: PromptSplits, label: str) -> list[int]:
    return [len(getattr(getattr(splits, split), label)) for split in ("train", "val", "test")]


def every(splits: PromptSplits, label: str) -> list[Prompt]:
    return [p for split in ("train", "val", "test") for p in getattr(getattr(splits, split), label)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "Sing a song\n\n  Dance, slowly  \n"),
        ("a.txt", "\ufeffSing a song\r\nDance, slowly"),
        ("a.TXT", "Sing a song\nDance, slowly"),
        ("a.csv", 'Prompt,other\nSing a song,1\n"Dance, slowly",2\n'),
        ("a.csv", '\ufeffprompt\nSing a song\n"Dance, slowly"\n""\n'),
        ("a.csv", 'label, goal\nharmless,Sing a song\nsafe,"Dance, slowly"\nsafe,\nsafe\n'),
        ("a.json", '["Sing a song", " Dance, slowly", ""]'),
        (
            "a.json",
            '[{"instruction": "Sing a song"}, {"instruction": "Dance, slowly"}, {"instruction": null}]',
        ),
        ("a.jsonl", '{"text": "Sing a song"}\n\n{"text": "Dance, slowly"}\n'),
        ("a.jsonl", '\ufeff"Sing a song"\r\n"Dance, slowly"'),
    ],
)
def test_every_kind_of_file(write: Write, name: str, content: str) -> None:
    rows = read_file(f"harmless={write(name, content)}")
    assert [row.prompt.text for row in rows] == ["Sing a song", "Dance, slowly"]
    assert {row.prompt.label for row in rows} == {"harmless"}


def test_label_split_category_and_id_come_from_the_columns(write: Write) -> None:
    path = write(
        "all.csv",
        "prompt,label,split,category,id\nPick "
        "locks,Harmful,Train,theft,x7\nSing,safe,,,\nRob,unsafe,test,9,0\n",
    )
    assert read_file(str(path)) == [
        FileRow(Prompt("x7", "Pick locks", "harmful", "theft"), "train", named=True),
        FileRow(Prompt("all-2", "Sing", "harmless", None), None),
        FileRow(Prompt("0", "Rob", "harmful", "9"), "test", named=True),
    ]


def test_a_named_column_wins_over_the_usual_ones(write: Write) -> None:
    path = write("a.csv", "prompt,Question DE\nSing a song,Sing ein Lied\n")
    assert read_file(f"safe={path}", "question de")[0].prompt.text == "Sing ein Lied"


def test_rare_line_separators_inside_a_prompt_do_not_split_it(write: Write) -> None:
    for name, content in (
        ("a.txt", "one\u2028two\x85three"),
        ("a.jsonl", '"one\u2028two\x85three"'),
    ):
        assert [row.prompt.text for row in read_file(f"harmless={write(name, content)}")] == [
            "one\u2028two\x85three"
        ]


def test_class_without_a_file_comes_from_the_builtin_set(write: Write) -> None:
    builtin = refusal.load_prompts("builtin", seed=3)
    loaded = refusal.load_prompts(f"harmful={write('bad.txt', lines(10))}", seed=3)
    assert sizes(loaded, "harmful") == [6, 2, 2]
    for split in ("train", "val", "test"):
        assert getattr(loaded, split).harmless == getattr(builtin, split).harmless
    loaded = refusal.load_prompts([f"harmless={write('good.txt', lines(10))}"], seed=3)
    assert (loaded.train.harmful, sizes(loaded, "harmless")) == (builtin.train.harmful, [6, 2, 2])
    assert loaded.matched == ()


def test_rows_without_a_split_are_dealt_60_20_20_by_the_seed(write: Write) -> None:
    spec = f"harmful={write('bad.txt', lines(100))}"
    loaded, again, other = (refusal.load_prompts(spec, seed=seed) for seed in (1, 1, 2))
    assert sizes(loaded, "harmful") == sizes(other, "harmful") == [60, 20, 20]
    assert loaded == again
    assert set(loaded.train.harmful) != set(other.train.harmful)
    assert set(every(loaded, "harmful")) == set(every(other, "harmful"))
    assert {p.text for p in every(loaded, "harmful")} == set(lines(100).split("\n")) - {""}


def test_rows_with_a_split_stay_in_it(write: Write) -> None:
    named = {"train": 5, "val": 4, "test": 3}
    rows = [
        {"prompt": f"{s}{i} {s} {i}", "label": "harmful", "split": s}
        for s, n in named.items()
        for i in range(n)
    ]
    loaded = refusal.load_prompts(str(write("all.json", json.dumps(rows))))
    assert sizes(loaded, "harmful") == [5, 4, 3]
    assert all(p.text.startswith("val") for p in loaded.val.harmful)


def test_five_prompts_are_enough(write: Write) -> None:
    assert sizes(refusal.load_prompts(f"harmful={write('a.txt', lines(5))}"), "harmful") == [
        3,
        1,
        1,
    ]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_split_without_prompts_is_refused(write: Write, n: int) -> None:
    with pytest.raises(
        PromptError,
        match=r"No harmful prompts are left for (val|test)( and test)? \(train [12], val",
    ):
        refusal.load_prompts(f"harmful={write('a.txt', lines(n))}")


def test_a_split_emptied_by_deduplication_is_refused(write: Write) -> None:
    rows = [
        {"prompt": "Rob a large bank", "label": "harmful", "split": split}
        for split in ("train", "val", "test")
    ]
    path = write("a.json", json.dumps(rows))
    with pytest.raises(
        PromptError, match=r"left for train and val \(train 0, val 0, test 1; 2 removed"
    ):
        refusal.load_prompts(str(path))


def test_duplicates_are_dropped_and_counted(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    one = write("one.txt", lines(10) + lines(3))
    two = write("two.txt", lines(4, start=8) + "Tell9 me9 more9\n")
    with caplog.at_level(logging.WARNING, logger="refusal"):
        loaded = refusal.load_prompts([f"harmful={one}", f"harmful={two}"])
    assert sorted(p.text for p in every(loaded, "harmful")) == sorted(lines(12).split("\n")[:-1])
    assert [record.getMessage() for record in caplog.records] == [
        f"harmful={one}: 3 duplicate prompt(s) dropped",
        f"harmful={two}: 3 duplicate prompt(s) dropped",
    ]


def test_no_warning_without_duplicates(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    refusal.load_prompts(f"harmful={write('one.txt', lines(10))}")
    assert caplog.records == []


def test_a_row_without_a_split_gives_way_to_the_same_text_with_one(write: Write) -> None:
    rows = [{"prompt": text} for text in lines(10).split("\n")[:-1]]
    rows += [{"prompt": text["prompt"], "split": "test"} for text in rows[:6]]
    loaded = refusal.load_prompts(f"harmful={write('a.json', json.dumps(rows))}")
    assert sizes(loaded, "harmful") == [2, 1, 7]
    assert {row["prompt"] for row in rows[:6]} < {p.text for p in loaded.test.harmful}
    assert loaded.counts["removed_harmful_train"] == 0


def test_duplicates_across_named_splits_are_removed_and_counted(write: Write) -> None:
    rows = [{"prompt": text, "split": "train"} for text in lines(6).split("\n")[:-1]]
    rows += [{"prompt": text, "split": "val"} for text in lines(4, start=5).split("\n")[:-1]]
    rows += [
        {"prompt": text.upper(), "split": "test"} for text in lines(4, start=8).split("\n")[:-1]
    ]
    spec = f"harmful={write('a.json', json.dumps(rows))}"
    near, exact = refusal.load_prompts(spec), refusal.load_prompts(spec, dedup="exact")
    assert (sizes(near, "harmful"), sizes(exact, "harmful")) == ([5, 3, 4], [5, 3, 4])
    assert (near.counts["removed_harmful_train"], near.counts["removed_harmful_val"]) == (1, 1)
    assert (exact.counts["removed_harmful_train"], exact.counts["removed_harmful_val"]) == (1, 1)


def test_ids_are_unique_where_files_share_a_name_or_ids(write: Write) -> None:
    one, two = write("a/x.txt", lines(5)), write("b/x.txt", lines(5, start=5))
    three = write("c.csv", "id,prompt\n" + "".join(f"x-1,Say{i} it{i}\n" for i in range(5)))
    loaded = refusal.load_prompts([f"harmful={one}", f"harmless={two}", f"harmful={three}"])
    ids = [p.id for label in ("harmful", "harmless") for p in every(loaded, label)]
    assert len(set(ids)) == len(ids) == 15
    assert {"x-1", "x-1-2", "x-1-3", "x-1-7"} < set(ids)


def test_same_text_in_both_classes_is_refused(write: Write) -> None:
    bad, good = write("bad.txt", lines(9)), write("good.txt", lines(9, start=7))
    expected = (
        r"2 prompt\(s\) are both harmful and harmless, the first is 'Tell7 me7 more7'\. Leave each"
    )
    with pytest.raises(PromptError, match=expected):
        refusal.load_prompts([f"harmful={bad}", f"harmless={good}"])
    builtin = refusal.load_prompts("builtin").train.harmless[0].text
    with pytest.raises(PromptError, match=r"1 prompt\(s\) are both harmful and harmless"):
        refusal.load_prompts(f"harmful={write('bad.txt', lines(9) + builtin)}")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", r"a\.txt holds no prompts\. Give one prompt per line or row\."),
        ("a.txt", " \n\n", r"a\.txt holds no prompts\. Give"),
        ("a.csv", "", r"a\.csv holds no prompts\. Give"),
        ("a.csv", "prompt\n", r"a\.csv holds no prompts\. Give"),
        ("a.json", "", r"a\.json holds no prompts\. Give"),
        ("a.json", "[]", r"a\.json holds no prompts\. Give"),
        ("a.jsonl", "\n", r"a\.jsonl holds no prompts\. Give"),
        (
            "a.csv",
            "foo,bar\nx,y\n",
            r"row 1: no column prompt or text or .*, only foo, bar\. Name one with --column\.",
        ),
        (
            "a.csv",
            "prompt\nSing, loudly\n",
            r"row 1 has more cells than the header\. Put text .* in quotes\.",
        ),
        (
            "a.json",
            '{"prompts": ["Sing"]}',
            r"a\.json holds a dict, not a list\. Give a list of strings or of objects\.",
        ),
        ("a.json", '"Sing"', r"a\.json holds a str, not a list\. Give"),
        ("a.json", '["Sing", 5]', r"row 2 is 5\. Give a string or an object with a `prompt`\."),
        (
            "a.json",
            '[{"prompt": 5}]',
            r"row 1: prompt is 5, not a text\. Give the prompt as a string\.",
        ),
        (
            "a.json",
            '["Sing"',
            r"a\.json is not valid json \(.*line 1 column 8.*\)\. Mend the file\.",
        ),
        (
            "a.jsonl",
            '"Sing"\n\n{"a": }',
            r"a\.jsonl is not valid jsonl \(Expecting value: line 3 column 7\)\. Mend",
        ),
        (
            "a.csv",
            "split,prompt\ntrain,a\ndev,b\n",
            r"row 2: unknown split 'dev'\. Use train, val or test\.",
        ),
        (
            "a.csv",
            "label,prompt\nharmless,a\n",
            r"row 1 is labelled harmless, but the file was given as harmful\. Drop",
        ),
        (
            "a.docx",
            "Sing",
            r"a\.docx: unknown kind of file '\.docx'\. Use \.txt, \.csv, \.tsv, \.json or \.jsonl\.",
        ),
        ("noext", "Sing", r"noext: unknown kind of file ''\. Use"),
    ],
)
def test_bad_file(write: Write, name: str, content: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        refusal.load_prompts(f"harmful={write(name, content)}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "prompt\nSing\n",
            r"row 1: no label\. Say which class the file is, as in harmful=.*a\.csv, or add a column",
        ),
        ("prompt,label\nSing,safe\nRob,\n", r"row 2: no label\. Say"),
        ("prompt,label\nSing,nice\n", r"row 1: unknown label 'nice'\. Use harmful or harmless"),
    ],
)
def test_row_without_a_class(write: Write, content: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        refusal.load_prompts(str(write("a.csv", content)))


def test_named_column_that_is_not_there(write: Write) -> None:
    path = write("a.csv", "prompt,answer\nSing,La\n")
    with pytest.raises(
        PromptError, match=r"row 1: no column goal, only prompt, answer\. Name one with --column\."
    ):
        refusal.load_prompts(f"harmful={path}", column="goal")


def test_path_that_is_no_readable_file(tmp_path: Path) -> None:
    with pytest.raises(
        PromptError,
        match=r"There is no prompt file .*gone\.txt\. Check the path, or use builtin or",
    ):
        refusal.load_prompts(f"harmful={tmp_path / 'gone.txt'}")
    for spec in (str(tmp_path), f"harmful={tmp_path}", ""):
        with pytest.raises(
            PromptError, match=r" is a folder, not a prompt file\. Give the files in it\."
        ):
            refusal.load_prompts(spec)
    with pytest.raises(
        PromptError, match=r"cannot be read \(File name too long\)\. Check the path"
    ):
        refusal.load_prompts(f"harmful={tmp_path / ('x' * 300)}.txt")


@pytest.mark.parametrize(
    ("encoding", "says"),
    [
        ("latin-1", r"is not UTF-8 \(byte 8, line 2\)"),
        ("utf-16", r"is not UTF-8 but UTF-16, by its first two bytes"),
        (
            "utf-16-le",
            r"holds NUL characters \(the first in line 1\): it is no text, or text in UTF-16 without",
        ),
        ("utf-16-be", r"holds NUL characters \(the first in line 1\)"),
        ("utf-32-le", r"holds NUL characters"),
    ],
)
def test_file_in_another_encoding(tmp_path: Path, encoding: str, says: str) -> None:
    (tmp_path / "a.txt").write_bytes("Sing\nCafé\n".encode(encoding))
    with pytest.raises(PromptError, match=rf"a\.txt {says}.*Save it as UTF-8\."):
        refusal.load_prompts(f"harmful={tmp_path / 'a.txt'}")


def test_prompts_of_one_form_are_told_apart_with_exact_and_the_message_says_so(
    write: Write,
) -> None:
    """What a newcomer writes first: a few sentence patterns, filled in."""
    rows = [
        f"Recommend a good book about {what}."
        for what in ("bees", "tea", "ice", "jazz", "gold", "rain", "salt")
    ]
    spec = f"harmful={write('a.txt', chr(10).join(rows))}"
    with pytest.raises(PromptError, match="stay with --dedup exact"):
        refusal.load_prompts(spec)
    prompts = refusal.load_prompts(spec, dedup="exact")
    assert sorted(
        p.text for s in (prompts.train, prompts.val, prompts.test) for p in s.harmful
    ) == sorted(rows)
