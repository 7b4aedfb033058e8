"""Several ways to refuse: centroids of the harmful prompts, each minus the mean of the harmless.

In batch form what arXiv 2511.08379 does with a self-organising map. A place has as many vectors as
centroids. Its candidate is the one that tells the classes furthest apart; all of them are kept with
the candidates, since ablating their span is what the paper proposes.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.config.run_config import RunConfig
from refusal.directions.from_activations import FromActivations, Rows
from refusal.directions.packages import from_sklearn

STARTS = 5  # of which the tightest clustering counts


class Centroids(FromActivations):
    """k-means of the harmful activations at each place."""

    def settings(self, config: RunConfig) -> Mapping[str, object]:
        """How many centroids."""
        return {"centroids": config.centroids}

    def find(
        self, harmful: Rows, harmless: Rows, config: RunConfig
    ) -> Float[Tensor, "vector d_model"]:
        """The centroids of one place minus the harmless mean, the furthest apart first; fewer where
        there are fewer different prompts.
        """
        k = min(config.centroids, len(harmful.unique(dim=0)))
        clusters = from_sklearn("cluster").KMeans(k, n_init=STARTS, random_state=config.seed)
        centroids = torch.from_numpy(clusters.fit(harmful.numpy()).cluster_centers_)
        found = centroids.double() - harmless.mean(0)
        apart = separation(found, harmful, harmless)
        return found[apart.argsort(descending=True, stable=True)]


def separation(
    vectors: Float[Tensor, "vector d_model"], harmful: Rows, harmless: Rows
) -> Float[Tensor, "vector"]:
    """Distance of the class means along each vector, in standard deviations within the classes."""
    bad, good = harmful @ vectors.mT, harmless @ vectors.mT
    within = (bad.var(0, correction=0) + good.var(0, correction=0)) / 2
    return (bad.mean(0) - good.mean(0)) / within.sqrt().clamp_min(1e-300)
