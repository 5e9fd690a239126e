"""How good an answer is along a path: by the model's own forward, or with what many paths share run once."""
