"""Small executables that stand in for gcloud, kubectl, xpk, sbatch and srun, and behave as their sources say.

`Cloud` is a directory with what there is (TPUs, requests, node pools, a bucket), a log of calls, and a plan of what
goes wrong. Scripts run against it with a short $POLL; what is left in the end is what would cost.
"""

import collections
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time

ROOT = pathlib.Path(__file__).parents[1]
# Without site packages: it starts in a fraction of the time.
_PYTHON = f'#!{os.path.realpath(sys.executable)} -IS\n'

_HEAD = r"""
import json, os, signal, subprocess, sys, time
cloud, name, args = os.environ['CLOUD'], os.path.basename(sys.argv[0]), sys.argv[1:]
plan = json.load(open(cloud + '/plan'))
def path(*parts):
    return os.path.join(cloud, *parts)
def read(*parts):
    with open(path(*parts)) as file:
        return file.read()
def write(text, *parts):
    os.makedirs(os.path.dirname(path(*parts)), exist_ok=True)
    with open(path(*parts), 'w') as file:
        file.write(text)
def there(kind):
    return sorted(os.listdir(path(kind))) if os.path.isdir(path(kind)) else []
def count(key):  # how often something was done, this time included
    with open(path('counts'), 'a') as file:
        file.write(key + '\n')
    return read('counts').splitlines().count(key)
def pop(key, default):  # the next of a list in the plan
    values = plan.get(key, [])
    n = count('pop ' + key)
    return values[n - 1] if n <= len(values) else default
def option(key, default=None):
    found = [a.split('=', 1)[1] for a in args if a.startswith(key + '=')]
    return found[-1] if found else default
if args[:1] == ['-c'] and 'find_spec' in args[1]:  # ./tools/run asks whether this is a Python with the packages
    print('python')
    sys.exit(0)
with open(path('calls'), 'a') as log:
    log.write(json.dumps([name, *args]) + '\n')
def fail_if_planned(verb):  # plan: {'fails': {verb: [1, 3]}}: the first and third time
    if count(verb) in plan.get('fails', {}).get(verb, []):
        sys.stderr.write(f'ERROR: ({verb}) UNAVAILABLE: try again later\n')
        sys.exit(1)
"""

