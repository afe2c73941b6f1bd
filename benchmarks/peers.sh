#!/usr/bin/env bash
# The alternatives that compare.py measures, in an environment of their own:  benchmarks/peers.sh FOLDER
set -euo pipefail
folder=${1:?"name the folder for the environment"}
constraints="$(dirname "${BASH_SOURCE[0]}")/../constraints.txt"
python3 -m venv "$folder"
install=("$folder/bin/python" -m pip --disable-pip-version-check install --quiet)
"${install[@]}" --constraint "$constraints" torch diffusers transformers accelerate sentencepiece pillow numpy fsspec \
    click einops pydantic packaging tqdm protobuf beartype datasets
# what imagen-pytorch imports; without dependencies, for they include torchvision, which has no CPU build everywhere
"${install[@]}" --no-deps imagen-pytorch==2.1.0 ema-pytorch==0.8.3 pytorch-warmup==0.2.0 kornia==0.9.0 kornia_rs
echo "ready: python benchmarks/compare.py --peers $folder/bin/python"
