"""What the report says, in words and numbers for people; the templates only lay it out."""

from collections.abc import Mapping
import functools
import math
import shlex
from typing import Any, NamedTuple

from llm_jax import config as config_lib
from llm_jax.config.schema import Config
from llm_jax.dist import mesh as mesh_lib
from llm_jax.metrics import format as fmt
from llm_jax.report.page import Card
from llm_jax.report.run import Run, timestamp
from llm_jax.report.tables import Table, table_of

_STATUS = {
    'finished': 'finished',
    'running': 'not finished when this was written',
    'stopped': 'stopped before its end; the same command resumes it',
    'failed': 'failed',
    'unknown': 'status not recorded',
}


class Headline(NamedTuple):
    status: str  # a key of CSS classes: finished, running, stopped, failed, unknown
    status_text: str
    reason: str  # why it failed, or ''
    value: str  # '1.234', or '' without an evaluation
    unit: str
    sentence: str


class ConfigRow(NamedTuple):
    name: str
    value: str
    default: str  # '' where the field is unknown to this version
    changed: bool
    meaning: str


def headline(run: Run) -> Headline:
    """The one number of the run, against what gzip makes of the same text."""
    status = run.status if run.status in _STATUS else 'unknown'
    text = _STATUS.get(run.status, run.status)
    total = run.info.get('total_steps')
    if run.metrics:
        text += f' · step {run.last_step:,}' + (f' of {total:,}' if total else '')
    reason = str(run.info.get('reason') or '') if status == 'failed' else ''
    made = functools.partial(Headline, status, text, reason)
    bits, loss, gzip = run.last('val/bits_per_byte'), run.last('val/loss'), run.data.get('gzip_bits_per_byte')
    if bits is None:
        if loss is None:
            return made('', '', 'The model has not been evaluated on the validation split yet.')
        accuracy = run.last('val/accuracy')
        if accuracy is not None:
            sentence = f'on the held-out validation split; the loss there is {loss:.3f} {run.loss_unit}.'
            return made(fmt.percent(accuracy), 'accuracy', sentence)
        return made(f'{loss:.3f}', run.loss_unit, 'Loss on the validation split.')
    where = 'on the held-out validation split'
    if not gzip:
        sentence = f'{where}. The size of the same text under gzip -9 is not recorded.'
    elif bits <= gzip:
        sentence = f'{where}, {100 * (1 - bits / gzip):.1f} % below gzip -9, which needs {gzip:.3f} for the same text.'
    else:
        sentence = f'{where}, {100 * (bits / gzip - 1):.1f} % above gzip -9, which needs {gzip:.3f} for the same text.'
    return made(f'{bits:.3f}', 'bits per byte', sentence)


def warnings(run: Run) -> list[str]:
    """Sentences on what the run lacks, and why."""
    known = [entry for entry in run.info.get('warnings') or [] if isinstance(entry, Mapping)]
    return [f'{entry.get("consequence")}, because of {entry.get("reason")}' for entry in known]


def cards(run: Run) -> list[Card]:
    """The numbers next to the headline, in order of interest; only those that are known."""
    perplexity = run.last('val/perplexity')
    best = min(run.series('val/loss')[1], default=None)
    speed, wait, mfu = run.median('tokens_per_second'), run.median('input_wait'), run.median('mfu')
    parameters, embedding = run.info.get('parameters'), run.info.get('parameters_embedding')
    tokens = run.last('tokens')
    devices = run.info.get('n_devices')
    rows = [
        ('perplexity', fmt.decimal(perplexity, 2), f'validation, best loss {fmt.decimal(best)}' if best else ''),
        ('training loss', fmt.decimal(run.last('loss')), 'last logged step'),
        ('training time', fmt.duration(run.seconds()), f'{run.last_step:,} step{"s" * (run.last_step != 1)}'),
        ('tokens seen', fmt.count(tokens), _epochs(run, tokens)),
        ('speed', fmt.count(speed), 'tokens/s' + (f', input wait {fmt.percent(wait)}' if wait is not None else '')),
        ('MFU', fmt.percent(mfu), f'of {devices} device{"s" * (devices != 1)}' if devices else ''),
        ('parameters', fmt.count(parameters), f'{fmt.count(embedding)} of them embeddings' if embedding else ''),
    ]
    return [Card(*row) for row in rows if row[1] != fmt.DASH]


