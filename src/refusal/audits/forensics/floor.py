"""Without a base: does a direction lack in what a layer writes, down to rounding?

Of the pooled Gram of a layer's writers, ``v`` is the smallest eigenvector, and ``ratio = |v'W|^2 /
sum_ij v_i^2 ulp(W_ij)^2 / 12`` (METHODS section 4): about 1 to 100 where ``v`` was projected out
and the weights stored, thousands and more in clean ones. Nothing stands that low by chance if there
are more inputs than dimensions, and then alone: the next eigenvalue is far above. Layers are pooled
over windows of 1, 2, 4 and 8 too, for those that have too few inputs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from refusal.audits.forensics.blocks import columns
from refusal.audits.forensics.grid import on_grid
from refusal.audits.forensics.pairs import Files
from refusal.audits.forensics.records import Floor
from refusal.audits.forensics.spectrum import smallest
from refusal.audits.forensics.writers import Writer
from refusal.core.errors import NonFiniteError
from refusal.core.progress import task

RATIO = 300.0  # clean: from 1300
GAP = 30.0  # clean: up to 2, projected: from 1600
COORDINATES = 4.0  # effective ones of v: with fewer it is a channel or two that nothing writes
INPUTS = 1.5  # times the width: with fewer a clean Gram is near its floor
MOST = 4  # directions that may lack
WINDOWS = (1, 2, 4, 8)
DEAD = 1e-6  # of the median size of a row: what is below is a dead channel
FEW_BITS = "its weights went through 4 to 6 bits, which hides what was done before"
FEW_INPUTS = "too few inputs for its width"


@dataclass
class Window:
    """Some layers' writers pooled, and what was found of them.

    ``gram``: the sum of ``W W' / |W|^2``; ``vectors``, ``values``: its smallest; ``left``,
    ``rounding``: of each vector ``|v'W|^2`` and what rounding leaves, measured on the weights.
    """

    layers: tuple[int | None, ...]
    inputs: int
    gram: Float[Tensor, "d d"]
    vectors: Float[Tensor, "d k"] = field(default_factory=lambda: torch.zeros(0, 0))
    values: Float[Tensor, "k"] = field(default_factory=lambda: torch.zeros(0))
    left: Float[Tensor, "k"] = field(default_factory=lambda: torch.zeros(0))
    rounding: Float[Tensor, "k"] = field(default_factory=lambda: torch.zeros(0))

    def solve(self) -> None:
        """Find the smallest eigenvectors, where there are inputs enough for the width."""
        if self.inputs < INPUTS * len(self.gram):
            return
        gram, sizes = self.gram.clone(), self.gram.diagonal().clone()
        dead = sizes < DEAD * sizes.median()
        gram[dead], gram[:, dead] = 0.0, 0.0
        gram.diagonal()[dead] = sizes.mean()
        self.values, self.vectors = smallest(gram, MOST + 1)
        self.left = torch.zeros(len(self.values), dtype=torch.float64)
        self.rounding = torch.zeros(len(self.values), dtype=torch.float64)

    @property
    def low(self) -> bool:
        """Whether some eigenvalues stand far below the rest."""
        if not len(self.values):
            return False
        return bool((self.values[1:] > GAP * self.values[:-1].clamp_min(1e-300)).any())

    def drop(self) -> None:
        """Give up the Gram matrix."""
        self.gram = torch.zeros(0, 0, dtype=torch.float64)

    def joined(self, other: "Window") -> "Window":
        """Both together."""
        layers = (*self.layers, *other.layers)
        return Window(layers, self.inputs + other.inputs, self.gram + other.gram)

    def result(self) -> tuple[Floor, Float[Tensor, "d n"]]:
        """The record, and the directions that lack."""
        ratios = self.left / self.rounding.clamp_min(1e-300)
        low = int((ratios[:MOST] < RATIO).long().cumprod(0).sum())
        at = max(low, 1)
        gap = float(self.values[at] / self.left[at - 1].clamp_min(1e-300))
        effective = float(1 / self.vectors[:, 0].pow(4).sum())
        found = low > 0 and gap > GAP and effective > COORDINATES
        record = Floor(self.layers, float(ratios[0]), gap, effective, found)
        return record, self.vectors[:, :low] if found else self.vectors[:, :0]


def examine_floors(
    writers: Sequence[Writer], files: Files
) -> tuple[list[Floor], list[Float[Tensor, "d n"]]]:
    """Every layer by itself, and windows of them where only those show a projection.

    Raises:
        NonFiniteError: a weight is NaN or infinite.
    """
    by_layer: dict[int | None, list[Writer]] = {}
    for writer in writers:
        if writer.matrix:
            by_layer.setdefault(writer.layer, []).append(writer)
    untested: dict[int | None, Floor] = {}
    usable: dict[int | None, list[Writer]] = {}
    windows: list[Window] = []
    with task("read the weights", total=2 * len(by_layer), unit="layers") as advance:
        waiting: list[Window] = []  # of falling size, as in a binary counter
        for layer, group in by_layer.items():
            usable[layer] = _wide_enough(group, files)
            few_bits = any(on_grid(files.read(writer.name)) for writer in usable[layer])
            if few_bits or not usable[layer]:
                why = FEW_BITS if few_bits else FEW_INPUTS
                untested[layer] = Floor((layer,), tested=False, why=why)
                _dropped(waiting)
                waiting.clear()
            if few_bits:  # its ratio is shown, and nothing concluded from it
                shown = _pooled(layer, usable[layer], files)
                shown.solve()
                shown.drop()
                windows.append(shown)
            elif usable[layer]:
                windows += _grown(_pooled(layer, usable[layer], files), waiting)
            advance(1)
        _dropped(waiting)
        for layer, group in usable.items():
            _measure(group, files, [w for w in windows if layer in w.layers and len(w.values)])
            advance(1)
    return _results(by_layer, untested, windows)


def _grown(new: Window, waiting: list[Window]) -> list[Window]:
    """A layer's window, and the larger ones that it completes, all solved; where one of two shows a
    projection they are not pooled. Embeddings stay alone.
    """
    new.solve()
    grown = [new]
    if new.layers == (None,):
        new.drop()
        return grown
    while waiting and len(waiting[-1].layers) == len(new.layers) < WINDOWS[-1]:
        before = waiting.pop()
        if before.low or new.low:
            _dropped([before, new, *waiting])
            waiting.clear()
            return grown
        joined = before.joined(new)
        _dropped([before, new])
        new = joined
        new.solve()
        grown.append(new)
    waiting.append(new)
    if len(new.layers) == WINDOWS[-1]:
        _dropped(waiting)
        waiting.clear()
    return grown


def _dropped(windows: list[Window]) -> None:
    for window in windows:
        window.drop()


def _wide_enough(group: Sequence[Writer], files: Files) -> list[Writer]:
    """The writers with at least as many inputs as the width; those that are fused into one
    parameter (experts) count as one.
    """
    inputs: dict[str, int] = {}
    for writer in group:
        entry = files.places[writer.name][1]
        inputs[writer.target] = (
            inputs.get(writer.target, 0) + entry.numel // entry.shape[writer.axis]
        )
    wide = []
    for writer in group:
        width = files.places[writer.name][1].shape[writer.axis]
        if inputs[writer.target] >= width:
            wide.append(writer)
    return wide


def _pooled(layer: int | None, group: Sequence[Writer], files: Files) -> Window:
    width = files.places[group[0].name][1].shape[group[0].axis]
    gram, inputs = torch.zeros(width, width, dtype=torch.float64), 0
    for writer in group:
        weight = files.read(writer.name)
        size = _size(writer, weight)
        for block in _blocks(writer, weight):
            gram.add_(block @ block.T, alpha=1 / size)  # added in float64, without a copy
            inputs += block.shape[1]
    if not gram.isfinite().all():
        raise NonFiniteError(
            f"A weight of layer {layer} is NaN or infinite. Fetch the model again."
        )
    return Window((layer,), inputs, gram)


def _measure(group: Sequence[Writer], files: Files, windows: Sequence[Window]) -> None:
    """Add to what is left along the windows' vectors in these writers."""
    for writer in group if windows else ():
        weight = files.read(writer.name)
        size, bits = _size(writer, weight), mantissa_bits(weight)
        for block in _blocks(writer, weight):
            squares = _half_steps(block, bits).sum(1)
            for window in windows:
                left = (window.vectors.to(block.dtype).T @ block).double().square().sum(1)
                window.left += left / size
                window.rounding += window.vectors.square().T @ squares / size


