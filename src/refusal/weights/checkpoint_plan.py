"""What has to be done to each tensor of a checkpoint, worked out from names and shapes alone.

Checkpoint names differ from the names at run time for some families: transformers renames tensors
when it loads, and fuses those of single experts. Its own conversion tables say which tensor goes
where; how a fused parameter's edit looks in the tensors that are fused into it is measured on the
proxy.
"""

import copy
import re
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

from refusal.core.errors import ModelLoadError, QuantisedModelError, UnsupportedModelError
from refusal.interventions.ablate_add import Ablate
from refusal.interventions.stream import Place
from refusal.model.checkpoint_check import hub_options
from refusal.model.load import load_message
from refusal.weights.checkpoint import Checkpoint
from refusal.weights.checkpoint_edits import Plan, Target, TensorCopy, TensorEdit
from refusal.weights.edit import acts, check_direction, check_something, place_of
from refusal.weights.parameters import StreamParameter
from refusal.weights.projection import project_weight
from refusal.weights.proxy_model import (
    MEND,
    ProxyModel,
    build_proxy,
    carry_over,
    skeleton,
    whole_writers,
)


def make_plan(
    checkpoint: Checkpoint,
    ablation: Ablate | None,
    name: str,
    blocks: str | None = None,
    writers: Sequence[str] | None = None,
) -> Plan:
    """Work out the edit of the checkpoint of the model called ``name``; ``blocks``, ``writers`` as
    in ``find_sites``.

    Raises:
        QuantisedModelError: the weights are not plain floating-point numbers.
        UnsupportedModelError: the checkpoint is not completely understood.
        DirectionError: a direction of another width or model.
    """
    config = read_config(checkpoint)
    whole = skeleton(config)
    proxy = build_proxy(config, whole, blocks, writers)
    parameters = {parameter.name: parameter for parameter in carry_over(proxy, whole)}
    width = _width(whole, parameters)
    blocks_of, writers_of = whole_writers(proxy, whole)
    places = dict.fromkeys(parameters, Place(None, None, len(blocks_of)))
    if ablation is not None:
        check_direction(ablation, name, width)
        places = {key: place_of(p, blocks_of, writers_of) for key, p in parameters.items()}
        parameters = {key: p for key, p in parameters.items() if acts(ablation, places[key])}
        check_something(tuple(parameters.values()))
    targets, unclaimed = find_targets(whole, checkpoint)
    try:
        axes = _converted_axes(proxy)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnsupportedModelError(
            f"transformers cannot take the small model apart ({error}). {MEND}"
        ) from error
    edits, entries = {}, checkpoint.entries
    for source, target in targets.items():
        if (parameter := parameters.get(target.name)) is None:
            continue
        axis = parameter.axis
        if target.pattern is not None:
            key = (_numberless(target.name), target.pattern)
            if key not in axes:
                raise UnsupportedModelError(
                    f"How {source} becomes {target.name} could not be measured. {MEND}"
                )
            axis = axes[key]
        if entries[source].shape[axis] != width:
            raise UnsupportedModelError(
                f"{source} has the shape {entries[source].shape}, where dimension {axis} should "
                f"be {width}. {MEND}"
            )
        edits[source] = TensorEdit(axis, parameter.norm, places[parameter.name])
    _check_complete(whole, checkpoint, targets, set(parameters))
    _check_nothing_missing(whole, targets)
    holders = [whole.get_submodule(key.rpartition(".")[0]) for key in parameters]
    untied = _head_is_tied(whole) and whole.get_input_embeddings() in holders
    copies = _copies(whole, targets) if untied else ()
    return Plan(
        whole,
        tuple(parameters.values()),
        edits,
        unclaimed,
        _norms(whole, targets, edits),
        untied,
        copies,
    )


def read_config(checkpoint: Checkpoint) -> PreTrainedConfig:
    """The checkpoint's config.

    Raises:
        QuantisedModelError: it says that the weights are quantised.
        ModelLoadError: transformers does not know its kind.
    """
    for part in (checkpoint.config, checkpoint.config.get("text_config") or {}):
        if part.get("quantization_config"):
            method = part["quantization_config"].get("quant_method", "unknown")
            raise QuantisedModelError(
                f"The weights are quantised ({method}) and cannot be edited as they are. Give the "
                "original checkpoint, or load it with dequantize=True in transformers, save that "
                "and export from there."
            )
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(checkpoint.folder, **hub_options())
    except (OSError, ValueError, KeyError, TypeError) as error:
        if "trust_remote_code" in str(error):
            raise ModelLoadError(load_message(str(checkpoint.folder), error)) from error
        raise ModelLoadError(
            f"{checkpoint.folder / 'config.json'} is of no kind that transformers knows "
            f"({error}). Update transformers."
        ) from error
    return config


