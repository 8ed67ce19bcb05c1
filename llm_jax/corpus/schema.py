"""Every field of a corpus's configuration: its default, its type, its meaning.

The options of stages stand next to their rules; here they become sections.
"""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

import ml_collections

from llm_jax import config as config_lib
from llm_jax.config import parts, schema
from llm_jax.config.schema import ConfigError, Options, Part, field, section
from llm_jax.corpus import mixing
from llm_jax.corpus.chain import label
from llm_jax.corpus.decontaminate import Decontaminate
from llm_jax.corpus.dedup import Exact, Lines, Near, Substrings
from llm_jax.corpus.extract.options import Extract
from llm_jax.corpus.filter.c4 import Options as C4
from llm_jax.corpus.filter.code import Options as Code
from llm_jax.corpus.filter.fineweb import Options as FineWeb
from llm_jax.corpus.filter.gopher import Options as Gopher
from llm_jax.corpus.filter.language import Options as Language
from llm_jax.corpus.filter.refinedweb import Options as RefinedWeb
from llm_jax.corpus.filter.repetition import Options as Repetition
from llm_jax.corpus.filter.urls import Options as Urls
from llm_jax.corpus.normalise import Options as Normalise
from llm_jax.corpus.perplexity import Options as Perplexity
from llm_jax.corpus.quality import Quality
from llm_jax.corpus.read.source import Source
from llm_jax.corpus.registry import EXCHANGES, STAGES
from llm_jax.corpus.scrub import Scrub
from llm_jax.tokenizer import training

METHODS = ('best_fit', 'concat')


@dataclasses.dataclass(frozen=True)
class Packing:
    """How documents of tokens become rows."""

    seq_len: int = field(1024, 'tokens L that one row trains on')
    method: str = field(
        'best_fit', 'best_fit: documents stay whole where a row can hold them; concat: one stream, cut every L tokens'
    )


@dataclasses.dataclass(frozen=True)
class Splits:
    """What is held out. Documents of one cluster, which share much of their text, stay together."""

    validation: float = field(0.01, 'share of documents held out for validation')
    test: float = field(0.01, 'share of documents held out for the final test')


@dataclasses.dataclass(frozen=True)
class Corpus:
    """One corpus, complete and validated.

    A stage is a name of `registry.STAGES`, a function of a `Document`, or a class whose
    instances are such functions; a step of `dedup` is a name of `registry.EXCHANGES` or a
    class of an `Exchange`. Functions and classes may be named as 'package.module:Name'.
    """

    name: str = field('', "what the corpus is called; empty takes the file's name")
    seed: int = field(0, "seed of the tokenizer's sample and of the examples in the report", at_least=0, below=2**63)
    out: str = field('', 'directory of the corpus, local or in a bucket; empty means corpora/<name>')
    work: str = field('', 'directory of intermediate shards, from which a run goes on; empty means <out>/work')
    sources: dict = field({}, 'name -> table of what to read; of equal documents that of the first name stays')
    extract: Extract = section(Extract, 'how text is taken out of records')
    stages: tuple = field((), 'what each document goes through, in order')
    dedup: tuple = field((), 'what then looks at all documents together, in order')
    finish: tuple = field((), 'stages that each document that is left goes through at the end')
    normalise: Normalise = section(Normalise, 'one normal form of text')
    urls: Urls = section(Urls, 'addresses that are not wanted')
    language: Language = section(Language, 'the language, and which ones are wanted')
    gopher: Gopher = section(Gopher, 'what prose looks like')
    repetition: Repetition = section(Repetition, 'lines and n-grams that come again and again')
    c4: C4 = section(C4, 'lines that are no sentences')
    fineweb: FineWeb = section(FineWeb, 'punctuation, short lines, lists')
    refinedweb: RefinedWeb = section(RefinedWeb, 'lines that are furniture of a web page')
    code: Code = section(Code, 'line lengths and comments of code')
    quality: Quality = section(Quality, 'what a classifier that was trained on good and bad texts takes for good')
    perplexity: Perplexity = section(Perplexity, 'what a trained model predicts neither too well nor too badly')
    scrub: Scrub = section(Scrub, 'personal data and secrets')
    decontaminate: Decontaminate = section(Decontaminate, 'documents that hold items of benchmarks')
    exact: Exact = section(Exact, 'documents that are the same')
    near: Near = section(Near, 'documents that are nearly the same')
    lines: Lines = section(Lines, 'lines that many documents have')
    substrings: Substrings = section(Substrings, 'long passages that are there twice')
    options: Options = field(Options(), 'stage or exchange of your own -> its keyword arguments')
    mixture: dict = field({}, 'name -> weight, "2 epochs" or "1e9 tokens"; empty takes each source once')
    tokenizer: schema.Tokenizer = section(schema.Tokenizer, 'how text becomes tokens')
    compare_tokenizer: str = field('', "another tokenizer to compare bytes per token with, such as GPT-2's files")
    packing: Packing = section(Packing, 'how documents become rows')
    splits: Splits = section(Splits, 'what is held out')
    shard_bytes: int = field(64_000_000, 'text in one shard: what one worker holds in memory at a time')

    def stages_of(self, source: str) -> tuple[Part, ...]:
        """The stages that documents of a source go through."""
        return self.sources[source].stages or self.stages


