"""Which path was taken, over HTTP: one more route of vLLM's server, as an entry point of `vllm.endpoint_plugins`."""

from argparse import Namespace
from typing import Any

from ..decisions import draw

ROUTE = "/drllm/paths/{response_id}"


class PathEndpoint:
    """`GET /drllm/paths/{id of a response}`: the path of each of its sequences."""

    name = "drllm_adapter"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._client: Any = None

    def attach_router(self, app: Any) -> None:
        from fastapi import HTTPException

        async def paths(response_id: str) -> dict[str, Any]:
            found: dict[str, list[list[int]]] = {}
            if self._client is not None:
                found = (await self._client.collective_rpc("drllm_paths", args=([response_id],)))[0]
            if response_id not in found:
                raise HTTPException(404, f"no request of the id {response_id} has been answered lately")
            return {
                "id": response_id,
                "paths": [
                    {"decisions": decisions, "passes": sum(decisions), "drawn": draw(decisions)}
                    for decisions in found[response_id]
                ],
            }

        app.add_api_route(ROUTE, paths, methods=["GET"])

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        self._client = engine_client
