"""Prompts without answers: a mixture of real and made ones of 13 kinds, and 4 kinds more that nothing is trained on.

    python examples/fidelity_prompts.py --data DATA --output prompts --seed 0

writes `train.jsonl`, `test.jsonl` and `unseen.jsonl`, one `{"kind": ..., "prompt": ...}` a line, for `drllm search`,
`drllm probe` and `drllm eval` with `--mode self`. DATA holds the question files that evidence_smollm2.py names; their
answers are not used. What is in `train.jsonl` and what is not is decided by a hash of what is asked, so no seed tests
on what another one trains on, and every seed draws other questions.
"""

import argparse
import hashlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from drllm_adapter.files import write_text_atomic

Make = Callable[[random.Random], str]

LETTERS = "ABCDEFGHIJ"
LONGEST = 420  # characters of a prompt; longer ones cost several times as much as the others
LONGEST_LOGIC = 900

WORDS = """
    apple river stone candle window garden silver purple mountain kettle ladder rabbit orange pencil bridge
    lantern forest basket pillow hammer violin pepper button cactus dragon engine feather glacier harbor island
    jacket kitten lemon magnet needle ocean parrot quilt ribbon saddle tunnel umbrella valley wagon yogurt zebra
    anchor bucket copper desert
""".split()  # noqa: SIM905
NAMES = """
    Ana Ben Carla David Elena Farid Grace Hugo Irene Jonas Kavya Liam Maria Noah Olga Pedro Quinn Rosa Samir Tina
    Umar Vera Walter Xenia Yusuf Zoe
""".split()  # noqa: SIM905
CITIES = """
    Paris London Berlin Madrid Rome Oslo Cairo Lima Tokyo Delhi Toronto Sydney Vienna Dublin Athens Boston
""".split()  # noqa: SIM905
COUNTRIES = """
    France Germany Italy Spain Portugal Norway Sweden Finland Denmark Poland Austria Hungary Greece Turkey Egypt
    Kenya Nigeria Ghana Morocco Ethiopia Japan China India Thailand Vietnam Indonesia Malaysia Philippines
    Australia Canada Mexico Brazil Argentina Chile Peru Colombia Cuba Russia Ukraine Ireland Iceland Belgium
    Netherlands Switzerland Romania Bulgaria Serbia Croatia Iran Iraq Israel Jordan Pakistan Nepal Mongolia
""".split()  # noqa: SIM905
JOBS = """
    teacher nurse pilot farmer baker lawyer painter doctor driver singer
""".split()  # noqa: SIM905
HEROES = """
    fox owl bear dragon turtle robot pirate wizard mouse knight sailor ghost king girl boy dog cat whale
""".split()  # noqa: SIM905
PLACES = ["in a forest", "on the moon", "by the sea", "in a small town", "in a castle", "at school", "in the desert",
          "on a ship", "in a library", "in winter"]  # fmt: skip
SUBJECTS = ["The teacher", "My brother", "The old man", "A young girl", "The doctor", "Our neighbor", "The cat"]
VERBS = """
    bought saw lost found painted carried cleaned forgot
""".split()  # noqa: SIM905
OBJECTS = [
    "a red car",
    "the blue book",
    "three apples",
    "a small house",
    "the old table",
    "two chairs",
    "a white horse",
]
TIMES = ["yesterday", "in the morning", "at the market", "last week", "in the garden", "on Sunday"]


def sentence(r: random.Random) -> str:
    return f"{r.choice(SUBJECTS)} {r.choice(VERBS)} {r.choice(OBJECTS)} {r.choice(TIMES)}."


def json_object(r: random.Random) -> str:
    name, age, city, job = r.choice(NAMES), r.randint(18, 80), r.choice(CITIES), r.choice(JOBS)
    return r.choice([
        f'Write a JSON object with name "{name}", age {age} and city "{city}".',
        f"Write this as JSON: name {name}, age {age}, job {job}, city {city}.",
        f"Turn into JSON with the keys name, age, city: {name} is {age} years old and lives in {city}.",
    ])  # fmt: skip


def copy(r: random.Random) -> str:
    words = " ".join(r.sample(WORDS, r.randint(6, 14)))
    order = f"Say the following words again in the same order.\n{words}"
    return r.choice([f"Repeat these words exactly: {words}", f"Copy these words: {words}", order])


def addition(r: random.Random) -> str:
    a, b = r.randint(10, 99), r.randint(10, 99)
    return r.choice([f"What is {a} + {b}?", f"Add {a} and {b}.", f"Compute {a}+{b}. Give the answer."])


def capital(r: random.Random) -> str:
    country = r.choice(COUNTRIES)
    return r.choice([
        f"What is the capital of {country}?", f"Name the capital city of {country}.",
        f"Which city is the capital of {country}, and what is it known for?",
        f"Tell me about the capital of {country}.",
    ])  # fmt: skip


def story(r: random.Random) -> str:
    hero, place = r.choice(HEROES), r.choice(PLACES)
    return r.choice([
        f"Write a short story about a {hero} {place}.", f"Tell me a story about a {hero} who lives {place}.",
        f"Once there was a {hero} {place}. Tell what happened.",
    ])  # fmt: skip


def numbers(r: random.Random) -> str:
    first = r.randint(1, 60)
    last = first + r.randint(8, 25)
    return r.choice([
        f"List the numbers from {first} to {last}.", f"Count from {first} to {last}.",
        f"Write all whole numbers from {first} to {last}, separated by commas.",
    ])  # fmt: skip