_GCLOUD = r"""
def preempt(node):
    write('PREEMPTED', 'nodes', node)

def start(command, host):
    home = path('hosts', str(host))
    os.makedirs(home, exist_ok=True)
    environment = {**os.environ, 'HOME': home, 'HOST': str(host)}
    # As sshd does: the user's shell, in a session of its own.
    return subprocess.Popen(['bash', '-c', command], env=environment, start_new_session=True)

def ssh():
    sys.stdin.buffer.read()  # ssh takes what there is on standard input
    hosts = plan.get('hosts', 1)
    if 'queued-resources' in args:
        batch = option('--batch-size', '64')
        if batch != 'all' and int(batch) < hosts:
            return 75  # the next batch starts when the first has ended, which waits for it in vain
    nodes = there('nodes')
    if not nodes or all(read('nodes', node) != 'READY' for node in nodes):
        sys.stderr.write('ERROR: (ssh) TPU is not in state READY\n')
        return 1
    if any(read('nodes', node) != 'READY' for node in nodes):
        sys.stderr.write('Could not prepare all nodes, attempting to ssh into the rest\n')
        return 75  # the rest wait for the others, and end
    command = option('--command')
    outcome = pop('ssh', 'run')
    if outcome == 'preempted':
        preempt(nodes[-1])
        return 255
    if outcome == 'hang':
        write('', 'hangs')
        time.sleep(60)
    if outcome.isdigit():
        return int(outcome)
    running = [start(command, host) for host in range(hosts)]
    if outcome == 'lost':  # the connection to host 0, once it trains; its training lives on, and gcloud tries again
        while not os.path.exists(path('training-0')):
            time.sleep(0.01)
        write('', 'lost')
        running[0] = start(command, 0)
    codes = [process.wait() for process in running]
    return next((code for code in codes if code), 0)

def tpus():
    kind, verb = args[2], args[3]
    one = args[4] if len(args) > 4 and not args[4].startswith('-') else ''
    if verb == 'ssh':
        sys.exit(ssh())
    fail_if_planned(f'{kind} {verb}')
    if verb == 'list' and kind == 'tpu-vm':
        for node in there('nodes'):
            print(f"{node}\t{pop('node states', '') or read('nodes', node)}")
    elif verb == 'list':
        for request in there('requests'):
            state = pop('states', 'ACTIVE')
            value = json.loads(read('requests', request))
            if state == 'ACTIVE' and not value['given']:
                for node in value['nodes']:
                    write('READY', 'nodes', node)
                value['given'] = True
                write(json.dumps(value), 'requests', request)
            print(f'{request}\t{state}')
    elif verb == 'create':
        refused = count('create') in plan.get('refused', [])
        if kind == 'tpu-vm' and not refused:
            write(plan.get('created', 'READY'), 'nodes', one)
        elif not refused:
            prefix, n = option('--node-prefix'), int(option('--node-count', '1'))
            nodes = [f'{prefix}-{i}' for i in range(n)] if prefix else [option('--node-id')]
            write(json.dumps({'nodes': nodes, 'given': False}), 'requests', one)
        if refused or count('created') in plan.get('interrupted', []):
            sys.stderr.write('ERROR: (create) there is no more capacity\n')
            sys.exit(1)
    elif verb == 'delete':
        if kind == 'tpu-vm':
            os.remove(path('nodes', one))
            return
        value = json.loads(read('requests', one))
        if value['given'] and '--force' not in args:
            sys.stderr.write('ERROR: (delete) a request that is ACTIVE is deleted with --force\n')
            sys.exit(1)
        for node in value['nodes'] if value['given'] else []:
            os.remove(path('nodes', node))
        os.remove(path('requests', one))

if args[:2] == ['storage', 'cp']:
    data = sys.stdin.buffer.read()
    fail_if_planned('storage cp')
    os.makedirs(path('bucket'), exist_ok=True)
    with open(path('bucket', 'code.tar.gz'), 'wb') as file:
        file.write(data)
elif args[:2] == ['storage', 'cat']:
    fail_if_planned('storage cat ' + args[2].rsplit('.', 1)[1])
    which = 'run.json' if args[2].endswith('run.json') else 'code.tar.gz'
    with open(path('bucket', which), 'rb') as file:
        sys.stdout.buffer.write(file.read())
elif args[:2] == ['compute', 'tpus']:
    tpus()
elif args[:2] == ['container', 'clusters']:
    fail_if_planned(args[1] + ' ' + args[2])
    if args[2] == 'list':
        print('other\tus-east1\nmy-cluster\t' + plan.get('location', 'us-west4'))
elif args[:2] == ['container', 'node-pools']:
    fail_if_planned('node-pools ' + args[2])
    if args[2] == 'list':
        for pool in there('pools'):
            print(pool + '\t' + read('pools', pool))
    elif args[2] == 'create':
        broken = count('pool') in plan.get('broken pools', [])
        write('ERROR' if broken else 'RUNNING', 'pools', args[3])
        sys.exit(1 if broken else 0)
    elif args[2] == 'delete':
        os.remove(path('pools', args[3]))
elif args[:2] == ['compute', 'resource-policies']:
    fail_if_planned('resource-policies ' + args[2])
    if args[2] == 'list':
        for policy in there('policies'):
            print(policy + '\t' + read('policies', policy))
    elif args[2] == 'create':
        write(option('--region'), 'policies', args[4])
    elif args[2] == 'delete':
        os.remove(path('policies', args[3]))
else:
    sys.exit(f'no such command: {args}')
"""

_KUBECTL = r"""
if args[0] == 'apply':
    text = sys.stdin.read()
    fail_if_planned('kubectl apply')
    write(text, 'jobset')
else:
    fail_if_planned('kubectl ' + args[0])
    if args[:2] == ['get', 'crd']:
        print(plan.get('schema', '{"onJobFailureReasons": {}}'))
    elif args[0] == 'delete' and os.path.exists(path('jobset')):
        os.remove(path('jobset'))
"""

# As XPK's container does it: the command in brackets, and SIGTERM passed to what was started last.
_XPK = r"""
fail_if_planned('xpk ' + args[1])
if args[:2] == ['workload', 'create']:
    command = option('--command')
    assert '\n' not in command, 'a manifest has one line for the command'
    write('_sigterm() (kill -SIGTERM $! 2>/dev/null;);\ntrap _sigterm SIGTERM;\n(' + command + ') & PID=$!;\n'
          'while kill -0 $PID 2>/dev/null;\n do sleep 0.05;\ndone;\nwait $PID;\nEXIT_CODE=$?;\nexit $EXIT_CODE\n',
          'pod')
"""

