"""Steps of a run that is there already, traced: nothing of the run is changed but its `profile` directory."""

from etils import epath
import jax

from llm_jax import runs
from llm_jax.checkpoint import Checkpoints
from llm_jax.data.batches import loader
from llm_jax.data.prepare import prepare
from llm_jax.dist import mesh as mesh_lib
from llm_jax.metrics.profile import Op, Profiler, top_ops
from llm_jax.train import setup
from llm_jax.train.resume import start_state
from llm_jax.train.trainable import merge_params


def profile_run(run_dir: str | epath.Path, first: int, last: int) -> list[Op]:
    """Goes on from a run's newest checkpoint for `last` steps, and traces from the `first` of them on.

    Args:
      run_dir: of the run.
      first: first step to trace, counted from the checkpoint; 1 would trace the compiler too.
      last: last step.

    Returns:
      the operations of the traced steps, from `top_ops`.

    Raises:
      ConfigError: no run, no checkpoint, or data that is not there.
    """
    run_dir = epath.Path(run_dir)
    config = runs.read_config(run_dir)
    checkpoints = Checkpoints(run_dir, config.checkpoint, read_only=True)
    runs.pick_step(checkpoints, run_dir, None)
    prepared = prepare(config.data, config.seed, template=config.chat.template)
    tokenizer = prepared.tokenizer
    plan = setup.plan(
        config, mesh_lib.make_mesh(config.mesh), rows=prepared.count('train'),
        vocab_size=tokenizer.vocab_size, bos_id=tokenizer.bos_id,
    )  # fmt: skip
    config = plan.config
    with jax.set_mesh(plan.mesh):
        state, frozen, _ = start_state(plan, checkpoints, prepared)
        not_donated = () if frozen is None else (frozen,)
        train_step = plan.train_step()
        begin = int(state.step)
        batches = loader(
            plan.objective.train_rows(prepared, plan.local_rows), begin, begin + last, config.data.prefetch
        )
        profiler = Profiler(run_dir / 'profile', (first, last), range(1, last + 1))
        for step in range(1, last + 1):
            profiler.before(step)
            batch = plan.collect(merge_params(state.params, frozen), plan.place(next(batches)), begin + step - 1)
            state, metrics = train_step(state, batch, *not_donated)
            profiler.after(step, metrics)
    checkpoints.close()
    return top_ops(run_dir / 'profile')
