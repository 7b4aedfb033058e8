"""The table in docs/families.md, measured on tiny random models: ``python tests/families_table.py >
docs/families.md``.

A column is a function from a case to a cell. ``tests/test_families_table.py`` measures all again.
"""

import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import tiny_models
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from refusal import (
    Ablate,
    ChatModel,
    Direction,
    ExportError,
    UnsupportedModelError,
    export_lora,
    find_parameters,
    orthogonalisation_gap,
    orthogonalised,
)
from refusal.model.forward import last_logits
from refusal.model.hooks import Edit, hooked
from refusal.weights.checkpoint_stream import stream_model

PROMPTS = ("Why?", "Name three rivers of Europe, please.", "How do birds find their way home?")
INTRO = """# Families

What is found and measured on a tiny model of each family, with random weights, gains and biases (float32, width 32).
Written by `python tests/families_table.py > docs/families.md`; a test measures it again. What to do about a family that is not here: [a new model family](new-family.md).

- **writers**: the modules whose outputs are added to the stream, per kind of block; a number is a constant multiplier.
- **additive error**: of input plus writes against the stream, largest over blocks, relative.
- **ablation leftover**: largest share of the stream along the direction under ablation by hooks.
- **orthogonalisation gap**: largest difference of last-token logits between edited weights and hooks. Behind a
  post-norm with gain `g` the edit reads `r g` and writes `r / g`, and they differ, because the norm rescales what is
  left: the share of the hooks' effect is given.
- **LoRA**: largest logit difference between the edited model and the adapter loaded by PEFT, or why there is none.
- **streaming**: largest logit difference between the edited model and its checkpoint edited tensor by tensor.
"""


@dataclass(frozen=True)
class Cell:
    """A verdict, which is compared, and a measured value, which is shown."""

    verdict: str
    value: str = ""

    def __str__(self) -> str:
        return f"{self.verdict} {self.value}".strip()


class Case:
    """A tiny model of one family and a random direction."""

    def __init__(self, family: str) -> None:
        self.family = family
        self.kind = tiny_models.family(family)

    @cached_property
    def model(self) -> ChatModel:
        return tiny_models.chat_model(self.family)

    @cached_property
    def direction(self) -> Direction:
        vector = torch.randn(self.model.sites.d_model, generator=torch.Generator().manual_seed(3))
        return Direction(vector / vector.norm(), 2.0, -1, 1, model=self.model.name)


def discovered(case: Case) -> Cell:
    """The writers per block."""
    return Cell(
        "; ".join(
            " + ".join(f"`{name}`" for name in kind) for kind in sorted(case.model.sites.kinds)
        )
    )


def additive(case: Case) -> Cell:
    """Input plus writes equals the stream."""
    return _within(max(case.model.sites.verify(case.model.hf).errors), 1e-4)


def ablation(case: Case) -> Cell:
    """Hooks leave nothing of the direction."""
    unit, worst = case.direction.vector, [0.0]

    def look(x: torch.Tensor) -> None:
        worst.append(float(((x @ unit).abs() / x.norm(dim=-1)).max()))

    blocks = [case.model.hf.get_submodule(name) for name in case.model.sites.blocks]
    edits = [*(Edit(block, "input", look) for block in blocks), Edit(blocks[-1], "output", look)]
    with case.model.apply(Ablate(case.direction)), hooked(edits):
        last_logits(case.model, PROMPTS)
    return _within(max(worst), 1e-4)


def orthogonalisation(case: Case) -> Cell:
    """Weights do what the hooks do."""
    parameters = find_parameters(case.model.hf, case.model.sites)
    gap = orthogonalisation_gap(case.model, case.direction, PROMPTS, parameters=parameters)
    if not any(p.norm is not None for p in parameters):
        return _within(gap.logits, 1e-3)
    before = last_logits(case.model, PROMPTS)
    with case.model.apply(Ablate(case.direction)):
        effect = float((last_logits(case.model, PROMPTS) - before).abs().max())
    return Cell("post-norm:", f"{gap.logits:.2f} ({gap.logits / effect:.0%} of the effect)")


def lora(case: Case) -> Cell:
    """An adapter loaded by PEFT does what the edited weights do."""
    import peft  # for tests only

    ids = torch.tensor([case.model.tokenize(PROMPTS[:1])[0]])
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            export_lora(case.model, case.direction, Path(folder) / "adapter")
        except ExportError as error:
            return Cell("no:", str(error).split(",")[0])
        base = tiny_models.network(case.family)
        found = (
            peft.PeftModel.from_pretrained(base, Path(folder) / "adapter")
            .eval()(input_ids=ids)
            .logits
        )
        with orthogonalised(case.model, case.direction):
            expected = case.model.hf(input_ids=ids).logits
    return _within(float((found - expected).abs().max()), 1e-3)


def streaming(case: Case) -> Cell:
    """The checkpoint edited tensor by tensor, and loaded, does what the edited weights do."""
    ids = torch.tensor([case.model.tokenize(PROMPTS[:1])[0]])
    auto: Any = (
        AutoModelForImageTextToText if case.kind.wrapper is not None else AutoModelForCausalLM
    )
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        source, out = Path(folder) / "source", Path(folder) / "out"
        tiny_models.network(case.family).save_pretrained(source, max_shard_size="40KB")
        case.model.tokenizer.save_pretrained(source)
        stream_model(source, replace(case.direction, model=""), out)
        found = auto.from_pretrained(out)(input_ids=ids).logits
        with orthogonalised(case.model, case.direction):
            expected = case.model.hf(input_ids=ids).logits
    return _within(float((found - expected).abs().max()), 1e-3)


COLUMNS: dict[str, Callable[[Case], Cell]] = {
    "writers": discovered,
    "additive error": additive,
    "ablation leftover": ablation,
    "orthogonalisation gap": orthogonalisation,
    "LoRA": lora,
    "streaming": streaming,
}


def table() -> dict[str, dict[str, Cell]]:
    """Cells by family and column."""
    rows: dict[str, dict[str, Cell]] = {}
    for family in [*tiny_models.FAMILIES, *tiny_models.OTHERS]:
        case = Case(family)
        try:
            rows[family] = {name: column(case) for name, column in COLUMNS.items()}
        except UnsupportedModelError as error:
            rows[family] = {name: Cell("refused:", str(error).split(":")[0]) for name in COLUMNS}
    return rows


def markdown(rows: dict[str, dict[str, Cell]]) -> str:
    """The whole page."""
    lines = [f"| family | {' | '.join(COLUMNS)} |", "| --- " * (len(COLUMNS) + 1) + "|"]
    lines += [
        f"| {family} | {' | '.join(str(cell) for cell in row.values())} |"
        for family, row in rows.items()
    ]
    return "\n".join([INTRO, *lines]) + "\n"


def _within(value: float, limit: float) -> Cell:
    return Cell("yes" if value <= limit else "NO:", f"{value:.0e}")


if __name__ == "__main__":
    sys.stdout.write(markdown(table()))
