"""The low-rank branch beside a packed weight, in closed form: of the weight itself, and of the error that is left.

    y = Q x + up (down x)

`largest` of the weight is taken out of it before the rest is packed (SVDQuant, Li et al. 2024): what is packed is then
smaller. `fitted` looks at what the layer is given and finds the branch that makes its output right (reduced-rank
regression): errors count as far as inputs ask for them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..randomness import normal_like

_EXACT = 512
"""Up to this many rows or columns the whole SVD is computed, which is faster there."""
_ROUNDS = 6
"""Of subspace iteration. One pass over random vectors, as a plain randomized SVD makes, is far from the optimum for
weights, whose singular values fall slowly."""
_DAMPING = 1e-3
"""How much the error of the weight counts in every direction, in terms of the inputs' mean variance."""


def largest(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The nearest matrix of a rank (Eckart and Young), as (down (rank, in), up (out, rank)), in the matrix's precision.

    Large ones by subspace iteration over twice as many vectors as the rank asks for; the same numbers each time.
    """
    out, into = matrix.shape
    rank = min(rank, out, into)
    if min(out, into) <= max(_EXACT, 4 * rank):
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    else:
        start = normal_like((into, 2 * rank), "low_rank", out, into).to(matrix)
        basis = torch.linalg.qr(matrix @ start).Q
        for _ in range(_ROUNDS):
            basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
        inner, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
        left = basis @ inner
    root = values[:rank].sqrt()  # half to each side, so that neither is small
    return root[:, None] * right[:rank], left[:, :rank] * root


def fitted(across: Tensor, covariance: Tensor, error: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The branch of a rank that leaves the least error in a layer's output over its inputs.

    It minimises Σ ‖e - up down x‖² + d ‖error - up down‖² over all inputs x, e being what the output lacks there. The
    second sum decides where the inputs say nothing: there the weight counts.

    Args:
        across: Σ e xᵀ (out, in).
        covariance: Σ x xᵀ (in, in).
        error: of the weight (out, in), W - Q.

    Returns:
        down (rank, in) and up (out, rank), in fp32.
    """
    device = error.device if error.device.type != "mps" else torch.device("cpu")  # which has no fp64
    across, covariance, wanted = (one.to(device, torch.float64) for one in (across, covariance, error))
    size = len(covariance)
    damping = _DAMPING * covariance.trace() / size
    if not damping > 0:  # no inputs at all
        covariance, damping = torch.zeros_like(covariance), torch.ones_like(damping)
    whole = covariance + damping * torch.eye(size, device=device, dtype=torch.float64)
    # ‖(D - up down) L‖ with whole = L Lᵀ and D the solution without a limit to the rank
    root = torch.linalg.cholesky(whole)
    white = torch.linalg.solve_triangular(root, (across + damping * wanted).T, upper=False).T
    down, up = largest(white, rank)
    down = torch.linalg.solve_triangular(root, down, upper=False, left=False)
    return down.float().to(error.device), up.float().to(error.device)
