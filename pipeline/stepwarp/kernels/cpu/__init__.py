"""The back end for processors: kernels that numba compiles, for batches of volumes, and in `planes` of planes.

They exist because registration is bound by memory traffic: each reads its inputs once, keeps nothing in between, and
uses every core for one sample of a batch after the other. Beside the primitives' files lie `compiled`, `kernel_files`
and `threading_layer`, which make, keep and run machine code, and `arrays` and `cells`, which kernels share."""
