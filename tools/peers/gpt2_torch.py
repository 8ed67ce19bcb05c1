"""The peer of bench_train: Hugging Face's GPT-2 in torch. Takes a step per line of its standard input."""

import argparse
import contextlib
import sys
import time

import torch
import transformers

parser = argparse.ArgumentParser(description=__doc__)
for name in ('n_layers', 'd_model', 'n_heads', 'seq_len', 'vocab_size', 'batch_size', 'threads'):
    parser.add_argument(f'--{name}', type=int, required=True)
parser.add_argument('--dtype', choices=('float32', 'bfloat16'), required=True)
args = parser.parse_args()

transformers.logging.set_verbosity_error()
torch.manual_seed(0)
torch.set_num_threads(args.threads)
config = transformers.GPT2Config(
    vocab_size=args.vocab_size, n_positions=args.seq_len, n_embd=args.d_model, n_layer=args.n_layers,
    n_head=args.n_heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
)  # fmt: skip
device = 'cuda' if torch.cuda.is_available() else 'cpu'
model = transformers.GPT2LMHeadModel(config).to(device).train()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)
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


print(f'torch {torch.__version__}, transformers {transformers.__version__}', flush=True)
for _ in sys.stdin:
    start = time.perf_counter()
    step()
    print(time.perf_counter() - start, flush=True)
