"""Documents that are nearly the same: found by MinHash, compared for certain, the best one stays.

Similarity is Jaccard's, |A ∩ B| / |A ∪ B|, of the sets of shingles (runs of 5 words).
    bands    Candidates: documents that agree in all rows of at least one band of their MinHash
             signatures (Broder 1997; Indyk & Motwani 1998). A pair of similarity J is found with
             probability 1 - (1 - J^rows)^bands: .92 at .8, .996 at .875.
    compare  All pairs of candidates are compared on the shingles themselves, as a quarter of what
             the bands bring together is below the threshold, and boilerplate brings together more.
    keep     From the best document to the worst, a document goes if one that stays is similar enough
             to it. What is similar only to something that goes stays: joining all that hangs
             together by a chain has made whole collections vanish behind shared boilerplate.
             What hangs together by any similarity above a lower threshold gets the same cluster,
             for it has to be on the same side of the split into training and validation.
    names    The report names what stays in place of each document that goes.
Editions of one book mostly have J > .85, but some .79, and collections that share stories
.14: Near(bands=256, rows=2, threshold=.7, cluster_threshold=.1) drops the former and makes one
cluster of the latter. Pages from one template, about different things, reach .8 to .9: they are
duplicates by this measure.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import hashlib

import numpy as np

from llm_jax.config.schema import ConfigError, field
from llm_jax.corpus.dedup import names, sketch, unite, words
from llm_jax.corpus.document import Document, Dropped
from llm_jax.corpus.exchange import ADDRESSED, KEYED, Round


@dataclasses.dataclass(frozen=True)
class Near:
    """How near duplicates are found; bands and rows as in FineWeb (Penedo et al. 2024)."""

    ngram: int = field(5, 'words of a shingle; a document of fewer is only like its equals')
    bands: int = field(14, 'bands of the MinHash signature; more find more, at 24 bytes a document each')
    rows: int = field(8, 'hashes of a band; more find fewer pairs of low similarity')
    threshold: float = field(0.8, 'Jaccard similarity from which on the worse of two documents goes')
    cluster_threshold: float = field(
        0.6, 'similarity from which on two that stay are of one cluster; below threshold the bands miss some of them'
    )
    prefer: str = field('longest', 'which stays: longest (in characters; of equals the first) or first in the corpus')
    group: int = field(32, 'candidates that are compared each with each; larger sets are cut, the best in all parts')
    sample: int = field(4096, 'shingles of a document that are compared; those of longer ones are an even sample')


def make(options: Near) -> 'NearExchange':
    """The exchange that drops near duplicates and marks clusters.

    Raises:
      ConfigError: an option out of range.
    """
    for name in ('ngram', 'bands', 'rows', 'sample'):
        _check(getattr(options, name) >= 1, options, name, 'it must be at least 1')
    _check(options.group >= 2, options, 'group', 'it must be at least 2')
    _check(0 < options.threshold <= 1, options, 'threshold', 'it must be above 0 and at most 1')
    _check(0 < options.cluster_threshold <= options.threshold, options, 'cluster_threshold',
           f'it must be above 0 and at most threshold = {options.threshold}')  # fmt: skip
    _check(options.prefer in ('longest', 'first'), options, 'prefer', "it must be 'longest' or 'first'")
    return NearExchange((_Bands(options), _Compare(options), _Keep(options), names.Names()))


@dataclasses.dataclass(frozen=True)
class NearExchange:
    """Drops all but the best of near duplicates, as 'near.duplicate', and sets `cluster` of what stays."""

    rounds: Sequence[Round]

    def apply(self, shard: int, documents: Sequence[Document], received: np.ndarray) -> Iterator[Document | Dropped]:
        answers = {answer['doc']: answer for answer in received}
        for i, document in enumerate(documents):
            if i not in answers:
                yield document
            elif similarity := answers[i]['similarity']:
                yield Dropped(document, 'near.duplicate', f'of {names.text_of(answers[i])}, Jaccard {similarity:.3f}')
            else:
                yield dataclasses.replace(document, cluster=names.text_of(answers[i]))


_BAND = [*KEYED, ('size', '<u4'), ('hint', '<u4')]
_MEMBER = [*ADDRESSED, ('group', '<u8')]
_PART = 16
_SHINGLES = [*KEYED, ('part', '<u4'), ('count', '<u4'), ('limit', '<u4'), ('values', '<u4', _PART)]
_PAIR = [*ADDRESSED, ('other_shard', '<u4'), ('other_doc', '<u4'), ('similarity', '<f4')]
_EDGE = [*KEYED, *_PAIR[2:], ('size', '<u4')]
# The shard of what is no document but a cluster that documents came with.
_NO_SHARD = 2**32 - 1
_BATCH = 1 << 21


@dataclasses.dataclass(frozen=True)
class _Bands:
    """Documents that share a band become groups."""

    options: Near
    name: str = 'bands'
    together: bool = False

    def emit(self, shard: int, documents: Sequence[Document], received: np.ndarray) -> np.ndarray:
        o = self.options
        out = [np.zeros(0, _BAND)]
        for first, texts in words.in_blocks(documents):
            hashes, owners = sketch.shingles(texts, o.ngram)
            minima = sketch.signatures(hashes, owners, len(texts), o.bands * o.rows)
            some = np.flatnonzero(np.bincount(owners, minlength=len(texts)))  # a text without words is like none
            records = np.zeros((len(some), o.bands), _BAND)
            records['key'] = sketch.band_keys(minima[some], o.bands)
            records['shard'], records['doc'] = shard, (first + some)[:, None]
            records['size'] = _sizes(texts, o)[some, None]
            # Two rows of the next band: near to each other in this order are those that agree in more than the band.
            rows = words.mix(np.roll(minima[some], -o.rows, axis=1)[:, :: o.rows])
            records['hint'] = rows >> np.uint64(32)
            out.append(records.reshape(-1))
        return np.concatenate(out)

    def resolve(self, records: np.ndarray) -> np.ndarray:
        begins, ends = words.runs(records['key'])
        some = ends - begins >= 2
        small = some & (ends - begins <= self.options.group)
        members = [records[_within(begins[small], ends[small])]]
        counts = [(ends - begins)[small]]
        for begin, end in zip(begins[some & ~small], ends[some & ~small], strict=True):
            for part in _parts(records[begin:end], self.options.group):
                members.append(part)
                counts.append([len(part)])
        members, counts = np.concatenate(members), np.concatenate(counts)
        ends = np.cumsum(counts)
        # The name of a group is its members, so that bands that bring the same ones together make one group.
        who = words.mix(names.node(members['shard'], members['doc']))
        messages = np.zeros(len(members), _MEMBER)
        messages['shard'], messages['doc'] = members['shard'], members['doc']
        messages['group'] = np.repeat(words.hash_spans(who, ends - counts, ends), counts)
        return messages


@dataclasses.dataclass(frozen=True)
class _Compare:
    """The members of each group send their shingles and become pairs with a similarity."""

    options: Near
    name: str = 'compare'
    together: bool = False

    def emit(self, shard: int, documents: Sequence[Document], received: np.ndarray) -> np.ndarray:
        out = [np.zeros(0, _SHINGLES)]
        received = _distinct(received)
        begins, ends = words.runs(received['doc'])
        for begin, end in zip(begins, ends, strict=True):
            doc = received['doc'][begin]
            sample, limit = sketch.sample(documents[doc].text, self.options.ngram, self.options.sample)
            parts = np.zeros(-(-len(sample) // _PART), _SHINGLES)
            parts['shard'], parts['doc'], parts['part'] = shard, doc, np.arange(len(parts))
            parts['count'] = np.minimum(len(sample) - parts['part'] * _PART, _PART)
            parts['limit'] = limit
            parts['values'] = np.resize(sample, (len(parts), _PART))  # beyond the count they are not looked at
            sent = np.tile(parts, end - begin)
            sent['key'] = np.repeat(received['group'][begin:end], len(parts))
            out.append(sent)
        return np.concatenate(out)

    def resolve(self, records: np.ndarray) -> np.ndarray:
        messages = [np.zeros(0, _PAIR)]
        begins, ends = words.runs(records['key'])
        # Whole groups at a time.
        batch = np.cumsum(ends - begins) // (_BATCH // _PART)
        for first, stop in zip(*words.runs(batch), strict=True):
            messages += self._pairs(records[begins[first] : ends[stop - 1]])
        return np.concatenate(messages)

    def _pairs(self, records: np.ndarray) -> list[np.ndarray]:
        """Similar enough pairs of some whole groups, from both sides."""
        new = records['part'] == 0
        heads = records[new]
        owners = np.cumsum(new) - 1
        present = np.arange(_PART) < records['count'][:, None]
        owner = np.repeat(owners, records['count'])
        _, groups = np.unique(heads['key'], return_inverse=True)
        left, right, similarity = sketch.jaccard(groups, owner, records['values'][present], heads['limit'])
        similar = similarity >= self.options.cluster_threshold
        out = []
        for one, other in ((left, right), (right, left)):
            pairs = np.zeros(np.count_nonzero(similar), _PAIR)
            for name in ('shard', 'doc'):
                pairs[name] = heads[name][one[similar]]
                pairs[f'other_{name}'] = heads[name][other[similar]]
            pairs['similarity'] = similarity[similar]
            out.append(pairs)
        return out


@dataclasses.dataclass(frozen=True)
class _Keep:
    """All similar pairs together say what stays, and what is of one cluster."""

    options: Near
    name: str = 'keep'
    together: bool = True

    def emit(self, shard: int, documents: Sequence[Document], received: np.ndarray) -> np.ndarray:
        pairs = _distinct(received)
        # Documents that came with the same cluster stay together: each hangs on the same node, which is no document.
        marked = [i for i, document in enumerate(documents) if document.cluster]
        records = np.zeros(len(pairs) + len(marked), _EDGE)
        some = records[: len(pairs)]
        for name in pairs.dtype.names:
            some[name] = pairs[name]
        rest = records[len(pairs) :]
        rest['doc'], rest['other_shard'] = marked, _NO_SHARD
        rest['other_doc'] = [_label(documents[i].cluster) for i in marked]
        records['shard'] = shard
        records['size'] = _sizes([documents[i].text for i in records['doc']], self.options)
        records['key'] = words.mix(names.node(records['shard'], records['doc']))
        return records

    def resolve(self, records: np.ndarray) -> np.ndarray:
        here = names.node(records['shard'], records['doc'])
        there = names.node(records['other_shard'], records['other_doc'])
        nodes, places = np.unique(np.concatenate([here, there]), return_inverse=True)
        left, right = places[: len(here)], places[len(here) :]
        size = np.zeros(len(nodes), np.int64)
        size[left] = records['size']
        rank = np.empty(len(nodes), np.int64)
        rank[np.lexsort((nodes, -size))] = np.arange(len(nodes))
        similar = records['similarity'] >= np.float32(self.options.threshold)
        stays = unite.keep(rank, left[similar], right[similar])
        # What goes is said to be a duplicate of what is most similar to it and stays.
        reasons = np.flatnonzero(similar & ~stays[left] & stays[right])
        reasons = reasons[np.lexsort((rank[right[reasons]], -records['similarity'][reasons], left[reasons]))]
        reasons = reasons[words.runs(left[reasons])[0]]
        dropped = _requests(nodes, right[reasons], left[reasons], records['similarity'][reasons])
        # The best member names a cluster; what is left alone needs none.
        cluster = unite.components(len(nodes), left, right)
        members = np.flatnonzero(stays & (nodes >> np.uint64(32) != _NO_SHARD))
        members = members[np.lexsort((rank[members], cluster[members]))]
        begins, ends = words.runs(cluster[members])
        best = np.repeat(members[begins], ends - begins)
        several = np.repeat(ends - begins >= 2, ends - begins)
        clustered = _requests(nodes, best[several], members[several], 0)
        return np.concatenate([dropped, clustered])


def _requests(nodes: np.ndarray, asked: np.ndarray, asking: np.ndarray, similarity: np.ndarray | float) -> np.ndarray:
    out = np.zeros(len(asked), names.REQUEST)
    low, half = np.uint64(2**32 - 1), np.uint64(32)
    out['shard'], out['doc'] = nodes[asked] >> half, nodes[asked] & low
    out['for_shard'], out['for_doc'] = nodes[asking] >> half, nodes[asking] & low
    out['similarity'] = similarity
    return out


def _sizes(texts: Sequence[str], options: Near) -> np.ndarray:
    """What documents are preferred by, the larger the better."""
    return np.array([len(text) if options.prefer == 'longest' else 0 for text in texts], np.int64)


def _label(cluster: str) -> int:
    """32 bits for the label of a cluster; two that share them become one cluster, which does no harm."""
    return int.from_bytes(hashlib.blake2b(cluster.encode('utf-8', 'surrogatepass'), digest_size=4).digest())


def _parts(members: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """A large group as parts of at most `most`: neighbours by their hints, and the best of all in each part."""
    best = np.lexsort((members['doc'], members['shard'], -members['size'].astype(np.int64)))[0]
    rest = np.delete(np.arange(len(members)), best)
    rest = rest[np.argsort(members['hint'][rest], kind='stable')]
    for begin in range(0, len(rest), most - 1):
        yield members[np.sort(np.append(rest[begin : begin + most - 1], best))]


def _within(begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """All indices of some ranges, one range after the other."""
    counts = ends - begins
    return np.arange(counts.sum()) + np.repeat(begins - np.cumsum(counts) + counts, counts)


def _distinct(messages: np.ndarray) -> np.ndarray:
    """Messages in canonical order, each once."""
    return messages[np.append(True, messages[1:] != messages[:-1])] if len(messages) else messages


def _check(holds: bool, options: Near, name: str, fix: str) -> None:
    if not holds:
        raise ConfigError(f'near.{name} = {getattr(options, name)!r}: {fix}')
