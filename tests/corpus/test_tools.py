"""The commands that documents show for corpora, started as a user starts them."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize('directory', ['tools', 'tools/bench'])
def test_no_tool_hides_a_module(directory):
    """`python tools/X.py` puts the directory first on sys.path: a tool named 'profile' would be the standard one."""
    names = {file.stem for file in (ROOT / directory).glob('*.py')}
    assert not names & sys.stdlib_module_names


def test_a_corpus_is_built_by_the_documented_command(tmp_path):
    (tmp_path / 'texts.jsonl').write_text(
        ''.join(f'{{"text": "The tide clock of town {i} is old."}}\n' for i in range(60))
    )
    (tmp_path / 'corpus.py').write_text(
        'from llm_jax.corpus import schema\n'
        'def get_config():\n'
        '    config = schema.default()\n'
        f'    config.sources = {{"t": {{"path": {str(tmp_path / "texts.jsonl")!r}}}}}\n'
        '    config.stages, config.dedup = ("normalise",), ()\n'
        '    config.tokenizer.vocab_size, config.packing.seq_len = 300, 16\n'
        '    return config\n'
    )
    command = ['bash', str(ROOT / 'tools/run'), 'prepare_data', str(tmp_path / 'corpus.py'), '--workers', '1']
    done = subprocess.run(
        [*command, f'--config.out={tmp_path}/out', f'--config.work={tmp_path}/work'],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={'LLM_JAX_PYTHON': sys.executable, 'PATH': '/usr/bin:/bin'},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'out/manifest.json').exists()


@pytest.mark.parametrize('tool', ['prepare_data', 'train_quality', 'train_main_text', 'compare_data'])
def test_help_is_given(tool):
    done = subprocess.run(
        ['bash', str(ROOT / 'tools/run'), tool, '--help'],
        capture_output=True, text=True, check=False, env={'LLM_JAX_PYTHON': sys.executable, 'PATH': '/usr/bin:/bin'},
    )  # fmt: skip
    assert done.returncode == 0 and 'usage' in done.stdout, done.stderr
