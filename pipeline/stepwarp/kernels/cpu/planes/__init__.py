"""The kernels for batches of small planes: the samples, not the rows, are shared among the threads."""
