"""The back end for GPUs: kernels that Triton compiles for the card, for batches of volumes on a CUDA device.

They read each input once and keep nothing in between. Sizes are arguments and no constants, so that images of another
shape compile nothing anew, and a matrix is read where it lies, so that nothing has to be waited for. Beside the
primitives' files lie `launching`, which starts kernels, and `cells` and `reading`, which kernels share.

Triton is imported by these files only: it comes with torch where torch is built for CUDA on Linux. Where it is missing
or cannot compile, `backend` hands the calls to the reference.

The compiler has merged values that a loop carries and that began as one tensor, where the interpreter was right. So a
loop carries no state that it could do without, is unrolled, and each sum begins with zeros of its own."""
