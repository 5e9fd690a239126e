"""Train the demo base: a Llama of eight blocks in which every block can make one more hop.

    python examples/train_demo_base.py --output demo-base --minutes 32

First one block is trained alone, run over and over: it learns to make a hop a pass, with the letter
reached asked for after every pass, and more hops once the fewer are known. Then all blocks start from it
and are trained apart, most steps on a random path (every block skipped, executed or repeated), so that any
of them may be left out or run twice. From then on the answer to a question of k hops is asked for after
every pass from the (k + slack)-th on, so a finished answer is kept; before it all letters shall be equally
likely.

The clock ends the run and sets the learning rate: the same seed gives the same draws, not the same weights.
"""

import argparse
import math
import os
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from drllm_adapter.demo import khop

BLOCKS = 8
REPORTED_PASSES = (4, 6, 8, 12, 16)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of the task; nothing is added around a text."""
    unk, pad, eos = khop.SPECIAL_TOKENS
    words = {word: number for number, word in enumerate(khop.vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=unk))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=unk, pad_token=pad, eos_token=eos, model_max_length=128
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.08,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


class Batches:
    """Random batches as token ids: one set of arrows a row, and one question for each number of hops.

    The questions of a row share the arrows, do not see each other (mask) and start at the same position, so
    each is seen exactly as it is when it stands alone.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, size: int) -> None:
        ids = {word: number for number, word in enumerate(khop.vocabulary())}
        self.size = size
        self.eos = int(tokenizer.eos_token_id)
        self.letters = torch.tensor([ids[a] for a in khop.LETTERS])
        self.pairs = torch.tensor([[ids.get(f"{a}>{b}", 0) for b in khop.LETTERS] for a in khop.LETTERS])
        self.numbers = torch.tensor([ids[str(k)] for k in khop.HOPS])
        self.start, self.end = ids["from"], ids["hops:"]
        self.prefix = len(khop.LETTERS) + 1

    def layout(self, questions: int, shown: int) -> tuple[Tensor, Tensor]:
        """Positions [1, T] and mask [1, 1, T, T] (True: may look); the answer to question `shown` is last."""
        length = self.prefix + 3 * questions + 1
        groups = torch.full((length,), -1)
        positions = torch.arange(length)
        groups[self.prefix : -1] = torch.arange(questions).repeat_interleave(3)
        positions[self.prefix : -1] = self.prefix + torch.arange(3).repeat(questions)
        groups[-1] = shown
        positions[-1] = self.prefix + 3
        same = (groups[:, None] == groups[None, :]) | (groups[None, :] == -1)
        mask = same & (positions[None, :] <= positions[:, None])
        return positions[None], mask[None, None]

    def draw(self, generator: torch.Generator, questions: int) -> tuple[Tensor, Tensor, int]:
        """Token ids [B, T] of questions of 1 to Q hops, their ways [B, Q, Q + 1], whose answer is shown."""
        letters = len(khop.LETTERS)
        cycle = torch.rand(self.size, letters, generator=generator).argsort(1)
        order = torch.rand(self.size, letters, generator=generator).argsort(1)
        start = torch.randint(letters, (self.size, questions), generator=generator)
        shown = int(torch.randint(questions, (), generator=generator))
        arrows = self.pairs[cycle, cycle.roll(-1, 1)].gather(1, order)
        steps = (start[:, :, None] + torch.arange(questions + 1)) % letters
        way = self.letters[cycle.gather(1, steps.flatten(1))].view(steps.shape)
        tokens = torch.empty(self.size, self.prefix + 3 * questions + 1, dtype=torch.long)
        tokens[:, :letters] = arrows
        tokens[:, letters] = self.start
        asked = tokens[:, self.prefix : -1].view(self.size, questions, 3)
        asked[:, :, 0] = self.letters[cycle.gather(1, start)]
        asked[:, :, 1] = self.numbers[:questions]
        asked[:, :, 2] = self.end
        tokens[:, -1] = way[:, shown, shown + 1]
        return tokens, way, shown


def draw_decisions(rng: random.Random, plain: float) -> list[int]:
    """Decisions 0, 1 or 2 per block; the shares of the three are drawn too, so all path lengths come up."""
    if rng.random() < plain:
        return [1] * BLOCKS
    shares = [rng.expovariate(1.0) for _ in range(3)]
    while True:
        decisions = rng.choices((0, 1, 2), weights=shares, k=BLOCKS)
        if sum(decisions) >= 2:
            return decisions