def translation(r: random.Random) -> str:
    language = r.choice(["French", "Spanish", "German", "Italian"])
    return r.choice([f"Translate into {language}: {sentence(r)}", f"How do you say this in {language}? {sentence(r)}"])


def sorting(r: random.Random) -> str:
    return f"Sort these words alphabetically: {' '.join(r.sample(WORDS, r.randint(5, 8)))}"


def code(r: random.Random) -> str:
    task = r.choice([
        "returns the sum of", "reverses", "finds the largest element of", "counts the even numbers in",
        "removes duplicates from", "sorts", "finds the average of", "prints every element of",
    ])  # fmt: skip
    return (
        f"Write a Python function that {task} {r.choice(['a list', 'a list of integers', 'a tuple', 'the list xs'])}"
        f"{r.choice(['.', ' and explain it.', ' with a docstring.'])}"
    )


def email(r: random.Random) -> str:
    about = r.choice(["a meeting on Monday", "a late delivery", "a job interview", "a birthday party", "a lost key"])
    return f"Write an email from {r.choice(NAMES)} to {r.choice(NAMES)} about {about}."


def capitals(r: random.Random) -> str:
    return f"Write this sentence in capital letters: {sentence(r)}"


MADE: dict[str, Make] = {
    "json": json_object, "copy": copy, "addition": addition, "capital": capital, "story": story, "numbers": numbers,
    "translation": translation,
}  # fmt: skip
UNSEEN: dict[str, Make] = {"sorting": sorting, "code": code, "email": email, "capital letters": capitals}


def explained(row: dict[str, Any]) -> str:
    return f"{with_choices(row)}\nAnswer and explain why."


def chosen(row: dict[str, Any]) -> str:
    return f"{with_choices(row)}\nWhich one is right?"


def plain(row: dict[str, Any]) -> str:
    return str(row["question"])


def passage(row: dict[str, Any]) -> str:
    """The first sentences of the text that a question is about, to be continued."""
    return "Continue this text: " + " ".join(str(row["question"]).split("\n")[0].split()[:40])


def with_choices(row: dict[str, Any]) -> str:
    listed = (f"{letter}. {choice}" for letter, choice in zip(LETTERS, row["choices"], strict=False))
    return "\n".join([row["question"], *listed])


REAL: dict[str, tuple[str, Callable[[dict[str, Any]], str], int]] = {
    "arc": ("arc_easy_train.jsonl", explained, LONGEST),
    "mmlu": ("mmlu_stem_test.jsonl", chosen, LONGEST),
    "logiqa": ("logiqa_en.jsonl", chosen, LONGEST_LOGIC),
    "gsm8k": ("gsm8k_train.jsonl", plain, LONGEST),
    "math": ("math_levels.jsonl", plain, LONGEST),
    "text": ("logiqa_en.jsonl", passage, LONGEST),
}
KINDS = (*REAL, *MADE)


def draw(data: Path, part: str, count: int, seed: int) -> list[dict[str, str]]:
    """`count` prompts of each kind, `kind` and `prompt` each; kinds alternate, so that any beginning is a mixture.

    Args:
        data: folder of the question files.
        part: "train", "test", or "unseen": other kinds, for testing.
    """
    makers = UNSEEN if part == "unseen" else MADE
    by_kind = {kind: made(make, f"{kind}:{part}:{seed}", part) for kind, make in makers.items()}
    if part != "unseen":
        by_kind = {kind: asked(data, kind, part, count * seed) for kind in REAL} | by_kind
    rows = []
    for place in range(count):
        for kind, prompts in by_kind.items():
            prompt = next(prompts, None)
            if prompt is None:
                raise SystemExit(f"{kind} has {place} prompts to {part} with seed {seed}, {count} were asked for.")
            rows.append({"kind": kind, "prompt": prompt})
    return rows


def asked(data: Path, kind: str, part: str, first: int) -> Iterator[str]:
    """Prompts of a file's questions, in a random order that is always the same."""
    file, word, longest = REAL[kind]
    rows = [json.loads(line) for line in (data / file).read_text(encoding="utf-8").splitlines()]
    random.Random(kind).shuffle(rows)
    prompts = (word(row) for row in rows if part_of(row["question"].split("\n")[0]) == part)
    yield from [prompt for prompt in dict.fromkeys(prompts) if len(prompt) <= longest][first:]


def made(make: Make, seed: str, part: str) -> Iterator[str]:
    """Made prompts, none twice; those of the other part are left out."""
    generator, seen = random.Random(seed), set()
    for _ in range(10_000):
        prompt = make(generator)
        if prompt not in seen and part in ("unseen", part_of(prompt)):
            seen.add(prompt)
            yield prompt


def part_of(text: str) -> str:
    return ("train", "test")[hashlib.sha256(text.encode()).digest()[0] % 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the question files")
    parser.add_argument("--output", type=Path, required=True, help="folder for the three files")
    parser.add_argument("--train", type=int, default=20, help="prompts of each kind to train on")
    parser.add_argument("--test", type=int, default=20, help="prompts of each kind to test on")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", options.train), ("test", options.test), ("unseen", options.test)):
        rows = draw(options.data, part, count, options.seed)
        write_text_atomic(options.output / f"{part}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        print(f"{options.output / part}.jsonl: {len(rows)} prompts of {len({row['kind'] for row in rows})} kinds")


if __name__ == "__main__":
    main()
