"""The names of the files that a registration writes, those that users of ANTs know, and of those of a segmentation."""

AFFINE = "0GenericAffine.mat"
WARP = "1Warp.nii.gz"
INVERSE_WARP = "1InverseWarp.nii.gz"
MOVED = "Warped.nii.gz"
#: The moving images of further pairs.
FURTHER_MOVED = tuple(f"Warped{number}.nii.gz" for number in range(2, 10))
JACOBIAN = "Jacobian.nii.gz"
RECORD = "registration.json"
REPORT = "report.html"
#: Of the fixed and of the moving image, where the registration found them itself.
MASKS = ("FixedMask.nii.gz", "MovingMask.nii.gz")
NAMES = (AFFINE, WARP, INVERSE_WARP, MOVED, *FURTHER_MOVED, JACOBIAN, *MASKS, RECORD, REPORT)

STRUCTURES = "structures.nii.gz"
MASK = "mask.nii.gz"
VOLUMES = "volumes.csv"
SEGMENTATION = "segmentation.json"
SEGMENTED = (STRUCTURES, MASK, VOLUMES, SEGMENTATION)
