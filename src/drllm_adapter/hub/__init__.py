"""Sharing adapters and supervision sets on the Hub: cards and pushing."""

from .cards import add_evaluation, write_card
from .shared_base import share_base
from .wording import TAGS

__all__ = ["TAGS", "add_evaluation", "share_base", "write_card"]
