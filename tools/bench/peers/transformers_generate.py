"""A peer of bench_decode: `generate` of Hugging Face's Llama in torch. Takes a number of rows per line of its standard
input, and answers with the CPU seconds of each new token of a row (seconds of the wall on a GPU)."""

import argparse
import sys
import time

import torch
import transformers

parser = argparse.ArgumentParser(description=__doc__)
for name in ('n_layers', 'd_model', 'n_heads', 'd_ff', 'context', 'vocab_size', 'threads'):
    parser.add_argument(f'--{name}', type=int, required=True)
args = parser.parse_args()

transformers.logging.set_verbosity_error()
torch.set_num_threads(args.threads)
config = transformers.LlamaConfig(
    vocab_size=args.vocab_size, max_position_embeddings=args.context, hidden_size=args.d_model,
    num_hidden_layers=args.n_layers, num_attention_heads=args.n_heads, intermediate_size=args.d_ff,
    attn_implementation='sdpa', tie_word_embeddings=True,
)  # fmt: skip
device = 'cuda' if torch.cuda.is_available() else 'cpu'
model = transformers.AutoModelForCausalLM.from_config(config).to(device).eval()
clock = time.perf_counter if device == 'cuda' else time.process_time


def seconds(rows: int, n_new: int) -> float:
    prompt = torch.tensor([[1, 5, 9]] * rows, device=device)
    start = clock()
    model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=n_new, min_new_tokens=n_new, do_sample=False
    )
    return clock() - start


print(f'torch {torch.__version__}, transformers {transformers.__version__}', flush=True)
with torch.inference_mode():
    seconds(1, 4)
    for line in sys.stdin:
        rows = int(line)
        print((seconds(rows, 36) - seconds(rows, 4)) / 32, flush=True)
