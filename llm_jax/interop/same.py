"""Whether two configs compute the same function of their parameters."""

import dataclasses
from typing import Any

from llm_jax.config import parts
from llm_jax.config.schema import Adapter, Mla, Model, Moe, Mup, Rope
from llm_jax.models.hf_config import original_len
from llm_jax.nn.attention import GROUPED

# Fields of training, of how it is computed, and of how layers are written down.
_FREE = {
    'init', 'init_std', 'dropout', 'dtype', 'matmul', 'remat', 'scan', 'scan_unroll', 'rules', 'pattern',
    'first_layers', 'quantised',
}  # fmt: skip
# Of the experts, what only training sees.
_FREE_MOE = {'aux_weight', 'z_weight', 'bias_update_rate'}
# Fields of rope that count, by scaling.
_ALWAYS = ('theta', 'fraction', 'interleaved', 'scaling')
_ROPE = {
    'none': (),
    'linear': ('factor',),
    'ntk': ('factor',),
    'dynamic': ('factor', 'original_len'),
    'llama3': ('factor', 'original_len', 'low_freq_factor', 'high_freq_factor'),
    'longrope': ('factor', 'original_len', 'attention_factor', 'short_factors', 'long_factors'),
    'yarn': ('factor', 'original_len', 'attention_factor', 'beta_fast', 'beta_slow', 'round_betas', 'mscale',
             'mscale_all_dim'),
}  # fmt: skip


def differences(a: Model, b: Model) -> list[str]:
    """Fields in which two models differ, 'model.norm = ...' as `a` has them; empty for the same function."""
    if a.n_layers != b.n_layers:
        return [f'model.n_layers = {a.n_layers}']
    out = {}
    for i in range(a.n_layers):
        ours, theirs = (_plain(model.layer(i)) for model in (a, b))
        for name in ours:
            if ours[name] != theirs[name]:
                out.setdefault(f'model.{name} = {ours[name]!r}')
    return list(out)


def _plain(model: Model) -> dict[str, Any]:
    """The fields of a layer that count, defaults filled in."""
    heads = parts.attention(model) in GROUPED
    feed_forward = parts.feed_forward(model)
    is_mixture, rotates = feed_forward.is_mixture(model), parts.position(model).rotates(model)
    model = dataclasses.replace(
        model,
        attention='gqa' if heads else model.attention,
        n_kv_heads=model.kv_heads if heads else 0,
        d_head=model.head_size if heads else 0,
        d_ff=0 if is_mixture else model.ff_size,  # that of the experts is in `moe`
        # ALiBi and no position have no rotary part; without experts those fields mean nothing.
        rope=_rope(model) if rotates else Rope(),
        mla=Mla() if heads else dataclasses.replace(model.mla, norm_eps=model.mla.norm_eps or model.norm_eps),
        moe=_moe(model) if is_mixture else Moe(),
        mup=model.mup if model.mup.base_width else Mup(),
        adapter=model.adapter if model.adapter.kind != 'none' else Adapter(),
        attention_scale=model.attention_scale or parts.attention(model).head_dims(model).key ** -0.5,
    )
    out = {}
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        if field.name in _FREE:
            continue
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            out |= {f'{field.name}.{f.name}': getattr(value, f.name) for f in dataclasses.fields(value)}
        else:
            out[field.name] = value
    return out


def _rope(model: Model) -> Rope:
    rope = dataclasses.replace(model.rope, original_len=original_len(model))
    kept = {name: getattr(rope, name) for name in (*_ALWAYS, *_ROPE[rope.scaling])}
    return Rope(**kept)


def _moe(model: Model) -> Moe:
    moe = dataclasses.replace(model.moe, d_ff=model.moe.d_ff or model.ff_size)
    plain = {name: getattr(Moe(), name) for name in _FREE_MOE}
    balance = moe.balance if moe.balance == 'bias' else 'none'
    moe = dataclasses.replace(moe, **plain, balance=balance)
    return moe if moe.n_groups > 1 else dataclasses.replace(moe, top_groups=1, group_score='max')
