#!/bin/sh
# Takes out of a venv what no run of minga loads, and compiles the rest.
# Which parts torch needs at import was tried file by file: import fails without nccl, nvshmem,
# cusparselt, cufft, cufile and torch_shm_manager, so these stay; cudnn stays for the GPUs.
set -eu
cd "$1"/lib/python3.*/site-packages

rm -rf triton                                        # torch.compile only; not in every torch
rm -r torch/include torch/share
rm -f torch/bin/protoc*
mkdir -p nvidia                                      # a torch without CUDA has none
find nvidia -type d -name include -prune -exec rm -r {} +
find . -name '*.a' -delete
find nvidia -name '*.bc' -delete                     # nvshmem's device code
find nvidia \( -name 'libcusolverMg*' -o -name 'libnvblas*' -o -name 'libcufftw*' \
  -o -name 'libnvperf*' -o -name 'libpcsampling*' -o -name 'libcheckpoint*' \) -delete
find . -type d -name tests -prune -exec rm -r {} +

# A read-only root never caches byte code: compile now, and never look at the sources again.
# Some packages ship templates that are no Python; check.py imports what counts.
"$1/bin/python" -m compileall -q -q -j 0 --invalidation-mode unchecked-hash . || true
