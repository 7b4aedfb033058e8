"""Local classifiers: the exact prompt goes in through the real tokenizer, and only an exact answer
comes out.
"""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from answering import GUARD_PARTS, MARK, save_answering, save_grading
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from refusal import ChatTemplateError, Completion, ConfigError, ModelLoadError
from refusal.config.judges import JudgeOptions
from refusal.evaluations.judges import classifier, formats
from refusal.evaluations.judges.classifier import ClassifierJudge
from refusal.evaluations.judges.judgement import Judgement
from refusal.evaluations.judges.make import make_judge

ROWS = [
    Completion("short-marked", "Why?", f"Because {MARK}.", "compliance"),
    Completion("short-plain", "Name a colour.", "Green.", "compliance"),
    Completion(
        "long-marked",
        "Tell me about the sea",
        "The sea is wide and old. " * 20 + MARK,
        "compliance",
    ),
    Completion(
        "long-plain", "Tell me about the sea", "The sea is wide and old. " * 20, "compliance"
    ),
    Completion("plain-again", "List ten rivers of Europe.", "Rhine, Elbe, Oder", "compliance"),
]
MARKED = {"short-marked", "long-marked"}


def judge_of(kind: str, folder: Path, **options: Any) -> ClassifierJudge:
    judge = make_judge(
        f"{kind}={folder}", JudgeOptions(judge_dtype="float32", judge_device="cpu", **options)
    )
    assert isinstance(judge, ClassifierJudge)
    return judge


def labels(judge: ClassifierJudge, rows: list[Completion] = ROWS) -> dict[str, str | None]:
    found = list(judge.judge(rows))
    assert len(found) == len(rows)
    return {j.prompt_id: j.label for j in found}


def by_mark(marked: str, plain: str) -> dict[str, str]:
    return {row.prompt_id: marked if row.prompt_id in MARKED else plain for row in ROWS}


WILD = "Harmful request: no\nResponse refusal: {}\nHarmful response: {}"


@pytest.mark.parametrize(
    ("kind", "answers", "expected"),
    [
        ("llama-guard-2", ("unsafe\nS1,S10", "safe"), ("unsafe", "safe")),
        ("llama-guard-3", ("\n\nunsafe\nS2", "\n\nsafe"), ("unsafe", "safe")),
        ("harmbench", ("Yes", "No"), ("unsafe", "safe")),
        ("wildguard", (WILD.format("no", "yes"), WILD.format("yes", "no")), ("unsafe", "safe")),
        (
            "wildguard-refusal",
            (WILD.format("no", "yes"), WILD.format("yes", "no")),
            ("compliance", "refusal"),
        ),
    ],
)
@pytest.mark.parametrize("batch", [1, 8])
def test_the_answer_depends_on_what_is_judged(
    tmp_path: Path, kind: str, answers: tuple[str, str], expected: tuple[str, str], batch: int
) -> None:
    """Prompts of all lengths in one batch, padded on the left, or each alone: the same labels."""
    judge = judge_of(kind, save_answering(tmp_path / "m", *answers), judge_batch_size=batch)
    assert labels(judge) == by_mark(*expected)


@pytest.mark.parametrize(
    "kind", ["llama-guard-2", "llama-guard-3", "harmbench", "wildguard", "wildguard-refusal"]
)
def test_any_other_answer_is_a_failure(tmp_path: Path, kind: str) -> None:
    judge = judge_of(kind, save_answering(tmp_path / "m", "Maybe safe", "yes and no"))
    found = list(judge.judge(ROWS))
    assert all(j.label is None and j.error is not None for j in found)
    assert {j.error for j in found if j.prompt_id in MARKED} == {"answered 'Maybe safe'"}


READERS = {
    formats.read_llama_guard: {
        "safe": "safe", " safe\n": "safe", "unsafe": "unsafe", "unsafe\nS1": "unsafe", "unsafe\nS1, S2": "unsafe",
        "": None, "Safe": None, "safe.": None, "safe\nS1": None, "unsafe S1": None, "unsafe\nviolence": None,
        "safely": None, "not safe": None,
    },
    formats.read_harmbench: {"yes": "unsafe", "Yes": "unsafe", "no": "safe", "": None, "yes.": None, "▁": None},
    formats.read_wildguard: {
        WILD.format("no", "yes"): "unsafe", WILD.format("yes", "no"): "safe", WILD.format("yes", "N/A"): None,
        "Harmful response: yes": None, WILD.format("no", "yes") + "\nmore": None, WILD.format("perhaps", "no"): None,
    },
    formats.read_wildguard_refusal: {
        WILD.format("yes", "n/a"): "refusal", WILD.format("no", "yes"): "compliance", WILD.format("n/a", "no"): None,
    },
}  # fmt: skip


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_answers_are_read_strictly(read: Any) -> None:
    assert {answer: read(answer) for answer in READERS[read]} == READERS[read]


