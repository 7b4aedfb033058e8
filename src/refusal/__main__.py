"""``python -m refusal``."""

from refusal.cli.entry import entry

entry()
