"""The page of runs as a file: whole, escaped, and true to what the folders hold."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fedkd.cli import app
from fedkd.reports.report import render
from fedkd.runs.results import find_runs

pytestmark = pytest.mark.xdist_group("browser")


def test_the_page_is_whole_by_itself_and_escapes_what_it_shows(page_file: Path, runs: Path) -> None:
    text = page_file.read_text()
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)
    assert "data:image/png;base64," in text  # generated images
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for part in ("Partition", "Fusion weights", "Images over rounds", "Teachers of the server", "Configs"):
        assert f">{part}</h" in text, part
    again = CliRunner().invoke(app, ["report", str(runs), "-o", str(page_file.parent / "again.html")])
    assert again.exit_code == 0
    assert (page_file.parent / "again.html").read_text() == text


def test_names_from_folders_cannot_become_markup(runs: Path, tmp_path: Path) -> None:
    evil = tmp_path / "<img src=x onerror=alert(1)>"
    shutil.copytree(runs / "fedmd-0", evil)
    config = (evil / "config.toml").read_text()
    (evil / "config.toml").write_text(config.replace('name = "fedmd"', 'name = "a.py:<script>alert(1)</script>"'))
    out = tmp_path / "page.html"
    assert CliRunner().invoke(app, ["report", str(evil), "-o", str(out)]).exit_code == 0
    assert "<img src=x" not in out.read_text()
    assert "<script>alert" not in out.read_text()


def test_what_diverged_or_was_cut_off_spares_the_page(runs: Path, tmp_path: Path) -> None:
    home = tmp_path / "$runs$"
    for seed in range(2):
        shutil.copytree(runs / f"fedmd-{seed}", home / f"fedmd-{seed}")
    shutil.copytree(runs / "fedftg-0", home / "fedftg-0")
    lines = (home / "fedmd-1" / "metrics.jsonl").read_text()
    (home / "fedmd-1" / "metrics.jsonl").write_text(re.sub(r'"personal/loss": [0-9.]+', '"personal/loss": NaN', lines))
    picture = max((home / "fedftg-0" / "figures").glob("*/round-*.png"))
    picture.write_bytes(picture.read_bytes()[:80])
    config = home / "fedftg-0" / "config.toml"
    config.write_text(config.read_text().replace('name = "fedftg"', r'name = "a.py:A$\\frac$"'))
    out = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["report", str(home), "-o", str(out)])
    assert result.exit_code == 0, result.output
    text = out.read_text()
    assert "personal/loss ends as nan" in text
    assert f"{picture.name}: cannot be shown" in text
    assert "A$" in text


def test_options_in_which_runs_of_one_strategy_differ_are_bold(runs: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        shutil.copytree(runs / "fedmd-0", tmp_path / "all" / f"fedmd-{number}")
    config = tmp_path / "all" / "fedmd-2" / "config.toml"
    config.write_text(config.read_text().replace("temperature = 1.0", "temperature = 2.0"))
    shutil.copytree(runs / "fedavg-0", tmp_path / "all" / "fedavg")
    out = tmp_path / "page.html"
    assert CliRunner().invoke(app, ["report", str(tmp_path / "all"), "-o", str(out)]).exit_code == 0
    configs = out.read_text().split('<h2 id="configs">')[1]
    assert re.findall("<strong>(.*?)</strong>", configs) == ["temperature 1", "temperature 2"]
    assert '<th scope="row">data.partition.alpha</th><td>0.1 · 0.5</td>' in configs
    assert '<th scope="row">fedavg</th><td>partial keep · weighting examples</td>' in configs


def test_nodes_stand_best_strategy_first(page_file: Path) -> None:
    text = page_file.read_text()
    for metric, best in (("personal/accuracy", max), ("personal/loss", min)):
        reported = re.findall(f">{metric} of each node</title><desc[^>]*>(.*?)</desc>", text)
        rows = [[float(mean) for mean in re.findall(r"mean (\d+\.?\d*)", one)] for one in reported]
        assert max(map(len, rows)) == 3
        assert all(means == sorted(means, reverse=best is max) for means in rows), metric


def test_failed_runs_do_not_enter_means(runs: Path, tmp_path: Path) -> None:
    for seed in range(2):
        shutil.copytree(runs / f"fedmd-{seed}", tmp_path / "all" / f"fedmd-{seed}")
    summary = tmp_path / "all" / "fedmd-1" / "summary.json"
    summary.write_text(summary.read_text().replace('"completed"', '"failed"'))
    out = tmp_path / "page.html"
    assert CliRunner().invoke(app, ["report", str(tmp_path / "all"), "-o", str(out)]).exit_code == 0
    assert "fedmd-1: failed after round 3 of 3; left out." in out.read_text()
    assert ">2</td>" not in out.read_text().split("<tbody>")[1].split("</tbody>")[0]  # seeds


def test_other_images_under_equal_configs_are_told(runs: Path, tmp_path: Path) -> None:
    for name in ("fedmd-0", "knfu-0"):
        shutil.copytree(runs / name, tmp_path / "all" / name)
    origin = tmp_path / "all" / "knfu-0" / "origin.json"
    origin.write_text(re.sub(r'"partition": "[0-9a-f]+"', '"partition": "other"', origin.read_text()))
    out = tmp_path / "page.html"
    assert CliRunner().invoke(app, ["report", str(tmp_path / "all"), "-o", str(out)]).exit_code == 0
    assert "differ: the partition, the public set or the test images of nodes; do not compare them" in out.read_text()


def test_bad_folders_are_told_and_the_rest_is_shown(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "fedmd-0", tmp_path / "all" / "going-on")
    (tmp_path / "all" / "going-on" / "summary.json").unlink()
    shutil.copytree(runs / "fedmd-1", tmp_path / "all" / "broken")
    (tmp_path / "all" / "broken" / "summary.json").write_text("{")
    out = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["report", str(tmp_path / "all"), "-o", str(out)])
    assert result.exit_code == 0
    assert "broken: its files cannot be read" in result.stderr
    for shown in (out.read_text(), result.stderr):
        assert "going-on: unfinished after round 3 of 3; shown as far as it is." in shown
    (tmp_path / "none").mkdir()
    for arguments in (["none"], ["nowhere"], ["all", "-o", str(tmp_path)], ["all", "-o", str(out / "x.html")]):
        words = [str(tmp_path / arguments[0]), *arguments[1:]] + (["-o", str(out)] if len(arguments) == 1 else [])
        refused = CliRunner().invoke(app, ["report", *words])
        assert (refused.exit_code, "Traceback" in refused.output) == (2, False)


def test_partitions_are_kept_for_the_page(runs: Path) -> None:
    kept = json.loads((runs / "knfu-0" / "partition.json").read_text())
    assert [sum(row) for row in kept["counts"]] == [24] * 6
    assert len(kept["classes"]) == 10
    assert (kept["sizes"], kept["nodes"], kept["noun"]) == ([24] * 6, [], "images")


def test_the_partition_names_nodes_and_what_they_have(runs: Path) -> None:
    run = find_runs([runs / "knfu-0"])[0][0]
    path = run.path / "partition.json"
    kept = json.loads(path.read_text())
    try:
        path.write_text(json.dumps({**kept, "nodes": ["east", "west", "a", "b", "c", "d"], "noun": "rows"}))
        page, _ = render([run], [], "x")
        assert "node east: " in page
        assert "6 nodes, 24 rows each." in page
        path.write_text(json.dumps({**kept, "nodes": ["east"]}))
        assert run.partition() is None
    finally:
        path.write_text(json.dumps(kept))


def test_images_from_outside_of_a_run_are_named_and_not_in_the_page(runs: Path, tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir()
    pixels = np.random.default_rng(7).integers(0, 256, (16, 16), dtype=np.uint8)
    Image.fromarray(pixels).save(private / "round-000001.png")
    run = tmp_path / "run"
    shutil.copytree(runs / "fedmd-0", run)
    for name in ("file", "pipe", "text"):
        (run / "figures" / name).mkdir(parents=True)
    (run / "figures/file/round-000001.png").symlink_to(private / "round-000001.png")
    (run / "figures/folder").symlink_to(private)
    os.mkfifo(run / "figures/pipe/round-000001.png")
    (run / "figures/text/round-000001.png").write_text("no picture")
    (run / "figures/text/round-000001.png.bak").write_text("a copy")
    done = CliRunner().invoke(app, ["report", str(run), "-o", str(tmp_path / "page.html")])
    assert done.exit_code == 0, done.output
    secret = base64.b64encode((private / "round-000001.png").read_bytes()).decode()
    assert secret not in (tmp_path / "page.html").read_text()
    for name in ("file/round-000001.png", "folder", "pipe/round-000001.png", "text/round-000001.png"):
        assert f"figures/{name}: " in done.stderr
    assert ".bak" not in done.stderr
