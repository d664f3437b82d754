"""The page of the leaderboard: its protocol and its tables, of the kept results and nothing else."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import leaderboard_methods as rules
from leaderboard_methods import Settings

from fedkd.reports.estimates import Estimate, estimate, holm, paired_p

Board = tuple[str, float]  # a data set and an alpha
Row = dict[str, Any]  # what is kept of a method on a board; see `leaderboard.row_of`

LEVEL = 0.05  # a difference is one if its p, adjusted for the number of methods, is smaller
WIDTH, REASON = 124, 160  # characters of a line of the page, and of a reason in a table
CORES = 2  # of the machine of the estimate
WORST = "worst"  # in the results of a run: the mean accuracy of the worst tenth of nodes
NOT_RUN, NOTHING, BOUND = "not run", "–", "central"
_HEAD = (
    "strategy", "global", "– FedAvg", "personal", "– FedAvg", "– Local", "worst 10 % of nodes", "MB", "s", "settings"
)  # fmt: skip


def boards() -> list[Board]:
    """Return all boards, in the order of the page."""
    return list(itertools.product(rules.SETS, rules.ALPHAS))


def page(rows: Mapping[Board, Mapping[str, Row]]) -> str:
    """Return the page."""
    parts = ["# Leaderboard", "", *_protocol(), "", *_estimate(rows), "", "## Knobs", "", *_knobs()]
    for board in boards():
        name, alpha = board
        parts += ["", f"## {rules.SETS[name].title}, α = {alpha:g}", "", *_said(board, rows.get(board, {})), ""]
        parts += table(rows.get(board, {}))
    parts += ["", "## Not on the board", "", *_left_out()]
    return "\n".join([*parts, "", "## The board before this one", "", *_wrapped(BEFORE), ""])


def _left_out() -> list[str]:
    """Return a line for each reason, with all strategies that have it."""
    reasons = dict.fromkeys(rules.LEFT_OUT.values())
    names = {why: ", ".join(f"`{name}`" for name, one in rules.LEFT_OUT.items() if one == why) for why in reasons}
    return [f"* {named}: {why}" for why, named in names.items()]


def _wrapped(text: str) -> list[str]:
    paragraphs = [textwrap.wrap(" ".join(one.split()), WIDTH, break_on_hyphens=False) for one in text.split("\n\n")]
    return [line for lines in paragraphs for line in [*lines, ""]][:-1]


def _protocol() -> list[str]:
    sets = ", ".join(
        f"[{one.title}](../configs/leaderboard/{name}.toml) ({one.kind})" for name, one in rules.SETS.items()
    )
    return _wrapped(
        PROTOCOL.format(
            sets=sets, alphas=" and ".join(f"{alpha:g}" for alpha in rules.ALPHAS), trials=len(rules.RATES),
            rates=", ".join(f"{rate:g}" for rate in rules.RATES), seed=rules.SEARCH_SEED,
            held_out=f"{100 * rules.HELD_OUT:g}", rest=f"{100 - 100 * rules.HELD_OUT:g}",
            first=rules.SEEDS[0], last=rules.SEEDS[-1], seeds=len(rules.SEEDS), level=f"{LEVEL:g}",
        )
    )  # fmt: skip


PROTOCOL = """
How good is each method when it has settings of its own? `python benchmarks/leaderboard.py` follows this protocol:

**Data.** Four sets: {sets}. Ten nodes share the training samples of each by Dirichlet(α), with α = {alphas}, so that
α means the same on all sets. A node has at least 10 samples. The sets are reduced to the first 300 training samples
of each class, and the first 100 for tests (Rodents: 80; Spoken digits: all). Before the split, 300 training samples
are removed as the unlabelled public set; methods that do not use it do not get them back. The links show the files
with models, rounds and all other settings.

**Work.** All nodes take part in each round, with ten steps of SGD without momentum, batch size 32, for all methods
and all trials. What a method does besides (distillation, generators, second models) is part of its seconds. `central`
trains on the samples of all nodes, with as many steps as the nodes have together. It is the upper bound, and no
federated method.

**Budget.** Each method gets {trials} trials for each set and α, whether it has knobs or not. Each trial has another
learning rate of {rates}. A method with knobs (in the next table) tries another combination of their values in each
trial, in turn. So a method with many settings tries each of them at fewer learning rates. Options that are not named
below have their default values. Sizes of public batches, generators and virtual samples are reduced to the budget of
this board, equally on all sets.

