"""The public names: sorted, importable, and every exception in one tree with an exit code."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import refusal
from refusal.config.options import ModelOptions
from refusal.core import errors
from refusal.model.load import LoadOptions


def test_all_is_sorted_and_every_name_is_there() -> None:
    assert refusal.__all__ == sorted(set(refusal.__all__))
    assert [name for name in refusal.__all__ if not hasattr(refusal, name)] == []


def test_editors_and_mypy_see_the_names_where_they_are_found() -> None:
    tree = ast.parse(Path(refusal.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name  # public, not only imported
            seen[alias.name] = node.module
    assert seen == refusal._WHERE


def test_a_name_is_found_once_and_one_that_is_not_there_is_told() -> None:
    assert refusal.run is importlib.import_module("refusal.pipeline.run").run
    assert {*refusal.__all__} <= {*dir(refusal)}
    with pytest.raises(AttributeError, match="'refusal' has no attribute 'nothing'"):
        _ = refusal.nothing


ERRORS = [
    v for v in vars(errors).values() if inspect.isclass(v) and v.__module__ == errors.__name__
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_error_is_public_documented_and_has_an_exit_code(error: type[refusal.Error]) -> None:
    assert issubclass(error, refusal.Error)
    assert getattr(refusal, error.__name__) is error
    assert error.exit_code == (2 if issubclass(error, refusal.UsageError) else 1)
    assert error.__doc__
    assert f"{error.__name__} " in f"{errors.__doc__}".replace("\n", " \n")


def test_a_user_can_catch_everything_at_once() -> None:
    with pytest.raises(refusal.Error):
        refusal.load("no such model")
    with pytest.raises(refusal.Error):
        refusal.load_prompts("missing.txt")
    with pytest.raises(refusal.Error):
        refusal.Direction.load("missing.safetensors")
    with pytest.raises(refusal.Error):
        refusal.make_config("no such preset")


def test_public_things_say_what_they_are() -> None:
    bare = [name for name in refusal.__all__ if not (getattr(refusal, name).__doc__ or "").strip()]
    assert bare == []


def test_load_takes_the_options_of_a_model_and_no_others() -> None:
    assert [*LoadOptions.__annotations__] == [*ModelOptions.model_fields]
    with pytest.raises(TypeError, match="load\\(\\) has no option 'dtyp'"):
        refusal.load("embedded", dtyp="float32")  # type: ignore[call-arg]