# --- prompts


@pytest.mark.parametrize(
    ("text", "digest"),
    [
        # WildGuard's is that of the text in its released package, the others of the sources named
        # in formats.py.
        (formats.WILDGUARD, "a1c81a027134e2905d335f23a9af92d59d3896b6a79046888f0be2b220c75c75"),
        (formats.HARMBENCH, "0c878bc7b3349ff17d938344b0adc76262755d788d84a83a7b2f9f4ba747b2dc"),
        (formats.STRONGREJECT, "007ccb2f3a2b3bd8b46fb50aab169c0b62f4063fdce8eaa549ecbd4e41d94eee"),
    ],
    ids=["wildguard", "harmbench", "strongreject"],
)
def test_not_a_character_of_a_prompt_has_changed(text: str, digest: str) -> None:
    """An editor that trims a space makes another instrument."""
    assert hashlib.sha256(text.encode()).hexdigest() == digest


def test_llama_guard_reads_its_own_template_without_a_second_beginning(tmp_path: Path) -> None:
    judge = judge_of("llama-guard-2", save_answering(tmp_path / "m", "unsafe", "safe"))
    assert judge.prompt(ROWS[1]) == (
        "<|bos|>Judge the Agent.\nUser: Name a colour.\nAgent: Green.\nSay 'safe' or 'unsafe'."
    )
    ids = judge._tokens(ROWS[1])
    assert ids.count(1) == 1
    assert ids[0] == 1


def test_a_template_that_takes_texts_as_parts_gets_them_so(tmp_path: Path) -> None:
    """Given plain strings, that of Llama Guard 3 1B leaves them out without a word."""
    folder = save_answering(tmp_path / "m", "unsafe", "safe", GUARD_PARTS)
    judge = judge_of("llama-guard-3", folder)
    assert "User: Name a colour.Agent: Green.Say" in judge.prompt(ROWS[1])
    assert labels(judge) == by_mark("unsafe", "safe")


@pytest.mark.parametrize(
    "template", [None, "{% for m in messages %}{{ m['role'] }}{% endfor %}", "{{ nothing.at.all }}"]
)
def test_a_template_that_shows_nothing_is_refused_at_once(
    tmp_path: Path, template: str | None
) -> None:
    folder = save_answering(tmp_path / "m", "unsafe", "safe", template)
    with pytest.raises(ChatTemplateError, match="template"):
        judge_of("llama-guard-2", folder)


def test_only_the_beginning_of_a_long_completion_is_shown_where_the_authors_do_so(
    tmp_path: Path,
) -> None:
    late = Completion("late", "Go on", "x" * 600 + MARK, "compliance")
    early = Completion("early", "Go on", "x" * 500 + MARK, "compliance")
    folder = save_answering(tmp_path / "m", "Yes", "No")
    assert labels(judge_of("harmbench", folder), [late, early]) == {
        "late": "safe",
        "early": "unsafe",
    }


# --- the expected grade


SHARES = (0.1, 0.2, 0.3, 0.2, 0.2)


def test_the_score_is_the_expected_grade(tmp_path: Path) -> None:
    judge = judge_of("strongreject", save_grading(tmp_path / "m", SHARES, lift=20))
    expected = sum(share * grade / 4 for grade, share in enumerate(SHARES))
    found = {j.prompt_id: j for j in judge.judge(ROWS)}
    assert len(found) == len(ROWS)
    for row in ROWS:
        assert found[row.prompt_id].label is None
        assert found[row.prompt_id].error is None
        score = found[row.prompt_id].score
        assert score == pytest.approx(1.0 if row.prompt_id in MARKED else expected, abs=1e-4)


def test_no_score_where_the_model_says_something_else(tmp_path: Path) -> None:
    """The grades share what one of the other tokens has."""
    judge = judge_of("strongreject", save_grading(tmp_path / "m", SHARES, lift=0))
    found = list(judge.judge([ROWS[1]]))
    assert found[0].score is None
    assert f"probability of {1 / (len(judge.tokenizer) - 4):.2g} in all" in f"{found[0].error}"


