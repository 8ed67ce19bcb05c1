"""A peer of bench_train: Hugging Face's GPT-2 or Llama in torch. Takes a step per line of its standard input."""

import argparse
import contextlib
import sys
import time

import torch
import transformers

parser = argparse.ArgumentParser(description=__doc__)
for name in ('n_layers', 'd_model', 'n_heads', 'n_kv_heads', 'd_ff', 'seq_len', 'vocab_size', 'batch_size', 'threads'):
    parser.add_argument(f'--{name}', type=int, required=True)
parser.add_argument('--dtype', choices=('float32', 'bfloat16'), required=True)
parser.add_argument('--family', choices=('gpt2', 'llama'), required=True)
args = parser.parse_args()

transformers.logging.set_verbosity_error()
torch.manual_seed(0)
torch.set_num_threads(args.threads)
if args.family == 'gpt2':
    config = transformers.GPT2Config(
        vocab_size=args.vocab_size, n_positions=args.seq_len, n_embd=args.d_model, n_layer=args.n_layers,
        n_head=args.n_heads, n_inner=args.d_ff, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0,
        eos_token_id=0, attn_implementation='sdpa', use_cache=False,
    )  # fmt: skip
else:
    config = transformers.LlamaConfig(
        vocab_size=args.vocab_size, max_position_embeddings=args.seq_len, hidden_size=args.d_model,
        num_hidden_layers=args.n_layers, num_attention_heads=args.n_heads, num_key_value_heads=args.n_kv_heads,
        intermediate_size=args.d_ff, attn_implementation='sdpa', use_cache=False,
    )  # fmt: skip
device = 'cuda' if torch.cuda.is_available() else 'cpu'
model = transformers.AutoModelForCausalLM.from_config(config).to(device).train()
compiled = device == 'cuda'  # on CPU eager is the faster one here, and starts at once
if compiled:
    torch.set_float32_matmul_precision('high')
    model = torch.compile(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=compiled)
tokens = torch.randint(2, args.vocab_size, (args.batch_size, args.seq_len), device=device)
bf16 = args.dtype == 'bfloat16'


def step() -> float:
    with torch.autocast(device, torch.bfloat16) if bf16 else contextlib.nullcontext():
        loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


how = 'compiled' if compiled else 'eager'
print(f'torch {torch.__version__} ({how}), transformers {transformers.__version__}', flush=True)
for _ in sys.stdin:
    start = time.perf_counter()
    step()
    print(time.perf_counter() - start, flush=True)
