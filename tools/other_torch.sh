#!/usr/bin/env bash
# Runs a command of Python with another torch than the pinned one, in an environment that is kept outside the checkout.
# usage: tools/other_torch.sh 2.11.0 -m pytest tests/teragpt/test_parity.py
set -euo pipefail
cd "$(dirname "$0")/.."
version=$1
shift
place=${XDG_CACHE_HOME:-$HOME/.cache}/teragpt/torch-$version
if [ ! -e "$place/made" ]; then
    echo "making $place with torch $version (some GB)" >&2
    rm -rf "$place"
    .venv/bin/python -m venv --without-pip "$place"
    # all but what belongs to a version of torch is pinned as ever
    .venv/bin/uv pip install --quiet --python "$place/bin/python" \
        -c <(grep -vE '^(torch|triton|nvidia-|cuda-|setuptools)' constraints.txt) \
        "torch==$version" transformers tokenizers safetensors numpy fsspec filelock tqdm nvidia-ml-py setuptools \
        psutil coverage pytest pytest-timeout
    touch "$place/made"
fi
PYTHONPATH=$PWD exec "$place/bin/python" "$@"
