"""A general convex solver for maps on a tree, slow and unaware of any closed form.

Minimises sum_j w_j KL-terms of x against tau subject to C x = d by Newton's method on the dual,
which is smooth and unconstrained. Every dual point gives an x that is stationary for the
Lagrangian, so that the residual of C x = d is the whole KKT residual: it certifies optimality.

Boyd, Vandenberghe, "Convex Optimization", 2004, sections 5.2.3 and 10.2.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
RESIDUAL = 1e-11


def solve(
    taus: Sequence[Array], parents: Sequence[NDArray[np.intp]], weights: Sequence[float]
) -> list[Array]:
    """Maps, finest first; ``parents[l][j]`` is the cell of level l + 1 that holds cell j."""
    constraints, target = _constraints([len(tau) for tau in taus], parents)
    tau = np.concatenate(list(taus))
    weight = np.repeat(np.asarray(weights, dtype=float), [len(tau) for tau in taus])
    multipliers = _newton(constraints, target, tau, weight)
    solution = _primal(multipliers, constraints, tau, weight)
    return np.split(solution, np.cumsum([len(tau) for tau in taus])[:-1])


def cost(maps: Sequence[Array], taus: Sequence[Array], weights: Sequence[float]) -> float:
    """Weighted sum of the levels' Kullback-Leibler divergences."""
    return float(
        sum(w * np.sum(m * np.log(m / t)) for m, t, w in zip(maps, taus, weights, strict=True))
    )


def block_parents(fine: tuple[int, int], coarse: tuple[int, int]) -> NDArray[np.intp]:
    """Coarse cell (flat index) of every fine cell, by division of its row and column."""
    rows, columns = np.indices(fine)
    height, width = fine[0] // coarse[0], fine[1] // coarse[1]
    return ((rows // height) * coarse[1] + columns // width).ravel()


def _constraints(sizes: Sequence[int], parents: Sequence[NDArray[np.intp]]) -> tuple[Array, Array]:
    """One row per coarse cell (itself minus its children is 0) and one for the finest mass (1)."""
    starts = np.concatenate([[0], np.cumsum(sizes)])
    rows = []
    for level, parent in enumerate(parents):
        for cell in range(sizes[level + 1]):
            row = np.zeros(starts[-1])
            row[starts[level + 1] + cell] = 1
            row[starts[level] + np.flatnonzero(parent == cell)] = -1
            rows.append(row)
    rows.append((np.arange(starts[-1]) < sizes[0]).astype(float))
    return np.array(rows), np.concatenate([np.zeros(len(rows) - 1), [1.0]])


def _primal(multipliers: Array, constraints: Array, tau: Array, weight: Array) -> Array:
    return tau * np.exp(-(constraints.T @ multipliers) / weight)


def _dual(
    multipliers: Array, constraints: Array, target: Array, tau: Array, weight: Array
) -> float:
    with np.errstate(over="ignore"):
        primal = _primal(multipliers, constraints, tau, weight)
    return float(-(weight @ primal) - multipliers @ target)


def _newton(constraints: Array, target: Array, tau: Array, weight: Array) -> Array:
    multipliers = np.zeros(len(target))
    for _ in range(200):
        primal = _primal(multipliers, constraints, tau, weight)
        residual = constraints @ primal - target
        if np.abs(residual).max() < RESIDUAL:
            return multipliers
        curvature = (constraints * (primal / weight)) @ constraints.T
        step = np.asarray(np.linalg.solve(curvature, residual), dtype=np.float64)
        multipliers = _line_search(multipliers, step, residual, constraints, target, tau, weight)
    raise RuntimeError("Newton's method did not reach the residual in 200 steps")


def _line_search(start: Array, step: Array, gradient: Array, *problem: Array) -> Array:
    """Halve the step until the dual rises enough; near the optimum rounding forbids the test."""
    value, slope, length = _dual(start, *problem), float(gradient @ step), 1.0
    while slope > 1e-9 and _dual(start + length * step, *problem) < value + 0.1 * length * slope:
        length /= 2
    return start + length * step
