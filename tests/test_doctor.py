"""The doctor's findings, and the sizes that its estimates rest on, against real models."""

import http.server
import json
import shlex
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import saved
import tiny_models
import torch
from huggingface_hub import constants

import refusal
from refusal.cli import doctor
from refusal.cli import verbs as cli
from refusal.cli.entry import main
from refusal.cli.examples import EXAMPLES
from refusal.cli.present import present
from refusal.cli.verbs import app
from refusal.config.run_config import RunConfig, make_config
from refusal.model.sizes import ModelSize, size_of
from refusal.pipeline.costs.estimate import (
    SHARING,
    Estimate,
    Machine,
    estimate,
    model_outline,
)
from refusal.pipeline.costs.speed import Speed, measure_speed
from refusal.runs.stage import Plan

SPEED = Speed(flops=1e12, bandwidth=1e10)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub is asked, and the machine is not measured."""
    monkeypatch.setattr(doctor, "measure_speed", lambda device, dtype, like: SPEED)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def hub() -> doctor.Finding:
    return next(finding for finding in doctor.examine() if finding.name == "hub")


# --- sizes


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral", "qwen3"])
def test_a_size_is_that_of_the_model(family: str) -> None:
    hf = tiny_models.network(family)
    size = size_of(hf, hf.config)
    assert size.weights == sum(parameter.numel() for parameter in hf.parameters())
    out = hf(torch.tensor([[1, 2, 3]]), use_cache=True).past_key_values
    kept = sum(layer.keys.numel() + layer.values.numel() for layer in out.layers)
    assert size.cache == kept // 3
    assert size.layers == len(out.layers)


def test_a_head_without_a_width_of_its_own_has_its_share_of_the_stream() -> None:
    hf = tiny_models.network("qwen2", head_dim=tiny_models.OMIT)
    assert getattr(hf.config, "head_dim", None) is None
    out = hf(torch.tensor([[1, 2, 3]]), use_cache=True).past_key_values
    assert (
        size_of(hf, hf.config).cache
        == sum(layer.keys.numel() + layer.values.numel() for layer in out.layers) // 3
    )


def test_a_token_meets_its_experts_only() -> None:
    hf = tiny_models.network("mixtral")
    config = hf.config
    experts = sum(p.numel() for name, p in hf.named_parameters() if ".experts." in name)
    vocabulary = sum(
        p.numel()
        for name, p in hf.named_parameters()
        if "embed_tokens" in name or "lm_head" in name
    )
    dense = size_of(hf, config).weights - experts - vocabulary
    met = experts * config.num_experts_per_tok // config.num_local_experts
    assert experts > 0
    assert config.num_experts_per_tok < config.num_local_experts
    assert size_of(hf, config).active == pytest.approx(dense + met, abs=8)


def test_a_size_comes_from_the_config_alone(tmp_path: Path) -> None:
    folder = saved.save_model(tmp_path / "model")
    hf = refusal.load(str(folder), dtype="float32").hf
    for file in Path(folder).glob("*.safetensors"):
        file.unlink()
    outline = model_outline(str(folder))
    assert outline.device.type == "meta"
    assert size_of(outline, outline.config) == size_of(hf, hf.config)


def on(size: ModelSize, config: RunConfig, machine: Machine | None = None) -> Estimate:
    return estimate(size, Plan(config, size.layers), machine or Machine(SPEED))


def test_a_checkpoint_in_another_dtype_is_held_beside_what_it_becomes(tmp_path: Path) -> None:
    outline = model_outline(str(saved.save_model(tmp_path / "model")))
    size = size_of(outline, outline.config)
    large = replace(size, weights=10**10)
    bytes_of = {
        dtype: on(large, make_config(dtype=dtype)).memory_bytes for dtype in ("bfloat16", "float32")
    }
    both = 10**10 * (4 + 2)
    stored, other = ("bfloat16", "float32") if size.stored == 2 else ("float32", "bfloat16")
    assert bytes_of[other] == pytest.approx(both, rel=0.02)
    assert bytes_of[stored] == pytest.approx(10**10 * size.stored, rel=0.1)


def test_more_work_takes_longer_and_more_rows_more_memory() -> None:
    hf = tiny_models.network("llama")
    size = size_of(hf, hf.config)
    small, large = (
        on(size, make_config(n_test=n, n_train=n, controls=1, n_control=1)) for n in (8, 64)
    )
    assert large.memory_bytes > small.memory_bytes > size.weights * 2
    assert all(
        large.seconds[name] > small.seconds[name] for name in ("extract", "generate", "controls")
    )
    assert on(size, make_config(full_map=True)).seconds["select"] > large.seconds["select"]


def test_this_machine_is_measured() -> None:
    found = measure_speed(torch.device("cpu"), "float32", size=256)
    assert 1e8 < found.bandwidth < 1e13
    assert 1e8 < found.flops < 1e16
    assert found.read(10) is None  # no model was named


def test_blocks_of_the_models_shape_are_timed() -> None:
    found = measure_speed(torch.device("cpu"), "float32", tiny_models.network("llama"), size=256)
    assert [n for n, _ in found.reading] == [16, 64, 256, 768]
    assert [n for n, _ in found.writing] == [1, 4, 16, 64]
    for times in (found.read, found.write):
        short, long = times(1500), times(3000)
        assert short is not None
        assert long == pytest.approx(2 * short)  # in proportion beyond what was timed
        assert short > (times(16) or 0.0) > 0
    assert found.times(4.0).read(3000) == pytest.approx((found.read(3000) or 0.0) / 4)


@pytest.mark.parametrize("family", ["mamba", "deepseek_v3", "jamba"])
def test_where_blocks_cannot_stand_for_all_products_do(family: str) -> None:
    """A recurrent state, a few dense blocks before many of experts, two kinds in turn."""
    found = measure_speed(torch.device("cpu"), "float32", tiny_models.network(family), size=256)
    assert found.reading == found.writing == ()
    assert found.flops > 0


def test_a_block_that_does_not_fit_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refusal.pipeline.costs.speed.free_memory", lambda device: 1000)
    assert (
        measure_speed(
            torch.device("cpu"), "float32", tiny_models.network("llama"), size=256
        ).reading
        == ()
    )


# --- findings


def test_a_hub_that_answers_anything_is_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    class NotFound(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(404)

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), NotFound)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    assert hub().level == "ok"
    server.shutdown()
    server.server_close()
    found = hub()
    assert found.level == "note"
    assert "not reachable" in found.text


def test_a_hub_that_is_switched_off_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in hub().text


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.EXTRAS, "judges", ("no-such-package",))
    (found,) = (finding for finding in doctor.examine() if finding.name == "judges")
    assert found == doctor.Finding(
        "judges", "note", "no-such-package not installed: pip install 'refusal[judges]'"
    )


def test_a_model_that_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved.save_model(tmp_path / "model")
    assert main(["doctor", str(folder), "--json"]) == 0
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert found["--preset paper"]["level"] == "ok"
    assert "blocks, d_model" in found["model"]["text"]


def test_a_model_that_does_not_fit_is_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved.save_model(tmp_path / "model")
    monkeypatch.setattr(doctor, "free_memory", lambda device: 1 << 20)
    assert main(["doctor", str(folder)]) == 1
    assert "too much" in " ".join(capsys.readouterr().err.split())


def test_a_model_that_is_not_there_is_exit_code_2() -> None:
    assert main(["doctor", "no/such/folder"]) == 2


# --- help by example


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_an_example_can_be_typed(line: str) -> None:
    words = shlex.split(line, comments=True)
    typed = words[
        1 : next((i for i, word in enumerate(words) if word.startswith((">", "<"))), None)
    ]
    app.parse_args(typed, exit_on_error=False, print_error=False)
    assert len(line) <= 78


@pytest.mark.parametrize("verb", [verb for verb in EXAMPLES if verb])
def test_help_ends_with_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert EXAMPLES[verb][0].split("  ")[0] in capsys.readouterr().out


def test_every_verb_has_examples() -> None:
    assert {verb for verb in app if not verb.startswith("-")} == set(EXAMPLES) - {""}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_the_verbs(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(verb in script for verb in cli.VERBS)


# --- estimates for other machines


def test_processes_share_where_a_copy_fits_and_a_large_model_is_spread() -> None:
    hf = tiny_models.network("llama")
    size, config = size_of(hf, hf.config), make_config(price_per_device_hour=3.6)
    one = on(size, config, Machine(SPEED, "cuda", 80e9, 1, 3.6))
    four = on(size, config, Machine(SPEED, "cuda", 80e9, 4, 3.6))
    assert (one.processes, four.processes) == (1, 4)
    assert four.total_seconds == pytest.approx(one.total_seconds / (4 * SHARING))
    assert one.cost == pytest.approx(one.total_seconds / 1000)
    assert four.cost == pytest.approx(four.total_seconds * 4 / 1000)
    spread = on(size, config, Machine(SPEED, "cuda", one.memory_bytes / 3, 4, None))
    assert (spread.processes, spread.fits) == (1, True)
    assert spread.total_seconds == pytest.approx(one.total_seconds)
    assert not on(size, config, Machine(SPEED, "cuda", one.memory_bytes / 6, 4, None)).fits


def test_an_estimate_by_data_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved.save_model(tmp_path / "model")
    assert main(["estimate", str(folder), "--device", "h100", "--count", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["devices"], found["processes"], found["fits"], found["cost"]) == (
        2,
        2,
        True,
        None,
    )
    assert found["total_seconds"] == pytest.approx(sum(found["seconds"].values()))
    assert main(["estimate", str(folder), "--device", "h100", "--price-per-device-hour", "3"]) == 0
    assert "Cost: 0.0" in capsys.readouterr().out
    assert main(["estimate", str(folder), "--device", "tpu"]) == 2
    assert "'tpu'" in (message := capsys.readouterr().err)
    assert "h100" in message


def test_questions_to_others_are_shown_and_nothing_where_there_are_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    hf = tiny_models.network("llama")
    judged = make_config(judges=("endpoint-refusal=big",), n_test=1000)
    present(on(size_of(hf, hf.config), judged))
    shown = " ".join(capsys.readouterr().out.split())
    assert "Questions to servers and other models, their time not counted: judge 6,000" in shown
    assert "│ judge │ not counted │" in shown  # no second of it is spent here
    present(on(size_of(hf, hf.config), make_config(n_test=1000)))
    shown = capsys.readouterr().out
    assert "Questions" not in shown
    assert "not counted" not in shown