# Tasks at the same time; the first that fails ends the others, and the highest code of all is srun's.
_SRUN = r"""
command = args[[i for i, a in enumerate(args) if not a.startswith('-')][0]:]
tasks = [subprocess.Popen(command, env={**os.environ, 'HOST': str(i)}, start_new_session=True)
         for i in range(plan.get('hosts', 2))]
def all_get(number):  # every process of the step
    for task in tasks:
        try:
            os.killpg(task.pid, number)
        except ProcessLookupError:
            pass
signal.signal(signal.SIGTERM, lambda number, _: all_get(number))
codes = {}
while len(codes) < len(tasks):
    for i, task in enumerate(tasks):
        if i not in codes and task.poll() is not None:
            codes[i] = task.returncode if task.returncode >= 0 else 128 - task.returncode
            if codes[i]:
                time.sleep(0.1)
                all_get(signal.SIGKILL)
    time.sleep(0.01)
sys.exit(max(codes.values()))
"""

# What ./tools/run calls on a host: a training that ends as planned, or saves when it is told to stop.
_TRAINING = r"""
if 'show.py' in args[0]:
    sys.exit(0)
host = os.environ.get('HOST', '0')
outcome = plan.get('host ' + host) or (pop('training', 'finished') if host == '0' else 'finished')
run = plan.get('run') or path('bucket', 'run.json')
def end(status):
    if host == '0':
        write(json.dumps({'status': status}, indent=2), run)
    try:
        os.remove(path('training-' + host))
    except FileNotFoundError:
        pass
    sys.exit(0)
def told(number, _):
    write('', 'saved-' + host)
    end('stopped')
if outcome == 'waits':
    signal.signal(signal.SIGTERM, told)
    # Code that is taken away beneath a training is the end of it.
    here, file = os.getcwd(), args[1]
    write(str(os.getpid()), 'training-' + host)
    for _ in range(1000):
        time.sleep(0.02)
        if os.path.isdir(here) and not os.path.exists(os.path.join(here, file)):
            write('', 'code-was-gone')
if outcome == 'dies':
    os.kill(os.getpid(), signal.SIGKILL)
if outcome.isdigit():
    sys.exit(int(outcome))
end(outcome)
"""

# The Python of a host: packages are not installed, what is run is run, with gs:// in the directory of the bucket.
_PYTHON3 = r"""
if args[:2] == ['-m', 'pip']:
    fail_if_planned('pip')
elif args[:3] == ['-m', 'uv', 'python'] and args[3] == 'find':
    print(path('python'))
elif args[:2] == ['-m', 'uv']:
    fail_if_planned('uv')
else:
    os.environ['PYTHONPATH'] = path('modules')
    os.execv(plan['python'], [plan['python'], *args])
"""

_FAKE_FSSPEC = """
import os
class open:
    def __init__(self, url, mode='r'):
        assert url.startswith('gs://'), url
        self.url, self.mode = url, mode
    def open(self):
        cloud = os.environ['CLOUD']
        if 'w' in self.mode and os.path.exists(cloud + '/read-only'):
            raise OSError('Forbidden: 403 storage.objects.create access is denied')
        name = {'json': 'run.json', 'gz': 'code.tar.gz'}.get(self.url.rsplit('.', 1)[1], 'probe')
        return __builtins__['open'](cloud + '/bucket/' + name, self.mode)
    def __enter__(self):
        self.file = self.open()
        return self.file
    def __exit__(self, *_):
        self.file.close()
"""

_STAND_INS = {
    'gcloud': _GCLOUD,
    'kubectl': _KUBECTL,
    'xpk': _XPK,
    'srun': _SRUN,
    'scontrol': "fail_if_planned('scontrol')\n",
    'sbatch': "write(sys.stdin.read(), 'submitted')\n",
    'sudo': '',
    'python': _TRAINING,
    'python3': _PYTHON3,
}

Ended = collections.namedtuple('Ended', 'code errors output calls')


