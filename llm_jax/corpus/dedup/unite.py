"""Which documents belong together, and which of them stay, given the pairs that are alike."""

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph


def components(count: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """int64[count], the smallest node of each node's connected component.

    Args:
      count: number of nodes.
      left, right: int[edges], the two ends of each edge.
    """
    graph = sparse.coo_array((np.ones(len(left), bool), (left, right)), (count, count))
    _, labels = csgraph.connected_components(graph, directed=False)
    _, smallest = np.unique(labels, return_index=True)
    return smallest[labels]


def keep(rank: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """bool[nodes], those that stay if, from the best node to the worst, one goes when a kept one is like it.

    So each node that goes is like one that stays, and no two that stay are alike. What is
    alike only along a chain of others stays: A ~ B ~ C drops B, or A and C, never all but A.

    Args:
      rank: int[nodes], the best first; all different.
      left, right: int[edges], the two ends of each edge; one direction is enough.
    """
    kept = np.zeros(len(rank), bool)
    decided = np.zeros(len(rank), bool)
    # Each edge from the better to the worse end.
    swap = rank[left] > rank[right]
    better, worse = np.where(swap, right, left), np.where(swap, left, right)
    while not decided.all():
        # Who has nobody better left to wait for stays; who is like them goes.
        waits = np.zeros(len(rank), bool)
        waits[worse] = True
        stay = ~decided & ~waits
        kept |= stay
        decided |= stay
        decided[worse[stay[better]]] = True
        open_ = ~decided[worse] & ~decided[better]
        better, worse = better[open_], worse[open_]
    return kept