def _size(writer: Writer, weight: Tensor) -> float:
    return sum(float(b.square().sum(dtype=torch.float64)) for b in _blocks(writer, weight)) or 1.0


def _blocks(writer: Writer, weight: Tensor) -> Iterator[Float[Tensor, "d input"]]:
    """Columns in float32, of float32 weights in float64; behind a norm scaled by its gain."""
    dtype = torch.float32 if weight.dtype.itemsize < 4 else torch.float64
    gain = None if writer.gain is None else writer.gain.to(dtype)[:, None]
    for block in columns(weight, writer.axis, dtype):
        yield block if gain is None else block * gain


def _half_steps(block: Float[Tensor, "d input"], bits: int) -> Float[Tensor, "d input"]:
    """``ulp^2 / 12`` of every element: what rounding adds on average, in float64."""
    exponent = torch.frexp(block)[1].double() - 1
    steps: Tensor = torch.where(block == 0, 0.0, torch.exp2(2 * (exponent - bits)) / 12)
    return steps


def mantissa_bits(weight: Tensor) -> int:
    """How many bits of the mantissa are used: bfloat16 numbers stored as float32 use 7."""
    known = {torch.bfloat16: 7, torch.float16: 10, torch.float64: 52}
    if weight.dtype in known:
        return known[weight.dtype]
    bits = weight.contiguous().view(torch.int32).numpy()
    used = int(np.bitwise_or.reduce(bits, axis=None)) & 0x7FFFFF
    return 23 - ((used & -used).bit_length() - 1 if used else 23)


def _results(
    by_layer: Mapping[int | None, object],
    untested: Mapping[int | None, Floor],
    windows: Sequence[Window],
) -> tuple[list[Floor], list[Float[Tensor, "d n"]]]:
    """One record a layer, and one for each larger window that alone shows a projection."""
    floors, directions, seen = [], [], set()
    single = {window.layers[0]: window for window in windows if len(window.layers) == 1}
    for layer in by_layer:
        window = single.get(layer)
        if window is None or not len(window.values):
            floors.append(untested.get(layer, Floor((layer,), tested=False, why=FEW_INPUTS)))
            continue
        record, found = window.result()
        if layer in untested:
            floors.append(replace(record, found=False, tested=False, why=untested[layer].why))
            continue
        floors.append(record)
        if record.found:
            directions.append(found)
            seen.add(layer)
    for window in sorted(windows, key=lambda one: len(one.layers)):
        if len(window.layers) > 1 and len(window.values) and not seen & {*window.layers}:
            record, found = window.result()
            if record.found:
                floors.append(record)
                directions.append(found)
                seen |= {*window.layers}
    return floors, directions
