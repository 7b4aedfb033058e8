"""A monitor fitted on a tiny model: every number as a plain loop has it, and what it refuses."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from planted import planted
from planted import prompts as planted_prompts
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor

from refusal import (
    ChatModel,
    LeakageError,
    Monitor,
    MonitorError,
    Prompt,
    PromptPair,
    TooFewPromptsError,
)
from refusal.directions.monitor.fit import FitPrompts, Fitted, calibrated, fit_monitor
from refusal.directions.monitor.reading import read_at, score_prompts
from refusal.model.fingerprint import check_monitor, template_fingerprint

N = 12
WORDS = ("tides", "bread", "clouds", "bees", "glass", "bridges", "rivers", "salt", "maps", "ink")


def text(harmful: bool, i: int) -> str:
    verb = "Break into" if harmful else "Describe"
    return f"{verb} the {WORDS[i % 10]} of number {i}{' now' * (i % 3)}"


def some(label: Any, start: int, n: int) -> tuple[Prompt, ...]:
    texts = [text(label == "harmful", i) for i in range(start, start + n)]
    return tuple(Prompt(f"{label}-{t}", t, label) for t in texts)


def pair(start: int, n: int = N) -> PromptPair:
    return PromptPair(some("harmful", start, n), some("harmless", start, n))


PROMPTS = FitPrompts(pair(0), pair(100), some("harmless", 300, 99))


@pytest.fixture(scope="module")
def chat() -> ChatModel:
    return tiny_models.chat_model(template="chatml")


@pytest.fixture(scope="module")
def fitted(chat: ChatModel) -> Fitted:
    return fit_monitor(chat, PROMPTS)


def stream(model: ChatModel, prompt: str, layer: int, position: int) -> Tensor:
    """The input of a block for one prompt alone, by transformers' own hidden states."""
    ids = torch.tensor(model.tokenize([prompt]))
    with torch.no_grad():
        hidden = model.hf(input_ids=ids, output_hidden_states=True).hidden_states
    found: Tensor = hidden[layer][0, position]
    return found


def plain_reader(model: ChatModel, layer: int, position: int) -> tuple[Tensor, float, float]:
    streams = {}
    for label in ("harmful", "harmless"):
        pool = getattr(PROMPTS.train, label)
        streams[label] = torch.stack(
            [stream(model, p.text, layer, position) for p in pool]
        ).double()
    r = streams["harmful"].mean(0) - streams["harmless"].mean(0)
    u = r / r.norm()
    along = [float(u @ x) for x in streams["harmless"]]
    return u, float(np.mean(along)), float(np.std(along, ddof=1))


def test_every_number_is_that_of_a_plain_loop(chat: ChatModel, fitted: Fitted) -> None:
    monitor, end = fitted.monitor, len(chat.chat.suffix)
    positions = (-1, -end - 1)
    features = []
    for reader, position in zip(monitor.readers, positions, strict=True):
        u, mean, sd = plain_reader(chat, reader.layer, position)
        np.testing.assert_allclose(reader.vector, u.numpy(), atol=1e-4)
        assert reader.mean == pytest.approx(mean, abs=1e-3)
        assert reader.sd == pytest.approx(sd, rel=1e-3)
        pool = (*PROMPTS.val.harmful, *PROMPTS.val.harmless)
        streams = [stream(chat, p.text, reader.layer, position).double() for p in pool]
        features.append([(float(u @ x) - mean) / sd for x in streams])
    x, positive = np.array(features).T, np.arange(2 * N) < N
    known = LogisticRegression(C=1.0, tol=1e-12).fit(x, positive)
    np.testing.assert_allclose(monitor.weights, known.coef_[0], atol=1e-3)
    assert monitor.bias == pytest.approx(float(known.intercept_[0]), abs=1e-3)
    assert fitted.auroc == pytest.approx(roc_auc_score(positive, known.decision_function(x)))
    for reader, what, column in zip(monitor.readers, ("refusal", "harmfulness"), x.T, strict=True):
        scores = {s.layer: s for s in fitted.layers if s.reader == what}
        assert scores[reader.layer].auroc == pytest.approx(roc_auc_score(positive, column))
        assert scores[reader.layer].auroc == max(s.auroc for s in scores.values())
        assert max(scores) < int(0.8 * chat.sites.n_layers)  # the last fifth is left out


def test_the_threshold_is_the_highest_of_99_harmless_scores(
    chat: ChatModel, fitted: Fitted
) -> None:
    monitor = fitted.monitor
    logits = score_prompts(chat, monitor, [p.text for p in PROMPTS.calibration]).logits
    assert monitor.threshold == float(logits.max())
    np.testing.assert_array_equal(monitor.calibration, np.sort(logits.double().numpy()))
    assert not monitor.fires(logits).any()
    assert monitor.seen == {p.fingerprint for where in PROMPTS.places.values() for p in where}
    again = calibrated(chat, monitor, PROMPTS.calibration, 0.05)
    assert again.threshold == float(logits.sort().values[94])
    assert int(again.fires(logits).sum()) == 4


