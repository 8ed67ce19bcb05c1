"""Pre-training, top to bottom: data, model, steps, evaluation, checkpoints, samples, report."""

from collections.abc import Callable
from contextlib import nullcontext
import dataclasses
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from llm_jax import chat, disk, runs
from llm_jax.checkpoint import Checkpoints
from llm_jax.config.schema import Config, ConfigError
from llm_jax.data.batches import loader
from llm_jax.data.examples import FORMS
from llm_jax.data.prepare import model_vocab_size, prepare
from llm_jax.dist import hosts
from llm_jax.dist import mesh as mesh_lib
from llm_jax.generate.settings import Sampler
from llm_jax.generate.text import answer, complete
from llm_jax.metrics import Console
from llm_jax.metrics.profile import Profiler
from llm_jax.nn.transformer import Transformer
from llm_jax.report import write_report
from llm_jax.tokenizer import Tokenizer
from llm_jax.tokenizer import load as load_tokenizer
from llm_jax.train import compile_cache, reproducible, run_log, setup
from llm_jax.train.evaluate import evaluate
from llm_jax.train.footprint import explain_exhaustion
from llm_jax.train.inherit import inherit
from llm_jax.train.interrupt import Interrupt, Stopped
from llm_jax.train.lock import RunLock
from llm_jax.train.objectives import Start
from llm_jax.train.resume import initial_state, start_state, to_items
from llm_jax.train.step import make_eval_step
from llm_jax.train.trainable import add_constants, merge_params

# (config, model, tokenizer) -> (step, params on the mesh) -> metrics by name
MakeJudge = Callable[[Config, Transformer, Tokenizer], Callable[[int, Any], dict[str, float]]]