class Cloud:
    """What there is, and what goes wrong.

    Plan (keyword arguments of `run` and `start`):
      fails: verb -> numbers of the calls that fail.
      states: of a request, one for each time it is listed; then ACTIVE.
      node states: the same of nodes.
      ssh: how each connection ends: 'run' (the hosts do as they are told), 'lost', 'preempted', 'hang' or an exit code.
      training: how each training of host 0 ends: a status, an exit code, 'waits' or 'dies'; 'host 1': of host 1.
      hosts: of the slice.
    """

    def __init__(self, place: pathlib.Path) -> None:
        self.place = place / 'cloud'
        bin_ = self.place / 'bin'
        bin_.mkdir(parents=True)
        for name, body in _STAND_INS.items():
            file = (self.place if name == 'python' else bin_) / name
            file.write_text(_PYTHON + _HEAD + body)
            file.chmod(0o755)
        (self.place / 'modules').mkdir()
        (self.place / 'modules/fsspec.py').write_text(_FAKE_FSSPEC)
        for name in ('hosts', 'bucket'):
            (self.place / name).mkdir()
        self.repository = place / 'repository'
        for file in ('tools/train.py', 'tools/show.py', 'experiments/x.py', 'llm_jax/__init__.py'):
            (self.repository / file).parent.mkdir(parents=True, exist_ok=True)
            (self.repository / file).write_text('# not run\n')
        (self.repository / 'tools/run').write_bytes((ROOT / 'tools/run').read_bytes())
        (self.repository / 'tools/run').chmod(0o755)
        subprocess.run('git init -q && git add .', shell=True, cwd=self.repository, check=True)
        self.environment = {
            **{key: value for key, value in os.environ.items() if key not in ('PROJECT', 'ZONE', 'BUCKET')},
            'PATH': f'{bin_}:/usr/bin:/bin',
            'CLOUD': str(self.place),
            'POLL': '0.02',
            'LLM_JAX_PYTHON': str(self.place / 'python'),
            'SLURM_JOB_ID': '17',
        }

    def start(self, script: str, *, cwd: pathlib.Path | None = None, **plan) -> subprocess.Popen:
        """Starts a script as `launch | bash` does: bash reads it from standard input."""
        plan = {name.replace('_', ' '): value for name, value in plan.items()}
        (self.place / 'plan').write_text(json.dumps({'python': os.path.realpath(sys.executable), **plan}))
        for name in ('calls', 'counts'):
            (self.place / name).write_text('')
        pipes = dict.fromkeys(('stdin', 'stdout', 'stderr'), subprocess.PIPE)
        # Signals as a terminal leaves them: a shell cannot trap one that is ignored when it starts, and
        # libtpu, once loaded in this process, ignores SIGHUP.
        process = subprocess.Popen(
            ['env', '--default-signal', 'bash'],
            cwd=cwd or self.repository, env=self.environment, text=True, start_new_session=True, **pipes,
        )  # fmt: skip
        process.stdin.write(script)
        process.stdin.close()
        process.stdin = None
        return process

    def run(self, script: str, **plan) -> Ended:
        """Runs a script to its end."""
        return self.end(self.start(script, **plan))

    def end(self, process: subprocess.Popen) -> Ended:
        try:
            output, errors = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return Ended(process.returncode, errors, output, self.calls())

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.place / 'calls').read_text().splitlines()]

    def left(self) -> list[str]:
        """What costs."""
        kinds = ('nodes', 'requests', 'pools', 'policies')
        return [f'{kind}/{path.name}' for kind in kinds for path in sorted((self.place / kind).glob('*'))]

    def follow(self, text: str) -> None:
        """Runs the commands that a script has printed to remove what is left."""
        for command in re.findall(r'gcloud [\w -]+ delete [^\n`]*', text):
            subprocess.run(shlex.split(command), env=self.environment, check=False, capture_output=True)

    def pod(self) -> list[str]:
        """The command of the JobSet's pods, after Kubernetes has expanded it; the tree is what the image would hold."""
        import yaml

        (job,) = yaml.safe_load((self.place / 'jobset').read_text())['spec']['replicatedJobs']
        (container,) = job['template']['spec']['template']['spec']['containers']
        self.environment |= {entry['name']: entry['value'] for entry in container['env']}
        return [self.expand(word) for word in container['command']]

    @staticmethod
    def expand(text: str) -> str:
        """Kubernetes: $$ is $, and what $(NAME) has no variable for stays."""
        return re.sub(r'\$\$|\$\([\w.-]+\)', lambda m: '$' if m[0] == '$$' else m[0], text)

    def wait_for(self, name: str) -> None:
        """Waits for a file that a stand-in writes."""
        end = time.monotonic() + 30
        while not (self.place / name).exists():
            assert time.monotonic() < end, f'{name} was never written: {self.calls()}'
            time.sleep(0.01)


def verbs(calls: list[list[str]], *among: str) -> list[str]:
    return [word for call in calls for word in call[:6] if word in among]


def dedent(text: str) -> str:
    return textwrap.dedent(text).strip()
