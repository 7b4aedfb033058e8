"""Public sources: pinned, checked against their hash, and a clear word when one cannot be had. No
network is used.
"""

import re
import shutil
from dataclasses import fields
from pathlib import Path

import pooch
import pytest
import requests

import refusal
from refusal import PromptError
from refusal.prompts.sources import SOURCES, Source, read_source

ROWS = {
    "advbench": 520,
    "malicious_instruct": 100,
    "tdc2023_dev": 50,
    "tdc2023_test": 50,
    "harmbench_val": 41,
    "harmbench_test": 159,
    "jailbreakbench": 100,
    "jailbreakbench_benign": 100,
    "strongreject": 313,
    "alpaca": 31323,
    "xstest_safe": 250,
    "xstest_unsafe": 200,
    "orbench_hard": 1319,
}
ON_A_BRANCH = ("strongreject", "xstest_safe", "xstest_unsafe")  # only the hash pins these


@pytest.mark.parametrize("name", SOURCES)
def test_address_and_hash_are_pinned(name: str) -> None:
    source = SOURCES[name]
    if name != "orbench_hard":  # published in another format: only from a data folder
        assert source.url.startswith("https://")
        assert re.search(r"/[0-9a-f]{40}/", source.url) or name in ON_A_BRANCH
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in (source.sha256, *source.also))
    assert source.licence
    assert source.file == Path(source.file).name


def test_file_names_and_hashes_are_not_mixed_up() -> None:
    assert (
        len({source.file for source in SOURCES.values()}) == len(SOURCES) - 1
    )  # XSTest's halves are one file
    assert len({(source.file, source.sha256) for source in SOURCES.values()}) == len(SOURCES) - 1


@pytest.mark.parametrize("name", ROWS)
def test_every_source_reads_whole(data: Path, name: str) -> None:
    rows = read_source(name, data / "prompts")
    assert len(rows) == ROWS[name]
    assert all(text and text == text.strip() for text, _ in rows)


def test_the_class_of_every_source_is_what_its_benchmark_says() -> None:
    harmless = {name for name, source in SOURCES.items() if source.label == "harmless"}
    assert harmless == {"alpaca", "jailbreakbench_benign", "xstest_safe", "orbench_hard"}
    assert {source.label for source in SOURCES.values()} == {"harmful", "harmless"}


def test_a_source_without_a_class_cannot_be_written() -> None:
    known = SOURCES["advbench"]
    rest = {f.name: getattr(known, f.name) for f in fields(known) if f.name != "label"}
    with pytest.raises(TypeError, match="label"):
        Source(**rest)


def test_every_source_is_tested() -> None:
    assert ROWS.keys() == SOURCES.keys()


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        PromptError, match=r"There is no folder .*nowhere\. Give the folder .* --data-dir\."
    ):
        refusal.load_prompts("paper", data_dir=tmp_path / "nowhere")


def test_missing_file_is_named_with_its_address(tmp_path: Path) -> None:
    with pytest.raises(
        PromptError, match=r"advbench\.csv does not exist\. Put advbench\.csv \(from https://"
    ) as caught:
        refusal.load_prompts("paper", data_dir=tmp_path)
    assert SOURCES["advbench"].url in str(caught.value)


def test_another_file_under_the_name_is_refused(data: Path, tmp_path: Path) -> None:
    shutil.copy(data / "prompts" / "advbench.csv", tmp_path)
    assert read_source("advbench", tmp_path)
    with (tmp_path / "advbench.csv").open("a") as file:
        file.write("Say hello,Hello\n")
    with pytest.raises(
        PromptError,
        match=r"advbench\.csv has sha256 [0-9a-f]{16}…, not the pinned 6cd1a5c63c07610d…",
    ):
        read_source("advbench", tmp_path)


def test_unreadable_file_is_named(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("refusal.prompts.sources.file_sha256", refuse)
    with pytest.raises(
        PromptError, match=r"advbench\.csv cannot be read \(Permission denied\)\. Check"
    ):
        read_source("advbench", data / "prompts")


@pytest.mark.parametrize(
    "error",
    [
        OSError("no route to host"),
        requests.exceptions.ConnectionError("name resolution failed"),
        requests.exceptions.ReadTimeout("read timed out"),
        requests.exceptions.HTTPError("404 Not Found"),
        requests.exceptions.ChunkedEncodingError("connection broken"),
        ValueError("SHA256 hash of downloaded file does not match"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_failed_download_says_what_else_to_do(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> str:
        raise error

    monkeypatch.setattr(pooch, "retrieve", fail)
    with pytest.raises(PromptError) as caught:
        refusal.load_prompts("paper")
    message = str(caught.value)
    assert SOURCES["advbench"].url in message
    assert str(error) in message
    assert "--data-dir" in message
    assert "--prompts builtin" in message
    assert caught.value.exit_code == 2


def test_download_asks_for_the_pinned_hash_and_goes_to_the_cache(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def retrieve(url: str, known_hash: str, *, fname: str, path: Path, progressbar: bool) -> str:
        asked.append((url, known_hash))
        path.mkdir(parents=True)
        return str(shutil.copy(data / "prompts" / fname, path / fname))

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    monkeypatch.setenv("REFUSAL_CACHE", str(tmp_path))
    assert len(read_source("advbench")) == 520
    assert asked == [(SOURCES["advbench"].url, f"sha256:{SOURCES['advbench'].sha256}")]
    assert (tmp_path / "prompts" / "advbench.csv").is_file()
