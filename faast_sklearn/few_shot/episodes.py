"""Few-shot episodes: they are drawn without a loop over episodes and solved in large batches.

The weights of an episode with n support rows are in the span of these rows. In the eigenvector coordinates of the Gram
matrix, the episode is an n×n problem for any number of features. The solvers and the readout of
:class:`~faast_sklearn.FaastClassifier` take a batch of such problems. The cost grows with the number of features only
in the products that give the Gram matrices, the coefficients and the scores of the query rows.
"""

import numbers
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.utils import check_random_state

from faast_sklearn.errors import InputError, NonFiniteError
from faast_sklearn.features.normalize import unit_rows
from faast_sklearn.inputs.labels import check_labels
from faast_sklearn.readout.discriminant import discriminant_mixing
from faast_sklearn.solvers.solve import solve_spectrum
from faast_sklearn.solvers.spectrum import Spectrum, above_rounding

__all__ = ["Episodes", "sample_episodes", "solve_episodes"]

# Limits on how many numbers are handled at once, on the CPU and on an accelerator: filter values of all candidate
# strengths, gathered rows, and support rows of the episodes that are solved together. On the CPU, the first two fit
# into the cache of one core.
_N_STRENGTHS = 201
_FILTER_VALUES = (2**18, 2**25)
_BLOCK_VALUES = (2**19, 2**27)
_SUPPORT_VALUES = (2**21, 2**27)


class Episodes(NamedTuple):
    """Rows of few-shot episodes, as positions in the ``y`` from which they were drawn.

    Parameters
    ----------
    support : ndarray of int, shape (n_episodes, n_way, n_shot)
        Rows to learn from; ``support[e, k]`` has rows of class ``classes[e, k]``.
    query : ndarray of int, shape (n_episodes, n_way, n_query)
        Rows to test on, of the same classes.
    classes : ndarray of shape (n_episodes, n_way)
        Labels, sorted within each episode.
    """

    support: np.ndarray
    query: np.ndarray
    classes: np.ndarray


def sample_episodes(
    y: Any, *, n_way: int = 5, n_shot: int = 5, n_query: int = 15, n_episodes: int = 600, random_state: Any = None
) -> "Episodes":
    """Draw few-shot episodes. Each has some classes and, per class, rows to learn from and other rows to test on.

    Parameters
    ----------
    y : array-like of shape (n,)
        Labels.
    n_way : int, default=5
        Classes per episode, at least 2.
    n_shot : int, default=5
        Support rows per class.
    n_query : int, default=15
        Query rows per class.
    n_episodes : int, default=600
    random_state : int, RandomState or None, default=None
        An integer makes the episodes reproducible. The same integer with a different ``n_shot`` gives the same classes
        and query rows, and the larger support set contains the smaller one. Accuracies for different numbers of shots
        then differ because of the shots alone.

    Returns
    -------
    Episodes
        Within an episode no row occurs twice. The cost is O(n_episodes · n_way · (n_shot + n_query)²) comparisons, and
        O(n log n) once.

    Raises
    ------
    InputError
        If there are fewer than ``n_way`` classes, or a class has fewer than ``n_shot + n_query`` rows.
    ValueError
        If a number is not an integer, or is too small.

    Examples
    --------
    >>> import numpy as np
    >>> from faast_sklearn.few_shot.episodes import sample_episodes
    >>> y = np.array(["cat", "dog", "owl"] * 4)
    >>> episodes = sample_episodes(y, n_way=2, n_shot=1, n_query=3, n_episodes=10, random_state=0)
    >>> episodes.support.shape, episodes.query.shape
    ((10, 2, 1), (10, 2, 3))
    >>> bool((y[episodes.query] == episodes.classes[:, :, None]).all())
    True
    """
    _check_sizes(n_way=n_way, n_shot=n_shot, n_query=n_query, n_episodes=n_episodes)
    labels, codes, sizes = np.unique(check_labels(y, "y"), return_inverse=True, return_counts=True)
    _check_rows(labels, sizes, n_way, n_shot, n_query)
    rng = check_random_state(random_state)
    ways = np.sort(_distinct(rng, np.full(n_episodes, len(labels)), n_way))
    # Queries are drawn first, so that they do not depend on the number of shots.
    picks = _distinct(rng, sizes[ways], n_query + n_shot)
    first = np.cumsum(sizes) - sizes
    rows = np.argsort(codes.ravel(), kind="stable")[first[ways][..., None] + picks]
    return Episodes(rows[..., n_query:], rows[..., :n_query], labels[ways])


