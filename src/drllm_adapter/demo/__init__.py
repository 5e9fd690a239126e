"""A small embedded model and its task, in which the number of block passes decides the answer."""
