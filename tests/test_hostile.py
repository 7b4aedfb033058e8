"""Inputs that are wrong, one a row: each ends with the right exit code and one message that names
the fault.

A row stands for a kind of fault. What a command must do with inputs that only look wrong is tested
beside its module.
"""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import saved
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from refusal import Direction
from refusal.cli.entry import main
from refusal.core.storage import write_tensors
from refusal.weights.same_weights import files_hash


class Place:
    """A folder of its own for one row, a tiny model and prompts that are in order."""

    def __init__(self, path: Path, source: Path, prompts: tuple[str, ...]) -> None:
        self.path, self.source, self.prompts = path, source, prompts

    def model(self) -> Path:
        """A copy of the tiny model's folder, to be damaged."""
        return Path(shutil.copytree(self.source, self.path / "model"))

    def run(self, *more: str, model: Path | None = None, verb: str = "run") -> list[str]:
        """The command line of a small run."""
        config = saved.small_config(model or self.source, self.prompts)
        return [verb, *saved.flags(config), "--out", str(self.path / "out"), *more]


class Hostile(NamedTuple):
    """``arguments`` prepares the files and gives the command line; ``says`` must all be in the one
    message.
    """

    name: str
    arguments: Callable[[Place], list[str]]
    says: tuple[str, ...]
    code: int = 2


def _no_such_model(place: Place) -> list[str]:
    return place.run(model=place.path / "nowhere")


# --- files of a model


def _weights(
    change: Callable[[str, Tensor], tuple[str, Tensor] | None], dtype: str = "float32"
) -> Callable[[Place], list[str]]:
    """A run of a model whose tensors ``change`` renames, alters or leaves out."""

    def arguments(place: Place) -> list[str]:
        folder = place.model()
        changed = [
            change(name, tensor) for name, tensor in load_file(folder / "model.safetensors").items()
        ]
        kept = {pair[0]: pair[1].contiguous() for pair in changed if pair is not None}
        save_file(kept, folder / "model.safetensors", {"format": "pt"})
        return [
            text.replace("--dtype=float32", f"--dtype={dtype}") for text in place.run(model=folder)
        ]

    return arguments


def _without(part: str) -> Callable[[Place], list[str]]:
    return _weights(lambda name, tensor: None if part in name else (name, tensor))


def _renamed(part: str, other: str) -> Callable[[Place], list[str]]:
    return _weights(lambda name, tensor: (name.replace(part, other), tensor))


def _times(part: str, factor: float, dtype: str = "float32") -> Callable[[Place], list[str]]:
    return _weights(lambda name, tensor: (name, tensor * factor if part in name else tensor), dtype)


def _stored(part: str, dtype: torch.dtype) -> Callable[[Place], list[str]]:
    return _weights(
        lambda name, tensor: (name, (tensor * 50).to(dtype) if part in name else tensor)
    )


def _configured(**changes: Any) -> Callable[[Place], list[str]]:
    """A run of a model whose config says something else."""

    def arguments(place: Place) -> list[str]:
        folder = place.model()
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
        return place.run(model=folder)

    return arguments


def _adapter(place: Place) -> list[str]:
    folder = place.model()
    (folder / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "owner/model"}', encoding="utf-8"
    )
    return place.run(model=folder)


