"""A monitor: two directions that a prompt is read along, what they are weighed with, and the score
above which it fires; in memory and in its folder.

    monitor.safetensors   the two unit vectors and the scores it was calibrated on
    monitor.json          everything else, for people too

Reading one needs no torch.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from refusal.core.errors import MonitorError, RunFolderError
from refusal.core.storage import write_json, write_tensors
from refusal.core.strict_files import Saved, read_arrays, read_one
from refusal.core.valid import UNIT

if TYPE_CHECKING:
    from torch import Tensor

TENSORS, CARD = "monitor.safetensors", "monitor.json"
AGAIN = "Give the folder that `refusal monitor fit` wrote, or fit it again."
Position = int | Literal["instruction"]


@dataclass(frozen=True)
class Reader:
    """Where and along what a prompt is read: ``z = (u . h - mean) / sd``, with ``h`` the input of
    block ``layer``.

    Attributes:
        vector: ``u``, of length 1, float32.
        layer: the block whose input is read.
        position: counted from the end of the prompt (-1 is its last token, the template's);
            ``"instruction"`` is the last token of the instruction.
        mean: of ``u . h`` over harmless prompts.
        sd: its standard deviation there.
    """

    vector: Float[np.ndarray, "d_model"]
    layer: int
    position: Position
    mean: float
    sd: float

    def __post_init__(self) -> None:
        """Raise MonitorError unless every value is one that can be read with."""
        length = float(np.linalg.norm(self.vector.astype(np.float64)))
        if self.vector.dtype != np.float32 or not abs(length - 1) <= UNIT:
            raise MonitorError(
                f"A monitor's vector is {self.vector.dtype} of length {length:.4g}, not float32 "
                f"of length 1. {AGAIN}"
            )
        at_end = self.position == "instruction" or self.position < 0
        if not (self.layer >= 0 and at_end and math.isfinite(self.mean) and _positive(self.sd)):
            raise MonitorError(
                f"A monitor reads at layer {self.layer}, position {self.position!r}, with mean "
                f"{self.mean} and standard deviation {self.sd}: layers count from 0, positions "
                f"from the end (-1, -2, …), and the standard deviation is above 0. {AGAIN}"
            )

    def place(self, suffix: int) -> int:
        """The position counted from the end of a prompt that ends with ``suffix`` post-instruction
        tokens: -1 is the last token.
        """
        return -suffix - 1 if self.position == "instruction" else self.position

    def z(self, stream: "Float[Tensor, '*rows d_model']") -> "Float[Tensor, '*rows']":
        """The standardised projection of residual streams, float32, on their device."""
        import torch

        unit = torch.from_numpy(self.vector).to(stream.device)
        return ((stream.float() * unit).sum(-1) - self.mean) / self.sd


@dataclass(frozen=True)
class Monitor:
    """A monitor of prompts: a logistic of how far each lies along a refusal and a harmfulness
    direction, and a split-conformal threshold.

    Attributes:
        refusal: reads what the model is about to do, at the template's last token.
        harmfulness: reads what it takes the request for, at the instruction's last token.
        weights: of the two z.
        bias: with the weights the logit that a prompt is harmful.
        threshold: a prompt whose logit lies above it fires.
        eps: the share of harmless prompts that may fire, at most, in expectation over calibrations.
        calibration: logits of the harmless prompts that the threshold was set on, sorted.
        model: what it was fitted on, by name.
        model_hash: fingerprint of its weights; no other model is read.
        template_hash: fingerprint of how it renders prompts; no other template is read.
        fitted: fingerprints of the prompts that directions, layers and weights come from.
        calibrated: fingerprints of the prompts that the threshold comes from.
    """

    refusal: Reader
    harmfulness: Reader
    weights: tuple[float, float]
    bias: float
    threshold: float
    eps: float
    calibration: Float[np.ndarray, "n"]
    model: str
    model_hash: str
    template_hash: str
    fitted: frozenset[str] = frozenset()
    calibrated: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Raise MonitorError unless all of it fits together. A threshold may be infinite: one that
        always or never fires.
        """
        if fault := self._fault():
            raise MonitorError(f"This is no monitor: {fault}. {AGAIN}")

    @property
    def readers(self) -> tuple[Reader, Reader]:
        """Of refusal and of harmfulness, in this order."""
        return self.refusal, self.harmfulness

    @property
    def seen(self) -> frozenset[str]:
        """The fingerprints of all prompts that took part; it is evaluated on none of them."""
        return self.fitted | self.calibrated

    def scores(self, z_refusal: Any, z_harmfulness: Any) -> Any:
        """The logit of numbers, arrays or tensors of standardised projections."""
        return self.weights[0] * z_refusal + self.weights[1] * z_harmfulness + self.bias

    def fires(self, score: Any) -> Any:
        """Whether a logit, or each of an array or tensor of them, lies above the threshold."""
        return score > self.threshold

    def save(self, folder: str | Path) -> None:
        """Write ``monitor.safetensors`` and ``monitor.json`` into a folder.

        Raises:
            MonitorError: the threshold is infinite.
            StorageError: the folder cannot be written.
        """
        import torch

        if not math.isfinite(self.threshold):
            raise MonitorError(
                f"A monitor with the threshold {self.threshold} is for comparisons and is not "
                "written. Save the one it was made of."
            )
        tensors = {
            "refusal": torch.from_numpy(self.refusal.vector),
            "harmfulness": torch.from_numpy(self.harmfulness.vector),
            "calibration": torch.from_numpy(self.calibration),
        }
        write_tensors(Path(folder) / TENSORS, tensors)
        write_json(Path(folder) / CARD, _card(self).model_dump())

    @classmethod
    def load(cls, folder: str | Path) -> "Monitor":
        """Read what ``save`` wrote.

        Raises:
            MonitorError: a file is missing or holds something else.
        """
        path = Path(folder)
        try:
            card: _Card = read_one(path / CARD, _Card, AGAIN)
            arrays, _ = read_arrays(path / TENSORS, AGAIN)
        except RunFolderError as error:
            raise MonitorError(str(error)) from error
        named = {"refusal", "harmfulness", "calibration"}
        if set(arrays) != named or any(array.ndim != 1 for array in arrays.values()):
            raise MonitorError(
                f"{path / TENSORS}: holds {_listed(arrays)}, not the vectors "
                f"{', '.join(sorted(named))}. {AGAIN}"
            )
        if card.n_calibration != len(arrays["calibration"]):
            raise MonitorError(
                f"{path}: {CARD} speaks of {card.n_calibration} calibration prompts and {TENSORS} "
                f"holds {len(arrays['calibration'])} scores: the files are of two monitors. {AGAIN}"
            )
        try:
            return _from_files(card, arrays)
        except MonitorError as error:
            raise MonitorError(f"{path}: {error}") from error

    def _fault(self) -> str | None:
        """The first thing that is wrong; ``None`` if nothing is."""
        widths = [len(reader.vector) for reader in self.readers]
        if widths[0] != widths[1]:
            return f"its vectors have {widths[0]} and {widths[1]} dimensions"
        numbers = (*self.weights, self.bias)
        if not all(map(math.isfinite, numbers)) or math.isnan(self.threshold):
            return f"its weights, bias and threshold are {numbers} and {self.threshold}"
        if not 0 < self.eps < 1:
            return f"eps is {self.eps}, not between 0 and 1"
        scores = self.calibration
        if scores.dtype != np.float64 or not len(scores) or not np.isfinite(scores).all():
            return "its calibration scores are not finite float64 numbers"
        if (np.diff(scores) < 0).any():
            return "its calibration scores are not sorted"
        return None


class _Place(Saved):
    """A reader without its vector."""

    layer: int
    position: Position
    mean: float
    sd: float


class _Card(Saved):
    """``monitor.json``."""

    format: Literal[1] = 1
    model: str
    model_hash: str
    template_hash: str
    refusal: _Place
    harmfulness: _Place
    weights: tuple[float, float]
    bias: float
    threshold: float
    eps: float
    n_calibration: int
    fitted: list[str]
    calibrated: list[str]


def _card(monitor: Monitor) -> _Card:
    places = [
        _Place(layer=r.layer, position=r.position, mean=r.mean, sd=r.sd) for r in monitor.readers
    ]
    return _Card(
        model=monitor.model,
        model_hash=monitor.model_hash,
        template_hash=monitor.template_hash,
        refusal=places[0],
        harmfulness=places[1],
        weights=monitor.weights,
        bias=monitor.bias,
        threshold=monitor.threshold,
        eps=monitor.eps,
        n_calibration=len(monitor.calibration),
        fitted=sorted(monitor.fitted),
        calibrated=sorted(monitor.calibrated),
    )


def _from_files(card: _Card, arrays: dict[str, np.ndarray]) -> Monitor:
    return Monitor(
        refusal=_reader(arrays["refusal"], card.refusal),
        harmfulness=_reader(arrays["harmfulness"], card.harmfulness),
        weights=card.weights,
        bias=card.bias,
        threshold=card.threshold,
        eps=card.eps,
        calibration=arrays["calibration"],
        model=card.model,
        model_hash=card.model_hash,
        template_hash=card.template_hash,
        fitted=frozenset(card.fitted),
        calibrated=frozenset(card.calibrated),
    )


def _reader(vector: np.ndarray, place: _Place) -> Reader:
    return Reader(vector, place.layer, place.position, place.mean, place.sd)


def _listed(arrays: dict[str, np.ndarray]) -> str:
    return ", ".join(f"{name} {array.shape}" for name, array in sorted(arrays.items())) or "nothing"


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0
