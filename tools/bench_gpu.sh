#!/usr/bin/env bash
# What one NVIDIA GPU reaches: GPT-2 124M and a Llama of 1.3 B in bfloat16, each against torch.compile
# where torch and transformers are installed. Takes less than ten minutes and asks nothing:
#   LLM_JAX_PYTHON=python3 ./tools/bench_gpu.sh [--config.a.b=value ...]
# SHAPES and ROUNDS in the environment change what is measured (SHAPES=laptop: a check on any machine).
set -uo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${LLM_JAX_PYTHON:-python3}"
peer=none
"$python" -c 'import torch, transformers' 2>/dev/null && peer=torch
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,memory.total,clocks.max.sm,power.limit --format=csv
echo "peer: $peer"
failed=0
for shape in ${SHAPES:-gpt2_124m llama_1.3b}; do
  echo "== $shape"
  LLM_JAX_PYTHON="$python" timeout "${LIMIT:-280}" "$root/tools/run" bench_train --shape "$shape" --peer "$peer" --apart \
    --rounds "${ROUNDS:-20}" --warm_up "${WARM_UP:-5}" --config.model.dtype=bfloat16 "$@" || failed=1
done
exit $failed
