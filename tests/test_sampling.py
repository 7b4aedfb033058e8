"""Completions drawn at a temperature: draws follow the softmax, and are the same whatever is written
beside them; a plain loop that reads each prompt alone says what is right.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import saved
import tiny_models
import torch
from plain import last_logits
from scipy.stats import chisquare, gumbel_r, kstest
from test_generation import TEXTS
from torch import Tensor

from refusal import Ablate, ChatModel, ConfigError, Direction, RunConfig
from refusal import run as run_stages
from refusal.core.errors import RunFolderError
from refusal.core.records import Completion, Prompt, to_json
from refusal.core.sampling import GREEDY, Sampling
from refusal.core.storage import write_jsonl
from refusal.core.work import Write
from refusal.evaluations.refusal.generate import Generate
from refusal.evaluations.refusal.matching import check_completions
from refusal.evaluations.refusal.rates import measure_all
from refusal.interventions.side_by_side import SideBySide
from refusal.model.draw import Draw, gumbel
from refusal.model.endings import end_tokens
from refusal.model.generation import generate_each, generate_rows
from refusal.model.memory import Room
from refusal.model.sizes import size_of
from refusal.pipeline.costs.estimate import seconds_by_stage
from refusal.pipeline.costs.speed import Speed
from refusal.report.compare import compare
from refusal.runs.files import read_completions, read_metrics
from refusal.runs.stage import Plan

WARM = Sampling(1.0, 3, seed=7)


def direction() -> Direction:
    torch.manual_seed(5)
    vector = torch.randn(tiny_models.WIDTH)
    return Direction(vector / vector.norm(), 4.0, -1, 2)


def next_logits(model: ChatModel) -> Tensor:
    return last_logits(model.hf, model.tokenize(TEXTS[:1])[0]).float()


# --- the draws


def misfit(logits: Tensor, drawn: Sequence[int], temperature: float) -> float:
    """P-value of a chi-square test of draws against the softmax; rare tokens are counted together."""
    expected = (logits.double() / temperature).softmax(0).numpy() * len(drawn)
    counts = np.bincount(drawn, minlength=len(expected)).astype(float)
    often = expected >= 10
    parts = [np.append(x[often], x[~often].sum()) for x in (counts, expected)]
    return float(chisquare(parts[0], parts[1] * parts[0].sum() / parts[1].sum()).pvalue)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_over_prompts_and_over_steps(
    model: ChatModel, temperature: float
) -> None:
    logits, n = 3 * next_logits(model), 20_000
    keys = Sampling(temperature, n, seed=1).keys(["Why?"])
    rows = logits.expand(n, -1)
    by_sample = Draw(temperature, keys).tokens(rows, range(n), [0] * n)
    by_step = Draw(temperature, keys[:1]).tokens(rows, [0] * n, range(n))
    for drawn in (by_sample, by_step):
        assert misfit(logits, drawn, temperature) > 1e-3
        assert misfit(logits, drawn, 1.1 * temperature) < 1e-6  # it would be seen


def test_numbers_are_gumbels_and_have_nothing_to_do_with_each_other() -> None:
    keys = Sampling(1.0, 40, seed=2).keys(["a", "b"])
    draw = Draw(1.0, keys)
    same = torch.zeros(len(keys), 2000)
    found = draw.perturbed(same, range(len(keys)), [3] * len(keys)).numpy()
    assert kstest(found.ravel(), gumbel_r.cdf).pvalue > 1e-3
    later = draw.perturbed(same, range(len(keys)), [4] * len(keys)).numpy()
    for one, other in ((found[:-1], found[1:]), (found, later), (found[:, :-1], found[:, 1:])):
        correlation = np.corrcoef(one.ravel(), other.ravel())[0, 1]
        assert abs(correlation) < 4 / one.size**0.5
    assert len(np.unique(found)) > 0.99 * found.size


def test_numbers_are_those_of_whole_number_arithmetic() -> None:
    """In Python's own integers, which never overflow; the same on every device."""

    def plain(first: int, second: int, token: int) -> int:
        x = token ^ first
        x ^= x >> 16
        x = x * 0x21F0AAAD % 2**32
        x ^= x >> 15
        x ^= second
        x = x * 0x735A2D97 % 2**32
        return x ^ (x >> 15)

    words = [[0, 0], [2**32 - 1, 2**32 - 1], [123456789, 987654321]]
    hashes = np.array([[plain(a, b, token) for token in range(300)] for a, b in words])
    expected = -np.log(-np.log1p(-(hashes + 0.5) / 2**32))
    torch.testing.assert_close(
        gumbel(torch.tensor(words), 300).numpy(), expected.astype(np.float32)
    )


# --- completions


def plain_sample(
    model: ChatModel, ids: list[int], n: int, temperature: float, key: int
) -> list[int]:
    ends, out = end_tokens(model), list[int]()
    draw = Draw(temperature, [key])
    while len(out) < n:
        token = draw.tokens(last_logits(model.hf, [*ids, *out])[None], [0], [len(out)])[0]
        if token in ends:
            break
        out.append(token)
    return out


