"""Sample from a trained model: sample runs/quickstart --prompt "def " [--num_samples 3 ...]"""

import argparse
import json
import pathlib
import sys
import time
from typing import Any

from llm_jax.config import cli
from llm_jax.config.schema import ConfigError


def main(argv: list[str]) -> None:
    parser = cli.Parser('sample', __doc__)
    parser.add_argument('run_dir', help='a run, e.g. runs/quickstart, a Hugging Face directory, or hf:OWNER/NAME')
    parser.add_argument('--prompt', action='append', default=[], help='text to continue; may be given several times')
    parser.add_argument('--prompt_file', action='append', default=[], help='a file whose whole text is a prompt')
    parser.add_argument(
        '--max_new_tokens', type=cli.at_least(1), help='most tokens to add (100, or what the context has room for)'
    )
    parser.add_argument(
        '--slide', action='store_true', help='past the context, go on with its last tokens, as nanoGPT does (slower)'
    )
    parser.add_decoding()
    parser.add_argument('--json_schema', metavar='FILE', help='a file with the JSON schema that each sample follows')
    parser.add_argument('--regex', help='a regular expression that each sample matches as a whole')
    parser.add_argument('--choice', action='append', default=[], help='a text that a sample may be; give several')
    parser.add_argument('--grammar', metavar='FILE', help='a file with the grammar of each sample, as of Lark or GBNF')
    parser.add_argument(
        '--speculate',
        metavar='HOW',
        help='guess tokens ahead, the same text faster: lookup (in the text so far), or a run of a smaller model',
    )
    parser.add_argument('--beams', type=int, metavar='N', help='search for the likeliest texts with N beams, not draw')
    parser.add_argument('--length_penalty', type=float, help='of --beams: above 0 prefers longer texts, 0 the sum (1)')
    parser.add_argument(
        '--num_samples', type=cli.at_least(1), default=1, help='of each prompt; with --beams, the best ones (1)'
    )
    args = parser.parse(argv)
    check_beams(args, parser)
    prompts = read_prompts(args.prompt, args.prompt_file)
    kind, rules = read_rules(args)

    from llm_jax.generate import text  # imports JAX: a mistake in the arguments comes first, and at once
    from llm_jax.generate.beam import Beams
    from llm_jax.generate.constrain import Grammars
    from llm_jax.generate.settings import Sampler
    from llm_jax.generate.speculate import Speculation
    from llm_jax.runs import load

    sampler = Sampler(args.temperature, args.top_k, args.top_p)
    penalty = 1.0 if args.length_penalty is None else args.length_penalty
    beams = None if args.beams is None else Beams(args.beams, penalty, n_return=args.num_samples)
    loaded = load(args.run_dir, args.step)
    if loaded.tokenizer is None:
        raise ConfigError(f'{args.run_dir} has no tokenizer; give one to convert with --tokenizer')
    if args.max_new_tokens is None:
        args.max_new_tokens = (
            100 if args.slide else min(100, max(1, text.room(loaded.model, loaded.tokenizer, prompts)))
        )
    if beams:
        options = {'max_new_tokens': args.max_new_tokens, 'beams': beams}
        found = text.search(loaded.model, loaded.params, loaded.tokenizer, prompts, **options)
        for i, (prompt, row) in enumerate(zip(prompts, found, strict=True)):
            of_prompt = f'prompt {i + 1} of {len(prompts)}, ' if len(prompts) > 1 else ''
            for rank, (new, score) in enumerate(row):
                print(f'=== {of_prompt}beam {rank + 1} of {len(row)}, score {score:.4f} ===\n{prompt}{new}\n')
        return
    constraint = getattr(Grammars(loaded.tokenizer), kind)(rules).start if kind else None
    speculation = {}
    if args.speculate == 'lookup':
        speculation = {'speculation': Speculation()}
    elif args.speculate:
        draft = load(args.speculate)
        speculation = {'speculation': Speculation(draft=draft.model), 'draft_params': draft.params}
    rows = [prompt for prompt in prompts for _ in range(args.num_samples)]
    started = time.monotonic()
    blocks = text.stream(
        loaded.model, loaded.params, loaded.tokenizer, rows,
        max_new_tokens=args.max_new_tokens, sampler=sampler, seed=args.seed,
        slide=args.slide, stop=args.stop, constraint=constraint, quantise=args.quantize,
        cache=args.cache, **speculation,
    )  # fmt: skip

    alone = len(rows) == 1
    if alone:
        print(rows[0], end='', flush=True)
    texts, counts, seconds = list(rows), [], []  # tokens of each block, and when it was there
    for block in blocks:
        counts.append(sum(tokens for _, tokens in block))
        seconds.append(time.monotonic() - started)
        texts = [so_far + new for so_far, (new, _) in zip(texts, block, strict=True)]
        if alone:
            print(block[0][0], end='', flush=True)
    if alone:
        print()
    for i, whole in enumerate([] if alone else texts):
        prompt, sample = divmod(i, args.num_samples)
        of_prompt = f'prompt {prompt + 1} of {len(prompts)}, ' if len(prompts) > 1 else ''
        print(f'=== {of_prompt}sample {sample + 1} of {args.num_samples} ===\n{whole}\n')
    print(f'{_timing(counts, seconds)}, over {len(rows)} sample(s)', file=sys.stderr)