_UP, _OWN = (
    "model.layers.2.mlp.up_proj.weight",
    {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
)
_LIST = "model.layers (5 x LlamaDecoderLayer)"

MODEL_FILES: tuple[Hostile, ...] = (
    Hostile("no such folder", _no_such_model, ("nowhere", "embedded")),
    Hostile("a tensor is missing", _without(_UP), (_UP, "1 tensor missing")),
    Hostile("a head is missing", _without("lm_head"), ("lm_head.weight", "1 tensor missing")),
    Hostile(
        "misnamed tensors",
        _renamed("up_proj", "upproj"),
        ("10 tensors missing", "upproj", "without a place"),
    ),
    Hostile("wrong prefix", _renamed("model.", "net."), ("82 tensors missing", "net.layers.0")),
    Hostile(
        "nothing found",
        _weights(lambda name, t: (f"net.{name}", t)),
        ("83 tensors missing", "all of them"),
    ),
    Hostile(
        "fewer layers", _without("layers.4."), ("5 layers", "16 tensors missing", "model.layers.4.")
    ),
    Hostile(
        "more layers",
        _configured(num_hidden_layers=3),
        ("3 layers", "32 tensors without", "model.layers.3."),
    ),
    Hostile(
        "unused biases",
        _configured(attention_bias=False),
        ("20 tensors without a place", "k_proj.bias"),
    ),
    Hostile(
        "other shapes", _configured(intermediate_size=64), ("down_proj.weight (32, 48)", "(32, 64)")
    ),
    Hostile(
        "another vocabulary", _configured(vocab_size=300), ("lm_head.weight (272, 32)", "(300, 32)")
    ),
    Hostile("NaN in a weight", _times(_UP, math.nan), (_UP, "NaN", "float32")),
    Hostile(
        "infinity in a norm",
        _times("norm.weight", math.inf),
        ("11 tensors", "input_layernorm.weight"),
    ),
    Hostile(
        "float16 overflow", _times(_UP, 1e7, "float16"), (_UP, "(float16)", "--dtype bfloat16")
    ),
    Hostile(
        "float16 overflow of an activation",
        _times("down_proj.weight", 2e4, "float16"),
        ("model.layers.", "float16", "--dtype bfloat16"),
        code=1,
    ),
    Hostile("all zeros", _times("", 0.0), ("All 37 weight matrices", "constant")),
    Hostile(
        "the embedding is zero",
        _times("embed_tokens", 0.0),
        ("embed_tokens", "one vector for every token"),
    ),
    Hostile("the head is zero", _times("lm_head", 0.0), ("lm_head", "one logit for every token")),
    Hostile(
        "an unknown quantisation",
        _configured(quantization_config={"quant_method": "own"}),
        ("'own'",),
    ),
    Hostile(
        "a quantisation without a name",
        _configured(quantization_config={"bits": 4}),
        ("no quant_method",),
    ),
    Hostile("an adapter", _adapter, ("adapter_config.json", "Merge")),
    Hostile(
        "code of its own",
        _configured(model_type="own", auto_map=_OWN),
        ("code of its own", "is not run"),
    ),
    Hostile("no such blocks", lambda place: place.run("--blocks=model.h"), ("'model.h'", _LIST)),
    Hostile(
        "blocks that are one block",
        lambda place: place.run("--blocks=model.layers.0"),
        ("layers.0'", _LIST),
    ),
    Hostile(
        "no such writers",
        lambda place: place.run("--writers", "attn", "mlp"),
        ("'attn'", "self_attn, "),
    ),
    Hostile(
        "too few writers",
        lambda place: place.run("--writers", "mlp"),
        ("given (mlp)", "self_attn, "),
    ),
    Hostile(
        "integers without scales",
        _stored(_UP, torch.int8),
        (f"{_UP} (I8)", "without a quantization_config"),
    ),
    Hostile(
        "float8 without scales",
        _stored(_UP, torch.float8_e4m3fn),
        (f"{_UP} (F8_E4M3)", "quantization_config"),
    ),
    Hostile(
        "mxfp4 over plain numbers",
        _configured(quantization_config={"quant_method": "mxfp4"}),
        ("disagree",),
    ),
    Hostile(
        "fp8 over plain numbers",
        _configured(quantization_config={"quant_method": "fp8"}),
        ("disagree", "F32"),
    ),
    Hostile(
        "bits over plain numbers",
        _configured(quantization_config={"load_in_4bit": True}),
        ("disagree", "F32"),
    ),
)

# --- identity of a run, direction files, contexts


def _direction(place: Place, vector: torch.Tensor, **changes: str) -> list[str]:
    """Chat with a direction's file."""
    meta = {
        "position": "-1",
        "layer": "1",
        "norm": "1.0",
        "qualified": "true",
        "model": "",
        **changes,
    }
    write_tensors(place.path / "d.safetensors", {"direction": vector}, meta)
    return ["chat", str(place.source), "--direction", str(place.path / "d.safetensors")]


def _unit(n: int = tiny_models.WIDTH) -> torch.Tensor:
    return torch.full((n,), n**-0.5)


def _edited_since(place: Place) -> list[str]:
    """A run whose model's weights, not its name, have changed since."""
    model = place.model()
    main([*place.run(model=model, verb="select"), "--quiet"])
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"][7] *= 1.5
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    return ["export", str(place.path / "out"), "--as", "model", "--stream"]


def _special(place: Place, key: str) -> list[str]:
    """A config that names a special token which the embedding does not have."""
    model = place.model()
    found = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps({**found, key: 9999}), encoding="utf-8")
    return place.run(model=model)


