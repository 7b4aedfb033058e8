"""``python -m refusal``."""

from refusal.cli import entry

entry()
