"""The idea's smallest form: a network that looks at two digits and moves each pixel, stepped nine times, and the
experiments on what it does."""
