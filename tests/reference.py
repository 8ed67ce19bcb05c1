"""The model in float64 numpy, one token at a time, written from the papers' formulas alone."""

import math

import numpy as np

from llm_jax.config.schema import Model


def layer_norm(x, eps, scale=1.0, bias=0.0):
    """Ba et al. 2016, eq. 3-4."""
    return (x - np.mean(x, -1, keepdims=True)) / np.sqrt(np.var(x, -1, keepdims=True) + eps) * scale + bias


def rms_norm(x, eps, scale=1.0, bias=0.0):
    """Zhang & Sennrich 2019, eq. 4."""
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + eps) * scale + bias


def rope(x_LHK, positions_L, theta):
    """Su et al. 2021, eq. 12-13: pair i is a complex number turned by position · theta^(-2i/K)."""
    half = x_LHK.shape[-1] // 2
    z = x_LHK[..., :half] + 1j * x_LHK[..., half:]
    turn = np.exp(1j * np.outer(positions_L, theta ** (-2.0 * np.arange(half) / (2 * half))))
    z = z * turn[:, None, :]
    return np.concatenate([z.real, z.imag], -1)


def sinusoidal(positions_L, width):
    """Vaswani et al. 2017, §3.5: PE(pos, 2i) and PE(pos, 2i+1), here sines first and then cosines."""
    out = np.zeros((len(positions_L), width))
    for row, position in enumerate(positions_L):
        for i in range(width // 2):
            angle = position / 10_000 ** (2 * i / width)
            out[row, i], out[row, width // 2 + i] = np.sin(angle), np.cos(angle)
    return out


def attention(q_LHK, k_LGK, v_LGK, segments_L=None, *, scale=None, window=0, softcap=0.0, slopes_H=None, sinks_H=None):
    """Vaswani et al. 2017, eq. 1, by loops: a token sees those before it in its document, and itself.

    Gemma 2's soft-cap, ALiBi's slopes, a window, and a sink that takes weight and gives nothing.
    """
    L, H, K = q_LHK.shape
    out = np.zeros((L, H, v_LGK.shape[-1]))
    for h in range(H):
        g = h // (H // k_LGK.shape[1])
        for t in range(L):
            seen = [s for s in range(t + 1) if segments_L is None or segments_L[s] == segments_L[t]]
            seen = [s for s in seen if not window or t - s < window]
            scores = np.array([q_LHK[t, h] @ k_LGK[s, g] for s in seen]) * (scale or 1 / np.sqrt(K))
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            if slopes_H is not None:
                scores -= slopes_H[h] * (t - np.array(seen))
            top = scores.max() if sinks_H is None else max(scores.max(), sinks_H[h])
            weights = np.exp(scores - top)
            total = weights.sum() + (0 if sinks_H is None else np.exp(sinks_H[h] - top))
            out[t, h] = sum(w * v_LGK[s, g] for w, s in zip(weights / total, seen, strict=True))
    return out


def gelu(x):
    """Hendrycks & Gimpel 2016, §2, the tanh form."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def silu(x):
    return x / (1 + np.exp(-x))


def gelu_exact(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


def swiglu_clipped(gate, up):
    """gpt-oss, as its model card writes it: alpha 1.702, limit 7."""
    gate, up = np.minimum(gate, 7), np.clip(up, -7, 7)
    return (up + 1) * gate / (1 + np.exp(-1.702 * gate))


GATES = {
    'swiglu': lambda gate, up: silu(gate) * up,
    'geglu': lambda gate, up: gelu(gate) * up,
    'geglu_exact': lambda gate, up: gelu_exact(gate) * up,
    'swiglu_clipped': swiglu_clipped,
}
ACTIVATIONS = {
    'gelu': gelu,
    'gelu_exact': gelu_exact,
    'relu': lambda x: np.maximum(x, 0),
    'relu2': lambda x: np.maximum(x, 0) ** 2,
}


def feed_forward(kind, x, p):
    linear = lambda part, y: y @ p[part]['kernel'] + p[part].get('bias', 0.0)
    if kind in GATES:
        return linear('down', GATES[kind](linear('gate', x), linear('up', x)))
    return linear('down', ACTIVATIONS[kind](linear('up', x)))


def mixture(moe, x_TD, p, kind):
    """A weighted sum of the chosen experts, token by token (DeepSeek-V3, arXiv:2412.19437, eq. 12-16)."""
    logits = x_TD @ p['router']['kernel'] + p['router'].get('bias', 0.0)
    softmax = lambda z: np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    out = np.zeros_like(x_TD)
    for t, x in enumerate(x_TD):
        score = 1 / (1 + np.exp(-logits[t])) if moe.score == 'sigmoid' else softmax(logits[t])
        choice = score + p.get('balance', 0.0)
        size = moe.n_experts // moe.n_groups
        groups = [choice[g * size : (g + 1) * size] for g in range(moe.n_groups)]
        best = [np.sort(group)[-2:].sum() if moe.group_score == 'top2' else group.max() for group in groups]
        allowed = [g * size + e for g in np.argsort(best)[::-1][: moe.top_groups] for e in range(size)]
        chosen = sorted(allowed, key=lambda e: -choice[e])[: moe.top_k]
        weights = score[chosen]
        if moe.score == 'softmax_top':
            weights = softmax(logits[t][chosen])
        elif moe.normalize:
            weights = weights / weights.sum()
        for e, weight in zip(chosen, weights * moe.scale, strict=True):
            expert = {part: {k: v[e] for k, v in p[part].items()} for part in ('gate', 'up', 'down') if part in p}
            out[t] += weight * feed_forward(kind, x, expert)
        if moe.n_shared:
            gate = 1 / (1 + np.exp(-x @ p['shared_gate']['kernel'])) if moe.shared_gate else 1.0
            out[t] += gate * feed_forward(kind, x, p['shared'])
    return out


def transformer(params, config: Model, tokens_L, positions_L=None, segments_L=None):
    """Logits float64[L, V] of one row."""
    cast = lambda tree: {k: cast(v) if isinstance(v, dict) else np.asarray(v, np.float64) for k, v in tree.items()}
    layer = lambda tree, i: {k: layer(v, i) if isinstance(v, dict) else v[i] for k, v in tree.items()}
    params = cast(params)
    positions_L = np.arange(len(tokens_L)) if positions_L is None else positions_L

    def norm(x, p):
        formula = {'layernorm': layer_norm, 'rmsnorm': rms_norm}[config.norm]
        return formula(x, config.norm_eps, p['scale'], p.get('bias', 0.0))

    def attend(x, p):
        project = lambda part: np.einsum('ld,dhk->lhk', x, p[part]['kernel']) + p[part].get('bias', 0.0)
        q, k, v = project('q'), project('k'), project('v')
        if config.position == 'rope':
            q, k = (rope(y, positions_L, config.rope.theta) for y in (q, k))
        y = attention(q, k, v, segments_L)
        return np.einsum('lhk,hkd->ld', y, p['out']['kernel']) + p['out'].get('bias', 0.0)

    x = params['embed']['embedding'][tokens_L]
    if config.position == 'learned':
        x = x + params['position']['table']['embedding'][positions_L]
    elif config.position == 'sinusoidal':
        x = x * np.sqrt(x.shape[-1]) + sinusoidal(positions_L, x.shape[-1])
    for i in range(config.n_layers):
        p = layer(params['layers'], i)
        if config.residual == 'parallel':
            y = norm(x, p['norm'])
            x = x + attend(y, p['attention']) + feed_forward(config.feed_forward, y, p['feed_forward'])
        else:
            x = x + attend(norm(x, p['attention_norm']), p['attention'])
            y = norm(x, p['feed_forward_norm'])
            x = x + feed_forward(config.feed_forward, y, p['feed_forward'])
    x = norm(x, params['final_norm'])
    return x @ (params['embed']['embedding'].T if config.tie_embeddings else params['unembed']['kernel'])