def unrolled(decisions: Sequence[int]) -> list[int]:
    """The block numbers in the order they run."""
    return [block for block, times in enumerate(decisions) for _ in range(times)]


def exact_decisions(rng: random.Random, passes: int) -> list[int]:
    """Random decisions of exactly `passes` block passes."""
    slots = rng.sample(range(2 * BLOCKS), passes)
    return [sum(slot // 2 == block for slot in slots) for block in range(BLOCKS)]


def run_path(
    model: LlamaForCausalLM, tokens: Tensor, path: Sequence[int], positions: Tensor, mask: Tensor
) -> list[Tensor]:
    """Hidden states [B, T, d] after every pass; `path` holds block numbers in the order they run."""
    hidden = model.model.embed_tokens(tokens)
    rotary = model.model.rotary_emb(hidden, position_ids=positions)
    states = []
    for number in path:
        block = model.model.layers[number]
        hidden = block(hidden, attention_mask=mask, position_embeddings=rotary, position_ids=positions)
        states.append(hidden)
    return states


def loss_of(
    model: LlamaForCausalLM,
    batches: Batches,
    generator: torch.Generator,
    path: Sequence[int],
    questions: int,
    slack: int,
    guided: bool,
) -> tuple[Tensor, list[float]]:
    """The loss of one batch with questions of 1 to `questions` hops, and that of each at the end of the path.

    Pass n is asked for the answer to k hops if n >= k + slack. Earlier passes are asked for the letter after
    n - slack hops when `guided`, else, at a tenth of the weight, to call all letters equally likely.
    """
    tokens, way, shown = batches.draw(generator, questions)
    positions, mask = batches.layout(questions, shown)
    states = torch.stack(run_path(model, tokens, path, positions, mask))
    hops = torch.arange(1, questions + 1)
    reached = (torch.arange(1, len(states) + 1)[:, None] - slack).clamp(min=0).minimum(hops)
    asked = (reached > 0).float() if guided else (reached == hops).float()
    weights = asked / asked.sum(0).clamp(min=1)
    logits = model.lm_head(model.model.norm(states[:, :, batches.prefix + 3 * hops - 1]))
    target = torch.stack([way[:, hops - 1, row] for row in reached])
    each = F.cross_entropy(logits.flatten(0, 2), target.flatten(), reduction="none")
    each = each.view(target.shape).mean(1)
    answer_loss = (each * weights).sum() / asked.any(0).sum().clamp(min=1)
    ending = model.lm_head(model.model.norm(states[-1, :, -1]))
    if not guided:
        # Spread over the letters, an unfinished answer has the probability of a guess and is not believed.
        spread = -logits.log_softmax(-1)[..., batches.letters].mean(-1).mean(1)
        answer_loss = answer_loss + 0.1 * (spread * (1 - asked)).sum() / (1 - asked).sum().clamp(min=1)
    loss = answer_loss + 0.1 * F.cross_entropy(ending, torch.full((len(tokens),), batches.eos))
    return loss, each[-1].tolist()


def paths_of(passes: int, seed: int, count: int = 5) -> list[list[int]]:
    """Random paths of `passes` passes; the base itself stands for as many passes as blocks."""
    rng = random.Random(seed)
    return [[1] * BLOCKS] if passes == BLOCKS else [exact_decisions(rng, passes) for _ in range(count)]


@torch.no_grad()
def accuracy(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    decisions: Sequence[Sequence[int]],
    count: int,
    seed: int,
) -> list[float]:
    """Accuracy for 1 to 7 hops over `count` questions, the mean over the paths given as `decisions`."""
    questions = khop.generate(count, seed)
    tokens = tokenizer([q["question"] for q in questions], return_tensors="pt")["input_ids"]
    levels = torch.tensor([q["level"] for q in questions])
    answers = torch.tensor([q["answer"] for q in questions])
    letters = torch.tensor(tokenizer.convert_tokens_to_ids(list(khop.LETTERS)))
    positions = torch.arange(tokens.shape[1])[None]
    mask = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()[None, None]
    right = torch.zeros(count)
    for path in decisions:
        last = run_path(model, tokens, unrolled(path), positions, mask)[-1][:, -1]
        scores = model.lm_head(model.model.norm(last))[:, letters]
        right += (scores.argmax(1) == answers).float() / len(decisions)
    return [float(right[levels == k].mean()) for k in khop.HOPS]


def measure(folder: Path, count: int, seed: int) -> None:
    """Print a Markdown table of the accuracy of a trained base, by passes and hops."""
    model = LlamaForCausalLM.from_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    print(f"| passes | mean | {' | '.join(map(str, khop.HOPS))} |")
    print(f"|---|---|{'---|' * len(khop.HOPS)}")
    for passes in range(2, 2 * BLOCKS + 1):
        row = accuracy(model, tokenizer, paths_of(passes, seed), count, seed)
        name = f"{passes} (the base)" if passes == BLOCKS else str(passes)
        print(f"| {name} | {sum(row) / len(row):.3f} | {' | '.join(f'{value:.2f}' for value in row)} |")


def share_first(model: LlamaForCausalLM) -> None:
    """Copy the weights of the first block to all others."""
    for block in model.model.layers[1:]:
        block.load_state_dict(model.model.layers[0].state_dict())


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Write the checkpoint beside `output`, then move its files in: no half-written file is ever read."""
    output.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        for file in sorted(folder.iterdir()):
            file.chmod(0o644)
            os.replace(file, output / file.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def train(options: argparse.Namespace) -> None:
    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    rng = random.Random(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    batches = Batches(tokenizer, options.batch_size)

    def make_optimizer() -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=options.lr, betas=(0.9, 0.98), weight_decay=0.01)

    optimizer = make_optimizer()
    shared = options.shared > 0
    total = options.minutes * 60.0
    begin = reported = saved = time.monotonic()
    step, running, questions, hardest = 0, 0.0, 1, 2.0
    print(f"{model.num_parameters():,} parameters", flush=True)
    while True:
        elapsed = time.monotonic() - begin
        done = elapsed >= total
        if done or time.monotonic() - reported >= options.report_minutes * 60:
            reported = time.monotonic()
            if shared:
                share_first(model)
            table = {}
            for n in REPORTED_PASSES:
                table[n] = accuracy(model, tokenizer, paths_of(n, step), 700, 10_000 + step)
            lines = " | ".join(
                f"{n}: {sum(row) / len(row):.2f} [{' '.join(f'{100 * v:.0f}' for v in row)}]"
                for n, row in table.items()
            )
            print(
                f"{elapsed / 60:5.1f} min  step {step}  hops {questions}  loss {running:.3f}  {lines}",
                flush=True,
            )
        if done or time.monotonic() - saved >= options.save_minutes * 60:
            saved = time.monotonic()
            save(model, tokenizer, options.output)
        if done:
            return
        progress = elapsed / total
        if shared and progress >= options.shared:
            share_first(model)
            optimizer = make_optimizer()
            shared = False
        rate = min(1.0, (step + 1) / 200) * (0.02 + 0.49 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = options.lr * rate
        if shared:
            # One block learns to make a hop; longer ways are asked for once the shorter ones are known.
            path = [0] * rng.randint(1 + options.slack, questions + options.slack + 2)
        else:
            path = unrolled(draw_decisions(rng, options.plain))
            questions = len(khop.HOPS)
        guided = shared and options.guided
        loss, ends = loss_of(model, batches, generator, path, questions, options.slack, guided)
        if shared and len(path) >= questions + options.slack:
            hardest += (ends[-1] - hardest) * 0.03
            if hardest < 0.4 and questions < len(khop.HOPS):
                questions, hardest = questions + 1, 2.0
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        running += (loss.item() - running) * max(0.01, 1 / step)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo base model on k-hop questions.")
    parser.add_argument("--output", type=Path, default=Path("demo-base"))
    parser.add_argument("--minutes", type=float, default=32.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32, help="sets of arrows a step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--plain", type=float, default=0.3, help="share of steps without skips and repeats")
    parser.add_argument("--shared", type=float, default=0.25, help="share of the time for one block alone")
    parser.add_argument("--guided", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--slack", type=int, default=3, help="passes that a path needs besides its hops")
    parser.add_argument("--report-minutes", type=float, default=3.0)
    parser.add_argument("--save-minutes", type=float, default=10.0)
    parser.add_argument("--measure", type=Path, metavar="FOLDER", help="measure a trained base instead")
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, count=1400, seed=options.seed)
    else:
        train(options)


if __name__ == "__main__":
    main()
