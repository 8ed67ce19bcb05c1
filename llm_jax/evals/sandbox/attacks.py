"""Attack programs tried on the sandbox: `sandbox --attacks DIR`, and with --open where nothing holds them.

DIR has programs and a manifest.json: for each attack its file, its kind ('program' is run, 'checker' is a solution
that is judged), and the words of which any one that comes true is an escape; programs that must work; and the limits.
"""

from collections.abc import Callable, Iterator
import contextlib
import json
import pathlib
import time

from . import Limits, Sandbox, SandboxError, Suite
from .bait import Bait, Outcome, lay_bait, remove_planted

Execute = Callable[[dict, str, Limits, dict], Outcome]  # (attack, program, limits, task of the checker) -> outcome


def read_manifest(directory: pathlib.Path) -> tuple[dict, Limits]:
    """The manifest, and the limits that it sets.

    Raises:
      SandboxError: there is none, or a part of it is missing.
    """
    path = directory / 'manifest.json'
    try:
        manifest = json.loads(path.read_text())
        said = manifest['limits used']
        limits = Limits(said['timeout_s'], said['memory_MiB'], said['processes'], said['files_MiB'], said['output_MiB'])
        for attack in manifest['attacks']:
            attack['program'] = (directory / attack['file']).read_text()
            _ = attack['id'], attack['kind'], attack['escape']
    except OSError as e:
        raise SandboxError(f'{e.filename} cannot be read: {e.strerror}') from None
    except json.JSONDecodeError as e:
        raise SandboxError(f'{path} is no JSON: {e}') from None
    except (KeyError, TypeError) as e:
        raise SandboxError(f'{path} lacks {e}') from None
    return manifest, limits


def checker_tests(task: dict) -> Suite:
    """The tests of the manifest's task, which has the fields of a problem of HumanEval."""
    name = task['entry_point']
    return Suite([name], task['prompt'], f'{task["test"]}\ncheck({name})\n')


def execute_closed(sandbox: Sandbox) -> Execute:
    """Runs and judges programs in the sandbox."""

    def execute(attack: dict, program: str, limits: Limits, task: dict) -> Outcome:
        started = time.monotonic()
        if attack['kind'] == 'checker':
            passed = sandbox.judge(program, checker_tests(task), limits).passed
            return Outcome(time.monotonic() - started, passed=passed)
        result = sandbox.run(program, limits)
        return Outcome(time.monotonic() - started, result=result)

    return execute


def _peak() -> float:
    """Peak of this process's memory since `_peak` was asked for last, in MiB."""
    status = pathlib.Path('/proc/self/status').read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith('VmHWM'))
    with contextlib.suppress(OSError):  # a kernel without it keeps the older peak
        pathlib.Path('/proc/self/clear_refs').write_text('5')
    return peak / 1024


def try_attack(attack: dict, task: dict, limits: Limits, execute: Execute) -> list[str]:
    """The escape words that came true."""
    with lay_bait() as bait:
        _peak()
        before = _peak()
        outcome = _execute(attack, bait, task, limits, execute)
        grown = _peak() - before
        escaped = bait.escapes(attack['escape'], outcome, limits, grown)
        for word in attack['escape']:
            if word.startswith('path_exists_in_python:'):
                remove_planted(bait.fill(word.partition(':')[2]))
        return escaped


def _execute(attack: dict, bait: Bait, task: dict, limits: Limits, execute: Execute) -> Outcome:
    started = time.monotonic()
    try:
        return execute(attack, bait.fill(attack['program']), limits, task)
    except Exception as e:  # an error of the harness is an outcome here
        return Outcome(time.monotonic() - started, error=f'{type(e).__name__}: {e}')


def try_benign(sandbox: Sandbox, program: dict, limits: Limits) -> str:
    """What differs from what a harmless program should do; '' where nothing does."""
    expect = program['expect']
    result = sandbox.run(program['program'], limits, stdin=expect.get('stdin', '').encode())
    seen = {
        'stdout': result.stdout.decode(errors='replace'),
        'exit': result.exit_code,
        'stderr_has': expect.get('stderr_has', '') if expect.get('stderr_has', '').encode() in result.stderr else None,
    }
    wrong = [f'{key} is {seen[key]!r:.200}' for key in seen if key in expect and seen[key] != expect[key]]
    if 'exit' not in expect and result.status != 'ok':
        wrong.append(f'status {result.status}: {result.stderr.decode(errors="replace")[-200:]}')
    return '; '.join(wrong)


def try_all(manifest: dict, limits: Limits, is_open: bool, only: str) -> Iterator[dict]:
    """One record for each attack, and in the sandbox for each harmless program: id, verdict, category, details."""
    from . import opened  # imports this module

    sandbox = Sandbox()
    task = manifest.get('checker_task', {})
    for attack in manifest['attacks']:
        if only in attack['id']:
            if is_open:
                escaped = opened.try_in_throwaway(attack, task, limits)
            else:
                escaped = try_attack(attack, task, limits, execute_closed(sandbox))
            held, free = ('no bite', 'bites') if is_open else ('held', 'ESCAPED')
            kind = f'{attack.get("category", "")} {attack.get("severity", "")}'.strip()
            yield {'id': attack['id'], 'verdict': free if escaped else held, 'category': kind, 'details': escaped}
    if is_open:
        return
    for program in manifest.get('benign', []):
        if only in program['name']:
            wrong = try_benign(sandbox, program, limits)
            yield {
                'id': program['name'],
                'verdict': 'BROKEN' if wrong else 'works',
                'category': 'benign',
                'details': [wrong] * bool(wrong),
            }
    if task and not only:
        passed = sandbox.judge(task['right_solution'], checker_tests(task), limits)
        yield {
            'id': 'right_solution',
            'verdict': 'works' if passed.passed else 'BROKEN',
            'category': 'benign',
            'details': [passed.reason] * bool(passed.reason),
        }


def run_command(directory: pathlib.Path, *, is_open: bool, only: str, as_json: bool) -> int:
    """Prints a line for each attack; 1 where one that is no mere hardening escaped or a harmless program is broken."""
    manifest, limits = read_manifest(directory)
    records = []
    for record in try_all(manifest, limits, is_open, only):
        records.append(record)
        if not as_json:
            line = f'{record["verdict"]:8} {record["id"]:32} {record["category"]}'
            print(line + f'  ({"; ".join(record["details"])})' * bool(record['details']), flush=True)
    if as_json:
        print(json.dumps(records, indent=1))
    counts = {
        verdict: sum(r['verdict'] == verdict for r in records)
        for verdict in dict.fromkeys(r['verdict'] for r in records)
    }
    if not as_json:
        print(', '.join(f'{verdict}: {count}' for verdict, count in counts.items()))
    bad = [r for r in records if r['verdict'] in ('ESCAPED', 'BROKEN') and 'hardening' not in r['category']]
    return 1 if bad else 0
