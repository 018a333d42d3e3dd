#!/bin/sh
# Compiles the kernels to PTX and records the hashes that a test checks.
# Needs nvcc 13.0 in NVCC (from PyPI: nvidia-cuda-nvcc==13.0.88
# nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96),
# and `cargo run -p ol-cuda --example hash`.
set -eu
cd "$(dirname "$0")"
"${NVCC:-nvcc}" -ptx -arch=compute_80 -O3 kernels.cu -o kernels.ptx
cargo run --quiet --release -p ol-cuda --example hash > kernels.hash.new
mv kernels.hash.new kernels.hash