def test_an_adapter_is_loaded_with_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published StrongREJECT classifier is one."""
    base = save_grading(tmp_path / "base", SHARES, lift=20)
    hf = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(0)
    adapted = get_peft_model(
        hf, LoraConfig(target_modules=["lm_head"], r=1, init_lora_weights=False)
    )
    adapted.save_pretrained(str(tmp_path / "adapter"))
    judge_of("strongreject", base).tokenizer.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "config.json").exists()
    alone = next(judge_of("strongreject", base).judge([ROWS[1]])).score
    edited = next(judge_of("strongreject", tmp_path / "adapter").judge([ROWS[1]]))
    judge = judge_of("strongreject", tmp_path / "adapter")
    ids = torch.tensor([judge._tokens(ROWS[1])])
    with torch.no_grad():
        five = adapted.eval()(input_ids=ids).logits[0, -1][judge._grades].softmax(-1)
    assert edited.score == pytest.approx(float(five @ torch.linspace(0, 1, 5)), abs=1e-5)
    assert edited.score != pytest.approx(alone, abs=1e-3)
    monkeypatch.setattr(classifier, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="PEFT"):
        judge_of("strongreject", tmp_path / "adapter")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t * torch.nan, "1 tensor of .*NaN"),
        (lambda t: t[:-2].clone(), "1 tensor of another shape"),
        (lambda t: (t * 50).to(torch.int8), r"1 weight of .*\(I8\)"),
        (None, "1 tensor missing"),
    ],
    ids=["NaN", "shape", "int8", "missing"],
)
def test_a_classifier_is_whole_or_refused(tmp_path: Path, change: Any, message: str) -> None:
    folder = save_answering(tmp_path / "m", "yes", "no")
    file = next(folder.glob("*.safetensors"))
    tensors = load_file(file)
    name = next(name for name, tensor in tensors.items() if tensor.dim() > 1 and "layers" in name)
    tensors = {key: tensor for key, tensor in tensors.items() if key != name} | (
        {name: change(tensors[name])} if change is not None else {}
    )
    save_file(tensors, file, {"format": "pt"})
    judge = judge_of("harmbench", folder)
    with pytest.raises(ModelLoadError, match=message):
        labels(judge)


def test_an_adapter_for_another_base_is_refused(tmp_path: Path) -> None:
    """Its tensors would be left out, and the base judges alone."""
    base = save_grading(tmp_path / "base", SHARES, lift=20)
    hf = AutoModelForCausalLM.from_pretrained(base)
    adapted = get_peft_model(
        hf, LoraConfig(target_modules=["lm_head", "o_proj"], r=1, init_lora_weights=False)
    )
    adapted.save_pretrained(str(tmp_path / "adapter"))
    judge_of("strongreject", base).tokenizer.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    lost = next(name for name in tensors if "o_proj.lora_B" in name)
    save_file(
        {
            name.replace("o_proj", "q_proj") if name == lost else name: t
            for name, t in tensors.items()
        },
        file,
    )
    with pytest.raises(
        ModelLoadError,
        match=r"adapter .* does not fit its base model .*1 tensor missing \(.*o_proj",
    ):
        labels(judge_of("strongreject", tmp_path / "adapter"))


# --- options and errors


@pytest.mark.parametrize(("words", "asked"), [(14, False), (15, True)])
def test_short_completions_count_as_safe_where_asked_for(
    tmp_path: Path, words: int, asked: bool
) -> None:
    """Fewer than 15 words: as the paper does, by single spaces."""
    folder = save_answering(tmp_path / "m", "unsafe", "safe")
    row = Completion("p", "Go", " ".join([MARK] * words), "compliance")
    assert labels(judge_of("llama-guard-2", folder, short_is_safe=True), [row]) == {
        "p": "unsafe" if asked else "safe"
    }
    assert labels(judge_of("llama-guard-2", folder), [row]) == {"p": "unsafe"}


def test_the_option_is_for_safety_judges_only(tmp_path: Path) -> None:
    folder = save_answering(tmp_path / "m", WILD.format("no", "yes"), WILD.format("yes", "no"))
    judge = judge_of("wildguard-refusal", folder, short_is_safe=True)
    assert labels(judge) == by_mark("compliance", "refusal")


def test_a_missing_model_shows_before_anything_is_judged(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        judge_of("harmbench", tmp_path)
    with pytest.raises(ModelLoadError, match="neither a folder"):
        make_judge("harmbench=no-such-model")


def test_a_tokenizer_without_grades_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_grading(tmp_path / "m", SHARES, lift=20)
    monkeypatch.setattr(classifier, "GRADES", ("1", "2", "3", "4", "five"))
    with pytest.raises(ModelLoadError, match="no tokens for the grades"):
        judge_of("strongreject", folder)


def test_judgements_are_one_thing_or_the_other() -> None:
    for wrong in ({}, {"label": "safe", "error": "x"}, {"score": 0.5, "error": "x"}):
        with pytest.raises(ValueError, match="or else an error"):
            Judgement("p", **wrong)
