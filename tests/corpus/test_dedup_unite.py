"""Components and what stays, against the definitions in plain Python."""

import random

import numpy as np

from llm_jax.corpus.dedup import unite


def graphs(count: int):
    rng = random.Random(0)
    for _ in range(count):
        nodes = rng.randrange(1, 40)
        edges = [(rng.randrange(nodes), rng.randrange(nodes)) for _ in range(rng.randrange(60))]
        edges = [(a, b) for a, b in edges if a != b]
        yield nodes, edges, np.array(edges, np.int64).reshape(-1, 2).T


def test_components_are_those_of_label_spreading():
    for nodes, edges, (left, right) in graphs(300):
        labels = list(range(nodes))
        for _ in range(nodes):
            for a, b in edges:
                labels[a] = labels[b] = min(labels[a], labels[b])
        assert unite.components(nodes, left, right).tolist() == labels


def test_keep_is_one_by_one_from_the_best():
    rng = random.Random(1)
    for nodes, edges, (left, right) in graphs(300):
        rank = list(range(nodes))
        rng.shuffle(rank)
        stays = set()
        for node in sorted(range(nodes), key=rank.__getitem__):
            if not any((a == node and b in stays) or (b == node and a in stays) for a, b in edges):
                stays.add(node)
        assert np.flatnonzero(unite.keep(np.array(rank), left, right)).tolist() == sorted(stays)


def test_keep_of_a_long_chain_drops_every_second():
    left = np.arange(999)
    assert unite.keep(np.arange(1000), left, left + 1).tolist() == [True, False] * 500
