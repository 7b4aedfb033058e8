"""A chat model as a judge of safety: the label follows the odds, the threshold follows people,
nothing is guessed.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import saved
import tiny_models
from answering import MARK, save_certain
from conftest import make_prompts

from refusal import Completion, ConfigError, ModelLoadError, PromptError, load
from refusal import run as run_stages
from refusal.config.judges import JudgeOptions
from refusal.evaluations.judges.calibration import Calibration, best_threshold, fit, read_labelled
from refusal.evaluations.judges.local_safety import LocalSafetyJudge
from refusal.evaluations.judges.make import make_judge
from refusal.evaluations.judges.reading import read_judgements
from refusal.evaluations.judges.stage import judges_for

CHAT = (
    "<|bos|>{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
ROWS = [
    Completion("short-marked", "Why?", f"Because {MARK}.", "compliance"),
    Completion("short-plain", "Name a colour.", "Green.", "compliance"),
    Completion(
        "long-marked", "Tell me about the sea", "The sea is wide and old. " * 9 + MARK, "compliance"
    ),
    Completion(
        "long-plain", "Tell me about the sea", "The sea is wide and old. " * 9, "compliance"
    ),
    Completion("plain-again", "List {ten} rivers.", "{Rhine}, Elbe, Oder", "compliance"),
]


def judge_of(model: str, **options: object) -> LocalSafetyJudge:
    judge = make_judge(
        f"local-safety={model}" if model else "local-safety",
        JudgeOptions.model_validate({"judge_dtype": "float32", "judge_device": "cpu", **options}),
    )
    assert isinstance(judge, LocalSafetyJudge)
    return judge


def save_random(folder: Path, certain: bool) -> Path:
    """A network of random weights that knows the words; ``certain``: it says one of them, whatever
    it is asked.
    """
    tokenizer = tiny_models.tokenizer("chatml")
    tokenizer.add_tokens(["yes", "no"])
    network = tiny_models.network("llama", vocab_size=len(tokenizer))
    yes, no = (tokenizer.get_vocab()[word] for word in ("yes", "no"))
    head = network.get_output_embeddings().weight.data
    if certain:
        kept = 30 * head[yes] / head[yes].norm()
        head.mul_(0.3)  # the refusal metric still tells prompts apart
        head[yes], head[no] = kept, -kept
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_yes_is_unsafe_and_no_is_safe(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    judge = judge_of(str(save_certain(tmp_path / "m", "yes", "no", CHAT)))
    found = {j.prompt_id: j for j in judge.judge(ROWS)}
    assert {key: j.label for key, j in found.items()} == {
        row.prompt_id: "unsafe" if MARK in row.completion else "safe" for row in ROWS
    }
    assert found["short-marked"].score == pytest.approx(1.0, abs=1e-3)
    assert found["short-plain"].score == pytest.approx(0.0, abs=1e-3)
    assert "--judge-labels" in caplog.text  # never compared with people: said


def test_one_pass_gives_the_odds_of_each_alone(tmp_path: Path) -> None:
    judge = judge_of("")
    judge.use(load(str(save_random(tmp_path / "m", certain=True)), dtype="float32"))
    together = judge.odds(ROWS)
    alone = [judge.odds([row])[0] for row in ROWS]
    assert np.allclose(together, alone, atol=1e-4)
    assert len({round(odds, 3) for odds, _ in together}) > 1


def test_what_is_neither_yes_nor_no_is_a_failure(tmp_path: Path) -> None:
    judge = judge_of("")
    judge.use(
        load(str(save_random(tmp_path / "m", certain=False)), dtype="float32")
    )  # random weights: any token is as likely as any other
    assert {j.label for j in judge.judge(ROWS)} == {None}


def test_a_tokenizer_without_the_words_is_refused(tmp_path: Path) -> None:
    judge = judge_of(str(save_certain(tmp_path / "m", "maybe", "never", CHAT)))
    with pytest.raises(ModelLoadError, match="no single token for 'yes'"):
        list(judge.judge(ROWS))
    tokens = save_certain(tmp_path / "n", "yes", "perhaps", CHAT)
    judge = judge_of(str(tokens))
    with pytest.raises(ModelLoadError, match="no single token for 'no'"):
        list(judge.judge(ROWS))


def test_without_a_model_it_says_so() -> None:
    with pytest.raises(ConfigError, match="local-safety=MODEL"):
        list(judge_of("").judge(ROWS))


def test_refusals_are_safe_unasked(tmp_path: Path) -> None:
    judge = judge_of("")
    model = load(str(save_certain(tmp_path / "m", "yes", "no", CHAT)), dtype="float32")
    judge.use(model)
    declined = replace(ROWS[0], prompt_id="declined", verdict="refusal")  # the network says yes
    (found,) = judge.judge([declined])
    assert (found.label, found.score) == ("safe", 0.0)
    before = model.forward_tokens
    judge.odds([declined] * 5)
    assert model.forward_tokens == before
    mixed = {j.prompt_id: j.label for j in judge.judge([declined, ROWS[0], declined, ROWS[1]])}
    assert mixed == {"declined": "safe", "short-marked": "unsafe", "short-plain": "safe"}


def test_thoughts_are_not_judged(tmp_path: Path) -> None:
    judge = judge_of(str(save_certain(tmp_path / "m", "yes", "no", CHAT)))
    thought = Completion("t", "Name one.", f"<think>{MARK}</think>\n\nGreen.", "compliance")
    assert [j.label for j in judge.judge([thought])] == ["safe"]


def test_short_completions_are_safe_unasked_where_that_is_wished(tmp_path: Path) -> None:
    judge = judge_of("", short_is_safe=True)
    assert [j.label for j in judge.judge(ROWS[:2])] == ["safe", "safe"]


# --- the threshold


def test_the_threshold_gets_most_labels_right() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores, labels = rng.normal(size=12).round(1), rng.random(12) < 0.5
        scores[rng.random(12) < 0.3] = -np.inf  # not asked about: on the safe side of any threshold
        found = best_threshold(scores, labels)
        tries = np.arange(-4, 4, 0.01) + 0.005
        assert ((scores > found) == labels).sum() == max(
            ((scores > t) == labels).sum() for t in tries
        )


def test_the_counts_are_of_requests_that_were_left_out() -> None:
    rng = np.random.default_rng(1)
    odds, unsafe = rng.normal(size=30), rng.random(30) < 0.5
    odds[3::7] = -np.inf
    requests = [f"Request {i % 11}" for i in range(30)]
    requests[11] = "request  0"  # the first one, in other words of case and spacing
    found = fit(odds.tolist(), unsafe.tolist(), requests, "labels.csv", 1)
    hits = {True: 0, False: 0}
    for i in range(30):
        rest = [j for j in range(30) if j % 11 != i % 11]
        said = odds[i] > best_threshold(odds[rest], unsafe[rest])
        hits[bool(unsafe[i])] += bool(said == unsafe[i])
    assert (found.unsafe_found, found.safe_found) == (hits[True], hits[False])
    assert (found.unsafe, found.safe) == (int(unsafe.sum()), 30 - int(unsafe.sum()))
    assert found.accuracy.sensitivity.value == pytest.approx(
        hits[False] / found.safe
    )  # "safe" is what is looked for
    assert found.accuracy.specificity.value == pytest.approx(hits[True] / found.unsafe)


def test_odds_without_a_difference_are_refused() -> None:
    with pytest.raises(PromptError, match="the same odds"):
        fit([0.5] * 4, [True, False, True, False], list("abcd"), "labels.csv", 1)
    with pytest.raises(PromptError, match="the same odds"):  # those not asked about say nothing
        fit([0.5, 0.5, -np.inf], [True, False, False], list("abc"), "labels.csv", 1)


def test_one_request_may_hold_all_that_was_asked_about() -> None:
    odds, unsafe = [1.0, -1.0, -np.inf, -np.inf], [True, False, False, True]
    found = fit(odds, unsafe, ["one", "one", "two", "three"], "labels.csv", 1)
    # Without "one" nothing is left to fit to, so the model's own yes or no counts.
    assert (found.threshold, found.unsafe_found, found.safe_found) == (0.0, 1, 2)


def test_labelled_answers_carry_the_detectors_verdict(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    answers = ("I'm sorry, but I can't help with that.", "Green.", "Red.", "Blue.")
    rows = [
        {"prompt": "Name a colour.", "completion": answer, "label": ("safe", "unsafe")[i % 2]}
        for i, answer in enumerate(answers)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert [answer.item.verdict for answer in read_labelled(path)] == ["refusal"] + [
        "compliance"
    ] * 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prompt,completion\nWhy?,Because\n", "label"),
        ("goal,target_response,human_majority\nWhy?,Because,2\n", "'2'"),
        ("prompt,completion,label\n" + "Why?,Because,safe\n" * 3, "unsafe"),
        ('prompt,completion,label\n"Why?,Because,safe\n', "cannot be read"),
        ("", "unsafe"),
    ],
)
def test_labelled_answers_that_cannot_be_used(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PromptError, match=words):
        read_labelled(path)


# --- in a run


def test_a_run_asks_its_own_model_once_and_keeps_the_calibration(tmp_path: Path) -> None:
    labelled = tmp_path / "labels.jsonl"
    rows = [
        {"prompt": p.text, "completion": f"{i} apples", "label": "unsafe" if i % 3 == 0 else "safe"}
        for i, p in enumerate(make_prompts("harmful", 9))
    ]
    labelled.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = save_random(tmp_path / "model", certain=True)
    config = saved.small_config(
        source,
        saved.write_prompts(tmp_path),
        judges=("local-safety",),
        judge_labels=str(labelled),
        n_test=2,
    )
    out = tmp_path / "run"
    first = {(m.name, m.set, m.condition): m for m in run_stages(config, out).metrics}
    kept = json.loads(
        (out / "judgements" / "local_safety" / "calibration.json").read_text(encoding="utf-8")
    )
    calibration = Calibration(**kept)
    assert (calibration.unsafe, calibration.safe, calibration.source) == (3, 6, "labels.jsonl")
    score = first["local_safety_safety_score", "harmful", "ablation"]
    judged = read_judgements(out / "judgements" / "local_safety" / "harmful.ablation.jsonl")
    valid = [j for j in judged if not j.failed]
    assert score.value == sum(j.label == "safe" for j in valid) / len(valid)
    assert ("local_safety_safety_score_corrected" in {name for name, _, _ in first}) == (
        calibration.accuracy.informedness > 0
    )
    # The numbers stay, with what was kept; other labelled answers are another judge.
    again = {(m.name, m.set, m.condition): m for m in run_stages(config, out).metrics}
    assert again == first
    labelled.write_text(
        labelled.read_text(encoding="utf-8").replace("unsafe", "SAFE", 1).replace("SAFE", "safe")
    )
    run_stages(config, out)
    other = json.loads(
        (out / "judgements" / "local_safety" / "calibration.json").read_text(encoding="utf-8")
    )
    assert (other["unsafe"], other["safe"]) == (2, 7)


def test_a_model_split_over_processes_cannot_judge_itself(tmp_path: Path) -> None:
    config = saved.small_config("embedded", ("builtin",), judges=("local-safety",), tp_plan="auto")
    with pytest.raises(ConfigError, match="local-safety=MODEL"):
        judges_for(config)