def _larger_tokenizer(place: Place) -> list[str]:
    model = place.model()
    tok = tiny_models.tokenizer("bare")
    tok.add_tokens([f"<{i}>" for i in range(20)])
    tok.chat_template = tok.chat_template.replace(" [/INST]", "<19> [/INST]")
    tok.save_pretrained(model)
    return place.run(model=model)


def _long_prompt(place: Place) -> list[str]:
    file = place.path / "long.txt"
    file.write_text("word " * 300, encoding="utf-8")
    return [
        "run",
        str(place.source),
        "--prompts",
        f"harmful={file}",
        *place.prompts,
        "--out",
        "out",
    ]


def _texts(place: Place, *names: str) -> list[str]:
    for name in names:
        (place.path / name).parent.mkdir(exist_ok=True)
        (place.path / name).write_text("Some running text.", encoding="utf-8")
    return place.run("--texts", *names)


IDENTITY: tuple[Hostile, ...] = (
    Hostile(
        "direction with NaN", lambda p: _direction(p, _unit() * math.nan), ("d.safetensors", "NaN")
    ),
    Hostile("direction of length 3", lambda p: _direction(p, _unit() * 3), ("length 3",)),
    Hostile("direction as a matrix", lambda p: _direction(p, _unit()[None]), ("not one vector",)),
    Hostile(
        "direction of another width", lambda p: _direction(p, _unit(5)), ("5 dimensions", "32")
    ),
    Hostile(
        "direction of no layer",
        lambda p: _direction(p, _unit(), layer="17"),
        ("layer 17", "0 to 4"),
    ),
    Hostile(
        "direction of no position",
        lambda p: _direction(p, _unit(), position="-80"),
        ("position -80",),
    ),
    Hostile(
        "direction without a norm", lambda p: _direction(p, _unit(), norm="-inf"), ("norm is -inf",)
    ),
    Hostile(
        "direction half qualified",
        lambda p: _direction(p, _unit(), qualified='"yes"'),
        ("qualified is 'yes'",),
    ),
    Hostile("weights edited since the run", _edited_since, ("other weights",)),
    Hostile(
        "a date that is none", lambda p: p.run("--date", "2031-02-30"), ("2031-02-30", "YYYY-MM-DD")
    ),
    Hostile(
        "an endless KL threshold",
        lambda p: ["run", str(p.source), "--kl-threshold", "inf"],
        ("kl_threshold", "inf"),
    ),
)

# --- prompt files and output places


def _prompts(
    name: str, content: str | bytes, *more: str, spec: str = "harmful={}"
) -> Callable[[Place], list[str]]:
    """A run whose prompts are this file."""

    def arguments(place: Place) -> list[str]:
        path = place.path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return Place(place.path, place.source, (spec.format(path),)).run(*more)

    return arguments


def _prompts_at(spec: str) -> Callable[[Place], list[str]]:
    """A run whose prompts are where nothing can be read."""
    return lambda place: Place(place.path, place.source, (spec,)).run()