def find_targets(
    model: PreTrainedModel, checkpoint: Checkpoint
) -> tuple[dict[str, Target], frozenset[str]]:
    """Where each tensor of the checkpoint goes, and the tensors that go nowhere, as transformers'
    loader sees it.

    Raises:
        UnsupportedModelError: a tensor goes nowhere and transformers does not expect it to.
    """
    conversions = get_model_conversion_mapping(model)
    renamings = [conversion for conversion in conversions if isinstance(conversion, WeightRenaming)]
    converters = [
        conversion for conversion in conversions if isinstance(conversion, WeightConverter)
    ]
    state = model.state_dict()
    prefix = model.base_model_prefix
    targets, lost = {}, set()
    for name in sorted(checkpoint.entries, key=dot_natural_key):
        renamed, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if renamed not in state and name in state:
            renamed, pattern = rename_source_key(name, [], [], prefix, state)
        if renamed in state:
            targets[name] = Target(renamed, pattern)
        else:
            lost.add(name)
    ignored = [
        *(model._keys_to_ignore_on_load_unexpected or ()),
        r"rotary_emb\.inv_freq",
        r"(^|\.)position_ids$",
    ]
    strange = sorted(name for name in lost if not any(re.search(each, name) for each in ignored))
    if strange:
        raise UnsupportedModelError(
            f"{len(strange)} tensors of the checkpoint belong to no parameter of "
            f"{type(model).__name__}, such as {strange[0]}. {MEND}"
        )
    return targets, frozenset(lost)


def _converted_axes(proxy: ProxyModel) -> dict[tuple[str, str], int]:
    """For each edited parameter that is fused from checkpoint tensors: the dimension of these to
    project.

    The proxy's state, edited and not, is taken apart as for saving; the tensors that differ must
    differ by a projection on one of their dimensions.
    """
    width = proxy.sites.d_model
    unit = torch.nn.functional.normalize(
        torch.randn(width, generator=torch.Generator().manual_seed(0)), dim=0
    )
    state = {name: tensor.clone() for name, tensor in proxy.model.state_dict().items()}
    edited = dict(state)
    for parameter in proxy.parameters:
        edited[parameter.name] = project_weight(state[parameter.name], parameter.axis, unit)
    before = revert_weight_conversion(proxy.model, state)
    after = revert_weight_conversion(proxy.model, edited)
    conversions = get_model_conversion_mapping(proxy.model)
    renamings = [conversion for conversion in conversions if isinstance(conversion, WeightRenaming)]
    converters = [
        conversion for conversion in conversions if isinstance(conversion, WeightConverter)
    ]
    axes: dict[tuple[str, str], int] = {}
    for name in sorted(before, key=dot_natural_key):
        renamed, pattern = rename_source_key(
            name, renamings, converters, proxy.model.base_model_prefix, state
        )
        if pattern is None or torch.equal(before[name], after[name]):
            continue
        old, new = before[name], after[name]
        fits = [axis for axis in range(old.dim()) if _is_projection(old, new, axis, unit)]
        key = (_numberless(renamed), pattern)
        if len(fits) != 1 or axes.setdefault(key, fits[0]) != fits[0]:
            raise UnsupportedModelError(
                f"The edit of {renamed} is no projection of {name} in the checkpoint. {MEND}"
            )
    return axes


def _is_projection(before: Tensor, after: Tensor, axis: int, unit: Tensor) -> bool:
    if before.shape[axis] != len(unit):
        return False
    return torch.allclose(
        project_weight(before.contiguous(), axis, unit), after, atol=1e-6, rtol=1e-4
    )


def _width(whole: PreTrainedModel, parameters: dict[str, StreamParameter]) -> int:
    """Width of the stream: what all parameters have on their axis."""
    shapes = {name: parameter.shape for name, parameter in whole.named_parameters()}
    found = {shapes[parameter.name][parameter.axis] for parameter in parameters.values()}
    if len(found) != 1:
        raise UnsupportedModelError(
            f"What writes to the stream has several widths: {sorted(found)}. {MEND}"
        )
    return found.pop()


def _head_is_tied(whole: PreTrainedModel) -> bool:
    embedding, head = whole.get_input_embeddings(), whole.get_output_embeddings()
    return head is not None and head.weight is embedding.weight


