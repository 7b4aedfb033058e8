"""What is left of the base's direction in a candidate's residual stream, and where its own points.

    stream.safetensors   mean stream of harmful and of harmless prompts by position and layer, of
                         training and of validation prompts: the same for every model, unfiltered;
                         of each validation prompt what lies along the base's direction

With ``D = mean_harmful - mean_harmless`` and the base's direction ``r`` (unit), ``D_candidate . r /
D_base . r`` on validation prompts is the share that is left; the cosine is that of the two models'
``D`` on training prompts, of which a method makes its candidates. The share's interval is a
bootstrap over the validation prompts of each class, every one paired with itself in the other
model. The cosine has none: means over resampled prompts are noisier than those that it is of, and
a bootstrap of it would lie below it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refusal.core.direction import Direction
from refusal.core.records import Metric, Prompt, PromptPair
from refusal.core.stats import CONFIDENCE, RESAMPLES, Estimate
from refusal.core.storage import write_tensors
from refusal.core.strict_files import damaged, read_arrays
from refusal.core.work import Read, Work
from refusal.directions.pool import Draw, run_pool, tokens_before
from refusal.evaluations.diff.result import StreamDiff
from refusal.evaluations.diff.side import STREAM, Side, asked_like
from refusal.runs.folder import prompts_hash
from refusal.runs.identity import digest
from refusal.runs.stage import Plan, Run, Stage

FILE = "stream.safetensors"
EQUAL = (
    1e-6  # of a mean's length: means that are no further apart (before the first block) are equal
)
HARDLY = 0.01  # of the base's difference is along its direction: nothing can be left of so little


class Streamed(Stage):
    """The means of one model."""

    name = "stream"
    version = 2  # what lies along the direction, prompt by prompt

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """Training and validation prompts of both classes, once."""
        config, lengths = plan.config, plan.lengths
        return (Read(2 * config.n_train, lengths.train), Read(2 * config.n_val, lengths.val))

    def work(self, run: Run) -> Iterable[Metric]:
        """Read the prompts as the base is asked them."""
        assert isinstance(run, Side)
        if STREAM in run.missing:
            return ()
        config, pools = run.config, self.asked.prompts
        used = {
            "train": _first(pools.train, config.n_train),
            "val": _first(pools.val, config.n_val),
        }
        with asked_like(run.model, run.base):
            before = tokens_before(run.model, run.about)
        inputs = {
            "prompts": {k: prompts_hash([*p.harmful, *p.harmless]) for k, p in used.items()},
            "before": before,
            "direction": digest(run.about.vector.tolist()),
            **({} if run.base is None else {"asked": run.base.identity["rendered_hash"]}),
        }
        path = run.folder.path / FILE

        def work() -> None:
            tensors = {}
            with asked_like(run.model, run.base):
                for name, pair in used.items():
                    for label, pool in (("harmful", pair.harmful), ("harmless", pair.harmless)):
                        means, along = _read(run, pool, f"collect {label}", before)
                        tensors[f"{name}.{label}"] = means
                        if name == "val":
                            tensors[f"along.{label}"] = along
            write_tensors(path, tensors)

        self.do(run, "", inputs, [path], work, self.costs(run.plan))
        return ()


def _read(
    run: Side, pool: Sequence[Prompt], name: str, before: int
) -> tuple[Float[Tensor, "position layer d_model"], Float[Tensor, "prompt position layer"]]:
    """The mean over prompts, summed in float64, and what of each lies along the base's direction;
    float32.
    """
    model, unit, along = run.model, run.about.vector.float(), []
    shape = (len(model.chat.suffix) + before, model.sites.n_layers, model.sites.d_model)
    total = torch.zeros(shape, dtype=torch.float64)
    for _, _, x in run_pool(model, pool, None, Draw(None, False, before), name, shape[1]):
        assert x is not None  # there is one process
        total += x.double()
        along.append((x.float() * unit).sum(-1))
    return (total / len(pool)).float(), torch.stack(along)


def _first(pair: PromptPair, n: int) -> PromptPair:
    return PromptPair(pair.harmful[:n], pair.harmless[:n])


@dataclass(frozen=True)
class Differences:
    """``mean_harmful - mean_harmless`` of one model, float64.

    Attributes:
        train, val: of which prompts. apart: where the means are no equals.
    """

    train: Float[Tensor, "position layer d_model"]
    val: Float[Tensor, "position layer d_model"]
    apart: Bool[Tensor, "position layer"]


def differences(folder: Path) -> Differences:
    """The differences in means of a side.

    Raises:
        RunFolderError: the file cannot be read, or holds something else.
    """
    path = folder / FILE
    arrays, _ = read_arrays(path)
    found, apart = [], []
    for split in ("train", "val"):
        pair = [arrays.get(f"{split}.{label}") for label in ("harmful", "harmless")]
        if pair[0] is None or pair[1] is None or pair[0].shape != pair[1].shape:
            raise damaged(path, f"it lacks the means of {split} prompts")
        harmful, harmless = (torch.from_numpy(array).double() for array in pair)
        found.append(harmful - harmless)
        apart.append(found[-1].norm(dim=-1) > EQUAL * harmless.norm(dim=-1))
    return Differences(found[0], found[1], apart[0] & apart[1])


def stream_diff(base: Path, candidate: Path, direction: Direction, prompts: int) -> StreamDiff:
    """Compare the means of two models.

    Args:
        base, candidate: folders of the sides.
        direction: the base's.
        prompts: validation prompts of each class.

    Raises:
        RunFolderError: a file is damaged.
    """
    ours, theirs = differences(base), differences(candidate)
    unit = direction.vector.double()
    there, left = ours.val @ unit, theirs.val @ unit
    along = ours.apart & (there.abs() > HARDLY * ours.val.norm(dim=-1))
    cosine = torch.nn.functional.cosine_similarity(ours.train, theirs.train, dim=-1, eps=1e-300)
    total = float(there.abs().sum())
    return StreamDiff(
        _grid(left / there.where(along, torch.ones_like(there)), along),
        _grid(cosine, ours.apart & theirs.apart),
        direction.position,
        direction.layer,
        float((left * there.sign()).sum()) / total if total > 0 else None,
        prompts,
    )


def shares_left(base: Path, candidate: Path, direction: Direction) -> dict[str, Estimate]:
    """What is left at the place of the base's direction, and over all places, each weighing as much
    as the base has there.

    Args:
        base, candidate: folders of the sides.
        direction: the base's.

    Raises:
        RunFolderError: a file is damaged.
    """
    ours, theirs = _along(base), _along(candidate)
    sign = (ours[0].mean(0) - ours[1].mean(0)).sign()
    place = torch.zeros_like(sign)
    place[direction.position, direction.layer] = 1
    found = {}
    for name, weights in (("direction_left", place), ("direction_left_everywhere", sign)):
        now, before = ([(x * weights).sum((1, 2)).numpy() for x in side] for side in (theirs, ours))
        found[name] = share_of_difference(before, now)
    return found


def share_of_difference(
    before: Sequence[Float[np.ndarray, "_"]], now: Sequence[Float[np.ndarray, "_"]]
) -> Estimate:
    """What is left of the difference between the means of two classes, ``(mean(now[0]) -
    mean(now[1])) / (mean(before[0]) - mean(before[1]))``, the items of a class in one order.

    Percentile bootstrap over the items of each class by itself. The bounds are infinite with fewer
    than two items of a class, and where the difference is 0 or of the other sign in a resample: it
    is then not told from 0, and nothing can be left of it.
    """
    random, sums = np.random.default_rng(0), np.zeros((2, 1 + RESAMPLES))
    for sign, *pair in zip((1, -1), now, before, strict=True):
        values = np.stack(pair)
        n = values.shape[1]
        times = [np.ones((1, n)), random.multinomial(n, np.full(n, 1 / n), RESAMPLES)]
        sums += sign * values @ np.vstack(times).T / n
    (top, *tops), (bottom, *bottoms) = sums.tolist()
    value = top / bottom if bottom else math.nan
    if min(map(len, now)) < 2 or any(each * bottom <= 0 for each in bottoms):
        return Estimate(value, -math.inf, math.inf)
    shares = np.array(tops) / np.array(bottoms)
    low, high = np.quantile(shares, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value, float(low), float(high))


def _along(folder: Path) -> list[Float[Tensor, "_ position layer"]]:
    """Of harmful and of harmless validation prompts, float64."""
    path = folder / FILE
    arrays, _ = read_arrays(path)
    found = [arrays.get(f"along.{label}") for label in ("harmful", "harmless")]
    if any(array is None or array.ndim != 3 or not len(array) for array in found):
        raise damaged(path, "it lacks what lies along the direction")
    return [torch.from_numpy(array).double() for array in found if array is not None]


def _grid(
    values: Float[Tensor, "position layer"], known: Bool[Tensor, "position layer"]
) -> tuple[tuple[float | None, ...], ...]:
    rows = zip(values.tolist(), known.tolist(), strict=True)
    return tuple(tuple(_known(*cells) for cells in zip(*row, strict=True)) for row in rows)


def _known(value: float, known: bool) -> float | None:
    return value if known else None
