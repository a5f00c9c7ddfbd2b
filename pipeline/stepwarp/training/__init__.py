"""Training of registrars and segmenters: recipes, the loop, its checkpoints, and what it is judged by."""
