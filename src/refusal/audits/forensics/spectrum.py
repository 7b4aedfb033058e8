"""Gram matrices of weights, and their largest and smallest eigenvectors, in float64."""

import torch
from jaxtyping import Float
from torch import Tensor

MORE = 8  # vectors beside those that are asked for
ROUNDS = 24
TINY = 1e-13  # of the mean eigenvalue, added for the inverse: far below what float32 leaves


def largest(
    gram: Float[Tensor, "d d"], count: int
) -> tuple[Float[Tensor, "k"], Float[Tensor, "d k"]]:
    """The ``count`` largest eigenvalues, falling, and their eigenvectors, by subspace iteration."""
    d = len(gram)
    vectors = _start(d, min(d, count + MORE))
    for _ in range(ROUNDS):
        vectors = torch.linalg.qr(gram @ vectors).Q
    return _ritz(gram, vectors, min(d, count), largest_first=True)


def smallest(
    gram: Float[Tensor, "d d"], count: int
) -> tuple[Float[Tensor, "k"], Float[Tensor, "d k"]]:
    """The ``count`` smallest eigenvalues, rising, and their eigenvectors, by inverse iteration."""
    d = len(gram)
    shifted = gram.clone()
    shifted.diagonal().add_(TINY * float(gram.diagonal().mean()) + 1e-300)
    factor, failed = torch.linalg.cholesky_ex(shifted)
    while int(failed):  # rounding has made the smallest eigenvalue negative
        shifted.diagonal().add_(1e-9 * float(gram.diagonal().mean()))
        factor, failed = torch.linalg.cholesky_ex(shifted)
    del shifted
    vectors = _start(d, min(d, count + MORE))
    for _ in range(ROUNDS):
        vectors = torch.linalg.qr(torch.cholesky_solve(vectors, factor)).Q
    return _ritz(gram, vectors, min(d, count), largest_first=False)


def _start(d: int, count: int) -> Float[Tensor, "d k"]:
    noise = torch.randn(d, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start: Tensor = torch.linalg.qr(noise).Q
    return start


def _ritz(
    gram: Float[Tensor, "d d"], vectors: Float[Tensor, "d n"], count: int, largest_first: bool
) -> tuple[Float[Tensor, "k"], Float[Tensor, "d k"]]:
    values, turned = torch.linalg.eigh(vectors.T @ gram @ vectors)
    if largest_first:
        values, turned = values.flip(0), turned.flip(1)
    return values[:count].clamp_min(0), vectors @ turned[:, :count]
