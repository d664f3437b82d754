"""Which strategies a table shows, in which order and under which names; what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.runs_by_hand import Write
from typer.testing import CliRunner

from fedkd.cli import app
from fedkd.errors import InputError
from fedkd.reports.compare import compare, compare_groups
from fedkd.reports.selection import arranged, check_known, names_in, of_group, words_in
from fedkd.runs.results import Arm, arms_of, find_runs


@pytest.fixture
def folder(write: Write) -> Path:
    """Return runs of `local`, and of `fedprox` with two values of mu."""
    for seed in range(3):
        local = write(f"local-{seed}", seed, [0.5 + seed / 100], {"strategy": {"name": "local"}})
        for mu in (0.1, 1.0):
            write(f"prox-{mu}-{seed}", seed, [0.6 + mu / 10 + seed / 50], {"strategy": {"name": "fedprox", "mu": mu}})
    return local.parent


@pytest.fixture
def arms(folder: Path) -> list[Arm]:
    return arms_of(find_runs([folder])[0])[0]


LOW, HIGH = "fedprox (mu 0.1)", "fedprox (mu 1)"


def test_arms_are_renamed_and_ordered(arms: list[Arm]) -> None:
    def shown(names: dict[str, str], rows: list[str]) -> list[str]:
        return [arm.name for _, arm in arranged(arms, names, rows)]

    assert shown({}, []) == ["local", LOW, HIGH]
    assert shown({}, ["fedprox", "local"]) == [LOW, HIGH, "local"]
    assert shown({}, [HIGH, "fedprox"]) == [HIGH, LOW]  # each once, where it is first named
    assert shown({"local": "Local", HIGH: "FedProx\n(μ = 1)"}, []) == ["Local", LOW, "FedProx (μ = 1)"]
    assert shown({"local": "Local"}, ["Local", LOW]) == ["Local", LOW]
    assert [arm.name for arm, _ in arranged(arms, {"local": "Local"}, [])] == ["local", LOW, HIGH]


@pytest.mark.parametrize(
    ("names", "rows", "message"),
    [
        ({"locl": "Local"}, [], "--name 'locl': no strategy is that; did you mean 'local'?"),
        ({"fedprox": "FedProx"}, [], "--name 'fedprox': several strategies are that; valid: 'local', 'fedprox (mu 0."),
        ({"local": "X", LOW: "X"}, [], "--name: two strategies are named 'X'; give each a name of its own."),
        ({}, ["local", "fedavg"], "--rows 'fedavg': no strategy is that. Valid: fedprox (mu 0.1), fedprox (mu 1), lo"),
    ],
)
def test_unknown_names_are_refused_with_the_valid_ones(
    arms: list[Arm], names: dict[str, str], rows: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        arranged(arms, names, rows)


def test_names_and_rows_are_read_from_texts(arms: list[Arm]) -> None:
    assert words_in(f" local, {LOW},a (b, c (d, e)), f,") == ["local", LOW, "a (b, c (d, e))", "f"]
    assert words_in("") == []
    assert words_in("a),b") == ["a)", "b"]
    names = names_in(["local=Local (lr = 1)", f"{LOW}= A=B "], [arms])
    assert names == {"local": "Local (lr = 1)", LOW: "A=B"}
    assert names_in(["other=X=Y"], [arms]) == {"other": "X=Y"}  # it is refused as unknown later
    for text in ("local", "local=", "local=  ", "=x"):
        with pytest.raises(InputError, match=re.escape(f"--name {text.strip()!r}: write it as strategy=Name.")):
            names_in([text], [arms])


def test_groups_may_lack_a_strategy_but_not_all_of_them(arms: list[Arm]) -> None:
    assert of_group(arms[:1], {"local": "L", LOW: "P"}, ["P", "L"]) == ({"local": "L"}, ["L"])
    check_known([arms[:1], arms[1:]], {"local": "L", LOW: "P"}, ["P", "L", "fedprox"])
    for names, rows, option in (({"x": "L"}, [], "--name 'x'"), ({}, ["y"], "--rows 'y'")):
        with pytest.raises(InputError, match=f"{option}: no strategy is that"):
            check_known([arms[:1], arms[1:]], names, rows)


def test_differences_are_to_a_baseline_that_need_not_be_a_row(folder: Path) -> None:
    runs, _ = find_runs([folder])
    names = {"local": "Local", LOW: "FedProx"}
    found = compare(runs, baseline="Local", names=names, rows=["FedProx"])
    (row,) = found.rows
    assert (row.arm.name, found.baseline) == ("FedProx", "Local")
    assert row.paired is not None
    assert row.paired.difference.values == pytest.approx((0.11, 0.12, 0.13))
    alone, both = (compare(runs, baseline="local", rows=rows).rows[-1] for rows in ([HIGH], [LOW, HIGH]))
    assert alone.paired is not None
    assert both.paired is not None
    assert alone.paired.p is not None
    assert both.paired.p is not None
    assert alone.paired.p < both.paired.p  # adjusted for the number of rows
    assert compare(runs, rows=[HIGH, "local"]).baseline == HIGH  # by default the first row


def test_groups_that_are_refused_spare_the_others(write: Write, folder: Path) -> None:
    other = write("other", 0, [0.4], {"strategy": {"name": "fedavg"}})
    groups = {"a": find_runs([folder])[0], "b": find_runs([other])[0]}
    groups["a"] = [run for run in groups["a"] if run.path != other]
    (found,), (refused,) = compare_groups(groups, rows=["local"])
    assert (found.title, len(found.rows), refused) == ("a", 1, "b: none of the --rows is here.")
    with pytest.raises(InputError, match="a: --baseline 'x': no arm is that"):
        compare_groups(groups, baseline="x")


def test_the_command_names_orders_and_chooses(folder: Path, tmp_path: Path) -> None:
    words = ["--name", "local=Local", "--name", f"{LOW}=Prox, small", "--rows", f"{HIGH},local"]
    words += ["--columns", "seeds,final,95 % interval,personal/accuracy", "--interval", "bootstrap"]
    out = tmp_path / "tables"
    done = CliRunner().invoke(app, ["compare", str(folder), *words, "--baseline", "Prox, small", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "bootstrap draws" in done.stdout
    header, _, first, second = [line for line in (out / "compare.md").read_text().splitlines() if line[:1] == "|"]
    assert header == "| strategy | seeds | final | 95 % interval | personal/accuracy (%) |"
    assert first == "| fedprox (mu 1) | 3 | **72.0 ± 2.0** | 70.0 to 74.0 | **72.0 ± 2.0** |"
    assert second == "| Local | 3 | 51.0 ± 1.0 | 50.0 to 52.0 | 51.0 ± 1.0 |"
    for wrong, message in (
        (["--columns", "final,none"], "--columns: unknown 'none'"),
        (["--rows", "none"], "--rows 'none'"),
        (["--name", "none=x"], "--name 'none'"),
    ):
        refused = CliRunner().invoke(app, ["compare", str(folder), *wrong])
        assert (refused.exit_code, message in refused.stderr) == (2, True), refused.output
