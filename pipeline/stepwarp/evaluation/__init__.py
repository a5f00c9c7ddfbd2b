"""How good a registration is: overlap of labels, distance of landmarks, regularity of the transform."""