def often_ending(model: ChatModel, written: list[list[int]]) -> None:
    """Make the token that most rows have somewhere one that ends them."""
    counts = Counter(token for out in written for token in set(out))
    assert model.hf.generation_config is not None
    model.hf.generation_config.eos_token_id = counts.most_common(1)[0][0]


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral-sliding", "gpt_neo", "mamba"])
def test_batches_equal_a_plain_loop_token_for_token(family: str) -> None:
    """Also where rows take the place of others, and where each prompt is written alone."""
    model = tiny_models.chat_model(family)
    keys = WARM.keys(TEXTS)
    rows = [ids for ids in model.tokenize(TEXTS) for _ in range(WARM.samples)]
    often_ending(
        model, [plain_sample(model, ids, 8, 1.0, key) for ids, key in zip(rows, keys, strict=True)]
    )
    expected = [plain_sample(model, ids, 8, 1.0, key) for ids, key in zip(rows, keys, strict=True)]
    assert len({tuple(ids) for ids in expected}) > len(TEXTS)
    assert any(len(ids) < 8 for ids in expected)
    for size in (1, 4, 100):
        model.batch_size.value = size
        assert generate_rows(model, rows, 8, draw=Draw(1.0, keys)) == expected
    backwards = generate_rows(model, rows[::-1], 8, draw=Draw(1.0, keys[::-1]))
    assert backwards[::-1] == expected
    halves = [generate_rows(model, rows[i::2], 8, draw=Draw(1.0, keys[i::2])) for i in (0, 1)]
    assert halves == [expected[::2], expected[1::2]]  # as two processes share them


@pytest.mark.parametrize("size", [2, 100])
def test_every_condition_draws_the_same_numbers(model: ChatModel, size: int) -> None:
    """An intervention that does nothing changes no sample; one that does something does."""
    model.batch_size.value = size
    found = direction()
    edits = SideBySide([None, Ablate(found, 0.0), Ablate(found)])
    plain, nothing, ablated = generate_each(model, [TEXTS] * 3, edits, 8, sampling=WARM)
    assert plain == nothing != ablated
    assert len(plain) == WARM.samples * len(TEXTS)
    some = generate_each(model, [TEXTS[3:]], SideBySide([Ablate(found)]), 8, sampling=WARM)[0]
    assert some == ablated[3 * WARM.samples :]
    other = generate_each(model, [TEXTS], SideBySide([None]), 8, sampling=Sampling(1.0, 3, seed=8))
    assert other[0] != plain
    more = generate_each(model, [TEXTS], SideBySide([None]), 8, sampling=Sampling(1.0, 4, seed=7))
    assert [row for i, row in enumerate(more[0]) if i % 4 < 3] == plain


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_a_low_temperature_is_greedy(family: str) -> None:
    model = tiny_models.chat_model(family)
    edits = SideBySide([None, Ablate(direction())])
    cold = generate_each(model, [TEXTS] * 2, edits, 8, sampling=Sampling(1e-5, 2))
    greedy = generate_each(model, [TEXTS] * 2, edits, 8)
    assert [rows[::2] for rows in cold] == [rows[1::2] for rows in cold] == greedy


