"""Ways in which a file of a finished run may be damaged, as hypothesis draws them."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What may stand where something else is due.
WRONG: tuple[Any, ...] = (
    None, True, -1, 0, 7, 10**40, -(10**12), 0.5, -1e308, float("nan"), float("inf"), "", "x", "=1+1", "\ud800", "\x00",
    "\x1b[2J", "a" * 5000, [], [[]], [None], [1, "x"], {}, {"x": 1}, {"": {}},
)  # fmt: skip
DEEP = "[" * 100_000


def files_of(run: Path) -> list[Path]:
    """What the readers read: all but pages, tables and pictures."""
    found = (path.relative_to(run) for path in run.rglob("*") if path.is_file())
    return sorted(
        path for path in found if path.suffix in (".json", ".jsonl", ".toml", ".safetensors")
    )


def damage(content: bytes, kind: str, seed: int) -> bytes:
    """Other bytes in the place of a file's, always the same for a seed."""
    chance = random.Random(seed)
    return {"bytes": _bytes, "json": _json, "header": _header}[kind](content, chance)


def kinds_for(path: Path) -> tuple[str, ...]:
    """The kinds of damage that make sense for a file."""
    return {".toml": ("bytes",), ".safetensors": ("bytes", "header")}.get(
        path.suffix, ("bytes", "json", "json")
    )


def _bytes(content: bytes, chance: random.Random) -> bytes:
    ways: tuple[Callable[[], bytes], ...] = (
        lambda: b"",
        lambda: content[: chance.randrange(len(content) + 1)],
        lambda: content + content[: chance.randrange(len(content) + 1)],
        lambda: b"[" * 100_000,
        lambda: b"\xff\xfe" + content,
        lambda: _flipped(content, chance),
        lambda: _flipped(content, chance),
        lambda: _flipped(content, chance),
    )
    return chance.choice(ways)()


def _flipped(content: bytes, chance: random.Random) -> bytes:
    if not content:
        return b"\x00"
    out = bytearray(content)
    for _ in range(chance.choice((1, 1, 3))):
        out[chance.randrange(len(out))] = chance.randrange(256)
    return bytes(out)


def _json(content: bytes, chance: random.Random) -> bytes:
    """Another value, a field less or a field more, somewhere in one of the values that the file
    holds.
    """
    lines = content.decode().splitlines(keepends=True)
    try:
        values = [json.loads(content)]
    except ValueError:
        values = [json.loads(line) for line in lines if line.strip()]
    if not values:
        return b"{}\n"
    i = chance.randrange(len(values))
    values[i] = _changed(values[i], chance)
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def _changed(value: Any, chance: random.Random) -> Any:
    if not isinstance(value, (dict, list)) or not value or chance.random() < 0.15:
        return chance.choice(WRONG)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = chance.choice(keys)
    match chance.randrange(8), value:
        case 0, _:
            del value[key]
        case 1, dict():
            value[chance.choice(("x", "", "\u202e", "name"))] = chance.choice(WRONG)
        case 1, list():
            value.append(value[key])
        case _:
            value[key] = _changed(value[key], chance)
    return value


def _header(content: bytes, chance: random.Random) -> bytes:
    """A changed header before the same tensors."""
    if len(content) < 8:
        return content
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    if chance.random() < 0.4 and header.get("__metadata__"):
        meta = header["__metadata__"]
        key = chance.choice(list(meta))
        meta[key] = chance.choice(
            (DEEP, "", "{", "null", "[1]", "-3", "1e999", "NaN", "true", '{"norm": null}', "\x1b")
        )
    else:
        header = _changed(header, chance)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[start:]
