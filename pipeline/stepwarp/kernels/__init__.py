"""The arithmetic of the whole package: primitives on tensors, which know nothing of images, grids or files.

A primitive is one function with one contract. Its body is plain torch, the reference: any device, any dimensions,
differentiable. Back ends do the same for the tensors that they are made for: `cpu`, compiled with numba, and `gpu`,
with Triton. `backend` says which of them a call is handed to.

What all primitives promise:
- Coordinates and displacements are in voxels, in ij order; tensors are (B, C, *grid).
- A scalar that comes out is a tensor of no axes on the device of what went in, and one that goes in may be: nothing
  has to be waited for.
- A result is contiguous, so it may be the `out` of a later call: a contiguous tensor of the result's shape and type
  that receives the result and is returned. It must not be one of the tensors that are read, and no gradient goes
  through it."""