def _beside(name: str, content: str | bytes, flag: str) -> Callable[[Place], list[str]]:
    """A run with another file beside its prompts."""

    def arguments(place: Place) -> list[str]:
        path = place.path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return place.run(flag.format(path))

    return arguments


def _pipe(place: Place) -> list[str]:
    os.mkfifo(place.path / "pipe.txt")
    return _prompts_at("harmful=pipe.txt")(place)


def _both_classes(place: Place) -> list[str]:
    (place.path / "a.txt").write_text("Tell me a joke\nSing a song\n")
    (place.path / "b.txt").write_text("Dance\n tell me  a JOKE\n")
    return Place(place.path, place.source, ("harmful=a.txt", "harmless=b.txt")).run()


_TURNS = '[{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}, {"role": "user", "content": "C"}, {"role": "assistant", "content": "D"}]'

PROMPT_FILES: tuple[Hostile, ...] = (
    Hostile(
        "unclosed quote",
        _prompts("a.csv", 'prompt,x\n"A b,1\nC d,2\n'),
        ("a.csv", "line 2", "never closed"),
    ),
    Hostile(
        "quote closed by the next",
        _prompts("a.csv", 'prompt,x\n"A,1\n"C",2\n'),
        ("a.csv", "line 2", "line 3"),
    ),
    Hostile(
        "quote closed rows later",
        _prompts("a.csv", 'prompt,x\n"A,1\nC,2"\n'),
        ("line 2 to 3", "1 of 2 cells"),
    ),
    Hostile(
        "long cell", _prompts("a.csv", 'prompt\n"' + "A b\n" * 50_000), ("line 2", "never closed")
    ),
    Hostile(
        "more cells than the header", _prompts("a.csv", "prompt\nA, b\n"), ("line 2", "more cells")
    ),
    Hostile(
        "another separator below", _prompts("a.csv", "prompt,id\nA;1\n"), ("row 1", "fewer cells")
    ),
    Hostile(
        "header with two separators",
        _prompts("a.csv", "prompt;x,label\nA;b,c\n"),
        ("commas", "semicolons"),
    ),
    Hostile(
        "two columns of one name",
        _prompts("a.csv", "prompt,PROMPT\nA,b\n"),
        ("two columns", "'prompt'"),
    ),
    Hostile(
        "two text columns", _prompts("a.csv", "prompt,text\nA,b\n"), ("prompt and text", "--column")
    ),
    Hostile(
        "no text column", _prompts("a.csv", "frage;label\nA;safe\n"), ("frage, label", "--column")
    ),
    Hostile("unknown label", _prompts("a.csv", "prompt,label\nA,benign\n"), ("row 1", "'benign'")),
    Hostile("empty file", _prompts("a.csv", ""), ("a.csv", "no prompts")),
    Hostile("header only", _prompts("a.tsv", "prompt\tid\n"), ("a.tsv", "no prompts")),
    Hostile("invisible prompts", _prompts("a.txt", "\u200b\n \ufeff\n"), ("a.txt", "no prompts")),
    Hostile(
        "utf-16",
        _prompts("a.txt", "A b\n".encode("utf-16")),
        ("a.txt", "UTF-16", "Save it as UTF-8"),
    ),
    Hostile(
        "utf-16 without a mark",
        _prompts("a.txt", "A b\n".encode("utf-16-le")),
        ("UTF-16 without", "line 1"),
    ),
    Hostile("latin-1", _prompts("a.txt", b"A\ncaf\xe9\n"), ("not UTF-8", "line 2")),
    Hostile(
        "context without its question",
        _prompts("a.csv", "instruction,input\n,A\n"),
        ("row 1", "no instruction"),
    ),
    Hostile(
        "conversation",
        _prompts("a.jsonl", f'{{"messages": {_TURNS}}}'),
        ("row 1", "ends with the assistant turn"),
    ),
    Hostile(
        "earlier turns",
        _prompts("a.jsonl", '{"prompt": "A", "history": [["B", "C"]]}'),
        ("row 1", "history"),
    ),
    Hostile(
        "system prompt",
        _prompts("a.jsonl", '{"prompt": "A", "system": "B"}'),
        ("row 1", "--system 'B'"),
    ),
    Hostile(
        "another system prompt",
        _prompts("a.jsonl", '{"prompt": "A", "system": "B"}', "--system=C"),
        ("row 1", "'B'", "--system is 'C'"),
    ),
    Hostile("NaN", _prompts("a.jsonl", '{"prompt": NaN}'), ("NaN", "line 1")),
    Hostile(
        "a key twice", _prompts("a.jsonl", '{"prompt": "A", "prompt": "B"}'), ("'prompt'", "twice")
    ),
    Hostile(
        "half a surrogate pair",
        _prompts("a.jsonl", '{"prompt": "\\ud800"}'),
        ("row 1", "surrogate"),
    ),
    Hostile("NUL", _prompts("a.jsonl", '{"prompt": "A\\u0000"}'), ("row 1", "NUL")),
    Hostile(
        "nested 100,000 deep", _prompts("a.json", "[" * 100_000), ("a.json", "nested too deeply")
    ),
    Hostile(
        "lines in a .json",
        _prompts("a.json", '{"prompt": "A"}\n{"prompt": "B"}'),
        ("line 2", ".jsonl"),
    ),
    Hostile(
        "same prompt in both classes", _both_classes, ("1 prompt", "'tell me  a JOKE'", "one class")
    ),
    Hostile("pipe", _pipe, ("pipe.txt", "is a pipe")),
    Hostile("device", _prompts_at("harmful=/dev/zero"), ("/dev/zero", "device")),
    Hostile("folder", _prompts_at("harmful=."), ("is a folder",)),
    Hostile("over-long path", _prompts_at("harmful=" + "x" * 5000), ("cannot be read", "too long")),
    Hostile("NUL in a path", _prompts_at("harmful=a\0.txt"), ("NUL character",)),
    Hostile(
        "table of texts",
        _beside("a.csv", "text\nA b\n", "--texts={}"),
        ("a.csv", "unknown kind", ".jsonl"),
    ),
    Hostile(
        "texts nested deep",
        _beside("a.jsonl", "[" * 100_000, "--texts={}"),
        ("a.jsonl", "nested too deeply"),
    ),
    Hostile("texts with NaN", _beside("a.jsonl", '{"text": NaN}', "--texts={}"), ("NaN", "line 1")),
    Hostile(
        "texts at an over-long path",
        lambda place: place.run("--texts=" + "x" * 5000),
        ("no text file",),
    ),
    Hostile(
        "labels with an unclosed quote",
        _beside("a.csv", 'prompt_id,completion,label\n1,"A,safe\n', "--judges=labels={}"),
        ("a.csv", "line 2", "never closed"),
    ),
    Hostile(
        "configuration nested deep",
        _beside("a.toml", "n_train = " + "[" * 100_000, "--config={}"),
        ("too deeply",),
    ),
    Hostile(
        "configuration in UTF-16",
        _beside("a.toml", "n_train = 1".encode("utf-16"), "--config={}"),
        ("UTF-16",),
    ),
    Hostile("no home", _prompts_at("harmful=~nobody-of-that-name/a.txt"), ("home folder",)),
)

