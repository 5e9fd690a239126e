"""The tables of docs/evidence.md, from what the evidence scripts wrote.

python examples/evidence_tables.py evidence-demo/evidence.json
"""

import argparse
import json
import math
from pathlib import Path
from statistics import mean
from typing import Any


def markdown(runs: list[dict[str, Any]]) -> str:
    """Ways of supervision, and the first way against every baseline.

    Args:
        runs: one of each seed: its `seed`, and its `reports`, those of `drllm eval` by way of supervision.
    """
    ways = list(runs[0]["reports"])
    lines = ["| supervision | seed | base | routed | difference | mean passes |", "|---|---|---|---|---|---|"]
    for way in ways:
        reports = [run["reports"][way] for run in runs]
        for run, report in zip(runs, reports, strict=True):
            lines.append(
                f"| {way} | {run['seed']} | {percent(report['base']['value'], report['base']['interval'])} | "
                f"{percent(report['routed']['value'], report['routed']['interval'])} | "
                f"{percent(report['difference'], report['difference_interval'], '+')} | "
                f"{report['mean_passes']:.2f} of {report['num_blocks']} |"
            )
        if len(runs) > 1:
            base, routed = (100 * mean(report[name]["value"] for report in reports) for name in ("base", "routed"))
            average = mean(report["mean_passes"] for report in reports)
            lines.append(f"| **{way}** | all | {base:.1f} | {routed:.1f} | {pooled(reports)} | {average:.2f} |")
    tables = [run["reports"][ways[0]].get("baselines") for run in runs]
    if None in tables:  # routers held to a loss are not compared with baselines
        return "\n".join(lines + by_task([run["reports"][ways[0]] for run in runs])) + "\n"
    columns = [f"seed {run['seed']}: right, routed - it" for run in runs] + ["all seeds"] * (len(runs) > 1)
    lines += ["", f"| path | passes | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
    own = [table["routed"] for table in tables]
    cells = [percent(item["value"], item["interval"]) for item in own]
    if len(own) > 1:
        cells.append(f"{100 * mean(item['value'] for item in own):.1f}")
    lines.append(f"| **routed** | {passes(own)} | {' | '.join(cells)} |")
    for rows in zip(*(table["baselines"] for table in tables), strict=True):
        cells = [
            f"{100 * row['value']:.1f}, {percent(row['difference'], row['difference_interval'], '+')}" for row in rows
        ]
        if len(rows) > 1:
            cells.append(f"{100 * mean(row['value'] for row in rows):.1f}, {pooled(rows)}")
        lines.append(f"| {rows[0]['name']} | {passes(rows)} | {' | '.join(cells)} |")
    for name in ("search", "chance") if tables[0]["oracles"] else ():
        found = [table["oracles"][name] for table in tables]
        cells = [f"{100 * oracle['accuracy']:.1f}" for oracle in found] + [""] * (len(found) > 1)
        lines.append(f"| oracle of {name} (training questions) | {passes(found)} | {' | '.join(cells)} |")
    return "\n".join(lines + by_task([run["reports"][ways[0]] for run in runs])) + "\n"


def by_task(reports: list[dict[str, Any]]) -> list[str]:
    """The questions of each task, of all seeds together; no lines where all are of one."""
    if not reports[0]["tasks"]:
        return []
    lines = ["", "| task | questions | base | routed | mean passes |", "|---|---|---|---|---|"]
    for parts in zip(*(report["tasks"] for report in reports), strict=True):
        count = sum(part["base"]["of"] for part in parts)
        right = {name: sum(part[name]["right"] for part in parts) for name in ("base", "routed")}
        passed = sum(part["mean_passes"] * part["base"]["of"] for part in parts)
        shares = " | ".join(f"{100 * number / count:.1f}" for number in right.values())
        lines.append(f"| {parts[0]['task']} | {count} | {shares} | {passed / count:.2f} |")
    return lines


def pooled(rows: list[dict[str, Any]]) -> str:
    """The mean difference of seeds that tested equally many, and other, questions.

    The half-widths of their intervals add up as independent errors do.
    """
    centre = mean(row["difference"] for row in rows)
    squares = ((high - low) ** 2 / 4 for low, high in (row["difference_interval"] for row in rows))
    half = math.sqrt(sum(squares)) / len(rows)
    return percent(centre, [centre - half, centre + half], "+")


def percent(value: float, interval: list[float], sign: str = "") -> str:
    return f"{100 * value:{sign}.1f} [{100 * interval[0]:{sign}.1f}, {100 * interval[1]:{sign}.1f}]"


def passes(rows: Any) -> str:
    found = [f"{row['passes']:.2f}" for row in rows]
    return found[0] if len(set(found)) == 1 else ", ".join(found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evidence", type=Path, help="evidence.json, as the evidence scripts write it")
    print(markdown(json.loads(parser.parse_args().evidence.read_text())["runs"]))
