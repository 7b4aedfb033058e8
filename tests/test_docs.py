"""README and docs: commands parse, examples fit the library, lists are complete, links lead
somewhere.

That links to headings and names resolve is checked by `make docs`, where warnings are errors.
"""

import ast
import importlib
import inspect
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import saved

import refusal
from refusal.cli.entry import SHORT
from refusal.cli.verbs import VERBS, app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Options that pages mention and that are not of `refusal`: of llama.cpp, vLLM, torchrun, pip, the
# benchmarks, a recipe's toy, of everything.
FOREIGN = {
    "--accuracy",
    "--additional-config",
    "--bootstrap",
    "--compilation-config",
    "--control-vector-scaled",
    "--enable-lora",
    "--enforce-eager",
    "--entropy",
    "--generation-config",
    "--hash",
    "--help",
    "--lora-modules",
    "--max-loras",
    "--memory",
    "--no-deps",
    "--nproc-per-node",
    "--require-hashes",
    "--shape",
    "--tolerance",
    "--weights",
    "--write",
}


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(
        rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every command that a reader is told to type, with its words; `a && b` is two."""
    for page in PAGES:
        for block in blocks(page, "console"):
            for line in block.splitlines():
                assert line.startswith("$ "), f"{page.name}: {line!r} is no command"
                for part in line[2:].split(" && "):
                    yield f"{page.name}: {part}", shlex.split(part, comments=True)


COMMANDS = list(commands())


@pytest.mark.parametrize("words", [pytest.param(words, id=where) for where, words in COMMANDS])
def test_a_command_that_is_shown_can_be_typed(words: list[str]) -> None:
    match words:
        case ["refusal", *arguments]:
            app.parse_args(arguments, exit_on_error=False, print_error=False)
        case ["make", *targets]:
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
        case ["pip", "install", what]:
            assert re.fullmatch(r"\.|(\.|refusal)\[\w+\]", what)
            assert set(re.findall(r"\[(\w+)\]", what)) <= set(PROJECT["optional-dependencies"])
        case ["pip", "install", *options]:
            files = re.findall(r"(?<=-[rc] )\S+", " ".join(options))
            assert {*options} - {*files} <= {
                "--require-hashes",
                "--no-deps",
                "-r",
                "-c",
                "torch",
                "-e",
                ".",
            }
            assert all((ROOT / name).is_file() for name in files)
        case _:
            assert words[0] in (
                "ls",
                "python",
                "python3",
                ".",
                "transformers",
                "torchrun",
                "accelerate",
                "vllm",
            )


def test_the_commands_are_found() -> None:
    assert sum(words[0] == "refusal" for _, words in COMMANDS) > 30


def known_options() -> set[str]:
    verbs = [app[verb] for verb in app if not verb.startswith("-")]
    for group in [verb for verb in verbs if verb.default_command is None]:
        verbs.remove(group)
        verbs += [group[verb] for verb in group if not verb.startswith("-")]
    return set(SHORT) | {
        name
        for verb in verbs
        for argument in verb.assemble_argument_collection()
        for name in argument.names
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_an_option_that_is_mentioned_exists(page: Path) -> None:
    text = re.sub(
        r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    mentioned = {
        option
        for code in re.findall(r"`([^`]+)`", text)
        for option in re.findall(r"--[a-z][a-z-]*", code)
    }
    assert mentioned - FOREIGN <= known_options()


EXAMPLES = [
    pytest.param(block, id=f"{page.name}-{i}")
    for page in PAGES
    for i, block in enumerate(blocks(page, "python"))
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_fits_the_library(example: str) -> None:
    """It compiles, what it imports is there, and what it calls takes those arguments."""
    for node in ast.walk(ast.parse(example)):
        match node:
            case ast.Import(names=names):
                for name in names:
                    importlib.import_module(name.name)
            case ast.ImportFrom(module=str(module), names=names):
                assert all(hasattr(importlib.import_module(module), name.name) for name in names)
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="refusal"), attr=name),
                args=args,
                keywords=keywords,
            ):
                assert name in refusal.__all__
                inspect.signature(getattr(refusal, name)).bind(
                    *args, **{k.arg: k.value for k in keywords if k.arg}
                )
            case ast.Attribute(value=ast.Name(id="refusal"), attr=name):
                assert name in refusal.__all__


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    """Relative, so that they work on a code host too; from the docs never out of their folder,
    where the site ends.
    """
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    here = [link for link in links if not link.startswith("http")]
    assert [link for link in here if not (page.parent / link).is_file()] == []
    inside = ROOT if page.name == "README.md" else ROOT / "docs"
    assert all((page.parent / link).resolve().is_relative_to(inside) for link in here)


def test_the_reference_has_every_public_name_once() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    documented = re.findall(
        r"^\.\. auto(?:function|class|exception):: (\w+)(?:\(.*\))?$", text, re.MULTILINE
    )
    assert sorted(documented) == refusal.__all__


def test_the_command_lines_page_leaves_out_only_verbs_that_are_run_in_part() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    (left_out,) = re.findall(r":exclude-commands: (.+)$", text, re.MULTILINE)
    assert set(left_out.split(",")) == set(VERBS) - {"run"}


def pattern(documented: str) -> re.Pattern[str]:
    """`completions/<set>.<condition>.jsonl` as an expression; what stands in brackets has no slash
    and no dot.
    """
    return re.compile(re.sub(r"<\w+>", r"[^/.]+", documented.replace(".", r"\.")))


def test_the_run_folders_page_lists_what_a_run_writes_and_nothing_else(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8")
    documented = re.findall(
        r"^\| `([^`]+)` \| (.+?) \|", page.partition("## The manifest")[0], re.MULTILINE
    )
    elsewhere = (
        "`--tasks`",
        "`--condition-on`",
        "`--thinking on`",
        "`--filter completions`",
        "`refusal audit`",
        "several methods",
        "`refusal transfer`",
    )  # tests of those stages have them
    always = [pattern(name) for name, by in documented if by not in elsewhere]
    everything = [pattern(name) for name, _ in documented]
    config = saved.small_config(
        saved.save_model(tmp_path / "model"),
        saved.write_prompts(tmp_path),
        controls=1,
        n_control=2,
        drift_tokens=2,
        seeds=2,
        judges=("substring",),
        figures=("svg",),
    )
    refusal.run(config, tmp_path / "run")
    written = [
        p.relative_to(tmp_path / "run").as_posix()
        for p in (tmp_path / "run").rglob("*")
        if p.is_file()
    ]
    assert [name for name in written if sum(bool(p.fullmatch(name)) for p in everything) != 1] == []
    assert [p.pattern for p in always if not any(map(p.fullmatch, written))] == []
