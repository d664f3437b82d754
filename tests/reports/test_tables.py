"""Tables of a comparison: the same in all forms, in parts on a narrow terminal."""

from __future__ import annotations

import csv
import io
import re

import pytest
from helpers.runs_by_hand import Write, three_seeds

from fedkd.reports.compare import compare
from fedkd.reports.report import render
from fedkd.reports.tables import caption, table, to_csv, to_latex, to_markdown
from fedkd.runs.results import find_runs


def test_tables_say_the_same_in_all_forms(write: Write) -> None:
    found = compare(find_runs([three_seeds(write)])[0], target=0.5)
    header, rows = table(found)
    assert rows[1][:6] == ["local", "3", "59.3 ± 3.8", "49.9 to 68.7", "64.3 ± 3.8", "+4.3 ± 3.1"]
    markdown = to_markdown([found])
    assert "| local | 3 | 59.3 ± 3.8 |" in markdown
    assert len({line.count("|") for line in markdown.splitlines() if line.startswith("|")}) == 1
    latex = to_latex([found])
    assert r"local & 3 & 59.3 $\pm$ 3.8" in latex
    assert r"\textbf{63.7 $\pm$ 18.0}" in latex  # the best mean
    assert latex.count("&") == (len(header) - 1) * (len(rows) + 1)
    (first, second) = csv.DictReader(io.StringIO(to_csv([found])))
    assert float(second["final_mean"]) == pytest.approx((0.55 + 0.62 + 0.61) / 3)
    assert (second["seeds"], first["p"], second["gains"]) == ("0 1 2", "", "3")


def test_two_seeds_are_shown_as_they_are_in_all_forms(write: Write) -> None:
    for seed, (fedavg, local) in enumerate([(0.44, 0.5), (0.55, 0.52)]):
        write(f"fedavg-{seed}", seed, [fedavg])
        folder = write(f"local-{seed}", seed, [local], {"strategy": {"name": "local"}}).parent
    found = compare(find_runs([folder])[0])
    assert table(found)[1][1][:7] == ["local", "2", "50.0, 52.0", "–", "50.0, 52.0", "+6.0, -3.0", "1 of 2"]
    assert "fewer than three seeds" in caption(found)
    assert "| local | 2 | 50.0, 52.0 | – |" in to_markdown([found])
    latex = to_latex([found])
    assert "local & 2 & \\textbf{50.0, 52.0} & -- & 50.0, 52.0 & +6.0, $-$3.0" in latex
    (_, second) = csv.DictReader(io.StringIO(to_csv([found])))
    assert (second["final_values"], second["final_deviation"], second["final_low"]) == ("0.5 0.52", "", "")
    page, _ = render([run for row in found.rows for run in row.arm.runs], [], "two seeds")
    assert "50.0, 52.0" in page
    assert "±" not in page.split("<table")[1].split("</table>")[0]
    assert "standard deviation over seeds." not in page


def test_latex_has_minus_signs_and_leaves_the_hyphens_of_names(write: Write) -> None:
    write("a", 0, [0.5])
    folder = write("b", 0, [0.4], {"strategy": {"name": "my-file.py:Fed-2"}}).parent
    latex = to_latex([compare(find_runs([folder])[0], target=-0.5)])
    assert "Fed-2 & 1 & 40.0 & -- & 40.0 & $-$10.0" in latex
    assert "Target: $-$0.5" in latex


def test_a_narrow_terminal_gets_the_table_in_parts(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from fedkd.cli.tables import print_comparison

    found = compare(find_runs([three_seeds(write)])[0], target=0.5)
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    print_comparison(*table(found), "caption")
    shown = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.count("local") == 3
    assert all(cell in shown for row in table(found)[1] for cell in row)


def test_latex_escapes_names(write: Write) -> None:
    folder = write("a", 0, [0.5], {"strategy": {"name": "my_file.py:Fed_{50%}"}}).parent
    assert r"Fed\_\{50\%\} & 1" in to_latex([compare(find_runs([folder])[0])])
