"""Many pairs, one by one on many processes or computers: nothing that is done is lost, nothing fails in silence."""
