"""The peer of bench_data_filter: datatrove's filters. Answers a line of its standard input with a line of JSON.

DIRECTORY/texts.json   a list of texts
time                   CPU seconds of all filters over all texts, one after the other until one drops the text
verdicts own           for each filter, whether it keeps each text; words by its own tokenizer
verdicts whitespace    the same with words between white space and sentences as llm_jax counts them
"""

import json
import pathlib
import re
import sys
import time

import datatrove
from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    c4_filters,
    fineweb_quality_filter,
    gopher_quality_filter,
    gopher_repetition_filter,
)

FILTERS = {
    'gopher': GopherQualityFilter(),
    'repetition': GopherRepetitionFilter(),
    'c4': C4QualityFilter(min_num_sentences=3, min_words_per_line=5),  # as in the code that made C4
    'fineweb': FineWebQualityFilter(),
}
WORDS = (gopher_quality_filter, gopher_repetition_filter, fineweb_quality_filter)


def keeps(name: str, document: Document) -> bool:
    if not document.text.strip() or not document.text.split():
        return False  # some of the filters divide by the number of words
    result = FILTERS[name].filter(document)
    return result if isinstance(result, bool) else result[0]


def all_filters(texts: list[str]) -> float:
    start = time.process_time()
    for text in texts:
        document = Document(text=text, id='')
        _ = all(keeps(name, document) for name in FILTERS)
    return time.process_time() - start


def verdicts(texts: list[str], words: str) -> dict[str, list[bool]]:
    own = [module.split_into_words for module in WORDS], c4_filters.split_into_sentences
    if words == 'whitespace':
        for module in WORDS:
            module.split_into_words = lambda text, language: text.split()
        ends = re.compile(r'[.?!]["\'”’)\]]*(?=\s|$)')
        c4_filters.split_into_sentences = lambda line, language: ends.findall(line) or [line]
    out = {name: [keeps(name, Document(text=text, id='')) for text in texts] for name in FILTERS}
    for module, function in zip(WORDS, own[0], strict=True):
        module.split_into_words = function
    c4_filters.split_into_sentences = own[1]
    return out


texts = json.loads((pathlib.Path(sys.argv[1]) / 'texts.json').read_text())
all_filters(texts[:20])  # loads the tokenizer
print(f'datatrove {datatrove.__version__ if hasattr(datatrove, "__version__") else ""}'.strip(), flush=True)
for line in sys.stdin:
    task, _, words = line.strip().partition(' ')
    print(json.dumps(all_filters(texts) if task == 'time' else verdicts(texts, words)), flush=True)
