"""Named templates, and the config that chooses one."""

import json
import pathlib
import re

from chats import ANSWER, SYSTEM, USER, byte_tokenizer
import pytest

from llm_jax import chat, tokenizer
from llm_jax import config as config_lib
from llm_jax.chat.formats import FORMATS
from llm_jax.config.schema import ConfigError


def configured(**overrides):
    config = config_lib.default()
    config_lib.apply_overrides(config, overrides)
    return config_lib.validate(config)


@pytest.mark.parametrize(
    ('name', 'text'),
    [
        ('chatml', '<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 6*7?<|im_end|>\n'
         '<|im_start|>assistant\nIt is 42.<|im_end|>\n<|im_start|>assistant\n'),
        ('llama3', '<|start_header_id|>system<|end_header_id|>\n\nBe'
         ' brief.<|eot_id|><|start_header_id|>user<|end_header_id|>'
         '\n\nWhat is 6*7?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nIt is 42.<|eot_id|>'
         '<|start_header_id|>assistant<|end_header_id|>\n\n'),
        ('gemma', '<start_of_turn>user\nBe brief.\n\nWhat is'
         ' 6*7?<end_of_turn>\n<start_of_turn>model\nIt is 42.<end_of_turn>\n'
         '<start_of_turn>model\n'),
        ('plain', 'System: Be brief.\n\nUser: What is 6*7?\n\nAssistant: It is 42.\n\nAssistant:'),
        ('llm_jax', '<|system|>Be brief.<|end|><|user|>What is 6*7?<|end|><|assistant|>It is 42.<|end|><|assistant|>'),
    ],
)  # fmt: skip
def test_text(name, text):
    tok = byte_tokenizer(['<s>', *FORMATS[name].marks], bos_token='<s>')
    one = chat.open_chat(tok, name)
    got = one.render([SYSTEM, USER, ANSWER], add_generation_prompt=True)
    assert got.text == '<s>' + text
    # What an answer is trained on is what follows the prompt for it.
    prompt = one.render([SYSTEM, USER], add_generation_prompt=True)
    whole = one.render([SYSTEM, USER, ANSWER], weights=True)
    assert whole.ids[: len(prompt.ids)] == prompt.ids and not whole.weights[: len(prompt.ids)].any()
    assert whole.weights[len(prompt.ids)] == 1


def test_a_new_tokenizer_gets_the_marks():
    config = configured(**{'chat.template': 'llm_jax', 'data.tokenizer.reserved': "('<|end|>', '<|x|>')"})
    assert config.data.tokenizer.reserved == ('<|end|>', '<|x|>', '<|system|>', '<|user|>', '<|assistant|>', '<|tool|>')
    again = config_lib.from_dict(json.loads(json.dumps(config_lib.to_dict(config))))
    assert again == config
    made = tokenizer.train(
        configured(**{'chat.template': 'chatml', 'data.tokenizer.kind': 'bytes'}).data.tokenizer, [], 0
    )
    assert chat.open_chat(made, 'chatml').render([USER]).ids[1] == made.special['<|im_start|>']
    for other in ({'chat.template': 'mine.jinja'}, {'chat.template': 'chatml', 'data.tokenizer.path': 'x.json'}, {}):
        assert configured(**other).data.tokenizer.reserved == ()


def test_an_unknown_template_is_named():
    with pytest.raises(
        ConfigError, match=re.escape("chat.template = 'chatm': it is no known template; did you mean 'chatml'?")
    ):
        configured(**{'chat.template': 'chatm'})
    assert configured(**{'chat.template': 'files/chatm'}).chat.template == 'files/chatm'


def test_the_code_in_the_page():
    page = (pathlib.Path(__file__).parents[2] / 'docs' / 'chat.md').read_text()
    names = {}
    exec(re.search(r'```python\n(.*?)```', page, re.DOTALL)[1], names)
    assert names['prompt'].text.endswith('<|assistant|>') and names['example'].weights.sum() == len('No.') + 1
    assert all(f'| `{name}` |' in page for name in FORMATS)
