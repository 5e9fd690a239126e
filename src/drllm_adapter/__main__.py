"""`python -m drllm_adapter` is `drllm`."""

from .cli import main

main()
