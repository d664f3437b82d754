"""The tables of docs/published.md, from the results of `fedkd reproduce`.

python benchmarks/published.py FOLDER ...    # keeps the result.json of these folders, and writes the page
python benchmarks/published.py               # writes the page again
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from fedkd.files import as_json
from fedkd.published import tables
from fedkd.published.results import RESULT

HOME = Path(__file__).resolve().parents[1]
PAGE, ROWS = HOME / "docs" / "published.md", HOME / "docs" / "published"
BEGIN, END = "<!-- table: {} -->\n", "<!-- end -->\n"


def keep(folder: Path) -> None:
    """Copy the results of a whole table to docs/published/."""
    result = json.loads((folder / RESULT).read_text())
    if result["quick"]:
        raise SystemExit(f"{folder}: a short trial is not kept.")
    ROWS.mkdir(exist_ok=True)
    (ROWS / f"{result['table']}.json").write_bytes(as_json(result))


def section(name: str, result: dict[str, Any] | None) -> str:
    """Return the lines of a table: of its rows, where they come from, and how to run it."""
    table = tables.read(name)
    lines = ["| row | paper | authors' code | ours | difference | agrees |", "|---|---|---|---|---|---|"]
    found = {row["row"]: row for row in result["rows"]} if result is not None else {}
    for row in table.rows:
        kept = found.get(row.name)
        ours = next((one for one in kept["settings"] if one["setting"] == kept["ours"]), None) if kept else None
        lines.append(" | ".join(["| " + _label(row), *_published(row), *_ours(table, row, kept, ours)]) + " |")
    seconds = [s for row in found.values() for one in row["settings"] for s in one["seconds"].values()]
    about = f"`fedkd reproduce {name}`. Reading: {table.reading.text()}."
    if result is not None and seconds:
        hardware = result["hardware"]
        machine = f"{hardware['machine']} with {hardware['cpus']} cores, torch {result['versions']['torch']}"
        hours = f"{len(seconds)} runs, {sum(seconds) / 3600:.1f} hours of one core"
        about += f" {result['date']}, {machine}: {hours}. [Raw rows](published/{name}.json)."
    sources = f"Paper: {table.paper}. Code: {table.code}."
    coded = [row for row in table.rows if row.form == "published" and row.code is not None and row.code.by is not None]
    by = [f"{_label(row)}: {row.code.by}" for row in coded if row.code is not None]
    figures = f"Figures of the code: {'; '.join(by)}." if by else ""
    own = [f"{row.method}: {text}" for row in table.rows for text in row.deviations]
    said = dict.fromkeys([*table.deviations, *own])
    deviations = f"Deviations: {'; '.join(said)}." if said else ""
    notes = [f"* {_label(row)}: {row.finding}" for row in table.rows if row.finding]
    parts = ["\n".join(lines), about, sources, figures, table.note.strip(), deviations, "\n".join(notes)]
    return "\n\n".join(part for part in parts if part) + "\n"


def page(text: str) -> str:
    """Return the page with all its tables as they are now."""
    for name in tables.names():
        begin = BEGIN.format(name)
        before, mark, rest = text.partition(begin)
        if not mark:
            raise SystemExit(f"{PAGE.name} lacks {begin.strip()}")
        kept = ROWS / f"{name}.json"
        result = json.loads(kept.read_text()) if kept.is_file() else None
        text = before + mark + section(name, result) + END + rest.partition(END)[2]
    return text


def _label(row: tables.Row) -> str:
    return f"{row.method}, {row.cell}" + ("" if row.form == "published" else f", {row.form}")


def _published(row: tables.Row) -> list[str]:
    return [_number(one.value, one.spread) if one is not None else "" for one in (row.paper, row.code)]


def _ours(table: tables.PublishedTable, row: tables.Row, kept: Any, ours: Any) -> list[str]:
    if ours is None:
        return ["not run", "", ""]
    runs = len(ours["numbers"])
    few = "" if runs >= table.seeds else f" ({runs} of {table.seeds} seeds)"
    chosen = f" ({ours['setting'].removeprefix(row.name + ',')})" if row.grid is not None else ""
    if ours["value"] is None:
        reached = [number for numbers in ours["numbers"].values() for number in numbers]
        some = f"{len(reached)} of {runs} runs: {statistics.fmean(reached):.1f}" if reached else "not reached"
        return [some + chosen + few, "", "no" if kept["agrees"] is False else ""]
    reference = row.code or row.paper
    difference = f"{ours['value'] - reference.value:+.2f}" if reference is not None else ""
    agrees = {True: "yes", False: "no", None: ""}[kept["agrees"]]
    return [_number(ours["value"], ours["spread"]) + chosen + few, difference, agrees]


def _number(value: float, spread: float | None) -> str:
    return f"{value:.2f}" + (f" ± {spread:.2f}" if spread is not None else "")


def main() -> None:
    """Keep the results of the folders that are named, and write the page."""
    for folder in sys.argv[1:]:
        keep(Path(folder))
    PAGE.write_text(page(PAGE.read_text()))


if __name__ == "__main__":
    main()