# --- thinking, judges, refusal tokens


def _occupied(name: str, text: str, *command: str) -> Callable[[Place], list[str]]:
    """A file of somebody else's in the place where the command would write."""

    def arguments(place: Place) -> list[str]:
        file = place.path / "out" / name
        file.parent.mkdir()
        file.write_text(text, encoding="utf-8")
        return [*command, str(place.path / "out"), "--out", str(file)] if command else place.run()

    return arguments


MEANING: tuple[Hostile, ...] = (
    Hostile(
        "a report over a manifest",
        _occupied("manifest.json", "{}", "report"),
        ("manifest.json", "no page"),
    ),
    Hostile(
        "a run over a direction",
        _occupied("direction.safetensors", "x"),
        ("direction.safetensors", "--out"),
    ),
    Hostile("a run over a page", _occupied("report.html", "mine"), ("report.html", "no manifest")),
    Hostile(
        "a lock of something else", _occupied(".lock", "mine"), (".lock", "no lock of this program")
    ),
    Hostile(
        "a folder in use on another machine",
        _occupied(".lock", '{"pid": 1, "host": "elsewhere", "started": 1.0}'),
        ("in use", "process 1 on elsewhere", "delete"),
    ),
)

# --- exports


def _streamed(
    place: Place, change: Callable[[dict[str, Tensor]], object], **config: object
) -> list[str]:
    """A run as far as its direction on a damaged copy of the model, and its export tensor by
    tensor.
    """
    model, run = place.model(), place.path / "run"
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    values = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps({**values, **config}), encoding="utf-8")
    run.mkdir()
    (run / "run.toml").write_text(f'model = "{model}"\n', encoding="utf-8")
    manifest = {**_MANIFEST, "files_hash": files_hash(model)}
    (run / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    Direction(torch.eye(32)[0], 1.0, -1, 2).save(run / "direction.safetensors")
    return ["export", str(run), "--as", "model", "--stream", "--out", str(place.path / "edited")]


def _into_a_file(place: Place) -> list[str]:
    (place.path / "edited").write_text("mine", encoding="utf-8")
    return _streamed(place, lambda tensors: None)


DOWN, UP = "model.layers.3.mlp.down_proj.weight", "model.layers.1.mlp.up_proj.weight"
EXPORTS: tuple[Hostile, ...] = (
    Hostile(
        "export of a lost tensor",
        lambda p: _streamed(p, lambda t: t.pop(DOWN)),
        (DOWN, "holds 0 elements"),
    ),
    Hostile(
        "export of a lost unedited tensor",
        lambda p: _streamed(p, lambda t: t.pop(UP)),
        (UP, "lacks 1 tensors"),
    ),
    Hostile(
        "export of a tensor of no parameter",
        lambda p: _streamed(
            p, lambda t: t.update({"model.layers.9.mlp.down_proj.weight": torch.ones(32, 48)})
        ),
        ("belong to no parameter", "model.layers.9"),
    ),
    Hostile(
        "export of packed weights",
        lambda p: _streamed(p, lambda t: t.update({DOWN: t[DOWN].to(torch.int8)})),
        (DOWN, "stored as I8"),
    ),
    Hostile(
        "export of more blocks than there are",
        lambda p: _streamed(p, lambda t: None, num_hidden_layers=7),
        ("model.layers.5", "holds 0 elements"),
    ),
    Hostile("export into a file", _into_a_file, ("is a file", "--out")),
)

# --- files of a run folder


def _in_run(file: str, content: str | bytes, *command: str) -> Callable[[Place], list[str]]:
    """A command on a run folder that holds a manifest, options and this file."""

    def arguments(place: Place) -> list[str]:
        run = place.path / "run"
        (run / file).parent.mkdir(parents=True)
        (run / "run.toml").write_text('model = "x"\n')
        (run / "manifest.json").write_text(json.dumps(_MANIFEST))
        (run / file).write_bytes(content if isinstance(content, bytes) else content.encode())
        return [part.format(run=run) for part in command or ("report", "{run}")]

    return arguments


_MANIFEST = {
    "format": 2,
    "model": {"name": "x", "weight_hash": "0", "dtype": "float32", "template_hash": "0"},
    "prompts": {"name": "x", "counts": {}, "sha256": {}},
    "seed": 42,
    "versions": {},
    "hardware": {},
    "started": "2026-01-01T00:00:00+00:00",
    "stages": {},
}
_TOKENS = '{"ids": [1], "texts": ["I"], "source": "x"}'
_METRIC = (
    '{"name": "a", "set": "b", "condition": "c", "value": 1.0, "low": 0.0, "high": 1.0, "n": 1}'
)
_SCORE = '{"position": -1, "layer": 1, "bypass": 1.0, "induce": 1.0, "kl": 1.0}'

RUN_FOLDER: tuple[Hostile, ...] = (
    Hostile(
        "manifest is a list", _in_run("manifest.json", "[]"), ("manifest.json", "not the manifest")
    ),
    Hostile(
        "manifest nested",
        _in_run("manifest.json", "[" * 100_000),
        ("manifest.json", "nested too deeply"),
    ),
    Hostile(
        "manifest cut off",
        _in_run("manifest.json", '{"format": 2'),
        ("manifest.json", "cannot be read as JSON"),
    ),
    Hostile(
        "a stage is a text",
        _in_run("manifest.json", json.dumps({**_MANIFEST, "stages": {"tokens": "done"}})),
        ("manifest.json", "stages, tokens"),
    ),
    Hostile(
        "no seed",
        _in_run("manifest.json", json.dumps({**_MANIFEST, "seed": None})),
        ("manifest.json", "seed: Input should be a valid integer"),
    ),
    Hostile("tokens are a list", _in_run("refusal_tokens.json", "[1]"), ("refusal_tokens.json",)),
    Hostile(
        "a token without its text",
        _in_run("refusal_tokens.json", _TOKENS.replace("[1]", "[1, 2]")),
        ("refusal_tokens.json", "not one for each token"),
    ),
    Hostile("scores empty", _in_run("scores.json", ""), ("scores.json", "cannot be read as JSON")),
    Hostile(
        "score is a text",
        _in_run("scores.json", f'[{_SCORE[:-4]}"x"}}]'),
        ("scores.json", "row 1, kl"),
    ),
    Hostile(
        "position 0",
        _in_run("scores.json", f"[{_SCORE.replace('-1', '0')}]"),
        ("row 1", "no position 0"),
    ),
    Hostile(
        "a candidate twice",
        _in_run("scores.json", f"[{_SCORE}, {_SCORE}]"),
        ("scores.json", "one candidate"),
    ),
    Hostile("metrics are a dict", _in_run("metrics.json", "{}"), ("metrics.json", "valid array")),
    Hostile(
        "metric NaN",
        _in_run("metrics.json", f"[{_METRIC.replace('0.0', 'NaN')}]"),
        ("NaN is no JSON number",),
    ),
    Hostile(
        "metric 1e999",
        _in_run("metrics.json", f"[{_METRIC.replace('0.0', '1e999')}]"),
        ("row 1, low", "finite"),
    ),
    Hostile(
        "metric unknown field",
        _in_run("metrics.json", f'[{_METRIC[:-1]}, "frob": 1}}]'),
        ("row 1, frob",),
    ),
    Hostile(
        "metric field twice",
        _in_run("metrics.json", f'[{_METRIC[:-1]}, "n": 2}}]'),
        ("'n'", "twice"),
    ),
    Hostile(
        "metric surrogate",
        _in_run("metrics.json", f"[{_METRIC.replace('a', chr(92) + 'ud800', 1)}]"),
        ("JSON",),
    ),
    Hostile("metrics latin-1", _in_run("metrics.json", b'["\xe9"]'), ("metrics.json", "utf-8")),
    Hostile(
        "completion lacks a field",
        _in_run("completions/harmful.baseline.jsonl", "{}\n"),
        ("line 1, prompt_id",),
    ),
    Hostile(
        "completion cut off",
        _in_run("completions/harmful.baseline.jsonl", '{"pro'),
        ("line 1", "cut off"),
    ),
    Hostile(
        "categories are a list", _in_run("categories.json", "[]"), ("categories.json", "an object")
    ),
    Hostile(
        "agreement of a text",
        _in_run("judgements/agreement.json", '["x"]'),
        ("agreement.json", "row 1"),
    ),
    Hostile(
        "no completions to add to",
        _in_run("x.json", "", "evaluate", "{run}"),
        ("holds no completions",),
    ),
    Hostile(
        "no direction to export",
        _in_run("x.json", "", "export", "{run}", "--as", "model"),
        ("no direction",),
    ),
    Hostile(
        "direction is a text",
        _in_run("direction.safetensors", "x", "export", "{run}", "--as", "direction"),
        ("direction.safetensors", "no refusal direction"),
    ),
    Hostile("over-long run folder", lambda place: ["report", "x" * 5000], ("no run folder",)),
)

# --- options, environment, servers, what reaches a terminal


def _with(*more: str) -> Callable[[Place], list[str]]:
    """A small run with these arguments at its end."""
    return lambda place: place.run(*more)


def _template(text: str) -> Callable[[Place], list[str]]:
    """A run of a model whose chat template is this."""

    def arguments(place: Place) -> list[str]:
        model = place.model()
        for file in model.glob("*template*"):
            file.write_text(text)
        return place.run(model=model)

    return arguments


_JUDGE = ("--judges", "endpoint-refusal=m", "--judge-url")

ARGUMENTS: tuple[Hostile, ...] = (
    Hostile(
        "judge address without a scheme",
        _with(*_JUDGE, "localhost:8000/v1"),
        ("judge_url", "http://"),
    ),
    Hostile(
        "judge address is a file", _with(*_JUDGE, "file:///etc/passwd"), ("judge_url", "http://")
    ),
    Hostile(
        "judge address with a space", _with(*_JUDGE, "http://a b/v1"), ("judge_url", "no spaces")
    ),
    Hostile("judge port", _with(*_JUDGE, "http://localhost:99999/v1"), ("judge_url", "no address")),
    Hostile(
        "judge address without a host", _with(*_JUDGE, "http:///v1"), ("judge_url", "then the host")
    ),
    Hostile(
        "judge address with a query",
        _with(*_JUDGE, "http://a/v1?key=1"),
        ("judge_url", "up to and with /v1"),
    ),
    Hostile(
        "password in an address",
        _with(*_JUDGE, "http://me:pw@a/v1"),
        ("[hidden]@a", "--judge-key-env"),
    ),
    Hostile(
        "key among arguments",
        _with("--engine-arguments", "api-key=abc"),
        ("api-key=[hidden]", "VLLM_API_KEY"),
    ),
    Hostile("not UTF-8", _with("--data-dir", "a\udcff"), ("is not UTF-8",)),
    Hostile("NUL", _with("--data-dir", "a\0"), ("NUL character",)),
    Hostile("over-long config", _with("--config", "x" * 5000), ("xxxx",)),
    Hostile(
        "over-long data folder", _with("--prompts", "paper", "--data-dir", "x" * 5000), ("x" * 50,)
    ),
    Hostile(
        "template divides by zero", _template("{{ 1 / 0 }}"), ("chat template", "division by zero")
    ),
    Hostile(
        "template never ends",
        _template("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}"),
        ("chat template",),
    ),
    Hostile(
        "template out of the sandbox",
        _template("{{ ''.__class__.__mro__ }}{{ [].append.__self__.x() }}"),
        ("chat",),
    ),
    Hostile("template is broken", _template("{% if %}"), ("chat template",)),
    Hostile(
        "template has control characters",
        _template("{{ raise_exception('\x1b]0;x\x07') }}"),
        ("␛]0;x",),
    ),
    Hostile("markup in a path", _with("--config", "[/x]"), ("[/x]",)),
    Hostile("control characters in a path", _with("--config", "\x1b[2J\u202e"), ("␛[2J⟨U+202E⟩",)),
)

ROWS = (*MODEL_FILES, *IDENTITY, *PROMPT_FILES, *MEANING, *EXPORTS, *RUN_FOLDER, *ARGUMENTS)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved.save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    return saved.write_prompts(tmp_path_factory.mktemp("prompts"))


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_a_wrong_input_ends_with_one_message_that_names_the_fault(
    row: Hostile,
    source: Path,
    prompts: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = row.arguments(Place(tmp_path, source, prompts))
    capfd.readouterr()
    code = main(arguments)
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    assert (code, out, err.count("error: ")) == (row.code, "", 1), err
    for words in row.says:
        assert words in err, err
