"""A monitor is fitted: directions from training prompts, layers and the logistic from validation
prompts, the threshold from harmless calibration prompts.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from refusal.config.rule import Rule
from refusal.core.errors import LeakageError, MonitorError, TooFewPromptsError
from refusal.core.monitor import Monitor, Position, Reader
from refusal.core.records import Prompt, PromptPair
from refusal.core.stats import auroc
from refusal.directions.monitor.conformal import conformal_threshold
from refusal.directions.monitor.logistic import fit_logistic
from refusal.directions.monitor.reading import Place, places_of, read_at, scored
from refusal.model.chat_model import ChatModel
from refusal.model.fingerprint import check_monitor, template_fingerprint

LEAST = 8  # prompts of a class to fit with
What = Literal["refusal", "harmfulness"]
POSITIONS: dict[What, Position] = {"refusal": -1, "harmfulness": "instruction"}


@dataclass(frozen=True)
class FitPrompts:
    """The prompts that a monitor is made with; no prompt is in two places."""

    train: PromptPair
    val: PromptPair
    calibration: tuple[Prompt, ...]

    def __post_init__(self) -> None:
        """Raise unless there are enough of them, each in one place.

        Raises:
            TooFewPromptsError: fewer than 8 of a class.
            LeakageError: a prompt is in two places.
        """
        seen: dict[str, str] = {}
        for where, prompts in self.places.items():
            if len(prompts) < LEAST and where != "calibration":
                raise TooFewPromptsError(
                    f"{len(prompts)} {where} prompts are too few to fit a monitor with: at least "
                    f"{LEAST} are needed. Give more prompts."
                )
            for prompt in prompts:
                before = seen.setdefault(prompt.fingerprint, where)
                if before != where:
                    raise LeakageError(
                        f"The prompt {prompt.id!r} is among the {before} and the {where} prompts. "
                        "Leave it in one of them: a threshold that was set on prompts that the "
                        "monitor knows promises nothing."
                    )

    @property
    def counts(self) -> dict[str, int]:
        """How many there are in each place."""
        return {where.replace(" ", "_"): len(prompts) for where, prompts in self.places.items()}

    @property
    def places(self) -> dict[str, tuple[Prompt, ...]]:
        """The prompts by what they are for."""
        return {
            "harmful training": self.train.harmful,
            "harmless training": self.train.harmless,
            "harmful validation": self.val.harmful,
            "harmless validation": self.val.harmless,
            "calibration": self.calibration,
        }


@dataclass(frozen=True)
class LayerScore:
    """How well one direction tells the classes of the validation prompts apart: AUROC, and the
    distance of their means in standard deviations.
    """

    reader: What
    layer: int
    auroc: float
    distance: float


@dataclass(frozen=True)
class Fitted:
    """A monitor, and what was seen of every layer.

    ``auroc``: of the logistic, on the validation prompts that it was fitted to.
    """

    monitor: Monitor
    layers: tuple[LayerScore, ...]
    auroc: float
    counts: dict[str, int] = field(default_factory=dict)


def fit_monitor(
    model: ChatModel,
    prompts: FitPrompts,
    *,
    eps: float = 0.01,
    layer: int | None = None,
) -> Fitted:
    """Fit and calibrate a monitor.

    Each direction is the difference in means of the training prompts at its position, scaled by
    mean and standard deviation of the harmless ones; the layer is the one whose projections tell
    the validation prompts apart best (AUROC, then the distance of the means); the logistic is
    fitted to validation prompts, which the directions have not seen.

    Args:
        eps: the share of harmless prompts that may fire.
        layer: read both directions there, instead of choosing among the first 80 % of the layers.

    Raises:
        MonitorError: too few calibration prompts for ``eps``, no such layer, or no layer tells the
            classes apart.
        NonFiniteError: an activation is NaN or infinite.
    """
    conformal_threshold(np.zeros(len(prompts.calibration)), eps)  # before anything slow
    layers = _layers(model, layer)
    harmful, harmless = (_streams(model, pool, layers) for pool in _classes(prompts.train))
    val_harmful, val_harmless = (_streams(model, pool, layers) for pool in _classes(prompts.val))
    readers: list[Reader] = []
    table: list[LayerScore] = []
    positive_z: list[Tensor] = []
    negative_z: list[Tensor] = []
    for i, (what, position) in enumerate(POSITIONS.items()):
        found = []
        for k, one in enumerate(layers):
            reader = reader_of(harmful[:, i, k], harmless[:, i, k], one, position)
            if reader is not None:
                z = reader.z(val_harmful[:, i, k]), reader.z(val_harmless[:, i, k])
                found.append((_layer_score(what, one, *z), reader, *z))
        if not found:
            raise MonitorError(
                f"At no layer do the activations of harmful and harmless prompts differ ({what}). "
                "Give other prompts."
            )
        table += [score for score, *_ in found]
        best = max(found, key=lambda each: (each[0].auroc, each[0].distance))
        readers.append(best[1])
        positive_z.append(best[2])
        negative_z.append(best[3])
    features = torch.cat([torch.stack(positive_z, 1), torch.stack(negative_z, 1)]).double().numpy()
    positive = np.arange(len(features)) < len(val_harmful)
    logistic = fit_logistic(features, positive)
    monitor = Monitor(
        refusal=readers[0],
        harmfulness=readers[1],
        weights=(float(logistic.weights[0]), float(logistic.weights[1])),
        bias=logistic.bias,
        threshold=0.0,
        eps=eps,
        calibration=np.zeros(1),
        model=model.name,
        model_hash=model.weight_hash(),
        template_hash=template_fingerprint(model),
        fitted=frozenset(
            p.fingerprint for pair in (prompts.train, prompts.val) for p in _all(pair)
        ),
    )
    logits = monitor.scores(features[:, 0], features[:, 1])
    area = auroc(logits[positive].tolist(), logits[~positive].tolist())
    assert area is not None  # there are prompts of both classes
    monitor = _calibrated(model, monitor, prompts.calibration, eps)
    return Fitted(monitor, tuple(table), area, prompts.counts)


def calibrated(
    model: ChatModel, monitor: Monitor, prompts: Sequence[Prompt], eps: float
) -> Monitor:
    """The monitor with the threshold that ``prompts``, all of them harmless, set: traffic like that
    which it is to watch.

    Raises:
        MonitorError: the monitor is of another model or template, or too few of them for ``eps``.
        LeakageError: the monitor was fitted with one.
    """
    check_monitor(monitor, model)
    return _calibrated(model, monitor, prompts, eps)


def _calibrated(
    model: ChatModel, monitor: Monitor, prompts: Sequence[Prompt], eps: float
) -> Monitor:
    """The calibration of a monitor that is known to be of this model."""
    check_unseen(monitor.fitted, prompts, "to calibrate on")
    questions = [prompt.question for prompt in prompts]
    streams = read_at(model, questions, places_of(monitor, model), "calibration prompts")
    scores = np.sort(scored(monitor, streams).logits.double().numpy())
    return replace(
        monitor,
        threshold=conformal_threshold(scores, eps),
        eps=eps,
        calibration=scores,
        calibrated=frozenset(prompt.fingerprint for prompt in prompts),
    )


def check_unseen(seen: Collection[str], prompts: Sequence[Prompt], purpose: str) -> None:
    """Raise LeakageError if a monitor was made with one of the prompts."""
    leaked = [prompt for prompt in prompts if prompt.fingerprint in seen]
    if leaked:
        raise LeakageError(
            f"{len(leaked)} of {len(prompts)} prompts {purpose} took part in making the monitor, "
            f"the first of them {leaked[0].id!r}. Leave them out."
        )


def reader_of(
    harmful: Float[Tensor, "_ d_model"],
    harmless: Float[Tensor, "_ d_model"],
    layer: int,
    position: Position,
) -> Reader | None:
    """The difference in means of residual streams as a reader, in float64; ``None`` where there is
    no difference, or harmless prompts do not differ along it.
    """
    mean = harmless.double().mean(0)
    difference = harmful.double().mean(0) - mean
    length = float(difference.norm())
    if length == 0:  # a template token's embedding is the same in every prompt
        return None
    unit = difference / length
    along = harmless.double() @ unit
    sd = float(along.std())
    if not sd > 0:
        return None
    return Reader(unit.float().numpy(), layer, position, float(along.mean()), sd)


def _layer_score(
    what: What, layer: int, harmful: Float[Tensor, "_"], harmless: Float[Tensor, "_"]
) -> LayerScore:
    area = auroc(harmful.tolist(), harmless.tolist())
    assert area is not None  # there are prompts of both classes
    spread = torch.sqrt((harmful.var() + harmless.var()) / 2)
    distance = (harmful.mean() - harmless.mean()) / spread.clamp_min(1e-12)
    return LayerScore(what, layer, area, float(distance))


def _layers(model: ChatModel, layer: int | None) -> list[int]:
    """The layers to choose from."""
    last = model.sites.n_layers
    if layer is None:
        return list(range(max(1, Rule().eligible_layers(last))))
    if not 0 <= layer < last:
        raise MonitorError(
            f"The model has no layer {layer}: its layers are 0 to {last - 1}. Give one of them."
        )
    return [layer]


def _streams(
    model: ChatModel, pool: Sequence[Prompt], layers: Sequence[int]
) -> Float[Tensor, "prompt reader layer d_model"]:
    """What training or validation prompts have at both positions of all layers."""
    suffix = len(model.chat.suffix)
    ends = [-1, -suffix - 1]
    places: list[Place] = [(layer, end) for end in ends for layer in layers]
    streams = read_at(model, [p.question for p in pool], places, "fit prompts")
    return streams.view(len(pool), len(ends), len(layers), -1)


def _classes(pair: PromptPair) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    return pair.harmful, pair.harmless


def _all(pair: PromptPair) -> tuple[Prompt, ...]:
    return (*pair.harmful, *pair.harmless)
