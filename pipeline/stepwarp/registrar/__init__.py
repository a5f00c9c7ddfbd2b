"""Finding the transform: the affine, and the deformable optimisation."""
