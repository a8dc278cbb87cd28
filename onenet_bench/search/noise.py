"""How far each told score may be off: a training that went wrong says little of its net.

Mostly the seeds of a net agree, and now and then one falls far behind. Under normal noise a single such score bends the
posterior of all nets around it. So there are two models of the noise: a normal one, and one that is normal above what
is expected and has a Student-t's tail below it, for a training can fail to learn but not learn by mistake. The latter
is a normal one whose variance differs from score to score, found by expectation and maximisation (Lange, Little &
Taylor, 1989). Which of them holds is told by the densities of all scores, each as the others predict it (Rasmussen &
Williams, 2006, section 5.4.2).

Letters: n observations, k means. Noises are variances, as shares of the signal's.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

Solve = Callable[[Floats], tuple[Floats, Floats]]
"""Of noises (n,): the inverse covariance's products (k, n) with the standardised values, and its diagonal (n,)."""

DEGREES = 3
"""Of freedom of the Student-t."""

SHARE = 0.3
"""What the noise of a training that went right is of the normal noise, which has to account for the others, too."""

ODDS = 3.0
"""For the tail, before there are scores."""

ROUNDS = 8
"""Of expectation and maximisation."""


def noises(
    solve: Solve, values: Floats, deviations: Floats, beliefs: Floats, noise: float, least: float
) -> tuple[Floats, float]:
    """The noises (n,) of losses ``values`` (k, n), standardised for each mean by ``deviations`` (k,), and that of a
    score that is not told yet. ``noise`` is what they are by the normal model; none is below ``least``."""
    n = values.shape[1]

    def at(given: Floats) -> tuple[Floats, Floats, float]:
        """The products (n,) in the losses' units, the diagonal, and the signal's variance."""
        products, diagonal = solve(given)
        explained = (products * values).sum(axis=1)
        variance = beliefs @ ((explained + 1) / (n + 1) * deviations**2)
        return (beliefs * deviations) @ products, diagonal, float(variance)

    usual = max(SHARE * noise, least)
    tailed = np.full(n, usual)
    for _ in range(ROUNDS):
        products, diagonal, variance = at(tailed)
        off = tailed * products  # of the posterior mean
        squares = off**2 / variance + tailed - tailed**2 * diagonal  # expected
        weights = np.where(off > 0, (DEGREES + 1) / (DEGREES + squares / usual), 1.0)
        tailed = usual / weights
    normal = np.full(n, noise)

    products, diagonal, variance = at(normal)
    squares = variance / diagonal
    by_normal = -0.5 * (np.log(2 * math.pi * squares) + (products / diagonal) ** 2 / squares).sum()

    products, diagonal, variance = at(tailed)
    squares = variance * np.maximum(1 / diagonal - tailed + usual, least)  # as if it were told with the usual noise
    by_tail = (
        math.lgamma((DEGREES + 1) / 2) - math.lgamma(DEGREES / 2)
        - 0.5 * np.log(DEGREES * math.pi * squares)
        - 0.5 * (DEGREES + 1) * np.log1p((products / diagonal) ** 2 / squares / DEGREES)
    ).sum()  # fmt: skip
    return (tailed, usual) if by_tail + math.log(ODDS) > by_normal else (normal, noise)
