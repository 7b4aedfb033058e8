"""The commented TOML: read again it is the same configuration, and it has every option."""

import re
from pathlib import Path
from typing import Any

import pytest

from refusal.cli.entry import main
from refusal.config.commented import commented_toml
from refusal.config.run_config import RunConfig, make_config
from refusal.config.tables import KEYS

ODD: dict[str, Any] = {
    "model": 'C:\\models\\"mine"',
    "system": 'Say "yes".\nThen # stop.\ttab \u202e',
    "prompts": ("harmful=a b.txt", "harmless=c'd\".txt"),
    "over_refusal": ("xstest", "orbench-hard"),
    "n_items": 3,
    "judge_price_in": 2.5,
    "kl_threshold": 1e-7,
    "short_is_safe": True,
}


@pytest.mark.parametrize(
    "config", [make_config(), make_config("quick"), make_config(**ODD)], ids=["", "quick", "odd"]
)
def test_read_again_it_is_the_same(config: RunConfig, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(commented_toml(config), encoding="utf-8")
    assert make_config(file=file) == config


def test_every_option_is_there_once_with_what_it_does() -> None:
    text = commented_toml(make_config())
    found = []
    for part in re.split(r"^(?=\[\w+\]$)", text, flags=re.MULTILINE)[1:]:
        table = part[1 : part.index("]")]
        for key in re.findall(r"^(?:# )?(\w+) =", part, re.MULTILINE):
            found.append(KEYS[table][key])
            assert re.search(rf"^# .*\n(?:# )?{key} =", part, re.MULTILINE), f"nothing about {key}"
    assert sorted(found) == sorted(RunConfig.model_fields)


def test_the_command_prints_what_its_options_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            ["config", "some/model", "--preset", "quick", "--n-test", "7", "--judges", "substring"]
        )
        == 0
    )
    file = tmp_path / "run.toml"
    file.write_text(capsys.readouterr().out, encoding="utf-8")
    wanted = make_config("quick", model="some/model", n_test=7, judges=("substring",))
    assert make_config(file=file) == wanted
