"""A LoRA adapter beside the base it is for: the change ``B A`` of every weight that it is for.

The product is formed a block of columns at a time. PEFT's format: ``lora_A``, ``lora_B`` of linear
layers, ``lora_embedding_A``, ``lora_embedding_B`` of embeddings, and whole biases.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from refusal.audits.forensics.blocks import columns
from refusal.audits.forensics.pairs import Block, Change, Changes, Files
from refusal.audits.forensics.writers import Writer
from refusal.core.errors import ModelLoadError, UnsupportedModelError
from refusal.weights.checkpoint import Checkpoint, read_header
from refusal.weights.lora import PREFIX

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MERGE = "Merge it into its base (PEFT's merge_and_unload), save that, and give the folder."
FACTORS = {"lora_A": "A", "lora_B": "B", "lora_embedding_A": "A", "lora_embedding_B": "B"}


@dataclass(frozen=True)
class LowRank(Change):
    """A writer of the base, and the factors of what is added to it; ``None``: nothing is."""

    base: Tensor
    axis: int
    up: Float[Tensor, "d_model rank"] | None
    down: Float[Tensor, "rank input"] | None

    @property
    def unchanged(self) -> bool:
        """Whether nothing is added."""
        return self.up is None or self.down is None or not (self.up.any() and self.down.any())

    def blocks(self) -> Iterator[Block]:
        """The base's columns and what is added to them."""
        start = 0
        for base in columns(self.base, self.axis):
            end = start + base.shape[1]
            if self.up is None or self.down is None:
                yield base, base.new_zeros(base.shape)
            else:
                yield base, self.up @ self.down[:, start:end]
            start = end


class Adapter(Changes):
    """A folder with an adapter."""

    def __init__(self, base: Checkpoint, folder: Path, writers: tuple[Writer, ...]) -> None:
        """Read the factors.

        Raises:
            ModelLoadError: a file is missing or damaged.
            UnsupportedModelError: it is no LoRA, or for parameters that are not read here.
        """
        self.base = Files(base)
        self.folder, self.config = folder, read_adapter_config(folder)
        shard = read_header(folder / WEIGHTS)
        files = Files(Checkpoint(folder, {}, None, (shard,)))
        self.factors: dict[str, dict[str, Tensor]] = {}
        others = []
        for entry in shard.entries:
            module, kind = _split(entry.name)
            if kind is None:
                others.append(entry.name)
                continue
            self.factors.setdefault(module, {})[kind] = files.read(entry.name).float()
        self.others = tuple(others)
        self.count = len(shard.entries)
        known = {writer.target.removesuffix(".weight") for writer in writers}
        names = {_module(name) for name in self.base.places} | known
        if strange := sorted(set(self.factors) - names):
            raise UnsupportedModelError(
                f"The adapter changes {strange[0]}, which is no layer of {base.folder}. Give the "
                "base that it is for; or, if it changes experts, merge it and give the folder."
            )

    def load(self, writer: Writer) -> LowRank:
        """A writer and its factors.

        Raises:
            UnsupportedModelError: they do not fit it.
        """
        base, found = self.base.read(writer.name), self._of(writer)
        if found is None:
            return LowRank(base, writer.axis, None, None)
        up, down = found["B"], found["A"]
        inputs = base.numel() // base.shape[writer.axis]
        if base.dim() != 2 or (up.shape[0], down.shape[1]) != (base.shape[writer.axis], inputs):
            raise UnsupportedModelError(
                f"The adapter's factors of {writer.name} have the shapes {tuple(up.shape)} and "
                f"{tuple(down.shape)}, and the weight {tuple(base.shape)}. {MERGE}"
            )
        module = writer.target.removesuffix(".weight")
        return LowRank(base, writer.axis, up * self._scaling(module, down.shape[0]), down)

    def compare(self, writers: tuple[Writer, ...]) -> tuple[int, int, tuple[str, ...]]:
        """Count the weights that the adapter changes, of all that the base has."""
        notes = []
        inside = {writer.target.removesuffix(".weight") for writer in writers}
        elsewhere = sorted(set(self.factors) - inside - {_module(w.name) for w in writers})
        if elsewhere:
            notes.append(
                f"The adapter changes {len(elsewhere)} weights that do not write to the stream, "
                f"such as {elsewhere[0]}."
            )
        if self.others:
            notes.append(f"It carries {len(self.others)} whole tensors, such as {self.others[0]}.")
        return len(self.base.places), len(self.factors) + len(self.others), tuple(notes)

    def _of(self, writer: Writer) -> dict[str, Tensor] | None:
        return self.factors.get(writer.target.removesuffix(".weight")) or self.factors.get(
            _module(writer.name)
        )

    def _scaling(self, module: str, rank: int) -> float:
        """PEFT's: ``alpha / rank``, or by the root of the rank."""
        alpha = float(self.config.get("lora_alpha", rank))
        for pattern, value in (self.config.get("alpha_pattern") or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                alpha = float(value)
        return alpha / (rank**0.5 if self.config.get("use_rslora") else rank)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter."""
    return (folder / CONFIG).is_file()


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The adapter's config.

    Raises:
        ModelLoadError: not readable, or its weights are missing.
        UnsupportedModelError: it is no plain LoRA.
    """
    try:
        config: Any = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(f"{folder / CONFIG} cannot be read ({error}).") from error
    if not (folder / WEIGHTS).is_file():
        raise ModelLoadError(f"{folder} holds no {WEIGHTS}. Fetch the adapter again.")
    kind = config.get("peft_type") if isinstance(config, dict) else None
    odd = [key for key in ("use_dora", "target_parameters") if kind and config.get(key)]
    if kind != "LORA" or odd:
        what = f"has {odd[0]}" if odd else f"is of the kind {kind}"
        raise UnsupportedModelError(f"The adapter in {folder} {what}, which is not read. {MERGE}")
    return config  # type: ignore[no-any-return]


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def _split(name: str) -> tuple[str, str | None]:
    """The layer that a tensor of the adapter belongs to, and which factor it is."""
    parts = name.removeprefix(PREFIX).split(".")
    for i, part in enumerate(parts):
        if part in FACTORS:
            return ".".join(parts[:i]), FACTORS[part]
    return name, None
