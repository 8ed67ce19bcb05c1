"""Chat with a model in the terminal: chat runs/quickstart [--system "Be brief." ...], or QUESTIONS | chat ..."""

import sys

from llm_jax.config import cli
from llm_jax.config.schema import ConfigError

# Tokens that memory is taken for unless --context says otherwise: models may have a hundred times as many.
CONTEXT = 4096


def main(argv: list[str]) -> None:
    parser = cli.Parser('chat', __doc__)
    parser.add_argument('run_dir', help='a run, e.g. runs/quickstart, a Hugging Face directory, or hf:OWNER/NAME')
    parser.add_argument('--system', default='', help='the system message')
    parser.add_argument('--max_new_tokens', type=cli.at_least(1), help='of an answer (what the context has room for)')
    parser.add_argument('--template', default='', help='of conversations: plain for a base model, another, or a file')
    parser.add_argument(
        '--context', type=cli.at_least(1), help=f"tokens of a prompt and its answer (the model's, {CONTEXT} at most)"
    )
    parser.add_decoding()
    args = parser.parse(argv)

    from llm_jax.chat import open_any_chat
    from llm_jax.chat.console import Console
    from llm_jax.chat.terminal import Terminal
    from llm_jax.generate.respond import Responder  # imports JAX: a mistake in the arguments comes first, and at once
    from llm_jax.generate.settings import Sampler
    from llm_jax.runs import load

    console = Console()
    sampler = Sampler(args.temperature, args.top_k, args.top_p)
    loaded = load(args.run_dir, args.step)
    if loaded.tokenizer is None:
        raise ConfigError(f'{args.run_dir} has no tokenizer; give one to convert with --tokenizer')
    chat, note = open_any_chat(loaded.tokenizer, args.template)
    if note:
        console.note(f'{args.run_dir} {note}')
    responder = Responder(
        loaded.model, loaded.params, loaded.tokenizer, stop_ids=chat.stop_ids, stops=[*args.stop, *chat.stop_texts],
        context=args.context or min(CONTEXT, loaded.model.config.max_seq_len), sampler=sampler, seed=args.seed,
        max_new_tokens=args.max_new_tokens, quantise=args.quantize, cache=args.cache,
    )  # fmt: skip
    terminal = Terminal(chat, responder, console, args.system)
    console.note('compiling ...')
    responder.warm_up()
    if console.is_interactive:
        console.note(f'{args.run_dir}, {responder.context} tokens of context. /help lists commands, Ctrl-D ends.')
    terminal.run()


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