def _timing(counts: list[int], seconds: list[float]) -> str:
    """What decoding took: the tokens of each block, and the time at which it was there."""
    if not counts:
        return 'no token'
    # The second block was decoded while the first was waited for; from the third on, times are those of decoding.
    speed = sum(counts[2:]) / (seconds[-1] - seconds[1]) if sum(counts[2:]) else 0.0
    return f'{sum(counts)} tokens in {seconds[-1]:.2f} s: the first after {seconds[0]:.2f} s with compilation' + (
        f', then {speed:.0f} tokens/s' if speed else ''
    )


def check_beams(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Raises: ConfigError: --beams with a flag of drawing, or --length_penalty without it."""
    if args.beams is None:
        if args.length_penalty is not None:
            raise ConfigError(f'--length_penalty = {args.length_penalty} needs --beams, whose scores it changes')
        return
    if args.num_samples > args.beams:
        raise ConfigError(f'--num_samples = {args.num_samples} exceeds --beams = {args.beams}; search with more beams')
    drawing = ('temperature', 'top_k', 'top_p', 'seed', 'stop', 'slide', 'speculate')
    for name in (*drawing, 'json_schema', 'regex', 'choice', 'grammar'):
        if getattr(args, name) != parser.get_default(name):
            raise ConfigError(f'--{name} does not go with --beams, which searches without drawing; leave one out')


def read_prompts(texts: list[str], files: list[str]) -> list[str]:
    """The prompts of the command line; a document's beginning if there are none.

    Raises:
      ConfigError: a prompt or a file that is not UTF-8 text. A missing file is an OSError.
    """
    prompts = list(texts)
    prompts += [read_text(file, '--prompt_file') for file in files]
    for prompt in texts:
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f'--prompt {prompt!r} is not UTF-8 text: {error}') from error
    return prompts or ['']


def read_rules(args: argparse.Namespace) -> tuple[str, Any]:
    """The constraint of the command line: the method of `Grammars` that makes it and its argument; ('', None) if none.

    Raises:
      ConfigError: several of them, or a file that is not UTF-8, or not JSON where it is to be. A missing file is
        an OSError.
    """
    given = {name: getattr(args, name) for name in ('json_schema', 'regex', 'choice', 'grammar')}
    given = {name: value for name, value in given.items() if value not in (None, [])}
    if len(given) > 1:
        raise ConfigError(f'{" and ".join(f"--{name}" for name in given)} exclude each other; give one of them')
    for name, value in given.items():
        if name not in ('json_schema', 'grammar'):
            return name, value
        text = read_text(value, f'--{name}')
        if name == 'grammar':
            return name, text
        try:
            return name, json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f'--json_schema {value} is not JSON: {error}') from error
    return '', None


def read_text(file: str, flag: str) -> str:
    try:
        return pathlib.Path(file).read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f'{flag} {file} is not UTF-8 text: {error}') from error


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
