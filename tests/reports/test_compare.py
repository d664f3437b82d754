"""Comparing runs: statistics by second formulas, refusals, costs to a target, on folders written by hand."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from helpers.runs_by_hand import Write, three_seeds, three_seeds_again
from scipy import stats

from fedkd.errors import InputError
from fedkd.reports.compare import compare, split
from fedkd.reports.estimates import estimate, holm, paired_p
from fedkd.reports.tables import table, to_csv, to_latex, to_markdown
from fedkd.runs.results import find_runs


def test_estimates_are_those_of_scipy() -> None:
    values = [0.61, 0.64, 0.7, 0.58]
    found = estimate(values)
    low, high = stats.t.interval(0.95, 3, loc=sum(values) / 4, scale=stats.sem(values))
    assert found[:4] == pytest.approx((sum(values) / 4, stats.tstd(values), low, high))
    assert (found.values, found.seeds) == (tuple(values), 4)
    one = estimate([0.5])
    assert (one.mean, one.seeds) == (0.5, 1)
    assert all(map(math.isnan, one[1:4]))


def test_below_three_seeds_there_is_no_deviation_and_no_interval() -> None:
    two = estimate([0.44, 0.55])
    assert (two.mean, two.values) == (pytest.approx(0.495), (0.44, 0.55))
    assert all(map(math.isnan, two[1:4]))


def test_an_interval_stays_in_the_range_of_its_metric(write: Write) -> None:
    values = [0.99, 0.55, 0.98]
    for seed, value in enumerate(values):
        write(f"fedavg-{seed}", seed, [value])
        folder = write(f"local-{seed}", seed, [1 - value], {"strategy": {"name": "local"}}).parent
    for row in compare(find_runs([folder])[0]).rows:
        assert 0 <= row.final.low < row.final.high <= 1
        if row.paired is not None:
            assert row.paired.difference.low == -1  # of a difference of two accuracies
    low, high = stats.t.interval(0.95, 2, loc=sum(values) / 3, scale=stats.sem(values))
    assert (low < 1 < high, estimate(values).high, estimate(values, (0.0, 1.0)).high) == (True, high, 1.0)


def test_a_bootstrap_interval_is_that_of_scipy_and_stays_within_the_values() -> None:
    values = [0.61, 0.64, 0.7, 0.58]
    found = estimate(values, (0.0, 1.0), "bootstrap")
    asked = stats.bootstrap((values,), np.mean, n_resamples=100_000, method="percentile", rng=np.random.default_rng(1))
    assert found[2:4] == pytest.approx(tuple(asked.confidence_interval), abs=0.003)
    assert found == estimate(values, (0.0, 1.0), "bootstrap")
    low, high = estimate([0.99, 0.55, 0.98], (0.0, 1.0), "bootstrap")[2:4]
    assert (low, high) == (pytest.approx(0.55), pytest.approx(0.99))
    assert math.isnan(estimate([0.4, 0.5], (0.0, 1.0), "bootstrap").low)


def test_p_is_that_of_the_paired_t_test() -> None:
    mine, theirs = [0.61, 0.64, 0.7, 0.58], [0.6, 0.6, 0.63, 0.59]
    p = paired_p([a - b for a, b in zip(mine, theirs, strict=True)])
    assert p == pytest.approx(stats.ttest_rel(mine, theirs).pvalue)
    assert paired_p([0.5, 0.5]) is None  # without spread there is no test
    assert paired_p([0.5]) is None


def test_holm_adjusts_by_rank_and_never_downwards() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_values_that_are_not_finite_are_told_and_spare_the_others(write: Write) -> None:
    folder = three_seeds(write)
    diverged = folder / "local-1" / "metrics.jsonl"
    diverged.write_text(diverged.read_text().replace('{"personal/accuracy": 0.62', '{"personal/accuracy": NaN'))
    for seed in range(3):
        write(f"prox-{seed}", seed, [0.3, 0.7 + seed / 50], {"strategy": {"name": "fedprox"}})
    found = compare(find_runs([folder])[0])
    (line,) = found.problems
    assert line == (
        f"{folder / 'local-1'}: personal/accuracy ends as nan, so local has no mean; "
        "its seed is not in differences and gains."
    )
    fedavg, local, prox = found.rows
    assert math.isnan(local.final.mean)
    assert local.best.mean == pytest.approx((0.6 + 0.67 + 0.66) / 3)  # of what was finite
    assert local.paired is not None
    assert local.paired.difference.values == pytest.approx((0.05, 0.01))  # of the other two seeds
    assert local.paired.wins == 2
    assert local.paired.p is None  # a test without the seeds that diverged would favour those that diverge
    assert prox.paired is not None
    assert prox.paired.p == pytest.approx(stats.ttest_1samp([0.2, 0.17, 0.14], 0).pvalue)  # one test, not two
    assert fedavg.final.mean == pytest.approx(0.6375)
    for text in (to_markdown([found]), to_latex([found]), to_csv([found])):
        assert "nan" not in text.lower()


def test_rows_hold_means_differences_costs_and_fairness(write: Write) -> None:
    runs, problems = find_runs([three_seeds(write)])
    assert problems == []
    found = compare(runs, target=0.5)
    assert found.metric == "personal/accuracy"
    fedavg, local = found.rows
    assert (fedavg.arm.name, local.arm.name) == ("fedavg", "local")
    assert [run.seed for run in fedavg.arm.runs] == [0, 1, 2, 9]
    assert fedavg.paired is None
    assert fedavg.final.mean == pytest.approx((0.5 + 0.55 + 0.6 + 0.9) / 4)
    assert local.best.mean == pytest.approx((0.6 + 0.67 + 0.66) / 3)
    assert local.paired is not None  # on the three seeds that both have
    assert local.paired.difference[:2] == (pytest.approx((0.05 + 0.07 + 0.01) / 3), pytest.approx(0.0305505, rel=1e-5))
    assert (local.paired.difference.seeds, local.paired.wins) == (3, 3)
    assert local.paired.p == pytest.approx(stats.ttest_1samp([0.05, 0.07, 0.01], 0).pvalue)
    assert local.worst_decile == pytest.approx(local.final.mean - 0.1)
    assert local.spread == pytest.approx(0.1)
    # 1 MB down in each of rounds 0 to 2, half a megabyte up in rounds 1 and 2; evaluation does not count
    assert fedavg.reached == (2.0, pytest.approx(4.0), 6.0, 4)
    assert local.reached == (1.0, pytest.approx(2.5), 4.0, 3)
    assert (local.megabytes, local.seconds, local.failures) == (pytest.approx(4.0), 6.0, 3)


def test_a_target_that_some_runs_miss_counts_those_that_reach_it(write: Write) -> None:
    found = compare(find_runs([three_seeds(write)])[0], target=0.66)
    assert found.rows[1].reached is not None
    assert (found.rows[1].reached.rounds, found.rows[1].reached.runs) == (1.0, 2)
    header, rows = table(found)
    assert rows[0][header.index("reached")] == "1 of 4"
    nobody = table(compare(find_runs([three_seeds_again(found)])[0], target=0.99))
    assert nobody[1][0][nobody[0].index("rounds to it")] == "–"


def test_a_loss_is_better_when_it_is_less(write: Write) -> None:
    for name, values in (("fedavg", [0.9, 0.4]), ("local", [0.5, 0.6])):
        for seed in range(2):
            folder = write(f"{name}-{seed}", seed, values, {"strategy": {"name": name}})
            text = (folder / "metrics.jsonl").read_text().replace("personal/accuracy", "global/loss")
            (folder / "metrics.jsonl").write_text(text)
    found = compare(find_runs([folder.parent])[0], target=0.5)
    assert found.rows[1].paired is not None
    assert found.rows[1].paired.wins == 0
    assert [row.best.mean for row in found.rows] == [0.4, 0.5]
    assert found.rows[0].reached is not None
    assert found.rows[0].reached.rounds == 2.0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data.partition.alpha": 0.1}, "data.partition.alpha is 0.5 or 0.1"),
        ({"data.name": "mnist"}, "data.name is 'digits' or 'mnist'"),
        ({"train.batch_size": 4}, "train.batch_size is 8 or 4"),
        ({"model.hidden": [8]}, "model.hidden is [16] or [8]"),
        ({"data.public": {"size": 20}}, "data.public.size is unset or 20"),
        ({"cohort": 3}, "cohort is unset or 3"),
    ],
)
def test_unlike_runs_are_refused_by_the_key(write: Write, changes: dict[str, Any], named: str) -> None:
    write("a", 0, [0.5, 0.6])
    folder = write("b", 0, [0.6, 0.7], {"strategy": {"name": "local"}, **changes}).parent
    runs, _ = find_runs([folder])
    with pytest.raises(InputError) as refused:
        split(runs, [], [])
    assert named in str(refused.value)
    key = named.split(" ")[0].removesuffix(".size")
    assert list(split(runs, [], [key])) == [""]
    assert len(split(runs, [key], [])) == 2
    with pytest.raises(InputError, match="--by no.key: no run has such a key"):
        split(runs, ["no.key"], [])


def test_other_rounds_are_refused_and_another_engine_or_seed_is_not(write: Write) -> None:
    write("a", 0, [0.5, 0.6])
    folder = write("b", 1, [0.6, 0.7], {"engine": {"name": "ray"}, "checkpoint": {"every": 1}}).parent
    assert list(split(find_runs([folder])[0], [], [])) == [""]
    write("c", 0, [0.6])
    with pytest.raises(InputError, match="rounds is 2 or 1"):
        split(find_runs([folder])[0], [], [])


LOCAL = {"strategy": {"name": "local"}}


@pytest.mark.parametrize(
    ("seed", "changes", "origin", "message"),
    [
        (0, LOCAL, {"images": "other"}, "the images or labels"),
        (0, LOCAL, {"partition": "other"}, "the partition, the public set"),
        (1, LOCAL, {"images": "other"}, "the images or labels"),
        (1, {}, {"files": {"mine.py": "other"}}, "the file mine.py"),
        (1, {}, {"versions": {"torch": "3"}}, r"torch \(it was 2, is 3\)"),
        (1, {}, {"changes": [{"from_round": 3, "what": ["the file mine.py"]}]}, "went on after a change"),
        (1, LOCAL, {"files": {"mine.py": "other"}}, None),
        (1, LOCAL, {"partition": "other"}, None),
        (1, {}, {"files": {"mine.py": "one", "of_another_run.py": "x"}}, None),
    ],
)
def test_what_has_changed_between_runs_is_refused_or_accepted(
    write: Write, seed: int, changes: dict, origin: dict, message: str | None
) -> None:
    first = write("a", 0, [0.5])
    write("b", seed, [0.6], changes, **origin)
    runs = find_runs([first.parent])[0]
    if message is None:
        assert "differ:" not in " ".join(compare(split(runs, [], [])[""]).problems)
        return
    with pytest.raises(InputError, match=message) as refused:
        split(runs, [], [])
    assert "--accept-changes" in str(refused.value)
    problems = compare(split(runs, [], [], accept_changes=True)[""]).problems
    assert any(re.search(message, problem) for problem in problems)


def test_metrics_that_are_missing_are_told_and_the_rest_works(write: Write) -> None:
    folder = three_seeds(write)
    lacking = folder / "local-0" / "metrics.jsonl"
    lacking.write_text(lacking.read_text().replace("personal/accuracy", "global/accuracy"))
    runs, _ = find_runs([folder])
    found = compare(runs, metric="personal/accuracy")
    assert found.problems == [f"{folder / 'local-0'}: has no personal/accuracy; left out."]
    assert [run.seed for run in found.rows[1].arm.runs] == [1, 2]
    with pytest.raises(InputError, match="unknown 'personal/acuracy'; did you mean 'personal/accuracy'?"):
        compare(runs, metric="personal/acuracy")
    for line in ("local-1", "local-2"):
        path = folder / line / "metrics.jsonl"
        path.write_text(path.read_text().replace("personal/accuracy", "global/accuracy"))
    with pytest.raises(
        InputError, match="no metric that all runs have.*fedavg: personal/accuracy; local: global/accur"
    ):
        compare(find_runs([folder])[0])
    with pytest.raises(InputError, match="--baseline 'fedmd': no arm is that; valid: 'fedavg', 'local'"):
        compare(runs, baseline="fedmd")


def test_an_angle_is_better_when_it_is_less(write: Write) -> None:
    for name, values in (("fedavg", [20.5, 15.0]), ("local", [20.5, 11.0])):
        folder = write(name, 0, values, {"strategy": {"name": name}})
        text = (folder / "metrics.jsonl").read_text().replace("personal/accuracy", "drift/projection_angle")
        (folder / "metrics.jsonl").write_text(text)
    found = compare(find_runs([folder.parent])[0])
    assert found.rows[1].paired is not None
    assert (found.rows[1].paired.wins, found.rows[1].best.mean) == (1, 11.0)
