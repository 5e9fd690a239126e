"""How results are shown: figures, and numbers as people read them."""