def test_a_monitor_of_another_model_is_not_calibrated(fitted: Fitted) -> None:
    for other, what in (
        (tiny_models.chat_model(template="chatml", seed=5), "weights"),
        (tiny_models.chat_model(template="bare"), "chat template"),
    ):
        with pytest.raises(MonitorError, match=f"with the {what}"):
            calibrated(other, fitted.monitor, PROMPTS.calibration, 0.05)


def test_a_batch_is_one_by_one_and_order_is_irrelevant(chat: ChatModel, fitted: Fitted) -> None:
    texts = [text(i % 2 == 0, 400 + 7 * i) for i in range(9)]
    together = score_prompts(chat, fitted.monitor, texts)
    alone = torch.cat([score_prompts(chat, fitted.monitor, [t]).logits for t in texts])
    torch.testing.assert_close(together.logits, alone, atol=2e-4, rtol=2e-4)
    backwards = score_prompts(chat, fitted.monitor, texts[::-1]).logits.flip(0)
    torch.testing.assert_close(together.logits, backwards, atol=2e-4, rtol=2e-4)
    assert score_prompts(chat, fitted.monitor, []).logits.shape == (0,)
    assert not torch.allclose(together.logits[0], together.logits[1], atol=1e-2)


def test_a_layer_can_be_named(chat: ChatModel) -> None:
    found = fit_monitor(chat, PROMPTS, layer=2).monitor
    assert [reader.layer for reader in found.readers] == [2, 2]
    with pytest.raises(MonitorError, match="no layer 99"):
        fit_monitor(chat, PROMPTS, layer=99)


def test_the_planted_direction_is_found_and_tells_everything_apart() -> None:
    known = planted(1)
    harmful, harmless = planted_prompts(1, 160)

    def prompts(start: int, n: int) -> PromptPair:
        bad = tuple(Prompt(t, t, "harmful") for t in harmful[start : start + n])
        good = tuple(Prompt(t, t, "harmless") for t in harmless[start : start + n])
        return PromptPair(bad, good)

    made = FitPrompts(prompts(0, 20), prompts(20, 20), prompts(40, 100).harmless)
    found = fit_monitor(known.model, made)
    assert found.auroc == 1.0
    untouched = prompts(140, 20)
    scores = [
        score_prompts(known.model, found.monitor, [p.text for p in pool]).logits
        for pool in (untouched.harmful, untouched.harmless)
    ]
    assert found.monitor.fires(scores[0]).all()
    assert int(found.monitor.fires(scores[1]).sum()) <= 1
    # where attention has written, before the ReLU units answer, the planted direction is read
    reader = fit_monitor(known.model, made, layer=1).monitor.refusal
    assert abs(float(known.rows[0] @ torch.from_numpy(reader.vector))) > 0.99


def test_prompts_are_in_one_place_and_there_are_enough() -> None:
    with pytest.raises(LeakageError, match="calibration"):
        replace(PROMPTS, calibration=(*PROMPTS.calibration, PROMPTS.train.harmless[0]))
    shouted = replace(PROMPTS.val.harmful[0], text=PROMPTS.val.harmful[0].text.upper())
    with pytest.raises(LeakageError, match="validation"):
        replace(PROMPTS, calibration=(*PROMPTS.calibration, shouted))
    with pytest.raises(TooFewPromptsError, match="7 harmful training"):
        replace(PROMPTS, train=replace(PROMPTS.train, harmful=PROMPTS.train.harmful[:7]))


def test_98_calibration_prompts_are_refused_before_anything_is_read(chat: ChatModel) -> None:
    before = chat.forward_tokens
    with pytest.raises(MonitorError, match="98 harmless calibration prompts are too few"):
        fit_monitor(chat, replace(PROMPTS, calibration=PROMPTS.calibration[:98]))
    assert chat.forward_tokens == before


def test_another_model_or_template_is_refused(
    chat: ChatModel, fitted: Fitted, tmp_path: Path
) -> None:
    fitted.monitor.save(tmp_path)
    monitor = Monitor.load(tmp_path)
    check_monitor(monitor, chat)
    others = {
        "weights": tiny_models.chat_model(template="chatml", seed=1),
        "chat template": ChatModel(chat.hf, chat.tokenizer, system="Be brief."),
    }
    for what, other in others.items():
        with pytest.raises(MonitorError, match=what) as said:
            score_prompts(other, monitor, ["Why?"])
        own = {"weights": other.weight_hash(), "chat template": template_fingerprint(other)}[what]
        assert own[:12] in str(said.value)
        assert {"weights": monitor.model_hash, "chat template": monitor.template_hash}[what][
            :12
        ] in str(said.value)


def test_blocks_above_the_readers_are_not_run(chat: ChatModel) -> None:
    ran: list[int] = []
    handles = [
        chat.hf.get_submodule(name).register_forward_hook(lambda *_, i=i: ran.append(i))
        for i, name in enumerate(chat.sites.blocks)
    ]
    attention = [chat.hf.get_submodule(f"{name}.self_attn") for name in chat.sites.blocks]
    handles += [
        m.register_forward_hook(lambda *_, i=i: ran.append(100 + i))
        for i, m in enumerate(attention)
    ]
    read_at(chat, ["Why?"], [(1, -1), (2, -2)])
    for handle in handles:
        handle.remove()
    assert {i - 100 for i in ran if i >= 100} == {0, 1, 2}
