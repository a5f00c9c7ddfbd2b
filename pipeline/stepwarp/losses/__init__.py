"""How unlike two images are, and how unsmooth a displacement is."""
