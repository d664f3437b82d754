"""Tables of a comparison: the same in all forms, in parts on a narrow terminal."""

from __future__ import annotations

import csv
import io
import json
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


EVIL = [
    "a | <img src=x onerror=own()> \\input{/etc/passwd} \n\n# x", "=HYPERLINK(1)", "@SUM(1)", "+1", "-1+1", "\t=1",
    "[1em] x", "*", "\x1b[2J\x07x", "`code` [a](https://x.example) *b* _c_", "a\u202eb", "${x}^2 & 50% #1 ~ _",
]  # fmt: skip


@pytest.mark.parametrize("name", EVIL)
def test_a_strangers_name_stays_text_in_every_form(write: Write, name: str) -> None:
    for seed in range(3):
        write(f"a-{seed}", seed, [0.5])
        folder = write(f"b-{seed}", seed, [0.4], {"train": {"batch_size": 4}}).parent
        path = folder / f"b-{seed}" / "config.toml"
        path.write_text(path.read_text().replace('"fedavg"', json.dumps(name.replace("\x1b", "").replace("\x07", ""))))
    runs, _ = find_runs([folder])
    found = compare(runs, title=f"data.name = {name}")
    markdown, latex = to_markdown([found]), to_latex([found])
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in rows}) == 1
    assert len(markdown.splitlines()) == len(rows) + 2
    assert not re.search(r"<|(?<!\\)[`\[\]*]|://", markdown)
    assert r"\input" not in latex
    assert not re.search(r"^\s*[\[*]", latex, re.MULTILINE)
    assert len(latex.splitlines()) == 13
    assert all(c.isprintable() or c == "\n" for c in markdown + latex)
    for line in csv.DictReader(io.StringIO(to_csv([found]))):
        assert not line["strategy"].startswith(("=", "+", "-", "@"))
        assert float(line["final_mean"]) == pytest.approx(0.45, abs=0.06)  # numbers stay numbers
    assert any(float(line["difference_mean"] or 0) < 0 for line in csv.DictReader(io.StringIO(to_csv([found]))))
