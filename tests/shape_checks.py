"""Arguments and results are checked against the shapes in their annotations, in every test.

Only where an annotation names a shape: mypy has seen the other types, and checking those on every
call took half of the suite's time.
"""

from collections.abc import Callable
from typing import Any, get_args

import jaxtyping


def install() -> None:
    """Check every module of ``refusal`` that is imported from here on."""
    whole = jaxtyping.jaxtyped
    known: dict[Any, bool] = {}  # by code: a nested function is made anew with every call

    def jaxtyped(*, typechecker: Any) -> Callable[[Any], Any]:
        def decorate(thing: Any) -> Any:
            key = getattr(thing, "__code__", thing)
            if key not in known:
                known[key] = has_shapes(thing)
            return whole(thing, typechecker=typechecker) if known[key] else thing

        return decorate

    jaxtyping.jaxtyped = jaxtyped  # type: ignore[assignment]  # the import hook's decorator
    jaxtyping.install_import_hook("refusal", "beartype.beartype")


def has_shapes(thing: Any) -> bool:
    """Whether an annotation of a function, or of a field of a class, names a shape."""
    return any(map(_is_shape, getattr(thing, "__annotations__", {}).values()))


def _is_shape(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(_is_shape, get_args(hint)))
