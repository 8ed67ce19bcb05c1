"""Serve a model by OpenAI's protocol: serve runs/quickstart [--port 8000 --slots 8 --api_key KEY]"""

import os
import pathlib
import sys

from llm_jax.config import cli
from llm_jax.serve.listen import bind


def main(argv: list[str]) -> None:
    parser = cli.Parser('serve', __doc__)
    parser.add_argument('run_dir', help='a run, e.g. runs/quickstart, a Hugging Face directory, or hf:OWNER/NAME')
    parser.add_argument('--host', default='127.0.0.1', help='address to listen at; 0.0.0.0 is all (127.0.0.1)')
    parser.add_argument('--port', type=cli.at_least(0), default=8000, help='0 is any that is free (8000)')
    parser.add_argument('--api_key', default='', help='that clients have to send (none, or LLM_JAX_API_KEY)')
    parser.add_argument('--name', help='of the model, for clients (the last part of its path)')
    parser.add_argument('--step', type=cli.at_least(0), help='of the checkpoint; default the newest')
    parser.add_argument('--template', default='', help="of conversations: a format, or a file (the model's, or plain)")
    parser.add_argument('--context', type=cli.at_least(1), help="tokens of a prompt and its answer (the model's)")
    parser.add_argument('--slots', type=cli.at_least(1), default=8, help='choices that are decoded together (8)')
    parser.add_argument('--prefix_tokens', type=cli.at_least(0), help='of prompts, kept for later ones (4 contexts)')
    for axis, split in (('tensor', 'heads, d_ff and vocabulary'), ('fsdp', 'slots and weights'), ('expert', 'experts')):
        parser.add_argument(f'--{axis}', type=cli.at_least(1), default=1, help=f'devices of this host for {split} (1)')
    parser.add_argument('--queue', type=cli.at_least(0), default=64, help='choices that may wait for a slot (64)')
    parser.add_argument(
        '--queue_tokens', type=cli.at_least(1), default=65536, help='tokens of prompts that may wait (65536)'
    )
    parser.add_argument('--max_body', type=cli.at_least(1), default=4 << 20, help='bytes of a request (4 MiB)')
    parser.add_argument('--max_seconds', type=cli.at_least(1), default=600, help='for an answer (600)')
    args = parser.parse(argv)
    api_key = args.api_key or os.environ.get('LLM_JAX_API_KEY', '')
    with bind(args.host, args.port) as taken:
        from llm_jax.runs import load  # imports JAX: a mistake in the arguments comes first, and at once
        from llm_jax.serve.limits import Limits
        from llm_jax.serve.run import make_server, run

        name = args.name or pathlib.PurePath(args.run_dir.removeprefix('hf:')).name
        limits = Limits(args.slots, args.queue, args.queue_tokens, args.max_body, args.max_seconds)
        loaded = load(
            args.run_dir, args.step, sizes={axis: getattr(args, axis) for axis in ('tensor', 'fsdp', 'expert')}
        )
        print(f'compiling {name} ...', file=sys.stderr)
        options = {'context': args.context, 'template': args.template, 'prefix_tokens': args.prefix_tokens}
        server = make_server(loaded, name, limits, api_key=api_key, **options)
        run(server, args.host, taken, api_key=api_key)


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
