"""Completions under each condition, their verdicts, and the rates made of them."""