**Choice.** Trials have seed {seed}. They train on {rest} % of the training samples and are measured on the other
{held_out} % (`data.held_out`). The best trial is the one with the best accuracy after the last round: of the global
model, or of the nodes' models if the method is for these; the next table says which. A trial that diverges is lost.
The test set is not used. One seed chooses, so the winner may not be the best setting; this holds for all methods.

**Measurement.** The winner runs with seeds {first} to {last} on all training samples, also those that were held out,
and is measured on the test samples after the last round. A seed draws the partition, the first weights and the
batches, and it draws the same partition for all methods. *Global* is the accuracy of the global model on all test
samples, *personal* the mean over nodes of the accuracy of the model that the node has (the global one if it has no
other) on test samples with the labels of its own training samples. *Worst 10 % of nodes* is the mean of the worst
tenth of nodes in *personal*; of ten nodes this is the worst one. *MB* is the traffic of all rounds in both
directions, *s* the seconds of all rounds without evaluation, on one core. Numbers are means over the {seeds} seeds;
accuracies are in percent, with the 95 % interval of the mean (Student).

**Comparison.** Differences to `fedavg` and `local` are paired by seed, in points. p is of Student's paired test,
adjusted for the number of methods in the column (Holm). A difference is called one if p < {level}; then it is bold.
Otherwise nothing is said about which is better. With {seeds} seeds only a difference that is large beside its spread
over seeds reaches this. A method is tuned for one of the two accuracies, and so are the baselines: `fedavg` for
*global*, `local` for *personal*. Read the other column as a result on the side.
"""


def _estimate(rows: Mapping[Board, Mapping[str, Row]]) -> list[str]:
    each, count = len(rules.RATES) + len(rules.SEEDS), len(boards()) * len(rules.METHODS)
    missing = [(board[0], name) for board in boards() for name in rules.METHODS if name not in rows.get(board, {})]
    if not missing:
        return [f"All {count} results are there."]
    hours = sum(rules.core_hours(name, method, each) for name, method in missing) / CORES
    return _wrapped(ESTIMATE.format(missing=len(missing), count=count, each=each, hours=hours, cores=CORES))


ESTIMATE = """
**{missing} of {count} results are not run**, each of a method on a set at one α. With {each} runs for each they take
about {hours:.0f} hours on {cores} cores. This is an estimate from single runs of some methods, until the board has run.

The command can be stopped at any moment, also by `kill -9`; a second call goes on. `--list` shows what is there. The
sets are read from `$FEDKD_DATA`: `mnist.npz`, `cifar10.npz`, `rodents.parquet` (Portal Project, by way of R's package
`ratdat`), and all 3,000 recordings of `spoken_digits.npz`.
"""


def _knobs() -> list[str]:
    lines = ["| strategy | tuned for | knobs besides the learning rate | fixed, not the default |", "|---|---|---|---|"]
    for name, method in rules.METHODS.items():
        knobs = "; ".join(f"`{key}` {', '.join(map(_value, values))}" for key, values in method.knobs.items())
        fixed = _options(method.fixed) + (f"; {rules.IMAGES}: {_options(method.images)}" if method.images else "")
        target = "global" if method.result == rules.GLOBAL else "personal"
        lines.append(f"| [`{name}`]({_page(name)}) | {target} | {knobs or NOTHING} | {fixed or NOTHING} |")
    source = "[leaderboard_methods.py](../benchmarks/leaderboard_methods.py)"
    return [*lines, "", f"{source} says where the values are from."]


def _options(values: Settings) -> str:
    return ", ".join(f"`{key}` {_value(value)}" for key, value in values.items())


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return str(value["name"])
    if isinstance(value, list):
        return " + ".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _page(name: str) -> str:
    own = f"methods/{name}.md"
    return own if (rules.HOME / "docs" / own).exists() else f"methods/{name.removesuffix('_fl')}.md"


def _said(board: Board, rows: Mapping[str, Row]) -> list[str]:
    """Return where a table's results are from."""
    if not rows:
        return ["No method has been run."]
    made = "; ".join(dict.fromkeys(row["made"] for row in rows.values()))
    return _wrapped(f"Raw results: [{file_of(board)}](leaderboard/{file_of(board)}), {made}.")


def file_of(board: Board) -> str:
    """Return the name of the file with the results of a board."""
    return f"{board[0]}-{board[1]:g}.json"


