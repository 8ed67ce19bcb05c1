"""Strings that tokenizers get wrong, and small tokenizers to try them on."""

import argparse
import gzip
import io
import json
import pathlib
import random

import sentencepiece
import tokenizers

TEXTS = [
    pathlib.Path(argparse.__file__).read_text(),
    'def f(x):\n    """Adds one."""\n    if x:\n\t\treturn x + 1\n    return 1234567\n',
    'class A(Base):\n        pass\n\n\nprint("naïve café")\r\n',
    'import os, sys\nfor i in range(10):\n    print(i, end=" ")\n' * 3,
]
AWKWARD = [
    '', ' ', '   ', '\t', '\t\t x', '\n', '\n\n\n', '\r\n', 'a\r\nb\r', '\0', 'a\0b', '\u2581', 'a\u2581b\u2581',
    ' \u2581 ', '\u2581\u2581', '\u2585', '\u0301', 'e\u0301', '\u00e9', '\ufb01', '\u00a0', '\u3000 x', '\u2028',
    '\u200b', '\ufeffx', '\ufffd', '😀👩‍👩‍👧‍👦',
    '<|bos|>', '<unk>', '<0x41>', '<|pad|><|eos|>', ' ⁇ ', '①²', '中文字', 'Ω',
    '<s>', 'a</s> <s>', '<|endoftext|>', 'a <|endoftext|>\n<|endoftext|>b', '<|im_end|>', '<<|endoftext|>>',
    '\U0010ffff', '\ue000', ' trailing ', '    deep\n        deeper\n', '\x7f\x1b[0m', '１２３',
]  # fmt: skip


def random_text(rng: random.Random) -> str:
    pools = [
        lambda: chr(rng.randrange(0x80)),
        lambda: rng.choice(' \t\n\r\u2581'),
        lambda: rng.choice(AWKWARD),
        lambda: rng.choice(TEXTS)[: rng.randrange(30)],
        lambda: chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])),
    ]
    return ''.join(rng.choice(pools)() for _ in range(rng.randrange(25)))


def cases(count: int = 2000) -> list[str]:
    """The strings above and `count` mixtures of them, the same ones every time."""
    rng = random.Random(0)
    return AWKWARD + TEXTS + [random_text(rng) for _ in range(count)]


def unzipped(file: pathlib.Path) -> str:
    """The text of a .gz file."""
    return gzip.decompress(file.read_bytes()).decode()


def sentencepiece_model(**options) -> bytes:
    """A SentencePiece BPE model with the library's defaults, such as a space before every text."""
    model = io.BytesIO()
    options = {'vocab_size': 400, 'byte_fallback': True, 'model_type': 'bpe', 'minloglevel': 2} | options
    lines = [line for text in TEXTS for line in text.split('\n')]
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, **options)
    return model.getvalue()


def byte_level_bpe(special: tuple[str, ...] = ('<|endoftext|>',), texts: list[str] = TEXTS) -> tokenizers.Tokenizer:
    """A byte-level BPE of GPT-2's kind."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.add_special_tokens(list(special))
    return bpe


def write_pair(directory: pathlib.Path, vocab: str, merges: str, texts: list[str] = TEXTS) -> None:
    """The two files of a byte-level BPE of GPT-2's kind, under these names."""
    model = json.loads(byte_level_bpe(texts=texts).to_str())
    names = model['model']['vocab'] | {'<|endoftext|>': len(model['model']['vocab'])}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / vocab).write_text(json.dumps(names))
    pairs = '\n'.join(' '.join(pair) for pair in model['model']['merges'])
    (directory / merges).write_text(f'#version: 0.2\n{pairs}\n')
