"""The steps that a recipe can name, a file each: its name is what stands after `step:`, and what it holds are the
settings, which build the step. A new one is one more file here, with the step itself if there is no better place."""
