"""Cached prefixes by path: keys and values that one path left behind are wrong on another."""

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from .requests import read_request, salt_of
from .settings import KEY, Settings


class _Salted:
    """What both kinds of schedulers do with a request before it is queued."""

    vllm_config: Any

    def add_request(self, request: Any) -> None:
        params = request.sampling_params
        settings = Settings.from_json((self.vllm_config.additional_config or {}).get(KEY))
        salt = salt_of(read_request(params.extra_args if params is not None else None, settings), request.request_id)
        request.cache_salt = salt if request.cache_salt is None else f"{request.cache_salt} {salt}"
        # They were made when the request was, with the salt that it had then.
        request.block_hashes.clear()
        request.update_block_hashes()
        super().add_request(request)  # type: ignore[misc]


class SaltedScheduler(_Salted, Scheduler):
    """vLLM's scheduler."""


class SaltedAsyncScheduler(_Salted, AsyncScheduler):
    """vLLM's asynchronous scheduler."""
