"""What an export has written, opened again and compared with what was meant: names, shapes, values,
effect.

Tensors are read one at a time, so that no second model is held. What fails is an ``ExportError``,
and the caller takes the files away.
"""

import copy
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter
from transformers.utils import logging as transformers_logging

from refusal.config.exports import NormRule
from refusal.core.direction import Direction
from refusal.core.errors import DirectionError, ExportError, ModelLoadError, UnsupportedModelError
from refusal.core.storage import remove
from refusal.model.checkpoint_check import hub_options
from refusal.model.load import LOAD_ERRORS, auto_class
from refusal.model.loading_bars import bars_as_tasks
from refusal.weights.checkpoint import (
    Checkpoint,
    Entry,
    open_checkpoint,
    read_header,
    read_pieces,
    read_tensor,
)
from refusal.weights.checkpoint_plan import find_targets
from refusal.weights.edit import WeightEdit
from refusal.weights.projection import Removal, left_over

VECTORS = ("vector", "harmless_mean", "basis", "by_layer")  # of a direction
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Meant:
    """What a tensor of a written shard should be: the bytes in ``pieces``, or the tensor
    ``edited``, made of one of the ``size``.
    """

    entry: Entry
    name: str
    pieces: Iterable[bytes] = ()
    edited: Tensor | None = None
    axis: int = 0
    removal: Removal | None = None
    size: float = 0.0
    norm: NormRule | None = None


def check_model(
    folder: Path,
    model: PreTrainedModel,
    edit: WeightEdit,
    sizes: Mapping[str, float],
    norm: NormRule | None = None,
) -> None:
    """Compare a written folder with the edited ``model`` in memory, tensor by tensor.

    Args:
        folder: what was written. model: what was meant. edit: what was done to it.
        sizes: of each edited parameter before that (``size_before``).
        norm: whose norms were kept.

    Raises:
        ExportError: a tensor is missing, unexpected or another, or an edited one has kept the
            direction.
    """
    check_loading(folder, type(model).__name__)
    try:
        checkpoint = open_checkpoint(folder)
        found = _as_loaded(model, checkpoint)
        state = model.state_dict()
        edited = {parameter.name: parameter for parameter in edit.parameters}
        seen: set[int] = set()
        for name, tensor in found:
            if name not in state or not same_bits(tensor, state[name]):
                raise wrong(f"{name} is not what it is in memory")
            if (parameter := edited.get(name)) is not None:
                check_lost(name, tensor, parameter.axis, edit.removals[name], sizes[name], norm)
            seen.add(state[name].data_ptr())
    except (ModelLoadError, UnsupportedModelError) as error:
        raise wrong(str(error)) from error
    if lost := [name for name, tensor in state.items() if tensor.data_ptr() not in seen]:
        raise wrong(f"{len(lost)} tensors are missing, such as {lost[0]}")


def check_loading(folder: Path, class_name: str) -> None:
    """Have transformers load a folder, without memory for its weights, and look at what it says was
    not there.

    Raises:
        ExportError: another class, or tensors that are missing, left over or of another shape.
    """
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.CRITICAL)  # what is said below is said better
    try:
        with bars_as_tasks():
            auto = auto_class(AutoConfig.from_pretrained(folder, **hub_options()))
            told = {"device_map": "meta", "dtype": "auto", "output_loading_info": True}
            model, info = auto.from_pretrained(folder, **hub_options(), **told)
    except (*LOAD_ERRORS, RuntimeError) as error:
        raise wrong(f"transformers cannot load it ({error})") from error
    finally:
        transformers_logging.set_verbosity(level)
    if type(model).__name__ != class_name:
        raise wrong(f"it loads as {type(model).__name__}, not as {class_name}")
    kinds = {
        "missing_keys": "missing",
        "unexpected_keys": "unexpected",
        "mismatched_keys": "of another shape",
    }
    for key, what in kinds.items():
        if names := sorted(str(name) for name in info[key]):
            raise wrong(f"{len(names)} tensors are {what} when it is loaded, such as {names[0]}")
    if info.get("error_msgs"):
        raise wrong(f"transformers says {info['error_msgs'][0]}")


