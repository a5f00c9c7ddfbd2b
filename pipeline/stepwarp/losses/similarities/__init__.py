"""The dissimilarities there are, a file each: its name is what `--similarity` takes, and the first line of what it says
is its help. A new one is one more file here, with one class of `losses.similarity.Similarity`."""
