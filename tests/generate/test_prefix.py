import random

from llm_jax.generate.prefix import PAGE, PrefixTree


def pages_of(*names):
    """Tokens of whole pages, each all of one id."""
    return [token for name in names for token in [name] * PAGE]


def test_the_longest_prefix_in_whole_pages():
    tree = PrefixTree(8)
    assert tree.match(pages_of(1, 2)) == []
    new = tree.insert([*pages_of(1, 2), 3])
    assert [index for index, _ in new] == [0, 1]
    kept = [page for _, page in new]
    assert tree.match(pages_of(1, 2, 3)) == kept
    assert tree.match(pages_of(1)) == kept[:1]
    assert tree.match([*pages_of(1), *[2] * (PAGE - 1)]) == kept[:1]
    assert tree.match(pages_of(2)) == tree.match(pages_of(2, 1)) == []
    assert tree.insert(pages_of(1, 2)) == []
    ((index, page),) = tree.insert(pages_of(1, 3))
    assert index == 1 and page not in kept


def test_pages_of_one_prefix_follow_each_other_by_what_stands_before_them():
    tree = PrefixTree(8)
    first, second = tree.insert(pages_of(1, 9)), tree.insert(pages_of(2, 9))
    assert len({page for _, page in [*first, *second]}) == 4


def test_least_recently_used_pages_go_first_and_never_those_that_others_follow():
    tree = PrefixTree(3)
    tree.insert(pages_of(1, 2))
    ((_, third),) = tree.insert(pages_of(3))
    tree.match(pages_of(1))
    ((_, page),) = tree.insert(pages_of(4))  # in place of 2 after 1: older than 3 and 1
    assert tree.match(pages_of(1, 2)) == tree.match(pages_of(1)) != []
    assert tree.match(pages_of(3)) == [third]
    assert tree.match(pages_of(4)) == [page]


def test_a_pool_too_small_keeps_the_beginning():
    tree = PrefixTree(2)
    assert [index for index, _ in tree.insert(pages_of(1, 2, 3, 4))] == [0, 1]
    assert len(tree.match(pages_of(1, 2, 3, 4))) == 2


def test_a_match_is_always_what_was_stored_last_in_its_pages():
    """Random prefixes against a pool that remembers what was written to each page."""
    rng = random.Random(0)
    tree, pool = PrefixTree(5), {}
    hits = 0
    for _ in range(2000):
        names = [rng.randrange(3) for _ in range(rng.randrange(1, 5))]
        for depth, page in enumerate(tree.match(pages_of(*names)), 1):
            assert pool[page] == names[:depth]
            hits += 1
        for index, page in tree.insert(pages_of(*names)):
            pool[page] = names[: index + 1]
    assert hits > 500