def test_the_samples_of_a_prompt_share_its_reading(model: ChatModel) -> None:
    """With a token each, prompts are all that is read."""
    model.batch_size.value, read = 100, []
    for sampling in (Sampling(1.0, 1), Sampling(1.0, 6)):
        generate_each(model, [TEXTS], SideBySide([None]), 1, sampling=GREEDY)  # measures batching
        before = model.forward_tokens
        generate_each(model, [TEXTS], SideBySide([None]), 1, sampling=sampling)
        read.append(model.forward_tokens - before)
    assert read[0] == read[1]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ((0.0, 2), "--temperature above 0"),
        ((-1.0, 1), "-1.0"),
        ((float("nan"), 1), "nan"),
        ((1.0, 0), "0 samples"),
    ],
)
def test_what_cannot_be_drawn_is_refused(how: tuple[float, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Sampling(*how)


# --- a run


@pytest.fixture(scope="module")
def greedy_config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    source = saved.save_model(tmp_path_factory.mktemp("model"), template="chatml")
    prompts = saved.write_prompts(tmp_path_factory.mktemp("prompts"))
    return saved.small_config(source, prompts, controls=1, n_control=2, judges=("substring",))


@pytest.fixture(scope="module")
def runs(greedy_config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A greedy one, and one with samples."""
    out = tmp_path_factory.mktemp("runs")
    run_stages(greedy_config, out / "greedy")
    warm = greedy_config.model_copy(update={"temperature": 1.0, "samples": 3})
    run_stages(warm, out / "warm")
    return out / "greedy", out / "warm"


def test_a_run_has_the_samples_of_every_condition_and_their_rates(runs: tuple[Path, Path]) -> None:
    greedy, warm = runs
    files = sorted(path.name for path in (greedy / "completions").glob("*.jsonl"))
    assert files == sorted(path.name for path in (warm / "completions").glob("*.jsonl"))
    found = {}
    for name in files:
        rows = read_completions(warm / "completions" / name)
        assert [row.sample for row in rows] == [0, 1, 2] * (len(rows) // 3)
        assert "sample" not in (greedy / "completions" / name).read_text(encoding="utf-8")
        set_name, _, condition = name.removesuffix(".jsonl").partition(".")
        found[set_name, condition] = rows
    metrics = read_metrics(warm / "metrics.json")
    assert set(measure_all(found)) <= set(metrics)
    names = {(m.name, m.set, m.condition): m for m in metrics}
    for key, rows in found.items():
        shares = [names[f"refused_in_{which}_samples", *key] for which in ("all", "some", "no")]
        assert sum(m.value for m in shares) == pytest.approx(1)
        assert {m.n for m in shares} == {len(rows) // 3} == {names["refusal_rate", *key].n}
    judged = names["substring_refusal_rate", "harmful", "baseline"]
    assert judged.n == 3
    assert not any(m.name.startswith("refused_in") for m in read_metrics(greedy / "metrics.json"))


def test_the_report_says_how_completions_were_drawn(runs: tuple[Path, Path]) -> None:
    greedy, warm = ((path / "report.html").read_text(encoding="utf-8") for path in runs)
    for words in (
        "3 samples of each prompt at temperature 1",
        "temperature 1, 3 of each prompt",
        "in none of their samples",
    ):
        assert words in warm
        assert words not in greedy


def test_a_run_with_samples_goes_on_to_the_same_completions(
    runs: tuple[Path, Path], greedy_config: RunConfig
) -> None:
    before = saved.times(runs[1])
    warm = greedy_config.model_copy(update={"temperature": 1.0, "samples": 3})
    run_stages(warm, runs[1])
    changed = {name for name, time in saved.times(runs[1]).items() if before[name] != time}
    assert changed <= {"judgements/agreement.json"}
    file = "completions/harmful.baseline.jsonl"
    gone = (runs[1] / file).read_text(encoding="utf-8")
    (runs[1] / file).unlink()  # as after an interruption
    text = (runs[1] / "completions" / "harmful.ablation.jsonl").read_text(encoding="utf-8")
    run_stages(warm, runs[1])
    assert (runs[1] / "completions" / "harmful.ablation.jsonl").read_text(encoding="utf-8") == text
    assert (runs[1] / file).read_text(encoding="utf-8") == gone


def test_an_estimate_counts_every_sample_and_reads_each_prompt_once(
    greedy_config: RunConfig,
) -> None:
    work, seconds = [], []
    room = Room(
        size_of(tiny_models.network(), tiny_models.network().config), 0, 4, 4096, lambda n: 8
    )
    for update in ({}, {"temperature": 1.0, "samples": 4}):
        plan = Plan(greedy_config.model_copy(update=update), tiny_models.LAYERS)
        work += [one for one in Generate.costs(plan) if isinstance(one, Write)]
        seconds.append(seconds_by_stage(plan, room.size, Speed(1e9, 1e9), room)["generate"])
    assert work[1] == replace(work[0], rows=4 * work[0].rows, samples=4)
    assert 1 < seconds[1] / seconds[0] < 4.5


def test_greedy_and_sampled_runs_are_compared(runs: tuple[Path, Path]) -> None:
    rows = {(r.name, r.set, r.condition): r for r in compare(runs).rows}
    change = rows["refusal_rate", "harmful", "ablation"].changes[1]
    assert change is not None
    assert change.n == 3


def test_samples_need_a_temperature_and_this_packages_engine(
    greedy_config: RunConfig, tmp_path: Path
) -> None:
    for update, says in (
        ({"samples": 2}, "--temperature above 0"),
        ({"temperature": 1.0, "engine": "paged"}, "needs --engine own"),
    ):
        with pytest.raises(ConfigError, match=says):
            run_stages(greedy_config.model_copy(update=update), tmp_path / "run")


def test_a_file_lacks_or_repeats_no_sample(tmp_path: Path) -> None:
    prompts = [Prompt(name, name, "harmful") for name in "ab"]
    rows = [
        Completion(p.id, p.text, "Yes.", "compliance", sample=n) for p in prompts for n in (0, 1)
    ]
    check_completions(rows, prompts, "here")
    with pytest.raises(RunFolderError, match="no completion of b#1"):
        check_completions(rows[:-1], prompts, "here")
    write_jsonl(tmp_path / "twice.jsonl", to_json((*rows, rows[0])))
    with pytest.raises(RunFolderError, match="second completion of prompt 'a#0'"):
        read_completions(tmp_path / "twice.jsonl")
