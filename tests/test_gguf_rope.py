"""Scaled positions in GGUF files: Llama-3.1's factors become the config that they came from, others
are refused.
"""

import math
from pathlib import Path

import pytest
import tiny_gguf
import tiny_models
import torch
from transformers import PreTrainedModel

from refusal import ModelLoadError, load

THETA = 500000.0


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFUSAL_CACHE", str(tmp_path / "cache"))


def published(
    width: int, factor: float, low: float = 1.0, high: float = 4.0, context: int = 8192
) -> list[float]:
    """By which each frequency is divided, as Llama-3.1's authors describe it."""
    out = []
    for i in range(width // 2):
        turns = context / (2 * math.pi * THETA ** (2 * i / width))
        if turns > high:
            out.append(1.0)
        elif turns < low:
            out.append(factor)
        else:
            share = (turns - low) / (high - low)
            out.append(1 / ((1 - share) / factor + share))
    return out


def llama(scaled: float | None) -> PreTrainedModel:
    rope: dict[str, object] = {"rope_theta": THETA, "rope_type": "default"}
    if scaled is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": scaled,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        }
        rope |= {"original_max_position_embeddings": 8192}
    plain = {
        "mlp_bias": False,
        "attention_bias": False,
        "head_dim": 32,
        "max_position_embeddings": 131072,
    }
    return tiny_models.network("llama", rope_parameters=rope, **plain)


@pytest.mark.parametrize("factor", [8.0, 32.0, None])
def test_the_model_in_the_file_is_the_one_that_was_scaled(
    factor: float | None, tmp_path: Path
) -> None:
    network = llama(factor)
    file = tmp_path / "a.gguf"
    tiny_gguf.write(file, network, published(32, factor) if factor else [1.0] * 16)
    model = load(str(file), dtype="float32")
    network.load_state_dict(
        {name: t.bfloat16().float() for name, t in network.state_dict().items()}
    )
    ids = torch.arange(20, 60)[None]
    where = 1500 * torch.arange(40)[None]  # far apart, so that the slow waves count
    with torch.no_grad():
        found, wanted = (hf(ids, position_ids=where).logits for hf in (model.hf, network))
        other = llama(None if factor else 8.0)
        other.load_state_dict(network.state_dict())
        unscaled = other(ids, position_ids=where).logits
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)
    assert (unscaled - wanted).abs().max() > 0.01


@pytest.mark.parametrize(
    "factors",
    [
        published(32, 8.0)[:-1],
        published(32, 8.0, high=3.0),
        published(32, 8.0, context=4096),
        [value * 1.001 if i == 9 else value for i, value in enumerate(published(32, 8.0))],
        [8.0] * 16,
        [math.nan] * 16,
        [0.0] * 16,
    ],
    ids=["too few", "another end", "another context", "one is off", "all alike", "NaN", "zero"],
)
def test_other_factors_are_refused(factors: list[float], tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "a.gguf", llama(None), factors)
    with pytest.raises(
        ModelLoadError, match=r"1 tensor without a place in the model \(rope_freqs\.weight\)"
    ):
        load(str(tmp_path / "a.gguf"))


@pytest.mark.parametrize("scaling", ["linear", "yarn"])
def test_scaling_that_only_the_metadata_has_is_refused(scaling: str, tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "a.gguf", scaling=scaling)
    with pytest.raises(
        ModelLoadError, match=f"scales its positions .qwen2.rope.scaling.type '{scaling}'"
    ):
        load(str(tmp_path / "a.gguf"))


def test_no_scaling_may_be_said(tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "a.gguf", scaling="none")
    load(str(tmp_path / "a.gguf"))