def _check_sizes(**sizes):
    for name, value in sizes.items():
        least = 2 if name == "n_way" else 1
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")


def _check_rows(labels, sizes, n_way, n_shot, n_query):
    if len(labels) < n_way:
        raise InputError(f"y has {len(labels)} classes, fewer than n_way={n_way}; lower n_way or add classes.")
    short = np.flatnonzero(sizes < n_shot + n_query)
    if len(short):
        k = short[sizes[short].argmin()]
        more = f" ({len(short)} classes have too few)" if len(short) > 1 else ""
        raise InputError(
            f"class {labels[k]!r} has {sizes[k]} rows, but an episode takes n_shot + n_query = {n_shot + n_query} rows "
            f"per class{more}; lower n_query or n_shot, or leave such classes out."
        )


def _distinct(rng, sizes, k):
    """Draw k distinct integers below each of ``sizes``, in random order: an array of shape (*sizes.shape, k).

    The j-th draw is a rank among the integers that are left. One step over each earlier draw, in ascending order,
    turns the rank into the integer.
    """
    out = np.empty((*sizes.shape, k), np.int64)
    for j in range(k):
        drawn = (rng.random_sample(sizes.shape) * (sizes - j)).astype(np.int64)
        for taken in np.moveaxis(np.sort(out[..., :j]), -1, 0):
            drawn += drawn >= taken
        out[..., j] = drawn
    return out


