"""A planted model on disk, its run, and what is made of it: what a comparison must find is known."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import planted
import torch
from torch import Tensor

import refusal
from refusal import ChatModel, Direction, load
from refusal.config.diff import DiffConfig, DiffOptions, diff_config
from refusal.config.run_config import make_config
from refusal.interventions.ablate_add import Ablate
from refusal.weights.save import export_lora

PER_CLASS = 120
SIZES: dict[str, Any] = {
    "n_train": 16,
    "n_val": 12,
    "n_test": 20,
    "dedup": "exact",
    "filter": "none",
    "max_new_tokens": 8,
    "dtype": "float32",
    "induce_threshold": -1000.0,
    "kl_threshold": 1000.0,
    "prune_layers": 0.5,
    "resamples": 0,
    "controls": 0,
    "drift_tokens": 2,
    "figures": ("none",),
}


@dataclass(frozen=True)
class Made:
    """Folders: of the base, of a run of it, of the model with its direction taken out by plain code,
    of the exported adapter that does the same.
    """

    base: Path
    run: Path
    edited: Path
    adapter: Path
    prompts: tuple[str, ...]

    @property
    def direction(self) -> Direction:
        """The run's."""
        return Direction.load(self.run / "direction.safetensors")

    def load(self) -> ChatModel:
        """The base."""
        return load(str(self.base), dtype="float32")

    def config(self, **changes: Any) -> DiffConfig:
        """A comparison of a few seconds."""
        own = {
            name: changes.pop(name) for name in list(changes) if name in DiffOptions.model_fields
        }
        run = make_config(**{"model": str(self.base), **self.sizes, **changes})
        return diff_config(run, **{"kl_prompts": 6, **own})

    @property
    def sizes(self) -> dict[str, Any]:
        """Of the run."""
        token = planted.planted(1).model.tokenizer.convert_tokens_to_ids(planted.REFUSAL)
        return {**SIZES, "prompts": self.prompts, "refusal_tokens": (str(token),)}


@cache
def made() -> Made:
    """Made once, and not written to."""
    folder = Path(mkdtemp(prefix="refusal-diff-"))
    base = planted.save(planted.planted(1), folder / "base")
    files = []
    for label, texts in zip(("harmful", "harmless"), planted.prompts(1, PER_CLASS), strict=True):
        path = folder / f"{label}.txt"
        path.write_text("\n".join(texts) + "\n", encoding="utf-8")
        files.append(f"{label}={path}")
    found = Made(base, folder / "run", folder / "edited", folder / "adapter", tuple(files))
    config = make_config(model=str(base), **found.sizes)
    refusal.run(config, found.run, until="select")
    edited = found.load()
    _project_out(edited, found.direction.vector)
    edited.hf.save_pretrained(found.edited)
    edited.tokenizer.save_pretrained(found.edited)
    export_lora(found.load(), Ablate(found.direction), found.adapter, ["Sing", "Why?"])
    return found


def _project_out(model: ChatModel, unit: Tensor) -> None:
    """Take a direction out of all that a Llama writes to its stream, the plain way."""
    core, r = model.hf.model, unit.double()
    with torch.no_grad():
        rows = core.embed_tokens.weight.double()
        core.embed_tokens.weight.copy_(rows - (rows @ r)[:, None] * r)
        for layer in core.layers:
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                columns = linear.weight.double()
                linear.weight.copy_(columns - r[:, None] * (r @ columns))
            bias = layer.mlp.down_proj.bias.double()
            layer.mlp.down_proj.bias.copy_(bias - (bias @ r) * r)
