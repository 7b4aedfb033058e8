"""Loading: what is passed on, what is refused with which message, and what the weight hash
notices.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import saved
import tiny_models
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from refusal import (
    ChatModel,
    ChatTemplateError,
    ConfigError,
    Error,
    ModelLoadError,
    OutOfMemoryError,
    load,
)
from refusal.model import base
from refusal.model.forward import last_logits
from refusal.model.placement import find_device


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved.save_model(tmp_path_factory.mktemp("model"), template="no-system", family="qwen2")


def one_line(error: Error) -> str:
    assert "\n" not in str(error)
    return str(error)


# --- what is loaded


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_is_that_of_the_weights(source: Path, dtype: str) -> None:
    model = load(str(source), dtype=dtype)
    assert {p.dtype for p in model.hf.parameters()} == {getattr(torch, dtype)}
    assert not model.hf.training
    stored = tiny_models.network("qwen2").state_dict()
    for name, tensor in model.hf.state_dict().items():
        assert torch.equal(tensor, stored[name].to(tensor.dtype)), name


def test_a_folder_may_be_relative_or_in_the_home(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "model").symlink_to(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("owner/model", "./owner/model", "~/owner/model", "owner/model/"):
        assert load(name).name == name


def recorded(monkeypatch: pytest.MonkeyPatch, source: Path) -> dict[str, dict[str, Any]]:
    """Have hub ids come from a folder, and keep the arguments."""
    calls: dict[str, dict[str, Any]] = {}
    for auto in (AutoTokenizer, AutoConfig, AutoModelForCausalLM):
        real = auto.from_pretrained

        def from_pretrained(
            name: str, real: Callable[..., Any] = real, key: str = auto.__name__, **options: Any
        ) -> Any:
            if name == "owner/model":  # transformers asks for the config again, of the folder
                calls[key] = {"name": name, **options}
            return real(source, **{k: v for k, v in options.items() if k != "revision"})

        monkeypatch.setattr(auto, "from_pretrained", from_pretrained)
    return calls


def test_the_revision_is_passed_on_for_weights_and_tokenizer(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded(monkeypatch, source)
    model = load("owner/model", revision="abc123")
    assert {name: call["revision"] for name, call in calls.items()} == {
        "AutoTokenizer": "abc123",
        "AutoConfig": "abc123",
        "AutoModelForCausalLM": "abc123",
    }
    assert {call["name"] for call in calls.values()} == {"owner/model"}
    assert (model.name, model.revision) == ("owner/model", "abc123")
    load("owner/model")
    assert all("revision" not in call for call in calls.values())


def test_the_device_map_is_passed_on_and_wins_over_the_device(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded(monkeypatch, source)
    moved: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *args: moved.append(args))
    load("owner/model", device_map="auto")
    assert calls["AutoModelForCausalLM"]["device_map"] == "auto"
    assert moved == []
    load("owner/model", device="cpu")
    assert "device_map" not in calls["AutoModelForCausalLM"]
    assert moved == [(torch.device("cpu"),)]


def test_a_model_spread_by_accelerate_generates_the_same(source: Path) -> None:
    plain, spread = (
        load(str(source), dtype="float32"),
        load(str(source), dtype="float32", device_map="auto"),
    )
    assert spread.generate(["Hello"], 4) == plain.generate(["Hello"], 4)
    assert spread.weight_hash() == plain.weight_hash()


@pytest.mark.parametrize("has", ["cuda", "mps", "cpu"])
def test_auto_takes_the_best_device_there_is(monkeypatch: pytest.MonkeyPatch, has: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has == "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(has == "cuda"))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has == "mps")
    assert find_device("auto") == torch.device(has)


# --- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int3"}, r"Unknown dtype 'int3'\. Use auto, bfloat16"),
        ({"device": "toaster"}, r"Unknown device 'toaster'\. Use auto"),
        ({"device": "meta"}, "'meta' is not available here"),
        ({"device": "cuda:99"}, "'cuda:99' is not available here"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(
    options: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load("/nowhere", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["/nowhere/model", "./model", "../model", "~/model", "model", "a/b/c", ""]
)
def test_a_name_that_can_be_nothing_is_refused_without_the_network(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        AutoTokenizer, "from_pretrained", lambda *args, **kwargs: pytest.fail("asked the hub")
    )
    with pytest.raises(
        ModelLoadError, match=r"neither a folder, a \.gguf file nor a hub id|no config\.json"
    ) as caught:
        load(name)
    one_line(caught.value)


def test_an_unknown_id_or_no_network_says_what_else_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise OSError(
            "We couldn't connect to the hub and have no copy.\nCheck your connection.\nMore lines."
        )

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", offline)
    with pytest.raises(ModelLoadError) as caught:
        load("owner/model")
    assert one_line(caught.value) == (
        "The model 'owner/model' could not be loaded: We couldn't connect to the hub and have no "
        "copy. Check the id and the network, give a local folder or a .gguf file, or use "
        "`embedded`."
    )


def test_transformers_itself_offline_is_one_message(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelLoadError, match=r"use `embedded`\.") as caught:
        load("owner/no-such-model")
    one_line(caught.value)


def damage(folder: Path, what: str) -> None:
    weights = folder / "model.safetensors"
    match what:
        case "truncated weights":
            weights.write_bytes(weights.read_bytes()[:-1000])
        case "empty weights":
            weights.write_bytes(b"")
        case "no weights":
            weights.unlink()
        case "broken config":
            (folder / "config.json").write_text("{", encoding="utf-8")
        case "unknown kind":
            (folder / "config.json").write_text('{"model_type": "no-such-type"}', encoding="utf-8")
        case "no language model":
            (folder / "config.json").write_text('{"model_type": "vit"}', encoding="utf-8")
        case "other sizes":
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            (folder / "config.json").write_text(
                json.dumps({**config, "hidden_size": 64}), encoding="utf-8"
            )
        case "no tokenizer":
            for file in folder.glob("*token*"):
                file.unlink()
        case "broken tokenizer":
            (folder / "tokenizer.json").write_text('{"version": "1.0"}', encoding="utf-8")


@pytest.mark.parametrize(
    "what",
    [
        "truncated weights",
        "empty weights",
        "no weights",
        "broken config",
        "unknown kind",
        "no language model",
        "other sizes",
        "no tokenizer",
        "broken tokenizer",
    ],
)
def test_a_damaged_folder_is_one_message(tmp_path: Path, what: str) -> None:
    folder = saved.save_model(tmp_path / "model")
    damage(folder, what)
    with pytest.raises((ModelLoadError, ChatTemplateError)) as caught:
        load(str(folder))
    assert one_line(caught.value)


@pytest.mark.parametrize("where", ["weights", "device"])
def test_weights_that_do_not_fit_are_one_message(
    source: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    if where == "weights":
        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    else:
        monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(OutOfMemoryError, match="do not fit into memory"):
        load(str(source))


@pytest.mark.parametrize(
    ("template", "system", "message"),
    [
        (None, None, "no chat template: this looks like a base model"),
        ("no-system", "Be brief.", r"rejects a system prompt .*Run without --system"),
    ],
)
def test_a_template_that_does_not_serve_is_refused_before_the_weights_are_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    template: str | None,
    system: str | None,
    message: str,
) -> None:
    folder = saved.save_model(tmp_path / "model", template=template)
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("read the weights")
    )
    with pytest.raises(ChatTemplateError, match=message):
        load(str(folder), system=system)


def test_loading_prints_nothing(source: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(str(source))
    assert capfd.readouterr() == ("", "")


# --- the weight hash


def test_the_weight_hash_is_that_of_the_weights(source: Path) -> None:
    plain = load(str(source), dtype="bfloat16").weight_hash()
    assert load(str(source), dtype="bfloat16", device_map="cpu").weight_hash() == plain
    assert load(str(source), dtype="float32").weight_hash() != plain
    assert (
        tiny_models.chat_model(seed=0).weight_hash() != tiny_models.chat_model(seed=1).weight_hash()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weight_hash_notices_any_single_weight(dtype: torch.dtype) -> None:
    model = tiny_models.chat_model()
    model.hf.to(dtype)  # type: ignore[arg-type]  # transformers wraps the signature away
    before = model.weight_hash(samples=7)  # so few samples that most weights are not among them
    torch.manual_seed(0)
    for name, parameter in model.hf.named_parameters():
        flat = parameter.data.view(-1)
        for index in {0, flat.numel() - 1, *torch.randint(flat.numel(), (3,)).tolist()}:
            old = flat[index].clone()
            flat[index] = torch.nextafter(old, torch.tensor(torch.inf, dtype=dtype))
            assert model.weight_hash(samples=7) != before, (name, index)
            flat[index] = old
    assert model.weight_hash(samples=7) == before


def test_the_weight_hash_notices_exchanged_neurons_and_names(model: ChatModel) -> None:
    before = model.weight_hash()
    layer = model.hf.model.layers[0].mlp.up_proj.weight.data
    layer[[0, 1]] = layer[[1, 0]].clone()
    assert model.weight_hash() != before
    layer[[0, 1]] = layer[[1, 0]].clone()
    first, second = model.hf.model.layers[0], model.hf.model.layers[1]
    model.hf.model.layers[0], model.hf.model.layers[1] = second, first
    assert model.weight_hash() != before


def test_the_weight_hash_does_not_depend_on_the_number_of_threads(model: ChatModel) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = model.weight_hash()
        torch.set_num_threads(max(2, os.cpu_count() or 1))
        assert model.weight_hash() == one
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("length", [0, 1, 3, 7, 8, 9])
def test_the_bit_sum_takes_every_byte(length: int) -> None:
    data = torch.arange(1, length + 1, dtype=torch.uint8)
    padded = data[: length // 8 * 8].numpy().tobytes()
    words = [
        int.from_bytes(padded[i : i + 8], "little", signed=True) for i in range(0, len(padded), 8)
    ]
    assert base._bit_sum(data) == sum(words) + sum(data[length // 8 * 8 :].tolist())
    shifted = torch.cat([torch.zeros(3, dtype=torch.uint8), data])[3:]
    assert base._bit_sum(shifted) == base._bit_sum(data)


@pytest.mark.parametrize(
    "family", [name for name, kind in tiny_models.FAMILIES.items() if kind.wrapper is not None]
)
def test_a_vision_language_checkpoint_is_used_through_its_language_model(
    family: str, tmp_path: Path
) -> None:
    folder = saved.save_model(tmp_path, "no-system", family)
    model = load(str(folder), dtype="float32")
    inside = (
        "language_model.model" if family == "llama4" else "model.language_model"
    )  # in the class that was saved
    assert model.sites.blocks[0] == f"{inside}.layers.0"
    here = ChatModel(tiny_models.network(family), tiny_models.tokenizer("no-system"))
    torch.testing.assert_close(last_logits(model, ["Why?"]), last_logits(here, ["Why?"]))
    assert model.generate(["Why?", "List ten rivers."], 4) == here.generate(
        ["Why?", "List ten rivers."], 4
    )


def test_the_template_of_an_older_vision_language_checkpoint_is_found_with_its_processor(
    tmp_path: Path,
) -> None:
    folder = saved.save_model(tmp_path, None, "llava")
    with pytest.raises(ChatTemplateError, match="no chat template"):
        load(str(folder))
    (folder / "chat_template.json").write_text(
        json.dumps({"chat_template": tiny_models.CHATML}), encoding="utf-8"
    )
    assert load(str(folder)).chat.suffix_tokens[0] == "<|end|>"
