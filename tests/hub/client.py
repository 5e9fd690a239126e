"""A process in which the real client libraries talk to the Hub of a test."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import jobs


@dataclass
class Client:
    """A process with its own environment and cache, in which the client libraries ask one Hub."""

    environment: dict[str, str]
    namespace: str
    names: dict[str, str] = field(default_factory=dict)
    pool: ProcessPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        self.pool = ProcessPoolExecutor(
            1,
            multiprocessing.get_context("spawn"),
            initializer=jobs.start,
            initargs=({**self.environment, "HF_HUB_OFFLINE": self.environment.get("HF_HUB_OFFLINE", "0")},),
        )

    def __call__(self, job: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """The result of a job of `jobs.py`, or its exception."""
        return self.pool.submit(job, *arguments, **options).result(timeout=300)

    def drllm(self, *arguments: object, environment: dict[str, str] | None = None) -> str:
        """What a command printed."""
        code, printed = self(jobs.drllm, *map(str, arguments), environment=environment)
        assert code == 0, printed
        return printed

    def refuse(self, *arguments: object, environment: dict[str, str] | None = None) -> str:
        """The one sentence with which a command refused."""
        code, printed = self(jobs.drllm, *map(str, arguments), environment=environment)
        lines = [line for line in printed.splitlines() if line.startswith("drllm: ")]
        assert code == 2, printed
        assert len(lines) == 1, printed
        assert lines[0].endswith("."), printed
        return lines[0]

    def name(self, name: str) -> str:
        """A repository of this session."""
        return self.names.setdefault(name, f"{self.namespace}/{name}")

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)
