"""The leaderboard: runs all strategies under one protocol and writes docs/leaderboard.md.

The protocol is in configs/leaderboard/, one file per strategy. The files differ only in [strategy]; a test checks this.

    python benchmarks/leaderboard.py                # needs mnist.npz and cifar10.npz in $FEDKD_DATA or data/
    python benchmarks/leaderboard.py --out runs/leaderboard      # a second call continues the first
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from math import isfinite, nan
from pathlib import Path
from statistics import fmean

from fedkd.reports.compare import Comparison, Row, compare, split
from fedkd.reports.estimates import LEAST_SEEDS
from fedkd.reports.report import report
from fedkd.reports.tables import to_csv
from fedkd.runs.progress import ManyRuns
from fedkd.runs.results import Run, completed, find_runs
from fedkd.runs.run_folder import alone_in, make_folder
from fedkd.runs.sweep import check, plan, seeds_of
from fedkd.simulations.sweep import run_jobs

HOME = Path(__file__).resolve().parents[1]
SETS, ALPHAS, SEEDS = ("digits", "mnist", "cifar10"), ("0.1", "0.5"), "0..2"
BY = ["data.name", "data.partition.alpha"]
TABLES = (
    ("personal/accuracy", "Nodes' models on their own test images",
     "The model that a node has after the last round: its personal model, or the global model if the method has no "
     "personal models."),
    ("global/accuracy", "The server's model on the global test set", "For methods that have a global model."),
    ("probe/accuracy", "Self-supervised methods: a linear probe on frozen features",
     "The probe is trained on all nodes' labels, which the methods never use, and measured on the global test set."),
)  # fmt: skip
COST = (
    "Traffic in both directions, and seconds of all rounds without evaluation, with one core per run; means over seeds."
)
PROTOCOL = """
Ten nodes; all take part in each round. 300 training images per class (digits: all images), split by Dirichlet(α).
Before the split, 300 images are removed as the unlabelled public set of the methods that need one. The model is the
small `cnn` (8 and 16 channels, 64 hidden units). 20 rounds of ten local steps, batch size 32, SGD with learning rate
0.05 without momentum (tried on CIFAR-10 at α = 0.1, seed 10: FedAvg is 3 points better with 0.1, but SCAFFOLD
diverges). The work is equal: each strategy has the same number of local steps per round, and `central` has the steps
of all nodes together. So FedNova, which corrects unequal numbers of steps, has nothing to correct. The additional
work of a method (distillation, generators, second models, two views of each image) is part of its seconds, below.
Strategies have their default values, except that the sizes of public batches, generators, queues and virtual images
are reduced to this budget; their configs show the values. Other changes: FedGen's two weights of the generator's
samples are 1 instead of 10 (the best of four pairs that were tried on seed 10), and its generator trains 20 steps at
3e-3 instead of 50 at 3e-4. Virtual images start from real images instead of noise, because 50 steps hardly change
noise (seed 10), and are not flipped. FedMD has no pre-training, because this would be additional work. FedFTG's
student has the nodes' learning rate. The weight EMA has the decay 0.5.

The tables show means ± standard deviations over seeds 0, 1 and 2, in percent, after the last round. The best mean of
a column is bold; with three seeds this is seldom more than a tie. [leaderboard.csv](leaderboard.csv) has the paired
differences to `fedavg` (for self-supervised methods: to `simclr`) with p values, fairness over nodes, and cost. A
cell links to its run's config; run it with its column's `--set data.name=... --set data.partition.alpha=...` and with
`--set seed=...`.

The leaderboard ranks the methods at this small budget. With more training, the ranking may differ: published settings
train ten to a hundred times longer.
"""


def cell(row: Row | None, best: float) -> str:
    """Return a strategy's mean and deviation in percent, in bold if it is the best of a column."""
    if row is None:
        return "–"
    text = f"{100 * row.final.mean:.1f}"
    if row.final.seeds >= LEAST_SEEDS:
        text += f" ± {100 * row.final.deviation:.1f}"
    if row.final.seeds < len(seeds_of(SEEDS)):
        text += f" ({row.final.seeds} of {len(seeds_of(SEEDS))} seeds)"
    return f"**{text}**" if row.final.mean == best else text


def table(metric: str, comparisons: Sequence[Comparison]) -> list[str]:
    """Return the lines of a table: strategies ordered by their mean over columns, each cell linked to its config."""
    by_name = [{row.arm.runs[0].config["strategy"]["name"]: row for row in one.rows} for one in comparisons]
    best = [max((m for row in rows.values() if isfinite(m := row.final.mean)), default=0.0) for rows in by_name]

    def rank(name: str) -> tuple[float, str]:
        """Return the rank by the mean over columns; strategies with a missing or diverged column are last."""
        means = [rows[name].final.mean if name in rows else nan for rows in by_name]
        return -fmean(means) if all(map(isfinite, means)) else 0.0, name

    names = sorted({name for rows in by_name for name in rows}, key=rank)
    lines = ["| strategy | " + " | ".join(_column(one) for one in comparisons) + " |"]
    lines.append("|---|" + "---:|" * len(comparisons))
    for name in names:
        config = f"../configs/leaderboard/{name}.toml"  # from docs/
        cells = [f"[{cell(rows.get(name), most)}]({config})" for rows, most in zip(by_name, best, strict=True)]
        lines.append(f"| [`{name}`]({_page(name)}) | " + " | ".join(cells) + " |")
    return lines