def setup(run: Run) -> list[tuple[str, str]]:
    """What was run on what."""
    info, model = run.info, run.config.get('model') or {}
    started, finished = timestamp(info.get('started')), timestamp(info.get('finished'))
    rows = [
        ('model', _model_line(model)),
        ('devices', _devices(info)),
        ('mesh', mesh_lib.format_sizes(info.get('mesh') or {})),
        ('started', started.strftime('%Y-%m-%d %H:%M:%S %Z') if started else ''),
        (
            'finished' if run.status == 'finished' else 'ended',
            finished.strftime('%Y-%m-%d %H:%M:%S %Z') if finished else '',
        ),
        ('versions', ', '.join(f'{name} {version}' for name, version in (info.get('versions') or {}).items())),
    ]
    return [(label, text) for label, text in rows if text]


def evaluations(run: Run) -> Table | None:
    """One row per evaluation, at most a dozen, spread evenly and with the last."""
    lines = [line for line in run.metrics if 'val/loss' in line]
    picked = _spread(lines, 12)
    names = ['loss', 'perplexity', 'bits_per_byte']
    measured = [name.removeprefix('val/') for line in lines for name in line if name.startswith('val/')]
    if 'bits_per_byte' not in measured and measured:  # of a stage of post-training
        names = [name for name in dict.fromkeys(measured) if '/' not in name]
    digits = lambda name: 2 if name == 'perplexity' else 4
    number = lambda line, name: fmt.decimal(line[f'val/{name}'], digits(name)) if f'val/{name}' in line else fmt.DASH
    rows = [
        {'step': f'{line["step"]:,}'} | {name.replace('_', ' '): number(line, name) for name in names}
        for line in picked
    ]
    return table_of(rows, texts=0)


def confusion(run: Run) -> tuple[str, Table] | None:
    """(split, how often a class was taken for another) of the last evaluation, the test split before validation."""
    for split, name in (('test', 'test/confusion/'), ('validation', 'val/confusion/')):
        lines = [line for line in run.metrics if any(key.startswith(name) for key in line)]
        if not lines:
            continue
        counts = {key.removeprefix(name): value for key, value in lines[-1].items() if key.startswith(name)}
        classes = list(dict.fromkeys(key.partition('/')[0] for key in counts))
        rows = [
            {'is': true} | {f'taken for {guess}': f'{counts[f"{true}/{guess}"]:,.0f}' for guess in classes}
            for true in classes
        ]
        return split, table_of(rows, texts=1)
    return None


def data_table(run: Run) -> Table | None:
    """Documents, bytes, tokens and rows by split and source, with a sum per split of several."""
    rows, sums = [], []
    for split, sources in (run.data.get('splits') or {}).items():
        total = {key: sum(numbers.get(key) or 0 for numbers in sources.values()) for key in _DATA_COLUMNS}
        for source, numbers in sources.items():
            rows.append({'split': split, 'source': source, **_data_cells(numbers)})
        if len(sources) > 1:
            sums.append(len(rows))
            rows.append({'split': split, 'source': 'all', **_data_cells(total)})
    return table_of(rows, texts=2, sums=sums)


def data_notes(run: Run) -> list[tuple[str, str]]:
    """Tokenizer and compression."""
    data = run.data
    rows = [
        ('vocabulary', f'{data["vocab_size"]:,} tokens' if data.get('vocab_size') else ''),
        ('bytes per token', fmt.decimal(data.get('bytes_per_token'), 2)),
        ('gzip -9 of the validation text', f'{fmt.decimal(data.get("gzip_bits_per_byte"))} bits per byte'),
    ]
    return [(label, text) for label, text in rows if text and fmt.DASH not in text]


def samples(run: Run) -> list[dict[str, Any]]:
    """Per prompt: what the model wrote first, last, and in between."""
    prompts: dict[str, list[dict]] = {}
    for sample in run.samples:
        entry = {'step': f'{sample["step"]:,}', 'text': str(sample.get('text', ''))}
        prompts.setdefault(str(sample.get('prompt', '')), []).append(entry)
    return [
        {
            'prompt': prompt,
            'first': entries[0] if len(entries) > 1 else None,
            'last': entries[-1],
            'between': _spread(entries[1:-1], 6),
        }
        for prompt, entries in prompts.items()
    ]


