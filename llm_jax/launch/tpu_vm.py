"""Cloud TPU VMs: a slice is created, used and given back by one script."""

from llm_jax.config.schema import ConfigError
from llm_jax.dist.slices import Slice
from llm_jax.launch.clouds import accelerator_type, names, resource_of
from llm_jax.launch.job import TPU_PACKAGES, Job
from llm_jax.launch.shell import AGAIN, script

# Seconds that a training which is told to stop gets to write its checkpoint.
GRACE = 300


def tpu_vm_script(job: Job, tpu: Slice, *, queued: bool = False) -> str:
    """The script that trains `job` on virtual machines of a TPU slice.

    Args:
      job: what to train.
      tpu: one slice.
      queued: whether to wait for capacity in a queue (queued resources); several slices
        and spot capacity always do.

    Raises:
      ConfigError: this generation is not created as Cloud TPU VMs.
    """
    cloud, kind_and_size = names(tpu), accelerator_type(tpu)
    if not cloud.accelerator:
        raise ConfigError(
            f'--tpu {tpu.name}: TPU {tpu.chip.name} is no Cloud TPU VM (it is for Kubernetes and Compute Engine): '
            'add --gke CLUSTER or --xpk CLUSTER'
        )
    queued = queued or job.spot or job.slices > 1
    kind = 'queued-resources' if queued else 'tpu-vm'
    shape = (
        f'--accelerator-type={kind_and_size}'
        if kind_and_size
        else f'--type={cloud.accelerator} --topology={tpu.topology}'
    )
    options = [shape, f'--{"runtime-version" if queued else "version"}={cloud.runtime}']
    if queued:
        options.append(f'--node-count={job.slices} --node-prefix="$TPU"' if job.slices > 1 else '--node-id="$TPU"')
    if job.spot:
        options.append('--spot')
    hosts = f'{job.slices} x {tpu.name}, {job.slices * tpu.hosts} hosts, {job.slices * tpu.chips} chips'
    return script(
        f'Trains {job.name} on {hosts}. Keep it running (tmux helps): when it ends, the TPUs are given back.\n'
        'Ctrl-C ends it, and gives them back too; started again, it goes on from the newest checkpoint.',
        job.variables()
        + f"""
TPU={resource_of(job, tpu, 'queued' if queued and not job.spot else '')}
POLL="${{POLL:-30}}"  # seconds between two looks, and before anything is tried again""",
        _tools(job, kind, queued),
        _HOST.replace('@packages', f"'{TPU_PACKAGES}'").replace('@train', job.train('$BUCKET')),
        _GIVE_BACK.replace('@force', ' --force' if queued else ''),
        job.upload(),
        _attempts(job, options, queued),
    )


def _tools(job: Job, kind: str, queued: bool) -> str:
    """Functions that ask gcloud, and tell 'there is none' from 'gcloud did not answer'."""
    force = ' --force' if queued else ''
    request = (
        """
  local request
  request="$(tpu list --format='value(name.basename(),state.state)' | awk -v name="$TPU" '$1 == name {print $2}')" ||
    return
  case $request in
    ACTIVE) ;;
    '') echo none && return ;;
    CREATING | ACCEPTED | PROVISIONING | WAITING_FOR_RESOURCES) echo "wait $request" && return ;;
    *) echo "gone $request" && return ;;
  esac"""
        if queued
        else ''
    )
    # A request stays ACTIVE for a while after a node of it was taken away.
    absent = 'gone' if queued else 'none'
    return f"""
# gcloud reads standard input, on which this script itself may come: it gets none.
tpu() {{ gcloud compute tpus {kind} "$@" --project="$PROJECT" --zone="$ZONE" --quiet </dev/null; }}
REMOVE="gcloud compute tpus {kind} delete $TPU{force} --quiet --project=$PROJECT --zone=$ZONE"

# look: 'none', 'wait', 'ready' or 'gone' (taken away, or failed), and the states behind it. It fails where gcloud does:
# then nothing is known, least of all that there is nothing.
look() {{{request}
  gcloud compute tpus tpu-vm list --format='value(name.basename(),state)' --project="$PROJECT" --zone="$ZONE" --quiet \\
    </dev/null | awk -v name="$TPU" -v slices={job.slices} '
    $1 == name || $1 ~ "^" name "-[0-9]+$" {{
      states = states " " $2
      n++
      if ($2 == "READY") ready++
      else if ($2 ~ /^(CREATING|STARTING|RESTARTING|REPAIRING|REIMAGING)$/) later++
    }}
    END {{ print (!n ? "{absent}" : n != slices || ready + later < n ? "gone" : later ? "wait" : "ready") states }}'
}}

# ask: sets $condition to what there is; where gcloud does not answer, it is asked again, and nothing is concluded.
ask() {{
  local left answer
  for left in {{19..0}}; do
    if answer="$(look)"; then
      [[ $answer == "$answered" ]] || echo "$TPU: $answer" >&2
      answered="$answer" condition="${{answer%% *}}"
      return 0
    fi
    echo "gcloud did not say what there is; asked again in $POLL s, $left more times" >&2
    pause
  done
  return 1
}}

# pause: so that signals are heeded at once, which they are not during a command.
pause() {{ sleep "$POLL" & wait $!; }}

{AGAIN}"""


