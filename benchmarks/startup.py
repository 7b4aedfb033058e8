"""Processor time of commands that compute nothing: `python benchmarks/startup.py`.

Each is started several times in a fresh process; the least of user and system time is given, since
the first start reads the files and others are disturbed by what else runs.
"""

import os
import subprocess
import sys

TIMES = 5
LIMIT = 0.5  # seconds that `refusal --help` may take
COMMANDS: dict[str, list[str]] = {
    "import refusal": ["-c", "import refusal"],
    "import torch": ["-c", "import torch"],
    "refusal --help": ["-m", "refusal", "--help"],
    "refusal run --help": ["-m", "refusal", "run", "--help"],
    "refusal config": ["-m", "refusal", "config"],
    "refusal completion": ["-m", "refusal", "completion", "bash"],
}


def spent(arguments: list[str]) -> float:
    """Processor seconds, user and system, of a fresh interpreter with these arguments."""
    before = os.times()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    return (
        after.children_user + after.children_system - before.children_user - before.children_system
    )


def main() -> None:
    """Print the figures; exit code 1 if help takes longer than it may."""
    found = {name: min(spent(given) for _ in range(TIMES)) for name, given in COMMANDS.items()}
    for name, seconds in found.items():
        print(f"{name:<20} {seconds:.2f} s")
    sys.exit(found["refusal --help"] > LIMIT)


if __name__ == "__main__":
    main()
