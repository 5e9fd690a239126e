"""Which process of how many this is, under `accelerate launch` or alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import DrLLMError, OtherProcessError

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes of one job, over all machines.

    Attributes:
        index: of this process; 0 is the main one.
        count: of all processes.
        local_count: of those on this machine.
        device: "cpu", "cuda:1", ...: the one that this process works on.
    """

    index: int = 0
    count: int = 1
    local_count: int = 1
    device: str = "cpu"

    @classmethod
    def current(cls) -> "Processes":
        """What `accelerate` says; joins the process group when there are several."""
        import os

        import torch
        from accelerate import PartialState

        # Apple's GPUs, which accelerate would choose, have not been tried.
        state: Any = PartialState(cpu=not torch.cuda.is_available())
        device = "cpu" if state.device.type == "cpu" else str(state.device)
        local = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
        return cls(state.process_index, state.num_processes, local, device)

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def from_main(self, action: Callable[[], T]) -> T:
        """What `action` gives in the main process, which alone runs it; the others wait for it.

        Raises:
            DrLLMError: `action` raised one, in the main process; an `OtherProcessError` in the others.
        """
        if self.count == 1:
            return action()
        from accelerate.utils import broadcast_object_list

        outcome: list[Any] = [None]
        refusal: DrLLMError | None = None
        if self.is_main:
            try:
                outcome = [(True, action())]
            except DrLLMError as error:
                refusal, outcome = error, [(False, str(error))]
        broadcast_object_list(outcome)
        if refusal is not None:
            raise refusal
        succeeded, value = outcome[0]
        if not succeeded:
            raise OtherProcessError(value)
        return value

    def meet(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()


ALONE = Processes()
"""One process, not launched with others."""
