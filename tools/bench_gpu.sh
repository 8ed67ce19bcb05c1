#!/usr/bin/env bash
# What one NVIDIA GPU reaches: GPT-2 124M and a Llama of 1.3 B at 2048 tokens in bfloat16; each beside torch.compile,
# where torch and transformers are installed; and what may make them faster. Beside each stands what was predicted.
# Asks nothing and ends within ten minutes:
#   LLM_JAX_PYTHON=python3 ./tools/bench_gpu.sh [--config.a.b=value ...]
# Results are written as they come: a line of JSON per case in $OUT/bench_gpu.jsonl (OUT: the current directory), and
# what each case printed in $OUT/bench_gpu.log. A case that fails or runs out of memory does not end the others.
#   TOTAL=570   seconds for everything; no case starts that could hardly end in time
#   LIMIT=200   seconds for a case; ROUNDS=20 and WARM_UP=4 steps of each side
#   ONLY='laptop'   the cases of other models; laptop's are a rehearsal for any machine
set -uo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
out="${OUT:-$PWD}" total="${TOTAL:-570}" limit="${LIMIT:-200}" only="${ONLY:-gpt2_124m llama_1.3b}"
export LLM_JAX_PYTHON="${LLM_JAX_PYTHON:-python3}"
mkdir -p "$out" && : > "$out/bench_gpu.log" && : > "$out/bench_gpu.jsonl" || exit 2
# A second try finds compiled programs and the timings of kernels again.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$out/jax_cache}"
timeout 120 "$LLM_JAX_PYTHON" -c 'import jax; print("jax", jax.__version__, jax.devices())' ||
  { echo "LLM_JAX_PYTHON=$LLM_JAX_PYTHON has no JAX that works" >&2; exit 2; }
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,memory.total,clocks.max.sm,power.limit --format=csv
torch=0
"$LLM_JAX_PYTHON" -c 'import torch, transformers; print("torch", torch.__version__, "cuda", torch.version.cuda)' \
  2>/dev/null && torch=1

# Model | what is predicted of an H200 (docs/performance.md) | XLA flags | arguments
cases=(
  "gpt2_124m|at most 64 % MFU (50 ms a step), 14 GiB|-|"
  "llama_1.3b|at most 72 % MFU (204 ms a step), 49 GiB|-|"
  "gpt2_124m|1.1 times torch|-|--peer torch"
  "llama_1.3b|1.1 times torch|-|--peer torch"
  "gpt2_124m|stacked layers: 18 % longer|-|--config.model.scan=True"
  "gpt2_124m|stacked, products alone kept: 15 % longer, 8 GiB|-|--config.model.scan=True --config.model.remat=dots"
  "llama_1.3b|products alone kept: 4 % shorter, 37 GiB|-|--config.model.remat=dots"
  "gpt2_124m|more logits at once: 3 % shorter|-|--config.train.loss_chunk=8192"
  "gpt2_124m|more rows: 1 % more tokens/s|-|--config.train.batch_size=32"
  "gpt2_124m|cuBLAS alone: between equal and 5 % shorter|--xla_gpu_enable_triton_gemm=false|"
  "gpt2_124m|vocabulary not padded: 3 % longer|-|--config.model.vocab_size=50257"
  "llama_1.3b|products in half the time, but the head: 25 % shorter|-|--config.model.matmul=fp8"
  "laptop|a rehearsal|-|"
  "laptop|a rehearsal with a flag|--xla_gpu_enable_triton_gemm=false|--config.model.scan=True"
)
failed=0 skipped=0
for case in "${cases[@]}"; do
  IFS='|' read -r shape prediction flags arguments <<< "$case"
  [[ " $only " == *" $shape "* ]] || continue
  left=$((total - SECONDS))
  [[ $flags == - ]] && flags=
  echo "== $shape $flags $arguments (predicted: $prediction; $left s left)"
  if ((left < 45)); then
    echo '   not measured: the time is up'
    skipped=$((skipped + 1))
    continue
  fi
  if [[ $arguments == *--peer* ]]; then
    ((torch)) || { echo '   not measured: no torch and transformers here'; skipped=$((skipped + 1)); continue; }
  else
    arguments="--peer none $arguments"
  fi
  flags="${XLA_FLAGS:-}${XLA_FLAGS:+${flags:+ }}$flags"
  # shellcheck disable=SC2086  # arguments are several; an empty XLA_FLAGS is fine, a blank one ends JAX
  XLA_FLAGS="$flags" timeout --kill-after=5 $((left < limit ? left : limit)) "$root/tools/run" bench_train \
    --shape "$shape" $arguments --apart --rounds "${ROUNDS:-20}" --warm_up "${WARM_UP:-4}" \
    --json "$out/bench_gpu.jsonl" --note "$prediction" --config.model.dtype=bfloat16 "$@" > "$out/case.log" 2>&1
  status=$?
  { echo "== $case"; cat "$out/case.log"; } >> "$out/bench_gpu.log"
  if ((status == 0)); then
    grep -E 'llm_jax|torch|TFLOP|memory|limit' "$out/case.log"
  else
    failed=$((failed + 1))
    ((status == 124 || status == 137)) && echo '   ended: it took too long'
    grep -vE '^[WI][0-9]{4} ' "$out/case.log" | tail -3 | cut -c1-400
  fi
done
rm -f "$out/case.log"
echo "$(wc -l < "$out/bench_gpu.jsonl") measured, $failed failed, $skipped not measured, $SECONDS s; in $out/bench_gpu.jsonl and .log"
exit $((failed > 0))
