"""Routes for vLLM's second model runner, the default on a GPU, through the hooks that it offers to models.

Written against `v1/worker/gpu/model_states/interface.py`; it has not run on a GPU yet, and on a CPU there is no triton.
A model names its state class by `get_model_state_cls`; the runner tells that of every request that enters its batch
(`add_request`), and of every step before the forward pass (`prepare_attn` with metadata, then `prepare_inputs`).
"""

from typing import Any

import torch
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.worker.gpu.model_states.default import DefaultModelState

from .plan import Batch, Plan
from .routes import Route, Routes


class RoutedModelState(DefaultModelState):
    """vLLM's own state of a decoder, with the routes of its requests."""

    def __init__(self, vllm_config: Any, model: Any, encoder_cache: Any, device: Any) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        self.routes = Routes(model.drllm_settings)
        self._current = model.drllm_current
        self._pending: Plan | None = None

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        super().add_request(req_index, new_req_data)
        # A preempted request comes again as a new one, with its generated tokens behind the prompt; its route holds.
        if self.routes.known(new_req_data.req_id) is None:
            prompt = new_req_data.prompt_token_ids
            self.routes.begin(new_req_data.req_id, new_req_data.sampling_params, len(prompt))

    def prepare_attn(
        self,
        input_batch: Any,
        cudagraph_mode: Any,
        block_tables: Any,
        slot_mappings: Any,
        attn_groups: Any,
        kv_cache_config: Any,
        **kwargs: Any,
    ) -> Any:
        metadata = super().prepare_attn(
            input_batch, cudagraph_mode, block_tables, slot_mappings, attn_groups, kv_cache_config, **kwargs
        )
        routes = [self.routes.known(name) for name in input_batch.req_ids]
        known: list[Route] = [route for route in routes if route is not None]
        self._pending = None
        if known and len(known) == len(routes):  # dummy batches have made-up names
            self._pending = Plan(known, _batch(input_batch, block_tables, slot_mappings, attn_groups))
        return metadata

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> Any:
        # Called before every forward pass, also where there is nothing to attend to.
        plan, self._pending = self._pending, None
        self._current.plan = None if plan is None or plan.is_plain else plan
        return super().prepare_inputs(input_batch, req_states)


def _batch(input_batch: Any, block_tables: Any, slot_mappings: Any, attn_groups: Any) -> Batch:
    count = input_batch.num_reqs
    groups: list[tuple[Any, CommonAttentionMetadata]] = []
    group_of: dict[str, int] = {}
    for number, kinds in enumerate(attn_groups):
        for group in kinds:
            common = CommonAttentionMetadata(
                query_start_loc=input_batch.query_start_loc[: count + 1],
                query_start_loc_cpu=torch.from_numpy(input_batch.query_start_loc_np[: count + 1]),
                seq_lens=input_batch.seq_lens[:count],
                seq_lens_cpu_upper_bound=input_batch.seq_lens_cpu_upper_bound[:count],
                num_reqs=count,
                num_actual_tokens=input_batch.num_tokens,
                max_query_len=0,  # of a part they are its own
                max_seq_len=0,
                block_table_tensor=block_tables[number][:count],
                slot_mapping=slot_mappings[number],
                positions=input_batch.positions,
                is_prefilling=torch.from_numpy(input_batch.is_prefilling_np[:count]),
            )
            group_of.update(dict.fromkeys(group.layer_names, len(groups)))
            groups.append((group, common))
    return Batch(input_batch.query_start_loc_np[: count + 1], groups, group_of)