def check_shard(path: Path, meant: Iterable[Meant]) -> None:
    """Compare a written shard with what it should hold, in the order of its data.

    Raises:
        ExportError: a tensor is missing, unexpected or another, or an edited one has kept the
            direction.
    """
    try:
        entries = read_header(path).entries
        with path.open("rb") as file:
            for entry, each in zip(entries, meant, strict=True):
                wanted = (each.name, each.entry.dtype, each.entry.shape)
                if (entry.name, entry.dtype, entry.shape) != wanted:
                    raise wrong(
                        f"{path.name} holds {entry.name} {entry.dtype} {entry.shape} in the place "
                        f"of {wanted}"
                    )
                if each.edited is None:
                    same = all(
                        a == b for a, b in zip(read_pieces(file, entry), each.pieces, strict=True)
                    )
                else:
                    tensor = read_tensor(file, entry)
                    same = same_bits(tensor, each.edited)
                    assert each.removal is not None
                    check_lost(entry.name, tensor, each.axis, each.removal, each.size, each.norm)
                if not same:
                    raise wrong(f"{entry.name} in {path.name} is not what was written")
    except ValueError as error:  # one of the lists is longer
        raise wrong(f"{path.name} does not hold as many tensors or bytes as it should") from error
    except (ModelLoadError, OSError) as error:
        raise wrong(str(error)) from error


def check_lost(
    name: str,
    weight: Tensor,
    axis: int,
    removal: Removal,
    size: float,
    norm: NormRule | None = None,
) -> None:
    """Make sure that an edited weight has lost the direction, to the rounding of what it was
    (``size`` is from ``size_before``) and of what it is: see ``left_over``. What an edit of another
    strength leaves is compared when it is made (``check_kept``).

    Raises:
        ExportError: it has not.
    """
    if removal.strength != 1 or norm == "row":
        return
    left, rounding = left_over(weight, axis, removal, size)
    if not left <= rounding:
        raise wrong(
            f"{name} has kept {left:.2g} of the direction, where rounding leaves at most "
            f"{rounding:.2g}"
        )


def check_direction_file(path: Path, direction: Direction) -> None:
    """Read a written direction again; what is not the same is deleted.

    Raises:
        ExportError: it is another.
    """
    with deleted_if_wrong(path):
        try:
            found = Direction.load(path)
        except DirectionError as error:
            raise wrong(str(error)) from error
        check_tensors(found.tensors, direction.tensors)
        vectors = {name: getattr(direction, name) for name in VECTORS}
        if replace(found, **vectors) != direction:
            raise wrong(f"{path.name} says something else of where the direction was found")


@contextmanager
def deleted_if_wrong(path: Path) -> Iterator[None]:
    """Take a file or a folder away if the block finds it wrong."""
    try:
        yield
    except ExportError:
        remove(path)
        raise


def check_tensors(found: Mapping[str, Tensor], meant: Mapping[str, Tensor]) -> None:
    """Compare tensors by name, shape and value.

    Raises:
        ExportError: they differ.
    """
    if odd := sorted(found.keys() ^ meant.keys()):
        raise wrong(f"{len(odd)} tensors are missing or unexpected, such as {odd[0]}")
    for name, tensor in meant.items():
        if not same_bits(found[name], tensor):
            raise wrong(f"{name} is not what was written")


def wrong(what: str) -> ExportError:
    """The error for files that are not what was meant."""
    return ExportError(
        f"What was written is not what was meant: {what}. It was deleted. Export the direction "
        "instead (--as direction), and report the model's kind to this project."
    )


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Bit for bit, so that NaN equals itself."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(_bits(one), _bits(other))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _as_loaded(model: PreTrainedModel, checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """Every tensor by its name in the model, made from the files as transformers makes it (fused
    experts, say).
    """
    targets, _ = find_targets(model, checkpoint)
    conversions = get_model_conversion_mapping(model)
    converters: dict[str, WeightConverter] = {}
    for each in conversions:
        if isinstance(each, WeightConverter):
            converters |= dict.fromkeys(each.source_patterns, each)
    sources: defaultdict[str, list[str]] = defaultdict(list)
    for source, target in targets.items():  # in the order in which the loader goes through them
        sources[target.name].append(source)
    for name, parts in sources.items():
        first = targets[parts[0]].pattern
        if first is None:
            yield name, checkpoint.read(parts[0])
            continue
        converter = copy.deepcopy(converters[first])
        for part in parts:
            pattern = targets[part].pattern
            assert pattern is not None
            converter.add_tensor(name, part, pattern, checkpoint.read(part))  # type: ignore[arg-type]
        for each, value in converter.convert(name, model=model, config=model.config).items():
            yield each, value[0] if isinstance(value, list) else value
