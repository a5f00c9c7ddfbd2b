"""Other registration programs behind the same types: volumes in, a Transform out."""