def _page(name: str) -> str:
    own = Path("methods") / f"{name}.md"
    return str(own if (HOME / "docs" / own).exists() else Path("methods") / f"{name.removesuffix('_fl')}.md")


def _column(comparison: Comparison) -> str:
    run = comparison.rows[0].arm.runs[0]
    return f"{run.config['data']['name']}, α = {run.config['data']['partition']['alpha']:g}"


def cost(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Return the lines of the table of traffic and seconds per run, means over seeds, at the first alpha."""
    chosen = [group for group in groups if group[0].config["data"]["partition"]["alpha"] == float(ALPHAS[0])]
    sets = [group[0].config["data"]["name"] for group in chosen]
    lines = ["| strategy | " + " | ".join(f"{name}: MB, s" for name in sets) + " |", "|---|" + "---:|" * len(sets)]
    for name in sorted({run.config["strategy"]["name"] for group in chosen for run in group}):
        cells = []
        for group in chosen:
            runs = [run for run in group if run.config["strategy"]["name"] == name]
            if not runs:
                cells.append("–")
                continue
            megabytes = sum(run.megabytes[-1] for run in runs) / len(runs)
            cells.append(f"{megabytes:.3g}, {sum(run.seconds[-1] for run in runs) / len(runs):.1f}")
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Run the missing runs, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/leaderboard"), help="the folder of the runs")
    parser.add_argument("--configs", type=Path, default=HOME / "configs" / "leaderboard", help="one file per strategy")
    parser.add_argument("--docs", type=Path, default=HOME / "docs", help="where leaderboard.md and .csv are written")
    arguments = parser.parse_args()
    vary = [f"data.name={','.join(SETS)}", f"data.partition.alpha={','.join(ALPHAS)}"]
    configs = sorted(arguments.configs.glob("*.toml"))
    commit = _git("rev-parse", "--short", "HEAD")
    if _git("status", "--porcelain", "fedkd", "strategies", "simulations", "configs"):
        commit += " with changes"
    begin = time.perf_counter()
    grid = plan(configs, [], vary, SEEDS, arguments.out)
    check(grid)
    make_folder(arguments.out)
    with alone_in(arguments.out), ManyRuns(sys.stderr, len(grid.jobs)) as view:
        failed = run_jobs(grid.jobs, view, memory=2 * 2**30)
    minutes = (time.perf_counter() - begin) / 60
    runs, problems = find_runs([arguments.out])
    runs, others = completed(runs)
    groups = sorted(split(runs, BY, []).items(), key=lambda item: _place(item[1][0]))
    made = (
        f"{len(configs)} strategies under one protocol, made by `python benchmarks/leaderboard.py` on "
        f"{datetime.date.today()} at commit {commit}: {len(grid.jobs)} runs in {minutes:.0f} minutes"
        + (f" ({len(grid.done)} more were finished before)" if grid.done else "")
        + f", as many at a time as fit on {os.cpu_count()} cores ({platform.machine()}, no GPU)."
    )
    parts, tables = ["# Leaderboard", "", made, "", *PROTOCOL.strip().splitlines()], []
    for metric, title, about in TABLES:
        comparisons = []
        for name, group in groups:
            having = [run for run in group if metric in run.metrics()]
            if having:
                comparisons.append(compare(having, metric=metric, baseline=_baseline(having), title=name))
        parts += ["", f"## {title}", "", about, "", *table(metric, comparisons)]
        tables += comparisons
    if failed:
        parts += ["", "## Failed", "", *(f"* `{name}`: {reason}" for name, reason in failed.items())]
    parts += ["", f"## Cost at α = {ALPHAS[0]}", "", COST, "", *cost([group for _, group in groups]), ""]
    (arguments.docs / "leaderboard.md").write_text("\n".join(parts))
    (arguments.docs / "leaderboard.csv").write_text(to_csv(tables))
    problems += report([arguments.out], arguments.out / "report.html", "The leaderboard")
    for problem in dict.fromkeys([*problems, *others]):
        print(problem, file=sys.stderr)
    print(f"{len(runs)} runs, {len(failed)} failed, {minutes:.1f} minutes: {arguments.docs / 'leaderboard.md'}")
    raise SystemExit(1 if failed else 0)


def _place(run: Run) -> tuple[int, float]:
    return SETS.index(run.config["data"]["name"]), run.config["data"]["partition"]["alpha"]


def _baseline(runs: Sequence[Run]) -> str:
    return "fedavg" if any(run.config["strategy"]["name"] == "fedavg" for run in runs) else "simclr"


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=HOME, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