def solve_episodes(
    X: Any,
    episodes: "Episodes",
    *,
    solver: Any = "ridge",
    alpha: Any = "auto",
    normalize: bool = False,
    fit_intercept: bool = True,
) -> np.ndarray:
    """Learn each episode's support rows and return the accuracy on its query rows.

    The accuracies are those of a new ``FaastClassifier(solver=solver, ...)`` fitted to each episode.

    Parameters
    ----------
    X : ndarray or torch.Tensor of shape (n, d)
        Features of any floating dtype, on any device, where the work is done in float64. Products of float32 features
        may stay in float32; then scores that rounding could reorder are computed again in float64.
    episodes : Episodes
        Rows of X.
    solver, alpha, normalize, fit_intercept
        As in :class:`~faast_sklearn.FaastClassifier`.

    Returns
    -------
    ndarray of shape (n_episodes,)
        The cost per episode is O(n² d + n³ + n_queries n_way d) for n support rows; working memory does not grow with
        the number of episodes.

    Raises
    ------
    NonFiniteError
        If the squares of the features overflow float64.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from faast_sklearn.few_shot.episodes import sample_episodes, solve_episodes
    >>> X, y = load_digits(return_X_y=True)
    >>> round(float(solve_episodes(X, sample_episodes(y, n_episodes=200, random_state=0)).mean()), 2)
    0.91
    """
    X = torch.from_numpy(X if X.flags.writeable else X.copy()) if isinstance(X, np.ndarray) else X
    accelerated, d = int(X.device.type != "cpu"), X.shape[1]
    # Scores do not depend on this shift. A shift by about the mean avoids cancellation for features far from zero.
    some = X[:: max(1, len(X) // 1024)]
    shift = (unit_rows(some) if normalize else some.to(torch.float64)).mean(0) * fit_intercept
    # On accelerators, and with some settings of torch, float32 products may be computed at a lower precision (TF32).
    narrow = not accelerated and torch.get_float32_matmul_precision() == "highest"
    X = unit_rows(X) if normalize else X.to(torch.promote_types(X.dtype, torch.float32) if narrow else torch.float64)
    n_episodes, n_way, n_shot = episodes.support.shape
    support, query = (torch.as_tensor(part, device=X.device).flatten(1) for part in episodes[:2])
    n_support, n_queries = support.shape[1], query.shape[1]
    step = min(_FILTER_VALUES[accelerated] // _N_STRENGTHS, _SUPPORT_VALUES[accelerated] // d) // n_support
    step = min(max(1, step), n_episodes)
    block = min(max(1, _BLOCK_VALUES[accelerated] // (max(n_support, n_queries) * d)), step)
    # Each block and group reuses these buffers, because allocating new memory costs more than filling it.
    gathered = X.new_empty((block * max(n_support, n_queries), d))
    buffer = shift.new_empty((step, n_support, d))

    def rows(indices):
        out = gathered[: indices.numel()]
        return torch.index_select(X, 0, indices.flatten(), out=out).view(*indices.shape, d)

    # The second term bounds what norms lose if the squares of small numbers underflow.
    norms = torch.linalg.vector_norm(X, dim=1) + d * torch.finfo(X.dtype).tiny ** 0.5
    truth = torch.arange(n_way, device=X.device).repeat_interleave(n_queries // n_way)
    right = []
    for learnt, asked in zip(support.split(step), query.split(step), strict=True):
        keys = buffer[: len(learnt)]
        gram = shift.new_empty((len(learnt), n_support, n_support))
        blocks = [slice(i, i + block) for i in range(0, len(learnt), block)]
        for part in blocks:
            block_keys = keys[part].copy_(rows(learnt[part])).sub_(shift)
            torch.bmm(block_keys, block_keys.mT, out=gram[part])
        mixing, offset = _solve(gram, n_shot, d, solver=solver, alpha=alpha, intercept=fit_intercept)
        coef = mixing.mT @ keys
        offset -= coef @ shift
        rough = X.new_empty((len(asked), n_queries, n_way))
        slopes = coef.to(X.dtype).mT
        for part in blocks:
            torch.bmm(rows(asked[part]), slopes[part], out=rough[part])
        right.append((_told(X, norms, asked, rough, coef, offset) == truth).sum(-1))
    return torch.cat(right).cpu().numpy() / n_queries


def _told(X, norms, indices, rough, coef, offset):
    """Return the class with the highest score ``X[indices] @ coef.mT + offset``, of shape (e, q).

    ``rough`` holds the products in the precision of X. If rounding could change which class is best, the scores of the
    row are computed again in float64.
    """
    scores = rough + offset[:, None]
    best, told = scores.max(-1)
    # For each of the two classes, |fl(x·w) − x·w| is always below (d + 1) u ‖x‖ ‖w‖, and below 8 √d u ‖x‖ ‖w‖ except in
    # about d · 10⁻¹⁴ of the cases (Higham and Mary, 2019). The unit roundoff u is half of eps.
    d = X.shape[1]
    rounding = 1.1 * min(d + 1, 8 * d**0.5) * torch.finfo(X.dtype).eps
    bound = rounding * norms[indices] * torch.linalg.vector_norm(coef, dim=-1).amax(-1, keepdim=True)
    doubtful = ((best - bound)[..., None] <= scores).sum(-1) != 1
    for i in torch.nonzero(doubtful.any(1)).flatten().tolist():
        rows = X[indices[i, doubtful[i]]].to(torch.float64)
        told[i, doubtful[i]] = torch.addmm(offset[i], rows, coef[i].mT).argmax(-1)
    return told


def _solve(gram, n_shot, d, *, solver, alpha, intercept):
    """Solve episodes from the Gram matrices (e, n, n) of their support rows, sorted by class.

    Returns
    -------
    mixing : torch.Tensor of shape (e, n, c)
        The scores of a row x are ``x K.T @ mixing + offset``, up to a number that is the same for all classes.
    offset : torch.Tensor of shape (e, c)
    """
    n_episodes, n = gram.shape[:2]
    counts = np.full(n // n_shot, float(n_shot))
    if not torch.isfinite(gram.sum()):
        raise NonFiniteError(
            "features are so large that their squares overflow float64; divide them by a constant, "
            "or use normalize=True."
        )
    centred = gram
    if intercept:
        centred = gram - gram.mean(1, keepdim=True)
        centred -= centred.mean(2, keepdim=True)
    values, left = torch.linalg.eigh(centred)
    values = torch.where(above_rounding(values, d), values, 0.0)
    # In the coordinates of the eigenvectors, keys are U √Λ and their scatter matrix is Λ.
    root = values.sqrt()[..., None]
    cross = root * left.view(n_episodes, -1, n_shot, n).sum(2).mT
    spectrum = Spectrum(values, torch.eye(n, dtype=gram.dtype, device=gram.device), n_features=d)
    weights = solve_spectrum(spectrum, cross, counts, solver=solver, alpha=alpha, intercept=intercept).weights
    offset = gram.new_zeros((n_episodes, len(counts)))
    if solver == "ridge" and intercept:
        fitted = (cross.mT @ weights / n_shot).cpu().numpy()
        by_class, offset = (torch.as_tensor(a, device=gram.device) for a in discriminant_mixing(fitted, counts, counts))
        weights = weights @ by_class
    mixing = left @ (weights / root.masked_fill(root == 0, torch.inf))
    if intercept:
        mixing -= mixing.mean(1, keepdim=True)
        offset = offset - (gram.mean(1, keepdim=True) @ mixing)[:, 0]
    return mixing, offset