class NonFiniteLossError(ConfigError):
    """Training diverged."""


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended: 'finished', or 'stopped' by a signal, after how many steps."""

    status: str
    step: int
    metrics: dict[str, float]


def train(
    config: Config,
    run_dir: str | epath.Path,
    *,
    experiment: str | None = None,
    profile: tuple[int, int] | None = None,
    began: float | None = None,
    make_judge: MakeJudge | None = None,
) -> Result:
    """Trains an experiment, or goes on with it where it stopped.

    Args:
      config: validated.
      run_dir: where everything is kept.
      experiment: the file the config came from, copied into the run directory.
      profile: first and last step of a trace, written to `run_dir`/profile.
      began: `time.perf_counter()` when the command began; now, if left out.
      make_judge: makes what runs `train.eval_tasks`, `evals.during.Judge`.

    Raises:
      ConfigError: what the user can put right.
      NonFiniteLossError: the loss or the gradient became NaN or infinite.
    """
    clock = run_log.Clock(began)
    clock.lap('import')
    if config.train.eval_tasks and make_judge is None:
        raise ConfigError(
            f'train.eval_tasks = {config.train.eval_tasks!r} needs what runs them: give '
            'train(make_judge=llm_jax.evals.during.Judge), as ./tools/run train does'
        )
    if config.train.reproducible:
        reproducible.before_devices()
    with hosts.job(config):
        return _train(config, epath.Path(run_dir), clock, experiment, profile, make_judge)


def _train(
    config: Config,
    run_dir: epath.Path,
    clock: run_log.Clock,
    experiment: str | None,
    profile: tuple[int, int] | None,
    make_judge: MakeJudge | None,
) -> Result:
    is_main = jax.process_index() == 0
    console = Console(0, enabled=is_main)
    interrupt = Interrupt(watch_preemption=config.train.watch_preemption, starting=True, say=console.event)
    try:
        with interrupt, RunLock(run_dir, console) if is_main else nullcontext() as lock:
            return _train_locked(config, run_dir, clock, experiment, profile, make_judge, interrupt, lock, console)
    except Stopped:
        console.event(
            f'{interrupt.signal} before the first step: nothing was lost; run the same command to start again'
        )
        return Result('stopped', 0, {})


def _train_locked(
    config: Config,
    run_dir: epath.Path,
    clock: run_log.Clock,
    experiment: str | None,
    profile: tuple[int, int] | None,
    make_judge: MakeJudge | None,
    interrupt: Interrupt,
    lock: RunLock | None,
    console: Console,
) -> Result:
    if removed := compile_cache.keep_compiled(config.train.compile_cache):
        console.event(f'{len(removed)} compiled program(s) in the cache were cut off, and are compiled again')
    clock.lap('start')
    is_main = jax.process_index() == 0
    config = inherit(config, run_dir)
    mesh = mesh_lib.make_mesh(config.mesh)
    # Before minutes of data preparation: everything that does not depend on it.
    setup.plan(config, mesh, rows=10**9, vocab_size=model_vocab_size(config), bos_id=0)

    if config.chat.template and config.data.tokenizer.path:
        chat.attach_template(load_tokenizer(config.data.tokenizer.path), config.chat.template)
    elif config.chat.template:  # a tokenizer that is trained gets its marks
        chat.formats.source_of(config.chat.template)

    with console:
        prepared = prepare(
            config.data, config.seed, run_log.preparation_progress(console), template=config.chat.template
        )
    # Special tokens past the embedding are no part of it; no text becomes one of them.
    tokenizer = prepared.tokenizer.limit(config.model.vocab_size)
    if config.chat.template:  # kept beside the tokenizer, from where chat, server and `convert` read it
        tokenizer = chat.attach_template(tokenizer, config.chat.template)
    prepared = dataclasses.replace(prepared, tokenizer=tokenizer)
    vocab = {'vocab_size': tokenizer.vocab_size, 'bos_id': tokenizer.bos_id}
    plan = setup.plan(config, mesh, rows=prepared.count('train'), **vocab)
    config, steps = plan.config, plan.steps
    experiment_file = epath.Path(experiment) if experiment else None
    if is_main:
        runs.check_config(run_dir, config, experiment_file)
    checkpoints = Checkpoints(run_dir, config.checkpoint)
    latest = checkpoints.latest_step or 0
    if latest > steps.total or (latest == steps.total and run_log.is_complete(run_dir)):
        console.event(
            f'{run_dir} is done: {latest} of {steps.total} steps are trained. '
            'A longer --config.train.duration goes on from here'
        )
        checkpoints.close()
        return Result('finished', steps.total, {})

    clock.lap('prepare')
    with jax.set_mesh(mesh), explain_exhaustion(plan) as step_is_compiled:
        try:
            state, frozen, origin = start_state(plan, checkpoints, prepared)
        except (ConfigError, jax.errors.JaxRuntimeError):
            checkpoints.close()
            raise
        if is_main:  # from here on the directory is a run
            runs.write_config(run_dir, config, experiment_file)
            tokenizer.save(run_dir / 'tokenizer')
        plan.objective.check_data(prepared)
        prepared = plan.objective.complete_data(prepared, _start(plan, state, frozen, tokenizer, run_dir, console))
        fixed = add_constants(frozen, plan.objective.load_constants(mesh))
        not_donated = () if fixed is None else (fixed,)
        start = int(state.step)
        clock.lap('state')
        interrupt.waits_for = 'the step is compiled'
        if config.train.reproducible:  # which compiles for one device after the other as it goes
            train_step = plan.train_step()
        else:
            train_step = plan.compiled_step(state)
            step_is_compiled(train_step)
            compile_cache.release_freed()
            hosts.meet(f'compiled from step {start}')
            clock.lap('compile')
        judge = make_judge(config, plan.model, tokenizer) if config.train.eval_tasks else None
        token_bytes = _padded(tokenizer.token_bytes, config.model.vocab_size)
        eval_step = jax.jit(make_eval_step(plan.model, config, bos_id=plan.bos_id, token_bytes=token_bytes))
        interrupt.begin()
        record = run_log.Record(run_dir, plan, prepared, start=start, origin=origin, enabled=is_main)
        interrupt.say, interrupt.waits_for = record.console.event, 'the step is done and saved'

        def evaluated(step: int, params: Any) -> dict[str, float] | None:
            held_out = {'val': ('validation', config.train.eval_batches)}
            if step == steps.total and prepared.count('test'):
                held_out['test'] = ('test', 0)
            values = {}
            for prefix, (split, most) in held_out.items():
                part = evaluate(plan, eval_step, params, prepared, split, max_batches=most, stop=interrupt.asked_here)
                if part is None:
                    return None
                values |= {f'{prefix}/{name}': value for name, value in part.items()}
            if judge:
                interrupt.waits_for = 'the benchmarks are run'
                values |= judge(step, params)
            record.evaluation(step, values)
            return values

        def sampled(params: Any) -> list[tuple[str, str]]:
            prompts, sampler = list(config.train.sample_prompts), Sampler(temperature=0.8, top_k=50)
            new = {'max_new_tokens': config.train.sample_tokens, 'sampler': sampler, 'seed': config.seed, 'slide': True}
            form = FORMS.get(plan.objective.form)
            if form is not None and form.is_chat:
                texts = answer(plan.model, params, chat.open_chat(tokenizer), prompts, **new)
            else:
                texts = complete(plan.model, params, tokenizer, prompts, **new)
            return list(zip(prompts, texts, strict=True))

        def finish(step: int, metrics: dict[str, jax.Array], batch: Any) -> None:
            """Fetches the metrics of a step, which by now the device has computed."""
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            if not (np.isfinite(values['loss']) and np.isfinite(values['grad_norm'])):
                file = _keep_batch(run_dir, step, batch)
                loss, norm = (f'{values[name]:.4g}' for name in ('loss', 'grad_norm'))
                what = f'step {step} has loss {loss} and gradient norm {norm}; its batch is in'
                # A loss is that of the parameters before the step.
                raise _non_finite(f'{what} {file}', None if np.isfinite(values['loss']) else step - 1, checkpoints)
            record.step(step, values)

        def save(step: int) -> None:
            if lock:
                lock.check()
            meta = {'tokenizer': tokenizer.fingerprint, 'data': prepared.manifest['digest']}
            checkpoints.save(step, to_items(state, frozen), meta)

        def pause(step: int, *, saves: bool, evaluates: bool, samples: bool) -> bool:
            """Everything that is not a step; False if a signal ended it, after the checkpoint."""
            nonlocal results
            # First of all, so that nothing that fails after it costs a checkpoint.
            if saves:
                save(step)
            if step == steps.total:
                checkpoints.wait()
            if evaluates:
                interrupt.waits_for = 'a batch is evaluated'
                metrics = evaluated(step, merge_params(state.averaged, fixed))
                interrupt.waits_for = 'the step is done and saved'
                if metrics is None:
                    if not saves:
                        save(step)
                    return False
                if bad := [f'{name} = {value}' for name, value in metrics.items() if not np.isfinite(value)]:
                    raise _non_finite(f'the parameters of step {step} have {bad[0]}', step, checkpoints)
                checkpoints.record_evaluation(step, metrics)
                results = metrics
            if samples:
                with record.failure_as_warning(f'there are no samples at step {step}'):
                    record.samples(step, sampled(merge_params(state.averaged, frozen)))
            return True

        if start == 0 and config.init_from and steps.sample:  # what the model wrote before this stage
            with record.paused(), record.failure_as_warning('there are no samples of the model that this begins with'):
                record.samples(0, sampled(merge_params(state.averaged, frozen)))
        source = plan.objective.train_rows(prepared, plan.local_rows)
        batches = loader(source, start, steps.total, config.data.prefetch)
        profiler = Profiler(run_dir / 'profile', profile, range(start + 1, steps.total + 1), enabled=is_main)
        batch = pending = None
        step, status = start, 'finished'
        results: dict[str, float] = {}
        try:
            if start == steps.total:  # it ended between its last checkpoint and its page: what is missing is made
                missing = run_log.missing(run_dir, start)
                evaluates, samples = (
                    steps.eval > 0 and 'evaluation' in missing,
                    steps.sample > 0 and 'samples' in missing,
                )
                if not pause(start, saves=False, evaluates=evaluates, samples=samples):
                    status = 'stopped'
            for step in range(start + 1, steps.total + 1):
                profiler.before(step)
                batch = plan.place(next(batches))
                batch = plan.collect(merge_params(state.params, fixed), batch, step - 1)
                # Nothing but the batch goes to the device, and nothing waits.
                with jax.transfer_guard('disallow'):
                    state, metrics = train_step(state, batch, *not_donated)  # returns before it is computed
                record.input_wait(batches.wait_seconds())
                if pending:
                    finish(*pending)
                pending = (step, metrics, batch)
                profiler.after(step, metrics)
                if step == start + 1:
                    record.started(clock, metrics)

                # Asked to stop, nothing but the checkpoint is made: grace periods are short.
                stop, is_last = interrupt.asked(step), step == steps.total
                saves = steps.due(steps.checkpoint, step) or is_last or stop
                evaluates = steps.due(steps.eval, step) and not stop
                samples = steps.due(steps.sample, step) and not stop
                if not (saves or evaluates or samples):
                    continue
                finish(*pending)  # nothing is saved or evaluated after a bad step
                pending = None
                with record.paused():
                    goes_on = pause(step, saves=saves, evaluates=evaluates, samples=samples)
                if stop or not goes_on:
                    status = 'stopped'
                    break
            profiler.close()
            if status == 'finished':
                # Whether the last parameters are good, a step more tells; its state is thrown away.
                if batch is None:
                    rows = jax.tree.map(lambda array: array[0], source.read(step - 1, step))
                    batch = plan.collect(merge_params(state.params, fixed), plan.place(rows), step - 1)
                loss = float(train_step(state, batch, *not_donated)[1]['loss'])
                if not np.isfinite(loss):
                    raise _non_finite(f'the parameters of step {step} have loss {loss}', step, checkpoints)
                checkpoints.confirm(step)
            checkpoints.close()
        except BaseException as error:
            record.fail(clock, error)
            if jax.process_count() == 1:  # of several, one that failed may wait for the others forever
                checkpoints.wait()
            if is_main:
                with record.failure_as_warning('there is no report'):
                    write_report(run_dir)
            raise
        record.end(status, clock, signal=interrupt.signal, step=step)
        interrupt.waits_for = 'the page is written'
        if is_main:
            with record.failure_as_warning('there is no report'):
                write_report(run_dir)
            record.farewell(status, step, results)
    return Result(status, step, results)


def _start(
    plan: setup.Plan, state: Any, frozen: Any, tokenizer: Tokenizer, run_dir: epath.Path, console: Console
) -> Start:
    """What the objective may compute with before the first step."""
    is_first = int(state.step) == 0

    def initial_params() -> Any:
        begun = (state, frozen) if is_first else initial_state(plan, tokenizer)[:2]
        return merge_params(begun[0].params, begun[1])

    origin = plan.config.init_from or f'scratch, seed {plan.config.seed}'
    return Start(run_dir, is_first, origin, initial_params, plan.place, plan.local_rows, console.event)


def _padded(token_bytes: np.ndarray, vocab_size: int) -> jax.Array:
    """Rows of the embedding beyond the tokenizer's stand for no text."""
    return jnp.asarray(np.pad(token_bytes, (0, vocab_size - len(token_bytes))), jnp.int32)


