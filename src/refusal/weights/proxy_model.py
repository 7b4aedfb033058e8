"""Which parameters of a checkpoint's model write to the stream, without loading it: measured on a
small proxy.

The proxy is a model of the same config with random weights, as few blocks as show every kind of
block, a vocabulary of 64 and, if that is still too large, widths divided by a power of two. What is
measured on one of its blocks holds for every block of the whole model that is built alike: same
modules, same parameters, same number of dimensions. The whole model is built as well, but on
torch's meta device: names and shapes, no memory.
"""

import copy
import itertools
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from refusal.core.direction import Direction
from refusal.core.errors import UnsupportedModelError
from refusal.model.checkpoint_check import hub_options
from refusal.model.load import auto_class
from refusal.model.sites import Sites, find_sites
from refusal.weights.agreement import check_unedited
from refusal.weights.edit import edit_of
from refusal.weights.parameters import StreamParameter, find_parameters

log = logging.getLogger(__name__)

MOST_PARAMETERS = 2**25  # of a proxy: 128 MB in float32
VOCABULARY = 64
DIVISORS = (1, 2, 4, 8, 16, 32, 64)
WIDTH = 256  # a number in a config that is at least this is taken for a width
MEND = "Export it in memory: leave --stream out."
# What a config with impossible numbers makes a model raise, at building or at running.
BUILD_ERRORS = (
    UnsupportedModelError,
    StrictDataclassError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
Kind = tuple[tuple[tuple[str, str], ...], tuple[tuple[str, int], ...]]


@dataclass(frozen=True)
class ProxyModel:
    """The small model and what was measured on it."""

    model: PreTrainedModel
    sites: Sites
    parameters: tuple[StreamParameter, ...]


def skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """The whole model without its weights: names, shapes, structure.

    Raises:
        UnsupportedModelError: no causal language model that transformers knows.
    """
    try:
        with torch.device("meta"):
            model = build(config)
    except BUILD_ERRORS as error:
        raise UnsupportedModelError(
            f"transformers cannot build a model from this config ({_first_line(error)}). {MEND}"
        ) from error
    return model


def build_proxy(
    config: PreTrainedConfig,
    whole: PreTrainedModel,
    blocks: str | None = None,
    writers: Sequence[str] | None = None,
) -> ProxyModel:
    """The first proxy that is small enough and whose measurements hold; ``blocks`` and ``writers``
    as in ``find_sites``.

    Raises:
        UnsupportedModelError: there is none.
    """
    try:
        return _first_proxy(config, whole, blocks, writers)
    except UnsupportedModelError:
        raise
    except BUILD_ERRORS as error:
        raise UnsupportedModelError(
            f"The config of {type(whole).__name__} cannot be made smaller ({_first_line(error)}). "
            f"{MEND}"
        ) from error


def _first_proxy(
    config: PreTrainedConfig,
    whole: PreTrainedModel,
    blocks: str | None,
    writers: Sequence[str] | None,
) -> ProxyModel:
    reason = "every one is too large"
    unsupported = None
    for divisor, small in _smaller(config, blocks_needed(whole)):
        if divisor > 1 and unsupported is not None:
            raise unsupported  # a proxy of full width was measured: narrower ones will be no better
        try:
            with torch.device("meta"):
                n_parameters = build(small).num_parameters()
            if n_parameters > MOST_PARAMETERS:
                continue
            return _measured(small, blocks, writers)
        except BUILD_ERRORS as error:
            reason = _first_line(error)
            log.info("A proxy with widths / %d does not work: %s", divisor, reason)
            if divisor == 1 and isinstance(error, UnsupportedModelError):
                unsupported = error
    raise UnsupportedModelError(
        f"No small model with {type(whole).__name__}'s kinds of block works ({reason}). {MEND}"
    )


def carry_over(proxy: ProxyModel, whole: PreTrainedModel) -> tuple[StreamParameter, ...]:
    """The parameters of the whole model that write to the stream.

    Raises:
        UnsupportedModelError: a block has a parameter that the proxy's block of its kind has no
            counterpart for.
    """
    path = proxy.sites.blocks[0].rpartition(".")[0]
    blocks = whole.get_submodule(path)
    found = [
        parameter for parameter in proxy.parameters if not parameter.name.startswith(f"{path}.")
    ]
    first: dict[Kind, int] = {}
    for index, block in enumerate(blocks.children()):
        like = first.setdefault(_kind(block), index)
        if like >= len(proxy.sites.blocks):
            raise UnsupportedModelError(f"No block like {path}.{index} could be measured. {MEND}")
        pattern = _Pattern(proxy, f"{path}.{like}")
        for name, _ in block.named_parameters():
            if (match := pattern.match(name)) is not None:
                norm = None if match.norm is None else f"{path}.{index}.{match.norm}"
                found.append(StreamParameter(f"{path}.{index}.{name}", match.axis, norm))
    return tuple(found)


def whole_writers(
    proxy: ProxyModel, whole: PreTrainedModel
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """The blocks of the whole model and the writers of each, as the proxy's block of its kind has
    them.
    """
    path = proxy.sites.blocks[0].rpartition(".")[0]
    blocks, writers = [], []
    first: dict[Kind, int] = {}
    for index, block in enumerate(whole.get_submodule(path).children()):
        like = first.setdefault(_kind(block), index)
        blocks.append(f"{path}.{index}")
        names = [_within(name, proxy.sites.blocks[like]) for name in proxy.sites.writers[like]]
        writers.append(tuple(f"{path}.{index}.{name}" for name in names))
    return tuple(blocks), tuple(writers)


class _Pattern:
    """What was measured on one block of the proxy, with names relative to the block."""

    def __init__(self, proxy: ProxyModel, block: str) -> None:
        self.block = block
        self.found = {}
        for parameter in proxy.parameters:
            if parameter.name.startswith(f"{block}."):
                name = _within(parameter.name, block)
                norm = parameter.norm and _within(parameter.norm, block)
                self.found[name] = StreamParameter(name, parameter.axis, norm)
        self.names = {name for name, _ in proxy.model.get_submodule(block).named_parameters()}

    def match(self, name: str) -> StreamParameter | None:
        """What holds for the parameter of this name in a block of this kind.

        A number that the proxy does not have (an expert's) stands for those it has, if they are all
        alike.
        """
        if name in self.names:
            return self.found.get(name)
        alike = {
            self.found.get(other) for other in self.names if _numberless(other) == _numberless(name)
        }
        kinds = {None if match is None else (match.axis, match.norm) for match in alike}
        if len(kinds) != 1:
            raise UnsupportedModelError(
                f"What {name} is to {self.block} could not be measured. {MEND}"
            )
        return alike.pop()


def _measured(
    config: PreTrainedConfig, blocks: str | None, writers: Sequence[str] | None
) -> ProxyModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if (
                    parameter.dim() == 1 or not parameter.any()
                ):  # gains of one and biases of zero would hide mistakes
                    parameter.add_(0.1 * torch.randn_like(parameter))
    sites = find_sites(model, blocks, writers)
    parameters = find_parameters(model, sites)
    noise = torch.randn(sites.d_model, generator=torch.Generator().manual_seed(0))
    direction = Direction(noise / noise.norm(), 1.0, -1, 0)
    check_unedited(model, sites, edit_of(model, sites, parameters, direction))
    return ProxyModel(model, sites, parameters)


def build(config: PreTrainedConfig, **options: Any) -> PreTrainedModel:
    """A model of this config, of the class that would be loaded."""
    model: PreTrainedModel = auto_class(config).from_config(config, **hub_options(), **options)
    model.eval()
    return model


def blocks_needed(whole: PreTrainedModel) -> int:
    """How many blocks from the first show every kind there is."""
    n_layers = whole.config.get_text_config().num_hidden_layers
    needed = 1
    for module in whole.modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            first: dict[Kind, int] = {}
            for index, block in enumerate(module):
                first.setdefault(_kind(block), index)
            needed = max(needed, 1 + max(first.values()))
    return needed


def _kind(block: nn.Module) -> Kind:
    """How a block is built, whatever its widths."""
    modules = tuple((name, type(module).__name__) for name, module in block.named_modules())
    return modules, tuple((name, parameter.dim()) for name, parameter in block.named_parameters())


def _smaller(config: PreTrainedConfig, n_layers: int) -> Iterator[tuple[int, PreTrainedConfig]]:
    """Configs of proxies, the largest first, each with the divisor of its widths.

    Which numbers of a config belong together (heads times head width is the hidden width, say)
    differs from family to family, so the smaller numbers are tried one by one beside the widths,
    then all at once.
    """
    shortened = [shorten(config, n_layers, cut_lists) for cut_lists in (True, False)]
    for divisor, base in itertools.product(DIVISORS, shortened):
        if divisor == 1:
            yield divisor, base
            continue
        wide = {name for name, value in _numbers(base, divisor) if value >= WIDTH}
        rest = sorted({name for name, _ in _numbers(base, divisor)} - wide)
        for extra in ([], *([name] for name in rest), rest):
            small = copy.deepcopy(base)
            for part in _parts(small):
                for name, value in list(_numbers(part, divisor, nested=False)):
                    if name in wide or name in extra:
                        setattr(part, name, value // divisor)
            yield divisor, small


def shorten(config: PreTrainedConfig, n_layers: int, cut_lists: bool) -> PreTrainedConfig:
    """Copy a config with fewer blocks and a small vocabulary.

    A list with as many items as there are blocks may have one for each, and then has to be cut, or
    may not.
    """
    small = copy.deepcopy(config)
    text = small.get_text_config()
    before = text.num_hidden_layers
    if n_layers < before:
        for name, value in list(vars(text).items()):
            listed = isinstance(value, (list, tuple)) or (
                isinstance(value, str) and name.endswith("pattern")
            )
            if cut_lists and listed and len(value) == before and not name.startswith("_"):
                setattr(text, name, value[:n_layers])
        text.num_hidden_layers = n_layers
    text.vocab_size = min(text.vocab_size, VOCABULARY)
    for part in (small, text):
        try:
            part.pad_token_id = None  # it may lie outside the vocabulary
        except StrictDataclassError:  # Step-3.7 wants a number
            part.pad_token_id = 0
    return small


def _parts(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """A config and the configs inside it."""
    inner = [getattr(config, name, None) for name in config.sub_configs]
    return [config, *(part for part in inner if isinstance(part, PreTrainedConfig))]


def _numbers(
    config: PreTrainedConfig, divisor: int, nested: bool = True
) -> Iterator[tuple[str, int]]:
    """Numbers of a config that can be divided: no token ids, no counts of blocks, tokens or
    positions.
    """
    for part in _parts(config) if nested else [config]:
        for name, value in vars(part).items():
            if (
                _is_number(value)
                and value > divisor
                and value % divisor == 0
                and not re.search(r"token|vocab|layers|position", name)
            ):
                yield name, value


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _within(name: str, block: str) -> str:
    return name.removeprefix(f"{block}.")


def _numberless(name: str) -> str:
    return re.sub(r"\d+", "*", name)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".: ")
