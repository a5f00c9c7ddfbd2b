"""Methods beside each other on the pairs of a manifest: one process per case, one JSON per case, statistics, a page."""
