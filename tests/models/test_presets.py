"""Presets are models of the published sizes, and each family's config.json says all of them."""

import math

import jax
import pytest

from llm_jax import config as config_lib
from llm_jax import models
from llm_jax.config.schema import ConfigError
from llm_jax.interop import hf, tensors

PRESETS = [f'{family}:{size}' for family, module in models.FAMILIES.items() for size in module.SIZES]
# Parameters, as their authors or checkpoints count them.
COUNTS = {
    'gpt2:124m': 124_439_808, 'gpt2:355m': 354_823_168, 'gpt2:774m': 774_030_080, 'gpt2:1.5b': 1_557_611_200,
    'gpt3:175b': 174.6e9,
    'gpt_neox:70m': 70_426_624, 'gpt_neox:160m': 162_322_944, 'gpt_neox:410m': 405_334_016,
    'gpt_neox:1b': 1_011_781_632, 'gpt_neox:1.4b': 1_414_647_808, 'gpt_neox:2.8b': 2_775_208_960,
    'gpt_neox:6.9b': 6_857_302_016, 'gpt_neox:12b': 11_846_072_320, 'gpt_neox:20b': 20_554_567_680,
    'llama:2-7b': 6_738_415_616, 'llama:2-13b': 13_015_864_320, 'llama:2-70b': 68_976_648_192,
    'llama:3-8b': 8_030_261_248, 'llama:3.1-70b': 70_553_706_496, 'llama:3.1-405b': 405_853_388_800,
    'llama:3.2-1b': 1_235_814_400, 'llama:3.2-3b': 3_212_749_824,
    'mistral:7b-v0.1': 7_241_732_096, 'mixtral:8x7b': 46_702_792_704, 'mixtral:8x22b': 140.6e9,
    'qwen2:2.5-0.5b': 494_032_768, 'qwen2:2.5-1.5b': 1_543_714_304, 'qwen2:2.5-3b': 3_085_938_688,
    'qwen2:2.5-7b': 7_615_616_512, 'qwen2:2.5-14b': 14_770_033_664, 'qwen2:2.5-32b': 32_763_876_352,
    'qwen2:2.5-72b': 72_706_203_648,
    'qwen3:0.6b': 596_049_920, 'qwen3:1.7b': 1_720_574_976, 'qwen3:4b': 4_022_468_096, 'qwen3:8b': 8_190_735_360,
    'qwen3:14b': 14_768_307_200, 'qwen3:32b': 32_762_123_264, 'qwen3_moe:30b-a3b': 30_532_122_624,
    'qwen3_moe:235b-a22b': 235_093_634_560,
    'gemma2:2b': 2_614_341_888, 'gemma2:9b': 9_241_705_984, 'gemma2:27b': 27_227_128_320,
    'gemma3:1b': 999_885_952, 'gemma3:4b': 3.88e9, 'gemma3:12b': 11.77e9, 'gemma3:27b': 27.01e9,
    'olmo2:1b': 1_484_916_736, 'olmo2:7b': 7_298_617_344, 'olmo2:13b': 13_716_198_400, 'olmo2:32b': 32_234_279_936,
    'phi3:mini-4k': 3_821_079_552, 'phi3:medium-4k': 13_960_238_080,
    'gpt_oss:20b': 20_914_757_184, 'gpt_oss:120b': 116_829_156_672,
    'deepseek_v3:671b': 671_026_419_200, 'deepseek_v2:236b': 235_741_434_880, 'deepseek_v2:lite-16b': 15_706_484_224,
}  # fmt: skip


def model_of(name):
    config = config_lib.default()
    config.model.update(models.preset(name))
    return config_lib.validate(config).model


@pytest.mark.parametrize('name', COUNTS)
def test_number_of_parameters(name):
    leaves = tensors.flat(tensors.shapes_of(model_of(name)))
    count = sum(math.prod(leaf.shape) for leaf in leaves.values())
    most = 0.5 if isinstance(COUNTS[name], int) else 3e-3 * COUNTS[name]
    assert abs(count - COUNTS[name]) < most, count


@pytest.mark.parametrize('name', [name for name in PRESETS if not name.startswith('gpt3')])
def test_config_json_says_all_of_it(name):
    model, family = model_of(name), models.FAMILIES[name.partition(':')[0]]
    assert hf.unsaid(model, family) == []
    for tensor in tensors.tensors(model, family):
        assert all(isinstance(n, int) for n in tensor.shape)


def test_a_preset_is_a_copy():
    models.preset('llama:3.1-8b')['rope']['theta'] = 1.0
    assert models.preset('llama:3.1-8b')['rope']['theta'] == 500_000.0


def test_unknown_names():
    with pytest.raises(ConfigError, match="there is no family 'lama'; did you mean 'llama'.*Known: gpt2, .*mistral"):
        models.preset('lama:3-8b')
    with pytest.raises(ConfigError, match="did you mean 'llama:3-8b'.*llama:3.1-405b"):
        models.preset('llama:8b')
    with pytest.raises(ConfigError, match="model_type 'mistrall' is not supported; did you mean 'mistral'"):
        models.by_model_type('mistrall')


def test_shapes_need_no_device():
    """A preset of any size is only shapes until its weights are read."""
    shapes = tensors.flat(tensors.shapes_of(model_of('llama:3.1-405b')))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in shapes.values())
