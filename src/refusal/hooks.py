"""The one context manager that touches a model's forward pass; nothing else registers hooks.

An ``Edit`` names a module, a side and a function of the hidden states: what it returns replaces them, ``None`` leaves
them as they are (a read). Functions must not change their argument in place.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

from torch import Tensor, nn

EditFunction = Callable[[Tensor], Tensor | None]

# How long a tuple each module was seen to return; those that return a tensor are not in it.
_TUPLES: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


@dataclass(frozen=True)
class Edit:
    """Read or replace the hidden states at one side of a module."""

    module: nn.Module
    side: Literal["input", "output"]
    fn: EditFunction


@contextmanager
def hooked(edits: Iterable[Edit]) -> Iterator[None]:
    """Install ``edits`` for the duration of the block; they are gone afterwards, also after an exception.

    Edits at the same place run in the order given; an inner ``hooked`` runs after an outer one.
    """
    with ExitStack() as stack:
        for edit in edits:
            if edit.side == "input":
                handle = edit.module.register_forward_pre_hook(_input_hook(edit.fn), with_kwargs=True)
            else:
                handle = edit.module.register_forward_hook(_output_hook(edit.fn))
            stack.callback(handle.remove)
        yield


@contextmanager
def skipped(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Make ``modules`` return their hidden states unchanged for the duration of the block.

    A module that returns a tuple (Falcon, Bamba) must have been hooked before, so that this is known: finding the sites
    does that for every block.
    """
    with ExitStack() as stack:
        for module in modules:
            stack.callback(_restore_forward, module, module.__dict__.get("forward"))
            module.forward = partial(_pass_through, _TUPLES.get(module))
        yield


def _pass_through(length: int | None, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    return hidden_states if length is None else (hidden_states, *[None] * (length - 1))


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
        new = fn(kwargs["hidden_states"])
        return None if new is None else (args, {**kwargs, "hidden_states": new})

    return hook


def _output_hook(fn: EditFunction) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):  # attention returns (hidden states, weights)
            _TUPLES[module] = len(output)
            new = fn(output[0])
            return None if new is None else (new, *output[1:])
        return fn(output)

    return hook
