"""The routes of an engine's requests, by the names of the requests. Knows no vLLM."""

from collections import OrderedDict
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..decisions import EXECUTE
from .requests import Asked, read_request
from .settings import Settings

REMEMBERED = 10_000
"""Finished requests whose paths can still be asked for."""
UNDECIDED = -1


@dataclass
class Route:
    """The route of one request; it lives as long as the request does, preempted or not.

    Attributes:
        decisions: `[blocks]` int8, -1 where its routers have not decided yet.
        prompt_tokens: how many tokens routers may read: a prompt that is processed again has generated ones behind it.
        asked: what the request said.
    """

    decisions: NDArray[np.int8]
    prompt_tokens: int
    asked: Asked

    @classmethod
    def begin(cls, asked: Asked, prompt_tokens: int, num_blocks: int, *, decides: bool) -> "Route":
        if asked.path is not None:
            decisions = np.array(asked.path, dtype=np.int8)
        else:
            decisions = np.full(num_blocks, UNDECIDED if decides else EXECUTE, dtype=np.int8)
        return cls(decisions, prompt_tokens, asked)

    @property
    def undecided(self) -> bool:
        return bool(self.decisions[-1] == UNDECIDED)


class Routes:
    """The routes of the requests of one engine, also of the last ones that are finished."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._of: OrderedDict[str, Route] = OrderedDict()

    def begin(self, request_id: str, params: Any, prompt_tokens: int) -> Route:
        """The route of a request that is new here."""
        asked = read_request(params.extra_args if params is not None else None, self.settings)
        route = Route.begin(asked, prompt_tokens, self.settings.num_blocks, decides=self.settings.decides)
        self._of[request_id] = route
        while len(self._of) > REMEMBERED:
            self._of.popitem(last=False)
        return route

    def known(self, request_id: str) -> Route | None:
        """The route of a request that is or was here."""
        return self._of.get(request_id)

    def taken(self, request_ids: list[str]) -> dict[str, list[list[int]]]:
        """The decisions of each sequence of these requests, once they are all taken; nothing for one that is not known.

        Args:
            request_ids: as the engine's or the server's user knows them. vLLM hangs more behind such a name, and puts
                the number of the sequence in front where several are asked for.
        """
        found: dict[str, list[tuple[int, list[int]]]] = {name: [] for name in request_ids}
        for name, route in self._of.items():
            first, _, rest = name.partition("_")
            number, own = (int(first), rest) if first.isdigit() and rest else (0, name)
            parts = own.split("-")
            asked = next((its for end in range(len(parts), 0, -1) if (its := "-".join(parts[:end])) in found), None)
            if asked is not None and not route.undecided:
                found[asked].append((number, route.decisions.tolist()))
        return {
            name: [decisions for _, decisions in sorted(its, key=itemgetter(0))] for name, its in found.items() if its
        }