def default() -> ml_collections.ConfigDict:
    """A ConfigDict with every field at its default, to be changed by an experiment."""
    return config_lib.default(Corpus)


def load(experiment: str | pathlib.Path, overrides: Mapping[str, str]) -> Corpus:
    """The config of an experiment file, with fields set as on the command line.

    Raises:
      ConfigError: no such experiment, or a mistake in it or in the overrides.
    """
    config = config_lib.load_experiment(experiment, Corpus)
    for name, table in config.sources.items():
        config.sources[name] = _table(table)  # so that its fields can be set
    config_lib.apply_overrides(config, overrides)
    return validate(config)


def validate(config: ml_collections.ConfigDict) -> Corpus:
    """Checks every field's name, type and range; makes a `Source` of each source.

    Raises:
      ConfigError: naming the field, its value and what would be right.
    """
    built = config_lib.build(Corpus, config)
    built = dataclasses.replace(
        built,
        out=built.out or f'corpora/{built.name}',
        sources={name: _source(name, table) for name, table in sorted(built.sources.items())},
    )
    built = dataclasses.replace(built, work=built.work or f'{built.out.rstrip("/")}/work')
    _check(built)
    return built


def _source(name: str, table: Any) -> Source:
    table = _table(table)
    if not isinstance(table, Mapping):
        raise ConfigError(f'sources.{name} = {table!r} must be a table such as {{"path": "data/*.jsonl"}}, or a path')
    return config_lib.build(Source, table, f'sources.{name}.')


def _table(value: Any) -> Any:
    """A source of which the path is all there is to say, as a table."""
    return {'path': value} if isinstance(value, str) else value


def _check(config: Corpus) -> None:
    _require(bool(config.name), 'name', config.name, 'the corpus needs one')
    _require(bool(config.sources), 'sources', config.sources, 'name one, such as {"books": {"path": "books/*"}}')
    for name in config.sources:
        _require(
            name.isidentifier(), f'sources.{name}', name, 'its name becomes a directory; use letters, digits and "_"'
        )
        _check_parts(f'sources.{name}.stages', config.sources[name].stages, STAGES)
    _check_parts('stages', config.stages, STAGES)
    _check_parts('dedup', config.dedup, EXCHANGES)
    _check_parts('finish', config.finish, STAGES)
    labels = [label(part) for part in (*config.dedup, *config.finish)]
    for name in config.sources:
        both = [label(part) for part in config.stages_of(name)] + labels
        twice = sorted({one for one in both if both.count(one) > 1})
        _require(not twice, 'stages', twice, 'a stage can be counted only under a name of its own; take it once')
    _check_options(config)
    mixing.check(config.mixture, config.sources)
    training.check(config.tokenizer, 'tokenizer')
    _require(config.packing.method in METHODS, 'packing.method', config.packing.method,
             f'it must be {" or ".join(METHODS)}{parts.nearest(config.packing.method, METHODS)}')  # fmt: skip
    for field_name, value in (
        ('packing.seq_len', config.packing.seq_len),
        ('tokenizer.vocab_size', config.tokenizer.vocab_size),
        ('tokenizer.sample_bytes', config.tokenizer.sample_bytes),
        ('shard_bytes', config.shard_bytes),
    ):
        _require(value >= 1, field_name, value, 'it must be at least 1')
    for field_name, value in (('splits.validation', config.splits.validation), ('splits.test', config.splits.test)):
        _require(0 <= value < 1, field_name, value, 'it must be at least 0 and below 1')
    held_out = config.splits.validation + config.splits.test
    _require(held_out < 1, 'splits', held_out, 'validation and test together leave nothing to train on')


def _check_parts(name: str, value: tuple, known: Mapping[str, Any]) -> None:
    for part in value:
        _require(callable(part) or isinstance(part, str), name, part, 'name a stage or give a callable')
        parts.resolve_part(name, part, dict.fromkeys(known, _check_parts))


def _check_options(config: Corpus) -> None:
    """Checks that the options are those of stages of the user's own, and that these take them."""
    stages = [part for name in config.sources for part in config.stages_of(name)]
    own = {label(part): part for part in (*stages, *config.dedup, *config.finish)
           if part not in STAGES and part not in EXCHANGES}  # fmt: skip
    for name, options in config.options.items():
        _require(name in own, f'options.{name}', options,
                 f'no stage of your own is called so{parts.nearest(name, own)} There are: {", ".join(own) or "none"}; '
                 'those of the library have sections')  # fmt: skip
        parts.check_options(f'options.{name}', parts.resolve_part('stages', own[name], {}), options, ('document',))


def _require(condition: bool, name: str, value: Any, fix: str) -> None:
    if not condition:
        raise ConfigError(f'{name} = {value!r}: {fix}')
