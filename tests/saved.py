"""A tiny chat model and prompt files on disk, for tests that load, run and resume."""

from pathlib import Path
from typing import Any

import tiny_models
from conftest import make_prompts

from refusal import RunConfig, make_config

# Enough prompts that every split of either class has some to spare; no filter, since random weights
# refuse nothing.
PER_CLASS = 60
SMALL: dict[str, Any] = {
    "n_train": 8,
    "n_val": 8,
    "n_test": 3,
    "filter": False,
    "dedup": "exact",
    "refusal_tokens": ("I", "A"),
    "max_new_tokens": 3,
    "dtype": "float32",
    "induce_threshold": -1000.0,
    "kl_threshold": 1000.0,
    "layer_step": 2,
    "controls": 0,
    "drift_tokens": 0,
    "figures": ("none",),
}


def save_model(
    folder: Path, template: str | None = "bare", family: str = "llama", seed: int = 0
) -> Path:
    """Write a tiny model and its tokenizer as ``save_pretrained`` does."""
    tiny_models.network(family, seed).save_pretrained(folder)
    tiny_models.tokenizer(template).save_pretrained(folder)
    return folder


def write_prompts(folder: Path) -> tuple[str, ...]:
    """One file a class; what ``--prompts`` takes."""
    for label, offset in (("harmful", 0), ("harmless", 1000)):
        lines = [p.text for p in make_prompts("harmful", PER_CLASS, offset)]
        (folder / f"{label}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"harmful={folder / 'harmful.txt'}", f"harmless={folder / 'harmless.txt'}"


def small_config(model: Path | str, prompts: tuple[str, ...], **changes: Any) -> RunConfig:
    """A run of a few seconds."""
    return make_config(model=str(model), **{**SMALL, "prompts": prompts, **changes})


def flags(config: RunConfig) -> list[str]:
    """The same as command-line arguments after the verb."""
    out = [config.model]
    for name in sorted(config.model_fields_set - {"model"}):
        value = getattr(config, name)
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            out.append(flag if value else f"--no-{name}")
        elif isinstance(value, tuple):
            out += [flag, *value]
        else:
            out += [f"{flag}={value}"]
    return out


def times(folder: Path) -> dict[str, int]:
    """When each file was last written, without those that every run writes."""
    always = {"run.toml", "manifest.json", "categories.json", "report.html", "tables"}
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] not in always
    }
