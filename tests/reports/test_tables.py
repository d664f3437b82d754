"""Tables of a comparison: the same in all forms, in parts on a narrow terminal."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from typing import Any

import pytest
from helpers.runs_by_hand import Write, three_seeds

from fedkd.errors import InputError
from fedkd.reports.compare import Comparison, compare
from fedkd.reports.report import render
from fedkd.reports.tables import caption, check_columns, marks, table, to_csv, to_latex, to_markdown
from fedkd.runs.results import find_runs


def test_tables_say_the_same_in_all_forms(write: Write) -> None:
    found = compare(find_runs([three_seeds(write)])[0], target=0.5)
    header, rows = table(found)
    assert rows[1][:6] == ["local", "3", "59.3 ± 3.8", "49.9 to 68.7", "64.3 ± 3.8", "+4.3 ± 3.1"]
    markdown = to_markdown([found])
    assert "| local | 3 | 59.3 ± 3.8 |" in markdown
    assert "| fedavg | 4 | **63.7 ± 18.0** |" in markdown
    assert len({line.count("|") for line in markdown.splitlines() if line.startswith("|")}) == 1
    latex = to_latex([found])
    assert r"local & 3 & 59.3 $\pm$ 3.8" in latex
    assert r"\textbf{63.7 $\pm$ 18.0}" in latex  # the best mean
    assert r"\underline" not in latex  # of two, the other is no second
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
    assert "| local | 2 | **50.0, 52.0** | – |" in to_markdown([found])
    latex = to_latex([found])
    assert "local & 2 & \\textbf{50.0, 52.0} & -- & \\textbf{50.0, 52.0} & +6.0, $-$3.0" in latex
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


def compared(write: Write, metric: str, values: dict[str, list[float]], **options: Any) -> Comparison:
    """Return the comparison of strategies, each with a value for each seed, by a metric."""
    for name, of_seeds in values.items():
        for seed, value in enumerate(of_seeds):
            folder = write(f"{name}-{seed}", seed, [value], {"strategy": {"name": name}})
            lines = folder / "metrics.jsonl"
            lines.write_text(lines.read_text().replace("personal/accuracy", metric))
    return compare(find_runs([folder.parent])[0], metric=metric, **options)


@pytest.mark.parametrize(
    ("metric", "values", "wanted"),
    [
        ("personal/accuracy", [0.5, 0.9, 0.7, 0.6], ["", "best", "second", ""]),
        ("global/loss", [0.5, 0.9, 0.7, 0.4], ["second", "", "", "best"]),
        ("personal/mae", [3.5, 3.25, 7.0, 5.0], ["second", "best", "", ""]),
        ("global/r2", [0.5, -3.0, 0.7, 0.6], ["", "", "best", "second"]),
        ("personal/accuracy", [0.7004, 0.7, 0.6, 0.5], ["best", "best", "second", ""]),  # equal as printed: 70.0
        ("global/loss", [0.50001, 0.5, 0.50002, 0.6], ["best", "best", "best", "second"]),
        ("personal/accuracy", [0.7, 0.7, 0.7, 0.7], ["best"] * 4),
    ],
)
def test_the_best_is_bold_and_the_second_underlined_by_the_printed_numbers(
    write: Write, metric: str, values: list[float], wanted: list[str]
) -> None:
    found = compared(write, metric, {f"s{i}": [value] for i, value in enumerate(values)})
    header, rows = table(found)
    at = header.index("final")
    assert [row[at] for row in marks(found)] == wanted
    assert {mark for row in marks(found) for i, mark in enumerate(row) if header[i] in ("MB", "p", "seeds")} == {""}
    latex, markdown = to_latex([found]).splitlines(), to_markdown([found]).splitlines()
    for i, mark in enumerate(wanted):
        text = rows[i][at].replace("-", "$-$")
        marked = {"": text, "best": rf"\textbf{{{text}}}", "second": rf"\underline{{{text}}}"}[mark]
        (line,) = (line for line in latex if line.startswith(f"  s{i} &"))
        assert line.split(" & ")[2] == marked
        marked = {"": rows[i][at], "best": f"**{rows[i][at]}**", "second": f"<ins>{rows[i][at]}</ins>"}[mark]
        (line,) = (line for line in markdown if line.startswith(f"| s{i} |"))
        assert line.split(" | ")[2] == marked


def test_what_has_no_mean_is_no_best(write: Write) -> None:
    found = compared(write, "personal/accuracy", {"a": [0.5], "b": [math.nan], "c": [0.4]})
    at = table(found)[0].index("final")
    assert [row[at] for row in marks(found)] == ["best", "", ""]
    assert marks(compared(write, "probe/accuracy", {"x": [0.5]})) == [[""] * len(table(found)[0])]


def test_columns_are_chosen_and_ordered_and_the_caption_follows(write: Write) -> None:
    found = compare(find_runs([three_seeds(write)])[0], target=0.5)
    columns = ["p", "final", "MB to it"]
    header, rows = table(found, columns)
    assert header == ["strategy", *columns]
    assert rows[1] == ["local", "0.133", "59.3 ± 3.8", "2.5"]
    assert r"\begin{tabular}{lrrr}" in to_latex([found], columns)
    assert "| strategy | p | final | MB to it |" in to_markdown([found], columns)
    about = caption(found, columns)
    assert about == (
        "personal/accuracy in percent, mean ± standard deviation over seeds (n = 3 to 4); with fewer than three seeds, "
        "their values. p: Student's paired test against fedavg, adjusted for the number of strategies (Holm). "
        "Target: 0.5; means over the runs that reached it."
    )
    assert caption(found, ["final"]).endswith("their values.")
    assert caption(found, ["MB"]).startswith("Means over seeds (n = 3 to 4)")
    assert "Differences to fedavg" in caption(found, ["gains"])
    assert "over nodes, at the last" in caption(found, ["worst decile"])
    assert caption(found, ["final"], marked=True).endswith("Bold: the best of a column; underlined: the second.")
    assert "Bold" not in caption(found, ["MB"], marked=True)


def test_unknown_columns_are_refused_with_the_valid_ones() -> None:
    metrics = {"probe/accuracy", "global/loss"}
    assert check_columns(["final", "probe/accuracy", "95 % interval"], metrics, target=False) == ["probe/accuracy"]
    assert check_columns(["rounds to it"], metrics, target=True) == []
    with pytest.raises(
        InputError, match="--columns: unknown 'finals'. Valid: seeds, final, 95 % .*, MB, s, failures, "
    ):
        check_columns(["finals"], metrics, target=False)
    with pytest.raises(InputError, match="'rounds to it'. It needs --target. Valid: .*failures, global/loss, probe/ac"):
        check_columns(["rounds to it"], metrics, target=False)


def test_metrics_that_not_all_have_are_side_by_side(write: Write) -> None:
    for seed in range(3):
        write(f"fedavg-{seed}", seed, [0.5 + seed / 10])
        folder = write(f"simclr-{seed}", seed, [0.7], {"strategy": {"name": "simclr"}})
        lines = folder / "metrics.jsonl"
        lines.write_text(lines.read_text().replace("personal/accuracy", "probe/accuracy"))
    runs, _ = find_runs([folder.parent])
    both = ("personal/accuracy", "probe/accuracy")
    found = compare(runs, beside=both)
    assert found.problems == []
    assert found.metric == "personal/accuracy"
    columns = ["seeds", "final", *both, "difference"]
    header, rows = table(found, columns)
    assert header == ["strategy", "seeds", "final", "personal/accuracy (%)", "probe/accuracy (%)", "difference"]
    assert rows == [
        ["fedavg", "3", "60.0 ± 10.0", "60.0 ± 10.0", "–", "–"],
        ["simclr", "3", "–", "–", "70.0 ± 0.0", "–"],
    ]
    assert [row[3:5] for row in marks(found, columns)] == [["", ""], ["", ""]]  # a column with one number has no best
    assert "the last personal/accuracy, probe/accuracy" in caption(found, columns)
    _, second = csv.DictReader(io.StringIO(to_csv([found])))
    assert (second["final_mean"], second["personal/accuracy_mean"]) == ("", "")
    assert float(second["probe/accuracy_mean"]) == pytest.approx(0.7)
    assert len(table(found)[0]) == len(table(compare(runs, metric="personal/accuracy"))[0]) + 2


def test_the_table_of_display_names_is_escaped(write: Write) -> None:
    found = compare(find_runs([three_seeds(write)])[0], names={"local": "Local & co_%", "fedavg": "<b>|"})
    assert r"Local \& co\_\% & 3" in to_latex([found])
    assert r"| &lt;b&gt;\| | 4 |" in to_markdown([found])
    assert "Differences to <b>|" in caption(found)


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
    unmarked = re.sub(r"\*\*([\d.]+(?: ± [\d.]+)?)\*\*", r"\1", markdown)  # the best numbers are bold
    assert unmarked.count("*") == markdown.count("*") - 4 * 3
    assert not re.search(r"<|(?<!\\)[`\[\]*]|://", unmarked)
    assert r"\input" not in latex
    assert not re.search(r"^\s*[\[*]", latex, re.MULTILINE)
    assert len(latex.splitlines()) == 13
    assert all(c.isprintable() or c == "\n" for c in markdown + latex)
    for line in csv.DictReader(io.StringIO(to_csv([found]))):
        assert not line["strategy"].startswith(("=", "+", "-", "@"))
        assert float(line["final_mean"]) == pytest.approx(0.45, abs=0.06)  # numbers stay numbers
    assert any(float(line["difference_mean"] or 0) < 0 for line in csv.DictReader(io.StringIO(to_csv([found]))))
