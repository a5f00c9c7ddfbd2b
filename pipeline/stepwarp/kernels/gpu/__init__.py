"""The back end for GPUs: its place. A file `sampling.py` here with a function `warp` takes over `kernels.sampling.warp`
for volumes on a CUDA device; `backend` says what else a function is held to."""