def table(rows: Mapping[str, Row]) -> list[str]:
    """Return the lines of a board's table: baselines and bound, then methods by the accuracy they are tuned for."""
    columns = {
        ("global", "fedavg"): _differences(rows, rules.GLOBAL, "fedavg"),
        ("personal", "fedavg"): _differences(rows, rules.PERSONAL, "fedavg"),
        ("personal", "local"): _differences(rows, rules.PERSONAL, "local"),
    }
    lines = [_line(_HEAD), _line(["---"] + ["---:"] * (len(_HEAD) - 2) + ["---"])]
    for name in _ordered(rows):
        first = f"[`{name}`]({_page(name)})" + (" (upper bound)" if name == BOUND else "")
        row = rows.get(name)
        if row is None:
            cells = [NOT_RUN] * (len(_HEAD) - 1)
        elif "reason" in row:
            cells = [f"cannot run: {short(row['reason'])}", *[NOTHING] * (len(_HEAD) - 2)]
        else:
            cells = _cells(row, [column.get(name, NOTHING) for column in columns.values()])
        lines.append(_line([first, *cells]))
    return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def short(reason: str) -> str:
    """Return a reason that fits into a cell."""
    text = " ".join(reason.split()).replace("|", "/")
    return text if len(text) <= REASON else f"{text[: REASON - 3].rstrip()}..."


def _ordered(rows: Mapping[str, Row]) -> list[str]:
    references = ["fedavg", "local", BOUND]

    def place(name: str) -> tuple[int, float, str]:
        one = rules.METHODS[name]
        mean = _mean(rows.get(name), one.result).mean
        group = references.index(name) if name in references else 3 if one.result == rules.GLOBAL else 4
        return group, -mean if mean == mean else 1.0, name

    return sorted(rules.METHODS, key=place)


def _of_seeds(row: Row | None, key: str) -> dict[int, float]:
    """Return a value of each seed; empty without the value, and if a seed has failed."""
    runs = row.get("runs", []) if row is not None else []
    return {run["seed"]: run[key] for run in runs} if all(key in run for run in runs) else {}


def _mean(row: Row | None, key: str) -> Estimate:
    return estimate(list(_of_seeds(row, key).values()), (0.0, 1.0))


def _differences(rows: Mapping[str, Row], key: str, base: str) -> dict[str, str]:
    """Return each method's paired difference to a baseline as text."""
    of_base = _of_seeds(rows.get(base), key)
    found = {
        name: [value - of_base[seed] for seed, value in values.items()]
        for name, row in rows.items()
        if name not in (base, BOUND) and of_base and (values := _of_seeds(row, key))
    }
    ps = holm([paired_p(differences) for differences in found.values()])
    return {name: _difference(fmean(one), p) for (name, one), p in zip(found.items(), ps, strict=True)}


def _difference(mean: float, p: float | None) -> str:
    if p is None:
        return f"{100 * mean:+.1f}"
    text = f"{100 * mean:+.1f} (p {'< 0.001' if p < 0.001 else f'{p:.3f}'})"
    return f"**{text}**" if p < LEVEL else text


def _cells(row: Row, differences: Sequence[str]) -> list[str]:
    if failed := [run for run in row["runs"] if "reason" in run]:
        why = f"{len(failed)} of {len(row['runs'])} seeds failed: {short(failed[0]['reason'])}"
        return [why, *[NOTHING] * (len(_HEAD) - 3), _settings(row)]
    megabytes, seconds = (fmean(_of_seeds(row, key).values()) for key in ("megabytes", "seconds"))
    return [
        _accuracy(row, rules.GLOBAL), differences[0], _accuracy(row, rules.PERSONAL), *differences[1:],
        _accuracy(row, WORST), f"{megabytes:.3g}", f"{seconds:.3g}", _settings(row),
    ]  # fmt: skip


def _accuracy(row: Row, key: str) -> str:
    found = _mean(row, key)
    if not found.values:
        return NOTHING
    interval = "" if found.low != found.low else f" ({100 * found.low:.1f} to {100 * found.high:.1f})"
    return f"{100 * found.mean:.1f}{interval}"


def _settings(row: Row) -> str:
    """Return the winner's settings; a rate at an end of the range is marked."""
    settings = row["trials"][row["winner"]]["settings"]
    end = " (end of the range)" if settings["lr"] in (rules.RATES[0], rules.RATES[-1]) else ""
    return ", ".join(f"{key} {_value(value)}{end if key == 'lr' else ''}" for key, value in settings.items())


BEFORE = """
The board of 2026-11-26 had one learning rate, 0.05, for all methods. This was not fair: SCAFFOLD diverged on MNIST in
four of six runs, and it does not at 0.02; on the
one seed that was tried, FedAvg was 3 points better on CIFAR-10 with 0.1. Its numbers are
no longer here.
"""
