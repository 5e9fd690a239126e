"""The workers of vLLM with the routes of their requests: `worker_cls` of a routed engine.

They use vLLM's first model runner, the only one on a CPU; with the second, routes live in `runner_v2.RoutedModelState`.
"""

from typing import Any

from vllm.forward_context import get_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata

from .plan import Batch, Plan
from .routes import Route, Routes


class RoutedRunner:
    """What is added to a model runner of vLLM: the plan of each step, from the requests in its batch."""

    model: Any
    input_batch: Any
    requests: Any
    attn_groups: Any
    query_start_loc: Any
    seq_lens: Any
    optimistic_seq_lens_cpu: Any
    positions: Any

    @property
    def drllm_routes(self) -> Routes:
        found = self.__dict__.get("_drllm_routes")
        if found is None:
            found = self.__dict__["_drllm_routes"] = Routes(self.model.drllm_settings)
        return found

    def _model_forward(self, *args: Any, **kwargs: Any) -> Any:
        batch, count = self.input_batch, self.input_batch.num_reqs
        routes = [self._route(self.requests[name]) for name in batch.req_ids]
        plan = Plan(routes, self._batch(count))
        for row in plan.deciding:
            if (
                batch.num_computed_tokens_cpu[row]
                or plan.batch.starts[row + 1] - plan.batch.starts[row] < routes[row].prompt_tokens
            ):
                raise RuntimeError(
                    "a prompt whose routers decide must be processed as a whole; this is a mistake of ours"
                )
        current = self.model.drllm_current
        current.plan = None if plan.is_plain else plan
        try:
            return super()._model_forward(*args, **kwargs)  # type: ignore[misc]
        finally:
            current.plan = None

    def _route(self, state: Any) -> Route:
        # On the runner's own state of the request, which stays when it is preempted and goes when it is finished.
        route: Route | None = getattr(state, "drllm_route", None)
        if route is None:
            route = self.drllm_routes.begin(state.req_id, state.sampling_params, state.num_prompt_tokens)
            state.drllm_route = route
        return route

    def _batch(self, count: int) -> Batch:
        context, batch = get_forward_context(), self.input_batch
        starts = self.query_start_loc.np[: count + 1]
        tokens = int(starts[-1])
        groups: list[tuple[Any, CommonAttentionMetadata]] = []
        group_of: dict[str, int] = {}
        for number, kinds in enumerate(self.attn_groups):
            for group in kinds:
                common = CommonAttentionMetadata(
                    query_start_loc=self.query_start_loc.gpu[: count + 1],
                    query_start_loc_cpu=self.query_start_loc.cpu[: count + 1],
                    seq_lens=self.seq_lens[:count],
                    seq_lens_cpu_upper_bound=self.optimistic_seq_lens_cpu[:count],
                    num_reqs=count,
                    num_actual_tokens=tokens,
                    max_query_len=0,  # of a part they are its own
                    max_seq_len=0,
                    block_table_tensor=batch.block_table[number].get_device_tensor(count),
                    slot_mapping=context.slot_mapping[group.layer_names[0]],
                    positions=self.positions[:tokens],
                    is_prefilling=(
                        batch.num_computed_tokens_cpu_tensor[:count] < batch.num_prompt_tokens_cpu_tensor[:count]
                    ),
                )
                group_of.update(dict.fromkeys(group.layer_names, len(groups)))
                groups.append((group, common))
        return Batch(starts, groups, group_of)


class RoutedWorker:
    """What is added to a worker of vLLM: a routed runner, and the paths by `collective_rpc`."""

    model_runner: Any
    use_v2_model_runner: bool

    def init_device(self) -> None:
        super().init_device()  # type: ignore[misc]
        if not self.use_v2_model_runner:
            # vLLM's CPU worker names the class of its runner itself, so the runner is made and then made routed.
            kind = type(self.model_runner)
            self.model_runner.__class__ = type(f"Routed{kind.__name__}", (RoutedRunner, kind), {})

    def load_model(self, **options: Any) -> None:
        super().load_model(**options)  # type: ignore[misc]
        if not self.use_v2_model_runner:
            # Blocks prove their convention in a dummy run, of which vLLM's CPU worker makes none unless it compiles.
            self.model_runner._dummy_run(16, is_profile=True)

    def drllm_paths(self, request_ids: list[str]) -> dict[str, list[list[int]]]:
        """See `Routes.taken`."""
        runner = self.model_runner
        routes: Routes = runner.model_state.routes if self.use_v2_model_runner else runner.drllm_routes
        return routes.taken(request_ids)


def __getattr__(name: str) -> Any:
    """`RoutedCPUWorker` and `RoutedGPUWorker`: the modules of the other platform need not be there."""
    if name == "RoutedCPUWorker":
        from vllm.v1.worker.cpu_worker import CPUWorker as worker
    elif name == "RoutedGPUWorker":
        from vllm.v1.worker.gpu_worker import Worker as worker
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = made = type(name, (RoutedWorker, worker), {"__module__": __name__})
    return made
