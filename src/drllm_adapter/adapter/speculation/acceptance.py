"""Which drafted tokens stand: those of the whole model (greedy), or by the rejection rule that keeps its distribution.

The rule is that of Leviathan et al. (arXiv 2211.17192, algorithm 1), for every row of a batch.
"""

import torch
from torch import Tensor


def choose(scores: Tensor, do_sample: bool) -> tuple[Tensor, Tensor]:
    """The next token of every row, as `generate` chooses it.

    Args:
        scores: `[batch, vocabulary]`, processed logits in float32.

    Returns:
        tokens `[batch]`, and the distribution `[batch, vocabulary]` that they were drawn or taken from.
    """
    probabilities = scores.softmax(dim=-1)
    if do_sample:
        return torch.multinomial(probabilities, num_samples=1).squeeze(1), probabilities
    return scores.argmax(dim=-1), probabilities


def accept(drafted: Tensor, drafts: Tensor | None, scores: Tensor, do_sample: bool) -> tuple[Tensor, Tensor]:
    """What the whole model makes of the drafted tokens.

    Args:
        drafted: `[batch, n]` tokens; n may be 0.
        drafts: `[batch, n, vocabulary]` distributions that they were drawn from; needed where tokens are drawn.
        scores: `[batch, n + 1, vocabulary]` of the whole model: for each drafted token, and for the one after them.

    Returns:
        tokens `[batch, n + 1]`, of which row r has `accepted[r]` drafted ones and one of the whole model's, and
        `accepted` `[batch]`.
    """
    if not do_sample:
        tokens = scores.argmax(dim=-1)
        return tokens, (drafted == tokens[:, :-1]).long().cumprod(dim=1).sum(dim=1)
    whole = scores.softmax(dim=-1)
    if drafts is None:
        return torch.multinomial(whole[:, 0], num_samples=1), drafted.new_zeros(len(drafted))
    place = drafted[..., None]
    wanted, offered = whole[:, :-1].gather(2, place).squeeze(2), drafts.gather(2, place).squeeze(2)
    stands = torch.rand_like(wanted) * offered < wanted
    accepted = stands.long().cumprod(dim=1).sum(dim=1)
    # What the draft offers too seldom; behind the last drafted token, everything.
    missing = torch.cat([(whole[:, :-1] - drafts).clamp(min=0), whole[:, -1:]], dim=1)
    at = accepted[:, None, None].expand(-1, 1, whole.shape[2])
    remainder, alternative = missing.gather(1, at).squeeze(1), whole.gather(1, at).squeeze(1)
    # Equal distributions leave nothing but rounding.
    remainder = torch.where(remainder.sum(dim=1, keepdim=True) > 0, remainder, alternative)
    tokens = torch.cat([drafted, drafted[:, :1]], dim=1)
    return tokens.scatter(1, accepted[:, None], torch.multinomial(remainder, num_samples=1)), accepted
