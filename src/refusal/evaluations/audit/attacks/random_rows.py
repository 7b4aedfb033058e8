"""The control: subspaces that mean nothing, as large as the attacks' smallest and largest."""

from dataclasses import replace

import torch

from refusal.config.audit import AuditConfig
from refusal.core.subspace import random_rows
from refusal.evaluations.audit.attack import Attack, Bench, Found, Setting


class Random(Attack):
    """Ablation of a uniformly drawn direction, and of a drawn subspace of the largest rank."""

    kind = "control"

    def find(self, bench: Bench) -> Found:
        """Both, the direction within the subspace."""
        generator = torch.Generator().manual_seed(bench.config.seed)
        rows = random_rows(bench.config.ranks, bench.textbook, generator)
        found = {}
        for rank in sorted({1, bench.config.ranks}):
            some = rows[:rank] if rank > 1 else None
            places = bench.textbook.places * rank if rank > 1 else ()
            drawn = replace(bench.textbook, vector=rows[0].clone(), basis=some, row_places=places)
            found[f"control-rank-{rank}"] = Setting("ablation", drawn)
        return Found(found, kept=tuple(found))

    @classmethod
    def arms(cls, config: AuditConfig) -> int:
        """The smallest and the largest."""
        return 2
