"""The lock file is the tested set of versions, each with hashes, and says nothing of the registry it was read from."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PIN = r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.]+)"
ENTRY = re.compile(rf"{PIN}((?: \\\n    --hash=sha256:[0-9a-f]{{64}})+)\n")


def constrained() -> dict[str, str]:
    """The versions of constraints.txt, by normalised name."""
    pins = [re.fullmatch(PIN, line) for line in CONSTRAINTS.splitlines()]
    assert all(pins), "a line of constraints.txt that is no pin"
    return {canonicalize_name(pin[1]): pin[2] for pin in pins if pin}


def locked() -> dict[str, str]:
    """The versions of the lock, by normalised name."""
    return {canonicalize_name(entry[1]): entry[2] for entry in ENTRY.finditer(LOCK)}


def test_the_lock_has_every_constraint_but_torch_and_nothing_else() -> None:
    versions = constrained()
    assert versions.pop("torch")
    assert len(versions) == len(CONSTRAINTS.splitlines()) - 1, "a name twice"
    assert locked() == versions


def test_the_lock_is_pins_with_hashes_and_no_other_text() -> None:
    """So it has no address, no path, no option and no build of one machine (`+cpu`), and none is without a hash."""
    assert ENTRY.sub("", LOCK) == ""
    for entry in ENTRY.finditer(LOCK):
        hashes = entry[3].split()[1::2]
        assert len(hashes) == len(set(hashes)) > 0, entry[1]


def requirements() -> list[Requirement]:
    """Everything that the package and its extras ask for, but torch and the package itself."""
    project = PYPROJECT["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    every = [Requirement(line) for lines in lists for line in lines]
    return [
        requirement for requirement in every if requirement.name not in ("torch", project["name"])
    ]


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_what_the_package_asks_for_is_locked(requirement: Requirement) -> None:
    assert requirement.specifier.contains(
        locked()[canonicalize_name(requirement.name)], prereleases=True
    )


def test_the_source_distribution_has_what_its_own_makefile_needs() -> None:
    included = PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert {"Makefile", "constraints.txt", "requirements.lock"} <= set(included)
    assert all((ROOT / name).exists() for name in included)
