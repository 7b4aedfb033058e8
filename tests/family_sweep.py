"""Every type of model with a text decoder that transformers ships: what is found, whether ablation
by hooks is complete, whether the edited weights are right. ``python tests/family_sweep.py >
docs/family-sweep.md`` writes the page; types named behind it are measured alone.

What is measured here shares no code with what the package measures: plain forward hooks, other
tokens, another direction.
"""

import contextlib
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import shrunk
import tiny_models
import torch
from torch import Tensor
from transformers import PreTrainedModel

import refusal
from refusal import Ablate, ChatModel, Direction, Sites, find_sites
from refusal.model.hooks import hooked
from refusal.model.sites import language_model
from refusal.weights.save import export_model

CLEAN = 1e-5  # share of the stream along the direction, float32
SAME = 1e-3  # of what ablation does to the logits


@dataclass(frozen=True)
class Row:
    """What became of one type: ``state`` is verified, refused, not buildable or crashed; ``hooks``
    and ``export`` are yes, no, a reason, or empty.
    """

    family: str
    state: str
    why: str = ""
    hooks: str = ""
    left: float = 0.0
    export: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        left = f"{self.left:.0e}" if self.hooks else ""
        cells = (self.family, self.state, self.hooks, left, self.export, self.why)
        return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def sweep(families: Sequence[str] = ()) -> Iterator[Row]:
    """A row for each type, in order of their names."""
    for family in families or shrunk.model_types():
        began = time.perf_counter()
        row = _row(family)
        yield Row(**{**vars(row), "seconds": time.perf_counter() - began})


def _row(family: str) -> Row:
    try:
        hf = language_model(shrunk.tiny(family))
    except Exception as error:
        return Row(family, "not buildable", _first(error))
    try:
        sites = find_sites(hf)
    except refusal.Error as error:
        return Row(family, "refused", _first(error))
    except Exception as error:
        return Row(family, "crashed", _first(error, trace=True))
    try:
        direction = _direction(sites)
        edits = Ablate(direction).edits(hf, sites)
        with hooked(edits):
            left, hooked_logits = looked_at(hf, sites, direction.vector)
        _, plain = looked_at(hf, sites, direction.vector)
        hooks = "yes" if left < CLEAN else "NO"
        export = _export(family, hf, sites, direction, plain, hooked_logits)
    except Exception as error:
        return Row(family, "crashed", _first(error, trace=True))
    return Row(family, "verified", "", hooks, left, export)


def _export(
    family: str,
    hf: PreTrainedModel,
    sites: Sites,
    direction: Direction,
    plain: Tensor,
    want: Tensor,
) -> str:
    """Write an edited model, and look whether it is one: yes, WRONG, or why it is not written."""
    model = ChatModel(hf, tiny_models.tokenizer(), name=family, sites=sites)
    model.tokenizer.name_or_path = ""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        try:
            done = export_model(model, direction, Path(folder) / "out")
        except refusal.Error as error:
            return f"no: {_first(error)}"
    left, logits = looked_at(hf, sites, direction.vector)
    assert done.report is not None
    gap = float((logits - want).norm() / (plain - want).norm())
    if done.report.behind_norm:
        return "yes, behind a post-norm" if left < 1e-4 else f"WRONG: {left:.0e} is left"
    return "yes" if left < 1e-4 and gap < SAME else f"WRONG: {left:.0e} left, gap {gap:.0e}"


def looked_at(hf: PreTrainedModel, sites: Sites, unit: Tensor) -> tuple[float, Tensor]:
    """The largest share along ``unit`` of any vector, in any lane, that enters a block or leaves
    the last one; and the logits, centred.
    """
    shares: list[float] = []

    def look(x: Tensor) -> None:
        vectors = x.detach().float().reshape(-1, len(unit))
        size = vectors.norm(dim=-1)
        shares.append(float(((vectors @ unit).abs() / size.clamp_min(1e-3 * size.max())).max()))

    def before(module: object, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        look(args[0] if args else kwargs["hidden_states"])

    def after(module: object, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        look(output[0] if isinstance(output, tuple) else output)

    blocks = [hf.get_submodule(name) for name in sites.blocks]
    handles = [b.register_forward_pre_hook(before, with_kwargs=True) for b in blocks]
    handles.append(blocks[-1].register_forward_hook(after))
    ids = torch.arange(12)[None] * 53 % 260 + 5
    try:
        with torch.inference_mode():
            logits = hf(input_ids=ids, use_cache=False).logits[0].float()
    finally:
        for handle in handles:
            handle.remove()
    said = logits[:, logits[0] > -1e9]  # Chameleon never writes a picture's tokens
    return max(shares), said - said.mean(-1, keepdim=True)


def _direction(sites: Sites) -> Direction:
    vector = torch.randn(sites.d_model, generator=torch.Generator().manual_seed(11))
    return Direction(vector / vector.norm(), 1.0, -1, sites.n_layers // 2)


def _first(error: BaseException, trace: bool = False) -> str:
    said = " ".join(str(error).split())[:600]
    if not trace:
        return said or type(error).__name__
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {said} ({Path(last.filename).name}:{last.lineno})"


def summary(rows: Sequence[Row]) -> str:
    """How many of each state, and of exports."""
    states = [row.state for row in rows]
    counts = ", ".join(f"{states.count(s)} {s}" for s in sorted(set(states)))
    hooks = sum(row.hooks == "yes" for row in rows)
    exports = sum(row.export.startswith("yes") for row in rows)
    wrong = sum(row.export.startswith("WRONG") for row in rows)
    return f"{len(rows)} types: {counts}; hooks {hooks}, exports {exports}, wrong exports {wrong}"


def quiet() -> contextlib.ExitStack:
    """No warnings of transformers about configs that were made small."""
    stack = contextlib.ExitStack()
    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    return stack


INTRO = """# Every type with a text decoder

Tiny random models (float32, width 32, 4 blocks, gains, biases and scalars random) of every type with a text decoder that transformers ships, from its own default config.
Written by `python tests/family_sweep.py > docs/family-sweep.md` (two to four minutes on one core); a slow test measures it again. What the reasons mean and what
can be done: [a new model family](new-family.md). The usual families, with their writers and errors: [families](families.md).

- **state**: *verified*: the blocks and writers were found and what is claimed of ablation was measured; *refused*: with the reason; *not buildable*: no small model
  of the default config (sizes that do not fit, packages that are not here), so nothing is known.
- **hooks**: ablation by hooks leaves less than 1e-5 of any vector, in any lane, at every block's input and at the end, measured by plain hooks of the sweep's own.
- **left**: the largest such share.
- **export**: an edited model is written and does what the hooks do (behind a norm between a writer and the stream it leaves less than 1e-4, but the norm rescales
  the rest); or the reason why it is not written. Hooks work for all of those.
"""


def page(rows: Sequence[Row]) -> str:
    """The committed page."""
    return "\n".join([INTRO, f"{summary(rows)}.", "", HEAD, *map(str, rows)]) + "\n"


HEAD = "| family | state | hooks | left | export | why |\n| --- | --- | --- | --- | --- | --- |"

if __name__ == "__main__":
    import logging

    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    with quiet():
        done = list(sweep(sys.argv[1:]))
    sys.stdout.write(page(done))
    sys.stderr.write(f"{summary(done)}, {sum(row.seconds for row in done):.0f} s\n")
