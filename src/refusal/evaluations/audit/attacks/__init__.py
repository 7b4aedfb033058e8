"""The attacks, a class each; the table is in ``audit/__init__.py``."""