def _copies(whole: PreTrainedModel, targets: dict[str, Target]) -> tuple[TensorCopy, ...]:
    """What a checkpoint lacks because it is tied to something else, the head or any other weight
    (Zamba's blocks).
    """
    modules = {id(module): name for name, module in whole.named_modules()}
    head = f"{modules[id(whole.get_output_embeddings())]}.weight"
    names: defaultdict[int, list[str]] = defaultdict(list)
    for name, parameter in whole.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    holders = {target.name: source for source, target in targets.items()}
    copies = []
    for shared in names.values():
        there = [name for name in shared if name in holders]
        lacking = [name for name in shared if there and name not in there]
        copies += [TensorCopy(holders[there[0]], name, name == head) for name in lacking]
    return tuple(copies)


def _check_complete(
    whole: PreTrainedModel, checkpoint: Checkpoint, targets: dict[str, Target], edited: set[str]
) -> None:
    """Every parameter to edit has its tensors, and they fill it exactly.

    Raises:
        UnsupportedModelError: something is missing or of another shape.
    """
    sources: defaultdict[str, list[str]] = defaultdict(list)
    for name, target in targets.items():
        sources[target.name].append(name)
    entries, shapes = (
        checkpoint.entries,
        {name: tensor.shape for name, tensor in whole.state_dict().items()},
    )
    first = dict(whole.named_parameters())  # of weights that are tied to each other
    for name in sorted(edited, key=dot_natural_key):
        if not sources[name] and name not in first:
            continue
        fused = any(targets[source].pattern is not None for source in sources[name])
        held = sum(entries[source].numel for source in sources[name])
        if held != shapes[name].numel() or not (
            fused or entries[sources[name][0]].shape == tuple(shapes[name])
        ):
            raise UnsupportedModelError(
                f"{name} has the shape {tuple(shapes[name])}, but the checkpoint holds {held} "
                f"elements of it in {len(sources[name])} tensors. Fetch the model again, or "
                "export it in memory: leave --stream out."
            )


def _check_nothing_missing(whole: PreTrainedModel, targets: dict[str, Target]) -> None:
    """No parameter would be random, as far as names tell: what is written is loaded by transformers
    in the end.

    Raises:
        ModelLoadError: the checkpoint lacks something.
    """
    names = {
        name: id(parameter) for name, parameter in whole.named_parameters(remove_duplicate=False)
    }
    held = {names[target.name] for target in targets.values() if target.name in names}
    # one tensor of the checkpoint becomes several parameters, of which a target is the first
    every = get_model_conversion_mapping(whole)
    converters = [each for each in every if isinstance(each, WeightConverter)]
    several = [each for each in converters if len(each.target_patterns) > 1]
    made = [
        *(whole._keys_to_ignore_on_load_missing or ()),
        *(p for each in several for p in each.target_patterns),
    ]
    lost = []
    for name, key in names.items():
        if key not in held and not any(re.search(p, name) for p in made):
            lost.append(name)
    if lost:
        raise ModelLoadError(
            f"The checkpoint lacks {len(lost)} tensors of {type(whole).__name__}, such as "
            f"{lost[0]}, which would be random. Fetch the model again."
        )


def _norms(
    whole: PreTrainedModel, targets: dict[str, Target], edits: dict[str, TensorEdit]
) -> dict[str, dict[str, str]]:
    """For each norm between an edited parameter and the stream: parameter within it -> checkpoint
    tensor.
    """
    holders = {target.name: name for name, target in targets.items() if target.pattern is None}
    found: dict[str, dict[str, str]] = {}
    for edit in edits.values():
        if edit.norm is None or edit.norm in found:
            continue
        names = dict(whole.get_submodule(edit.norm).named_parameters())
        lost = [name for name in names if f"{edit.norm}.{name}" not in holders]
        if lost:
            raise UnsupportedModelError(f"The checkpoint holds no {edit.norm}.{lost[0]}. {MEND}")
        found[edit.norm] = {name: holders[f"{edit.norm}.{name}"] for name in names}
    return found


def load_norm(plan: Plan, norm: str, checkpoint: Checkpoint) -> torch.nn.Module:
    """The norm module with the checkpoint's weights, in the checkpoint's dtype."""
    module = copy.deepcopy(plan.model.get_submodule(norm))
    tensors = {name: checkpoint.read(source) for name, source in plan.norms[norm].items()}
    module.load_state_dict(tensors, strict=False, assign=True)
    return module


def _numberless(name: str) -> str:
    return re.sub(r"\d+", "*", name)
