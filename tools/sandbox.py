"""Run a program that nobody trusts: sandbox FILE.py [--timeout 5] [--json] | --check | --attacks DIR [--open]"""

import json
import pathlib
import sys

from llm_jax.config import cli
from llm_jax.evals.sandbox import Limits, Sandbox, SandboxError, check_sandbox


def check(as_json: bool) -> int:
    """Prints what holds on this machine; 1 where something does not."""
    findings = check_sandbox()
    if as_json:
        print(json.dumps([vars(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            print(
                f'{"holds" if finding.holds else "FAILS":6} {finding.promise}'
                + f'  ({finding.seen})' * bool(finding.seen)
            )
    return 0 if all(finding.holds for finding in findings) else 1


def run(path: pathlib.Path, limits: Limits, as_json: bool) -> int:
    """Runs a program and passes on its output, or prints the result as JSON; the exit code is the program's."""
    try:
        program = sys.stdin.buffer.read() if str(path) == '-' else path.read_bytes()
    except OSError as e:
        raise SandboxError(f'{path} cannot be read: {e.strerror}') from None
    result = Sandbox().run(program, limits)
    if as_json:
        print(json.dumps(result.as_json()))
        return 0
    sys.stdout.buffer.write(result.stdout)
    sys.stdout.flush()
    sys.stderr.buffer.write(result.stderr)
    sys.stderr.flush()
    if result.exit_code is None:
        print(f'sandbox: ended for its {result.status} after {result.seconds:.1f} s', file=sys.stderr)
    return 124 if result.exit_code is None else result.exit_code


def main(argv: list[str]) -> int:
    parser = cli.Parser('sandbox', __doc__)
    parser.add_argument('file', nargs='?', type=pathlib.Path, metavar='FILE.py', help='a Python program; - reads it')
    parser.add_argument('--check', action='store_true', help='tries what holds on this machine')
    parser.add_argument('--attacks', type=pathlib.Path, metavar='DIR', help='of programs, with a manifest.json')
    parser.add_argument('--open', action='store_true', help='with --attacks: where nothing holds them')
    parser.add_argument('--only', default='', metavar='TEXT', help='with --attacks: those whose names have it')
    parser.add_argument('--json', action='store_true', help='print the result as JSON')
    defaults = Limits()
    parser.add_argument('--timeout', type=float, default=defaults.timeout, help='seconds (%(default)s)')
    parser.add_argument('--memory', type=int, default=defaults.memory, help='MiB of all its processes (%(default)s)')
    parser.add_argument('--processes', type=int, default=defaults.processes, help='at once (%(default)s)')
    parser.add_argument('--files', type=int, default=defaults.files, help='MiB of its files (%(default)s)')
    parser.add_argument('--output', type=float, default=defaults.output, help='MiB that it may print (%(default)s)')
    args = parser.parse(argv)
    if (args.file is not None) + args.check + (args.attacks is not None) != 1:
        parser.error('one of FILE.py, --check and --attacks DIR is needed')
    if args.open and not args.attacks:
        parser.error('--open goes with --attacks DIR')
    try:
        limits = Limits(args.timeout, args.memory, args.processes, args.files, args.output)
        if args.check:
            return check(args.json)
        if args.file is not None:
            return run(args.file, limits, args.json)
        from llm_jax.evals.sandbox import attacks

        return attacks.run_command(args.attacks, is_open=args.open, only=args.only, as_json=args.json)
    except (SandboxError, ValueError) as e:
        print(f'sandbox: {e}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    cli.run(lambda argv: sys.exit(main(argv)), sys.argv[1:])
