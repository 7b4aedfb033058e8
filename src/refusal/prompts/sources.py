"""Public prompt sets: where each file is, its hash, its licence and how to read it.

Files are downloaded once into the user's cache, or taken from a folder of already downloaded ones
(``--data-dir``); either way the hash must match, so that everyone's prompts are the same.
"""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pooch

from refusal.core.data_files import find_data_file
from refusal.core.errors import PromptError
from refusal.core.records import Label
from refusal.core.storage import cache_root, file_sha256

Rows = list[tuple[str, str | None]]  # (instruction, category)


def _column(text: str, column: str, category: str | None = None) -> Rows:
    rows = csv.DictReader(io.StringIO(text))
    return [(row[column].strip(), row[category] if category else None) for row in rows]


def _advbench(text: str) -> Rows:
    return _column(text, "goal")


def _lines(text: str) -> Rows:
    return [(line.strip(), None) for line in text.splitlines() if line.strip()]


def _strings(text: str) -> Rows:
    return [(item.strip(), None) for item in json.loads(text)]


def _harmbench_standard(text: str) -> Rows:
    rows = csv.DictReader(io.StringIO(text))
    standard = [r for r in rows if r["FunctionalCategory"] == "standard"]
    return [(r["Behavior"].strip(), r["SemanticCategory"]) for r in standard]


def _jailbreakbench(text: str) -> Rows:
    return _column(text, "Goal", "Category")


def _strongreject(text: str) -> Rows:
    return _column(text, "forbidden_prompt", "category")


def _xstest_half(label: str) -> Callable[[str], Rows]:
    def half(text: str) -> Rows:
        rows = csv.DictReader(io.StringIO(text))
        return [(row["prompt"].strip(), row["type"]) for row in rows if row["label"] == label]

    return half


def _orbench(text: str) -> Rows:
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    return [(row["prompt"].strip(), row["topic"]) for row in rows]


def _instructions(text: str) -> Rows:
    return [(item["instruction"].strip(), item["category"]) for item in json.loads(text)]


@dataclass(frozen=True)
class Source:
    """One file: the class of what is read from it, its name in a data folder, its pinned address
    and hash, other accepted hashes, licence, reader.
    """

    label: Label
    file: str
    url: str
    sha256: str
    licence: str
    parse: Callable[[str], Rows]
    also: tuple[str, ...] = ()

    @property
    def origin(self) -> str:
        """For messages: the address, if there is a pinned one."""
        return self.url or "its authors"


_GITHUB = "https://raw.githubusercontent.com"
_PAPER = f"{_GITHUB}/andyrdt/refusal_direction/0b9c8bc56a73b42f595fd173156d4aefe9a9143c/dataset"
_HARMBENCH = (
    f"{_GITHUB}/centerforaisafety/HarmBench/c0423b952435fcc8467108d8f25962dbae5b7de2"
    "/data/behavior_datasets"
)


def _xstest(label: Label, half: str) -> Source:
    return Source(
        label,
        "xstest_prompts.csv",
        # a branch: the sha256 alone pins it
        f"{_GITHUB}/paul-rottger/xstest/main/xstest_prompts.csv",
        "11783fb294ed017473ee53c207d71f2161c7672c8d0b037501e78387f801cb5a",
        "CC BY 4.0",
        _xstest_half(half),
    )