def config_sections(run: Run) -> list[tuple[str, list[ConfigRow]]]:
    """(section, rows) of the whole config, each field against its default."""
    known = {name: (value, meaning) for name, value, meaning in config_lib.describe(Config())}
    plain = config_lib.to_dict(Config())
    sections: dict[str, list[ConfigRow]] = {}
    for name, value in _flatten(run.config, known):
        section = name.rpartition('.')[0] or 'experiment'
        default = _look_up(plain, name) if name in known else None
        changed = name not in known or value != default
        sections.setdefault(section, []).append(
            ConfigRow(
                name=name.rpartition('.')[2],
                value=_config_value(value),
                default=_config_value(default) if name in known else '',
                changed=changed,
                meaning=known[name][1] if name in known else 'not a field of this version',
            )
        )
    return list(sections.items())


def command(run: Run) -> str:
    """The command line that made the run."""
    value = run.info.get('command') or ''
    return value if isinstance(value, str) else shlex.join(map(str, value))


# --- Pieces ----------------------------------------------------------------------------

_DATA_COLUMNS = ('documents', 'bytes', 'tokens', 'rows')


def _data_cells(numbers: Mapping[str, Any]) -> dict[str, str]:
    show = {'documents': '{:,}'.format, 'bytes': fmt.size, 'tokens': fmt.count, 'rows': '{:,}'.format}
    return {key: show[key](numbers[key]) if numbers.get(key) is not None else fmt.DASH for key in _DATA_COLUMNS}


def _epochs(run: Run, tokens: float | None) -> str:
    train = (run.data.get('splits') or {}).get('train') or {}
    available = sum(numbers.get('tokens') or 0 for numbers in train.values())
    if not (tokens and available):
        return ''
    epochs = tokens / available
    return f'{epochs:.2f} epochs' if epochs >= 0.01 else 'less than 0.01 epochs'


def _model_line(model: Mapping[str, Any]) -> str:
    if not model:
        return ''
    shape = f'{model.get("n_layers")} layers, width {model.get("d_model")}, {model.get("n_heads")} heads'
    parts = [str(model[key]) for key in ('attention', 'position', 'norm', 'feed_forward') if key in model]
    return f'{shape}; {", ".join(parts)}; computes in {model.get("dtype")}'


def _devices(info: Mapping[str, Any]) -> str:
    names = info.get('devices') or info.get('platform') or ''
    names = [names] if isinstance(names, str) else [str(name) for name in names]
    text = ', '.join(dict.fromkeys(name for name in names if name))
    if not text:
        return ''
    count, processes = info.get('n_devices'), info.get('n_processes')
    text = f'{count} × {text}' if count else text
    return f'{text}, {processes} processes' if processes and processes > 1 else text


def _spread(items: list, n: int) -> list:
    """At most n of the items, evenly apart, the first and the last among them."""
    if len(items) <= n:
        return items
    return [items[round(i * (len(items) - 1) / (n - 1))] for i in range(n)]


def _flatten(config: Mapping[str, Any], known: Mapping[str, Any], prefix: str = '') -> list[tuple[str, Any]]:
    """(dotted name, value) of all fields; tables such as mesh.rules are one field."""
    rows = []
    for key, value in config.items():
        name = prefix + key
        section = isinstance(value, Mapping) and name not in known
        rows += _flatten(value, known, f'{name}.') if section else [(name, value)]
    return rows


def _look_up(tree: Mapping[str, Any], name: str) -> Any:
    for key in name.split('.'):
        tree = tree[key]
    return tree


def _config_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ', '.join(f'{k} → {_config_value(v)}' for k, v in value.items()) or '{}'
    if isinstance(value, (list, tuple)):
        return ', '.join(map(_config_value, value)) or '()'
    if isinstance(value, float) and math.isfinite(value):
        return f'{value:g}'
    return repr(value) if isinstance(value, str) and (not value or value != value.strip()) else str(value)
