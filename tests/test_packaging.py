"""The lock file is the tested set of versions, each with hashes, and says nothing of the registry it was read from; the
distributions hold all that is needed, and work where no source tree is near.
"""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import saved
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


# --- wheel and source distribution


@dataclass(frozen=True)
class Installed:
    """``source``: the unpacked source distribution; ``wheel`` was built from it; ``bin``: of the
    environment that the wheel was installed into.
    """

    source: Path
    wheel: Path
    bin: Path


def call(*command: str | Path, at: Path, **more: str) -> str:
    """What a program prints; nothing that this process was told about paths reaches it."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        command, cwd=at, env={**environment, **more}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel is built from the unpacked source distribution, so that one is enough for the
    other.

    The dependencies are those of this environment, which a ``.pth`` file names: installing gigabytes
    again would show nothing about this package.
    """
    base = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", base, at=ROOT)
    (archive,) = base.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(base, filter="data")
    source = base / archive.name.removesuffix(".tar.gz")
    call(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", base, at=source)
    (wheel,) = base.glob("*.whl")

    call(sys.executable, "-m", "venv", "--without-pip", base / "venv", at=base)
    python = base / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    call(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, at=base)
    (site,) = (base / "venv" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return Installed(source, wheel, python.parent)


@pytest.mark.slow
def test_the_wheel_holds_the_whole_package_and_nothing_else(installed: Installed) -> None:
    inside = set(zipfile.ZipFile(installed.wheel).namelist())
    files = {
        str(path.relative_to(ROOT / "src"))
        for path in (ROOT / "src").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"refusal/py.typed", "refusal/prompts/builtin.jsonl"} <= files
    assert any(name.endswith(".j2") for name in files)
    assert {name for name in inside if ".dist-info/" not in name} == files


@pytest.mark.slow
def test_the_installed_package_runs(installed: Installed, tmp_path: Path) -> None:
    python, refusal = installed.bin / "python", installed.bin / "refusal"
    where = call(python, "-c", "import refusal; print(refusal.__file__)", at=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.bin.parent)
    version = PYPROJECT["project"]["version"]
    assert version in call(refusal, "--version", at=tmp_path)
    model = saved.save_model(tmp_path / "model")
    assert "model.layers" in call(refusal, "inspect", model, at=tmp_path)


@pytest.mark.slow
def test_the_library_example_runs_in_the_installed_package(
    installed: Installed, tmp_path: Path
) -> None:
    """README's, with a model of random weights: no prompt passes a filter, no token refuses."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    model = saved.save_model(tmp_path / "model")
    tokens = 'filtered=False, tokens=refusal.tokens_for(model, prompts.train, ("I", "A"))'
    for old, new in (
        ('"embedded"', f'"{model}"'),
        ("prompts.train, n=64", f"prompts.train, n=64, {tokens}"),
        ("prompts.val, n=16", "prompts.val, n=16, filtered=False"),
    ):
        assert old in example
        example = example.replace(old, new)
    (tmp_path / "example.py").write_text(example, encoding="utf-8")
    printed = call(installed.bin / "python", "example.py", at=tmp_path).splitlines()
    assert re.fullmatch(r"-\d+ \d+ (True|False)", printed[0])
    assert (tmp_path / "direction.safetensors").is_file()


@pytest.mark.slow
def test_the_source_distribution_has_what_its_tests_need(installed: Installed) -> None:
    """All are collected, and those run that read most of what lies beside the package."""
    pytest_: list[str | Path] = [
        installed.bin / "python",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    more = {"PYTHONPATH": str(installed.source / "src")}
    call(*pytest_, "--collect-only", at=installed.source, **more)
    call(*pytest_, "tests/test_docs.py", "-k", "not run_folders_page", at=installed.source, **more)
