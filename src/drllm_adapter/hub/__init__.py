"""Sharing adapters and supervision sets on the Hub: cards and pushing."""

from .cards import TAGS, write_adapter_card

__all__ = ["TAGS", "write_adapter_card"]