def _keep_batch(run_dir: epath.Path, step: int, batch: Any) -> epath.Path:
    """Writes this process's rows of a batch beside the run, as evidence."""
    file = run_dir / f'nonfinite_step_{step}_process_{jax.process_index()}.npz'
    shards = {
        f'{jax.tree_util.keystr(path, simple=True, separator=".") or "rows"}_{s.index[0].start or 0}': np.asarray(
            s.data
        )
        for path, array in jax.tree_util.tree_leaves_with_path(batch)
        for s in array.addressable_shards
    }
    with disk.naming(file), file.open('wb') as out:
        np.savez(out, **shards)
    return file


def _non_finite(what: str, bad: int | None, checkpoints: Checkpoints) -> NonFiniteLossError:
    """The error that training diverged, once the checkpoint of the bad parameters is out of the way.

    Args:
      what: was seen.
      bad: step after which the parameters are bad; None if they are good, and only a gradient is not finite.
      checkpoints: of the run.
    """
    checkpoints.wait()
    aside = None if bad is None else checkpoints.set_aside(bad)
    last = checkpoints.latest_step
    kept = f'the checkpoint of step {last} is good' if last is not None else 'no good checkpoint had been saved yet'
    if aside is not None:
        kept = f'the checkpoint of step {bad}, which holds them, was moved to {aside}, and {kept}'
    return NonFiniteLossError(
        f'{what}; {kept}. Try a lower optimizer.learning_rate, a longer schedule.warmup or a smaller optimizer.clip'
    )
