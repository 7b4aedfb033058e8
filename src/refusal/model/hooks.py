"""The one context manager that touches a model's forward pass; nothing else registers hooks.

An ``Edit`` names a module, a side and a function of the hidden states: what it returns replaces
them, ``None`` leaves them as they are (a read). Functions must not change their argument in place.
A ``Call`` is told what a module is called with.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

EditFunction = Callable[[Tensor], Tensor | None]


@dataclass(frozen=True)
class Edit:
    """Read or replace the hidden states at one side of a module; ``result`` is all that it returns,
    tuple or not.
    """

    module: nn.Module
    side: Literal["input", "output", "result"]
    fn: EditFunction


@dataclass(frozen=True)
class Call:
    """Be told of every call of a module, before it: its arguments by place and by name."""

    module: nn.Module
    fn: Callable[[tuple[Any, ...], dict[str, Any]], object]


@contextmanager
def hooked(edits: Iterable[Edit | Call]) -> Iterator[None]:
    """Install ``edits`` for the duration of the block; they are gone afterwards, also after an
    exception.

    Edits at the same place run in the order given; an inner ``hooked`` runs after an outer one.
    """
    with ExitStack() as stack:
        for edit in edits:
            if isinstance(edit, Call):
                handle = edit.module.register_forward_pre_hook(
                    _call_hook(edit.fn), with_kwargs=True
                )
            elif edit.side == "input":
                handle = edit.module.register_forward_pre_hook(
                    _input_hook(edit.fn), with_kwargs=True
                )
            elif edit.side == "output":
                handle = edit.module.register_forward_hook(_output_hook(edit.fn))
            else:
                handle = edit.module.register_forward_hook(_result_hook(edit.fn))
            stack.callback(handle.remove)
        yield


@contextmanager
def skipped(modules: Iterable[nn.Module], in_tuple: int = 0) -> Iterator[None]:
    """Make ``modules`` return their hidden states unchanged for the duration of the block.

    ``in_tuple``: their callers expect a tuple of so many whose first entry is the hidden states
    (Falcon, Bamba, RWKV).
    """
    with ExitStack() as stack:
        for module in modules:
            stack.callback(_restore_forward, module, module.__dict__.get("forward"))
            module.forward = (
                partial(_pass_through_in_tuple, in_tuple) if in_tuple else _pass_through
            )
        yield


@contextmanager
def narrowed(
    module: nn.Module, row: Int[Tensor, " kept"], column: Int[Tensor, " kept"]
) -> Iterator[None]:
    """Have a module that takes one vector a token, and treats each by itself, compute those at
    tokens ``column`` of rows ``row`` only and give zeros for all others.

    It computes all of them where something inside it is hooked, which would see other rows than it
    expects.
    """
    own, before = module.forward, module.__dict__.get("forward")

    def forward(x: Float[Tensor, "row token d_model"]) -> Float[Tensor, "row token d_model"]:
        if any(_is_hooked(inner) for inner in module.modules() if inner is not module):
            every: Tensor = own(x)
            return every
        at = row.to(x.device), column.to(x.device)
        some = own(x[at][:, None])[:, 0]
        return torch.zeros_like(x).index_put(at, some)

    module.forward = forward
    try:
        yield
    finally:
        _restore_forward(module, before)


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _pass_through(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states


def _pass_through_in_tuple(
    count: int, hidden_states: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor | None, ...]:
    return hidden_states, *(None for _ in range(count - 1))


def _restore_forward(module: nn.Module, own: Any) -> None:
    if own is None:
        del module.forward  # back to the class's method
    else:
        module.forward = own  # accelerate had put its own wrapper on the instance


def _input_hook(fn: EditFunction) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            new = fn(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        new = fn(kwargs["hidden_states"]) if "hidden_states" in kwargs else None
        return None if new is None else (args, {**kwargs, "hidden_states": new})

    return hook


def _call_hook(fn: Callable[[tuple[Any, ...], dict[str, Any]], object]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        fn(args, kwargs)

    return hook


def _output_hook(fn: EditFunction) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):  # attention returns (hidden states, weights)
            new = fn(output[0])
            return None if new is None else (new, *output[1:])
        return fn(output)

    return hook


def _result_hook(fn: EditFunction) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return fn(output)

    return hook
