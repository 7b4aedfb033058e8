"""Tiny checkpoints on disk, edited in plain code or really fine-tuned, for the examination of
weights.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tiny_models
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from weight_edits import Edit, Place, Tensors, unit

from refusal.audits.forensics.writers import find_writers
from refusal.weights.checkpoint import open_checkpoint


def read(folder: Path) -> Tensors:
    """Every tensor of a folder."""
    found: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


class Tiny:
    """A tiny model's folder, and what in it writes to the stream."""

    def __init__(
        self,
        folder: Path,
        family: str,
        *,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        shard: str = "1GB",
        **changes: Any,
    ) -> None:
        self.folder, self.family = folder / "base", family
        network: Any = tiny_models.network(family, seed, **changes)
        network.to(dtype).save_pretrained(self.folder, max_shard_size=shard)
        tiny_models.tokenizer("chatml").save_pretrained(self.folder)
        self.tensors = read(self.folder)
        self.writers = find_writers(open_checkpoint(self.folder))
        self.places = [Place(w.name, w.axis, w.layer, w.component) for w in self.writers]
        self.width = self.tensors[self.places[0].name].shape[self.places[0].axis]
        self.out = folder / "candidate"

    @property
    def u(self) -> Tensor:
        """An arbitrary direction."""
        return unit(self.width, 3)

    @property
    def v(self) -> Tensor:
        """Another one, orthogonal to it."""
        other = unit(self.width, 4)
        rest = other - (other @ self.u) * self.u
        found: Tensor = rest / rest.norm()
        return found

    def candidate(self, edit: Edit, name: str = "candidate") -> Path:
        """The folder of an edited copy, in the place of the one before it."""
        return self.write(edit(self.tensors, self.places), name)

    def write(self, tensors: Mapping[str, Tensor], name: str = "candidate") -> Path:
        """A folder as the base's, with these tensors in one file."""
        out = self.folder.parent / name
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(self.folder, out, ignore=shutil.ignore_patterns("*.safetensors*"))
        whole = {name: t.contiguous() for name, t in tensors.items()}
        save_file(whole, out / "model.safetensors", {"format": "pt"})
        return out

    def touched(self, edit: Edit) -> set[int | None]:
        """The layers in which an edit changes a matrix that writes to the stream."""
        new = edit(self.tensors, self.places)
        found = set()
        for place in self.places:
            old = self.tensors[place.name]
            if old.dim() > 1 and not torch.equal(old, new[place.name].to(old.dtype)):
                found.add(place.layer)
        return found

    def trained(self, lr: float, steps: int = 4, decay: float = 0.01, seed: int = 0) -> Edit:
        """Fine-tuning for real: AdamW on random tokens, through transformers."""

        def edit(tensors: Mapping[str, Tensor], places: Sequence[Place]) -> Tensors:
            start = self.write(tensors, "before-training")
            wrapped = tiny_models.family(self.family).wrapper is not None
            auto: Any = AutoModelForImageTextToText if wrapped else AutoModelForCausalLM
            model = auto.from_pretrained(start, dtype=torch.float32)
            optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=decay)
            random = torch.Generator().manual_seed(seed)
            for _ in range(steps):
                ids = torch.randint(5, 260, (4, 16), generator=random)
                loss = model(input_ids=ids, labels=ids).loss
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            dtypes = {name: t.dtype for name, t in tensors.items()}
            after = self.folder.parent / "after-training"
            shutil.rmtree(after, ignore_errors=True)
            model.save_pretrained(after)
            found = read(after)
            return {name: found[name].to(dtype) for name, dtype in dtypes.items() if name in found}

        return edit
