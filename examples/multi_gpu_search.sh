#!/usr/bin/env bash
# Search on all GPUs of this machine; every process takes questions, the rows are those of one process.
#
#   bash examples/multi_gpu_search.sh meta-llama/Llama-3.2-3B-Instruct paths --config paper-arc
#
# The first argument is the base, the second the output folder, all others go to `drllm search`. Run it again with
# --resume after an interruption. PROCESSES=4 takes another number of processes than there are GPUs; on several
# machines, give `accelerate launch` their addresses (accelerate launch --help) and a shared output folder.
set -euo pipefail

if [ $# -lt 2 ] || [ "$1" = --help ]; then
    echo "usage: bash examples/multi_gpu_search.sh BASE OUTPUT [options of drllm search]; PROCESSES=2 without GPUs" >&2
    exit 2
fi
base=$1 output=$2
shift 2
processes=${PROCESSES:-$(nvidia-smi --list-gpus 2>/dev/null | wc -l)}
[ "$processes" -gt 0 ] || processes=1
exec accelerate launch --num_processes "$processes" -m drllm_adapter search "$base" --output "$output" "$@"