# Here-document without anything filled in: its variables come before it on the command line of ssh.
_HOST = """
# What every host does. gcloud starts it again, up to ten times, where only the connection was lost.
read -r -d '' HOST <<'HOST_END' || true
set -euo pipefail
again() { local left; for left in 4 3 2 1; do if "$@"; then return 0; fi; sleep "$POLL"; done; "$@"; }
fetch() { gcloud storage cat "$BUCKET/code/$NAME.tar.gz" | tar --extract --gzip; }
train() {
  mkdir -p ~/llm_jax && cd ~/llm_jax
  find . -mindepth 1 -maxdepth 1 ! -name '.venv*' -exec rm -rf {} +
  # The virtual machines come with an older Python. Exit code 75: to be tried again (tar's 2 would be a mistake).
  again fetch || exit 75
  again python3 -m pip install --user --quiet uv || exit 75
  again python3 -m uv python install --quiet 3.12 || exit 75
  PYTHON="$(python3 -m uv python find 3.12)" || exit 75
  export PYTHON LLM_JAX_PACKAGES=@packages PATH="$HOME/.local/bin:$PATH"
  exec @train
}
# A training whose connection was lost lives on, and holds the TPU: it is told to save and end before anything else.
last=~/.llm_jax_last boot="$(cat /proc/sys/kernel/random/boot_id)" was='' began='' group=''
if [[ -f $last ]]; then read -r was began group <"$last"; fi
if [[ $was == "$boot" ]]; then
  if kill -TERM -- "-$group" 2>/dev/null; then
    for (( i = 0; i < @grace * 5; i++ )); do
      kill -0 -- "-$group" 2>/dev/null || break
      sleep 0.2
    done
    kill -KILL -- "-$group" 2>/dev/null || true
  fi
  sudo rm -f /tmp/libtpu_lockfile
  # With it the other hosts stop: alone, this one would wait for them in vain.
  if [[ $began == "$ATTEMPT" ]]; then
    echo 'the connection to this host was lost: all hosts start again' >&2
    exit 75
  fi
fi
set -m  # what runs in the background is a process group
train </dev/null &
echo "$boot $ATTEMPT $!" >"$last"
wait $!
HOST_END""".replace('@grace', str(GRACE))

_GIVE_BACK = """
# give_back: deletes the TPUs, and sees that they are gone.
give_back() {
  local left now
  for left in {9..0}; do
    if now="$(look)" && [[ $now == none* ]]; then return 0; fi
    tpu delete "$TPU"@force || echo "$TPU could not be deleted, $left more times" >&2
    if now="$(look)" && [[ $now == none* ]]; then return 0; fi
    pause
  done
  echo "$TPU MAY BE LEFT, AND COST. To remove it: $REMOVE" >&2
  return 1
}

ssh='' condition='' answered=''
finish() {
  local status=$?
  set +e
  trap '' INT TERM HUP PIPE  # once begun, giving back is not interrupted
  if [[ -n $ssh ]]; then kill -- "-$ssh"; fi
  give_back || status=$(( status ? status : 1 ))
  exit "$status"
}

# What an earlier start has left is used, and given back in the end.
found="$(look)" || {
  echo "gcloud does not say which TPUs there are (why is above), so none are created. If an earlier start was" \\
    "killed, $TPU may be left, and cost. To remove it: $REMOVE" >&2
  exit 1
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP
if [[ $found != none* ]]; then echo "$TPU is there already ($found), from an earlier start: it is used" >&2; fi
echo "What $TPU costs ends with this script. Should it be killed without a chance to clean up: $REMOVE" >&2"""


def _attempts(job: Job, options: list[str], queued: bool) -> str:
    create = 'tpu create "$TPU" \\\n      ' + ' \\\n      '.join(options)
    # 64 hosts are the default of one batch: the next would start when the first has ended.
    every = '--node=all --worker=all --batch-size=all' if queued else '--worker=all'
    hint = 'the request was refused' if queued else 'with --queued, launch waits for capacity'
    return f"""
# A training that was interrupted goes on from its newest checkpoint in the bucket.
start="$(date +%s)-$$"
for attempt in $(seq 0 {job.restarts}); do
  if (( attempt )); then pause; fi
  echo "attempt $attempt of $TPU" >&2
  ask
  if [[ $condition == gone ]]; then
    give_back || exit 1
    condition=none
  fi
  if [[ $condition == none ]]; then
    created=0
    {create} || created=$?
    ask
    if (( created )) && [[ $condition == none ]]; then
      echo "$TPU could not be created (why is above): {hint}" >&2
      if (( attempt )); then continue; fi
      exit 1
    fi
  fi
  while [[ $condition == wait ]]; do
    pause
    ask
  done
  if [[ $condition != ready ]]; then continue; fi
  settings="$(printf 'export BUCKET=%q NAME=%q POLL=%q ATTEMPT=%q' "$BUCKET" "$NAME" "$POLL" "$start-$attempt")"
  status=0
  set -m  # in the background, as a group of processes: Ctrl-C and kill are heeded while it runs, and end all of it
  tpu ssh "$TPU" {every} --command="$settings
$HOST" &
  ssh=$!
  set +m
  wait "$ssh" || status=$?
  ssh=''
  # Told that the machine will go, a run saves and ends well, too: only what is finished is done.
  if [[ $status == 0 ]] && run="$(again gcloud storage cat "$BUCKET/runs/{job.name}/run.json" </dev/null)" &&
    [[ $run == *'"status": "finished"'* ]]; then
    exit 0
  fi
  # Exit code 2 is a mistake in the experiment: it would only fail again.
  if [[ $status == 2 ]]; then exit 2; fi
  echo "attempt $attempt ended with exit code $status before the training was finished" >&2
done
echo "gave up after {job.restarts} restarts" >&2
exit 1"""
