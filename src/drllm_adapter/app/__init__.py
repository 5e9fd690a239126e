"""The page of `drllm app`: what the routers choose for a prompt, what it costs, and how the answer differs."""
