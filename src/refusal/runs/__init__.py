"""The folder of a run: its manifest, its files, the stages that fill it and which may be reused."""
