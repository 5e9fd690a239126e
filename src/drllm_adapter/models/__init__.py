"""Models and adapters by folder or by name: loading, downloading, and what the Hub's refusals mean."""