SOURCES = {
    "advbench": Source(
        "harmful",
        "advbench.csv",
        f"{_GITHUB}/llm-attacks/llm-attacks/098262edf85f807224e70ecd87b9d83716bf6b73/data/advbench/harmful_behaviors.csv",
        "6cd1a5c63c07610d7eb67307772ee5606017ee950b5770ab288a2c487489d3e1",
        "MIT",
        _advbench,
    ),
    "malicious_instruct": Source(
        "harmful",
        "malicious_instruct.txt",
        f"{_GITHUB}/Princeton-SysML/Jailbreak_LLM/1e490531c0ef4bc13430178bf1fbc8f813e34b1a/data/MaliciousInstruct.txt",
        "a64d69dd1004aac4a23aaff3748fb8f17161893f74db36f45b8bc849eb1bcce5",
        "none stated",
        _lines,
    ),
    "tdc2023_dev": Source(
        "harmful",
        "tdc2023_dev_behaviors.json",
        f"{_PAPER}/raw/tdc2023_dev_behaviors.json",
        "9392c63ad0193f0510f33812593f0dc71d13ae8b2ad93f64d670e9795deee1b0",
        "MIT",
        _strings,
    ),
    "tdc2023_test": Source(
        "harmful",
        "tdc2023_test_behaviors.json",
        f"{_PAPER}/raw/tdc2023_test_behaviors.json",
        "c4a630921005fd5e26dfe22dd720e411c8e7866c96f5b1a0ca2d46f0e1d1f8c2",
        "MIT",
        _strings,
    ),
    "harmbench_val": Source(
        "harmful",
        "harmbench_val.csv",
        f"{_HARMBENCH}/harmbench_behaviors_text_val.csv",
        "7bfaaa5e2b9b95002c89e2d33c019f58e9e8496e2fc65d368f1eeb8179e69534",
        "MIT",
        _harmbench_standard,
    ),
    "harmbench_test": Source(
        "harmful",
        "harmbench_test.csv",
        f"{_HARMBENCH}/harmbench_behaviors_text_test.csv",
        "75d257b3e7428c52eb7b0154318f455af3e01b09a3794b5e2f3d36054f3c0e29",
        "MIT",
        _harmbench_standard,
    ),
    "jailbreakbench": Source(
        "harmful",
        "jailbreakbench.csv",
        "https://huggingface.co/datasets/JailbreakBench/JBB-Behaviors/resolve/"
        "886acc352a31533ffbcf4ef22c744658688086fc/data/harmful-behaviors.csv",
        "4a8ec6832056b631eb092dccc60d37a61c3d441268268888b3d006288afeffa1",
        "MIT",
        _jailbreakbench,
        # The file as its GitHub repository had it in 2024: the first column has no name, the rest
        # is the same.
        also=("45e9a8923b28f547bb372fbaa9af7df8b38c818a80ae50c3bab97704197ff516",),
    ),
    "jailbreakbench_benign": Source(
        "harmless",
        "jailbreakbench_benign.csv",
        "https://huggingface.co/datasets/JailbreakBench/JBB-Behaviors/resolve/"
        "886acc352a31533ffbcf4ef22c744658688086fc/data/benign-behaviors.csv",
        "3cda234d21a991fa309bbfea4b6d9dae31ccdf8e9d452424b6a983e4fdc33468",
        "MIT",
        _jailbreakbench,
    ),
    "strongreject": Source(
        "harmful",
        "strongreject.csv",
        # A branch, not a commit: here the sha256 alone pins the content.
        f"{_GITHUB}/alexandrasouly/strongreject/main/strongreject_dataset/strongreject_dataset.csv",
        "4dd70357e4ff8b5d0ba5ebafecab5d6dd5633ce8046e3dd1c8bd93e64de44381",
        "MIT",
        _strongreject,
    ),
    "alpaca": Source(
        "harmless",
        "alpaca_instructions.json",
        f"{_PAPER}/processed/alpaca.json",
        "c4ce1bdc5c9b92caabcb171c27c7ec1e79832836bae10291d7c8ab8c6245f600",
        "CC BY-NC 4.0",
        _instructions,
    ),
    "xstest_safe": _xstest("harmless", "safe"),
    "xstest_unsafe": _xstest("harmful", "unsafe"),
    "orbench_hard": Source(
        "harmless",
        "orbench_hard.jsonl",
        "",  # bench-llm/or-bench publishes it in another format: only from a data folder
        "04c6032c5c49baa3f9ac0edc62292c986ae90000780c21025f405cd538b09c92",
        "Apache-2.0",
        _orbench,
    ),
}


def read_source(name: str, data_dir: Path | None = None) -> Rows:
    """The instructions of one source, in file order.

    Raises:
        PromptError: the file is missing, cannot be downloaded, or is not the pinned one.
    """
    source = SOURCES[name]
    path = _download(source) if data_dir is None else find_data_file(data_dir, source.file)
    if path is None:
        missing = data_dir / source.file if data_dir is not None else source.file
        raise PromptError(
            f"{missing} does not exist. Put {source.file} (from {source.origin}) there, or drop "
            "--data-dir."
        )
    try:
        found = file_sha256(path)
    except OSError as error:
        raise PromptError(
            f"{path} cannot be read ({error.strerror}). Check its permissions."
        ) from error
    if found not in (source.sha256, *source.also):
        raise PromptError(
            f"{path} has sha256 {found[:16]}…, not the pinned {source.sha256[:16]}…. Get it again "
            f"from {source.origin}."
        )
    return source.parse(path.read_text(encoding="utf-8"))


def _download(source: Source) -> Path:
    if not source.url:
        raise PromptError(
            f"{source.file} has no pinned address. Give a folder that holds it with --data-dir."
        )
    try:
        path = pooch.retrieve(
            source.url,
            f"sha256:{source.sha256}",
            fname=source.file,
            path=cache_root() / "prompts",
            progressbar=False,
        )
    except (OSError, ValueError) as error:  # network trouble, or another file at that address
        raise PromptError(
            f"{source.url} could not be downloaded ({error}). "
            "Give a folder that holds the files with --data-dir, or use --prompts builtin."
        ) from error
    return Path(path)
