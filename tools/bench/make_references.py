"""Record what transformers computes of tiny models, for tests without it: make_references [DIR]"""

import pathlib
import sys
import tempfile

from llm_jax.config import cli
from llm_jax.config.schema import ConfigError

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def main(argv: list[str]) -> None:
    parser = cli.Parser('make_references', __doc__)
    default = _ROOT / 'tests' / 'data' / 'families'
    parser.add_argument('directory', nargs='?', type=pathlib.Path, default=default, help='default tests/data/families')
    write(parser.parse(argv).directory)


def write(directory: pathlib.Path) -> None:
    """Writes DIR/<case>.npz: tokens int32[B, L] and logits float32[B, L, V].

    The weights are not in it: `tests/families.py` draws them again from their names and
    shapes.

    Raises:
      ConfigError: the packages of tools/requirements/parity.txt are not there.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ConfigError(
            f'make_references needs torch and transformers ({error}): `./tools/run test parity` sets up .venv-parity, '
            'which has them; then LLM_JAX_PYTHON=.venv-parity/bin/python ./tools/run make_references'
        ) from error
    sys.path[:0] = [str(_ROOT), str(_ROOT / 'tests')]
    from families import CASES, CONTEXT, V, write_weights
    import numpy as np

    from llm_jax.interop import hf, tensors

    directory.mkdir(parents=True, exist_ok=True)
    for name, values in CASES.items():
        with tempfile.TemporaryDirectory() as scratch:
            write_weights(scratch, values, {})
            family, config = hf.read_config(scratch, CONTEXT.get(name))
            shapes = {tensor.name: tensor.shape for tensor in tensors.tensors(config.model, family)}
            write_weights(scratch, values, shapes)
            model, info = transformers.AutoModelForCausalLM.from_pretrained(
                scratch, attn_implementation='eager', dtype=torch.float32, output_loading_info=True
            )
        wrong = {kind: keys for kind, keys in info.items() if keys and kind.endswith('keys')}
        if wrong:
            raise ConfigError(f'{name}: the table and transformers name other tensors: {wrong}')
        tokens_BL = np.random.default_rng(1).integers(0, V, (1, 24)).astype(np.int32)
        with torch.no_grad():
            logits_BLV = model.eval()(torch.tensor(tokens_BL), use_cache=False).logits.numpy()
        np.savez_compressed(directory / f'{name}.npz', tokens=tokens_BL, logits=logits_BLV)
        print(name, logits_BLV.std())


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
