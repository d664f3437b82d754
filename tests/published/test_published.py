"""Published tables: their files, their runs, their figures beside ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from helpers import TINY, lines, merged
from helpers.runs_by_hand import Write
from helpers.sets import real_set
from typer.testing import CliRunner

from fedkd import layers_of
from fedkd.cli import app
from fedkd.config import parse_config, to_table
from fedkd.core.wrapper import make_strategy
from fedkd.data.federation import federate
from fedkd.data.spec import Form
from fedkd.data.splits import Pool
from fedkd.errors import InputError
from fedkd.models.build import build
from fedkd.published import chain, results, tables
from fedkd.published.partitions import feddf, fedgen, fedprox
from fedkd.published.tables import Figure, PublishedTable, Reading
from fedkd.runs.run import run
from fedkd.runs.sweep import Job, resolved
from fedkd.streams import numpy_stream

RUNNER = CliRunner()
RUNS = [name for name in tables.names() if tables.read(name).kind == "run"]  # others: test_distillations.py
ROWS = [(name, row.name) for name in RUNS for row in tables.read(name).rows]
FIRST = [(name, tables.read(name).rows[0].name) for name in RUNS]
READING = {"name": "best", "metric": "personal/accuracy"}
BY_NODE = {"name": "nodes", "metric": "personal/accuracy", "spread": "within"}


def row_of(name: str, row: str) -> tuple[PublishedTable, tables.Row]:
    table = tables.read(name)
    return table, next(one for one in table.rows if one.name == row)


@pytest.fixture(scope="session")
def small_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data root with the first images of the sets that tables need."""
    root = tmp_path_factory.mktemp("sets")
    for name in {name for table in map(tables.read, RUNS) for name in sets_of(table)} - {"mnist"}:
        np.savez(root / f"{name}.npz", **{key: array[:2000] for key, array in real_set(name).items()})
    np.savez(root / "mnist.npz", **real_set("mnist"))  # whole: deals of the authors' code need it
    return root


def sets_of(table: PublishedTable) -> list[str]:
    return next(iter(table.configs_of(table.rows[0]).values())).data.set_names


@pytest.mark.parametrize(
    ("name", "row"), [pytest.param(*one, marks=[] if one in FIRST else pytest.mark.slow) for one in ROWS]
)
def test_each_row_runs_two_tiny_rounds(
    name: str, row: str, small_sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDKD_DATA", str(small_sets))
    table, one = row_of(name, row)
    first, started = chain.stages(table, [one])
    run_two_rounds(results.jobs_of(table, first, 1, tmp_path, quick=True).jobs[0])
    if started:
        plan, unstarted = chain.started_jobs(table, started, 1, tmp_path, quick=True)
        assert unstarted == {}
        run_two_rounds(plan.jobs[0])
    found = {outcome.row.name: outcome for outcome in results.outcomes(table, tmp_path, quick=True)}
    assert found[row].agrees is None
    assert found[row].ours is not None


def run_two_rounds(job: Job) -> None:
    run(job.config.model_copy(update={"rounds": 2}), job.path)
    assert [line["failures"] for line in lines(job.path)] == [[], [], []]


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_the_config_of_each_row_is_valid(name: str, row: str) -> None:
    table, one = row_of(name, row)
    reading = table.reading_of(one)
    for (setting, config), short in zip(
        table.configs_of(one).items(), table.configs_of(one, quick=True).values(), strict=True
    ):
        assert config.seed == 0
        assert reading.last is None or reading.last <= config.rounds
        assert short != config
        assert make_strategy(config.strategy)[1].name, setting


def a_table(**changes: Any) -> PublishedTable:
    rows = [
        {"method": "FedAvg", "cell": "six nodes", "paper": {"value": 50.0}, "code": {"value": 60.0, "spread": 1.0}},
        {"method": "FedProx", "cell": "six nodes", "set": {"strategy": {"name": "fedprox"}}, "paper": {"value": 50.0}},
        {"method": "FedProx", "cell": "six nodes", "form": "corrected", "paper": {"value": 50.0}},
    ]
    whole = {
        "title": "t",
        "paper": "p",
        "code": "c",
        "reading": READING,
        "settings": TINY | {"rounds": 3},
        "quick": {},
        "rows": rows,
    }
    return PublishedTable.model_validate(whole | changes)


def test_lg_fedavgs_network_starts_as_after_torchs_seed_at_all_nodes() -> None:
    model = build("fedkd.published.models:lg_mlp", {"torch_seed": 3}, Form("image", (1, 28, 28)), 10)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = torch.nn.Linear(784, 512)
    assert torch.equal(next(model.parameters()), first.weight)
    assert len(layers_of(model)) == 5
    outputs = model(torch.ones(2, 1, 28, 28))
    torch.testing.assert_close(outputs.sum(1), torch.ones(2))


def test_a_seed_goes_to_the_keys_that_a_table_names(tmp_path: Path) -> None:
    table = a_table(seeded=["data.partition.seed"])
    jobs = results.jobs_of(table, table.rows[:1], 2, tmp_path).jobs
    assert [(job.config.seed, job.config.data.partition.seed) for job in jobs if job.config.data.partition] == [
        (0, 0), (1, 1),
    ]  # fmt: skip


def test_fedgens_network_starts_as_in_the_authors_runs() -> None:
    for seed in (0, 1):
        model = build("fedkd.published.models:fedgen_cnn", {"torch_seed": seed}, Form("image", (1, 28, 28)), 10)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            theirs = [
                torch.nn.Conv2d(1, 6, 3),
                torch.nn.Conv2d(6, 16, 3),
                torch.nn.Linear(784, 32),
                torch.nn.Linear(32, 10),
            ]
        own = [p for p in model.parameters() if p.dim() > 1]
        assert all(torch.equal(p, layer.weight) for p, layer in zip(own, theirs, strict=True))


def test_a_rows_settings_are_those_of_the_table_with_its_own() -> None:
    table = a_table(quick={"rounds": 1})
    assert [row.name for row in table.rows] == ["fedavg-six-nodes", "fedprox-six-nodes", "fedprox-six-nodes-corrected"]
    assert table.configs_of(table.rows[1]) == {
        "fedprox-six-nodes": parse_config(merged(TINY, {"rounds": 3, "strategy": {"name": "fedprox"}}))
    }
    assert table.configs_of(table.rows[0], quick=True)["fedavg-six-nodes"].rounds == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reading": READING | {"count": 3}}, "count belongs to name = 'best_rounds' or 'last_rounds'"),
        ({"reading": READING | {"name": "crossing"}}, "target belongs to name = 'crossing', which needs it"),
        ({"reading": READING | {"name": "at_best"}}, "of belongs to name = 'at_best', which needs it"),
        ({"rows": [{"method": "a", "cell": "b"}, {"method": "A", "cell": "B"}]}, "two rows are called 'a-b'"),
        ({"rowss": []}, "rowss"),
    ],
)
def test_a_table_that_is_wrong_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    whole = a_table().model_dump(exclude_none=True) | change
    (tmp_path / "table.toml").write_text(tomli_w.dumps(whole))
    with pytest.raises(InputError, match=message):
        tables.read(str(tmp_path / "table.toml"))


def test_an_unknown_table_or_row_is_named_with_the_valid_ones() -> None:
    with pytest.raises(InputError, match="did you mean 'fedgen-mnist'"):
        tables.read("fedgen_mnist")
    with pytest.raises(InputError, match="'Fedx' fits no row; they are: fedavg-six-nodes, "):
        a_table().chosen(["Fedx"])
    assert [row.method for row in a_table().chosen(["FedA*", "*corrected"])] == ["FedAvg", "FedProx"]


@pytest.mark.parametrize(
    ("ours", "published", "good"),
    [
        ((60.0, 1.0), Figure(value=62.0, spread=1.0), True),
        ((60.0, 1.0), Figure(value=62.1, spread=1.0), False),
        ((60.0, None), Figure(value=60.5, spread=0.4), False),
        ((60.0, 5.0), Figure(value=61.0), True),
        ((60.0, 5.0), Figure(value=61.1), False),
    ],
)
def test_accuracies_agree_if_intervals_overlap_or_within_a_point(
    ours: tuple[float, float | None], published: Figure, good: bool
) -> None:
    assert results.agrees(*ours, published, Reading.model_validate(READING)) is good


def test_rounds_agree_within_a_tenth_of_the_published_number() -> None:
    reading = Reading(name="crossing", metric="global/accuracy", target=0.97)
    assert results.agrees(79.0, 30.0, Figure(value=87.0), reading)
    assert not results.agrees(78.0, 30.0, Figure(value=87.0), reading)


def test_figures_beside_ours(write: Write) -> None:
    table = a_table()
    run_of(write, table, "fedavg-six-nodes", 0, [0.1, 0.62, 0.58])
    run_of(write, table, "fedavg-six-nodes", 1, [0.1, 0.55, 0.64])
    run_of(write, table, "fedprox-six-nodes", 0, [0.1, 0.5, 0.52])
    home = run_of(write, table, "fedprox-six-nodes-corrected", 0, [0.1, 0.5, 0.5])
    found = results.outcomes(table, home)
    first = found[0].ours
    assert first is not None
    assert first.numbers == {0: [pytest.approx(62.0)], 1: [pytest.approx(64.0)]}
    assert (first.value, first.spread) == (pytest.approx(63.0), pytest.approx(2**0.5))
    assert [one.agrees for one in found] == [False, False, None]  # 60 + 1 < 63 - 1.4; two points above; not judged
    assert found[0].reference == Figure(value=60.0, spread=1.0)
    assert [one.agrees for one in results.outcomes(table, home, quick=True)] == [None] * 3
    header, cells = results.as_text(table, found)
    assert cells[0] == ["FedAvg, six nodes", "50.00", "60.00 ± 1.00", "63.00 ± 1.41", "+3.00", "no", "2", "0.1"]
    assert len(header) == len(cells[0])
    record = results.as_record("t", table, found, home, quick=False)
    assert record["rows"][0]["settings"][0]["curves"]["1"] == [[1, 0.1], [2, 0.55], [3, 0.64]]
    pooled = a_table(reading={"name": "best_rounds", "count": 2, "metric": "personal/accuracy", "spread": "numbers"})
    ours = results.outcomes(pooled, home)[0].ours
    assert ours is not None
    numbers = [62.0, 58.0, 64.0, 55.0]
    assert (ours.value, ours.spread) == (pytest.approx(np.mean(numbers)), pytest.approx(np.std(numbers)))


def test_a_run_with_other_settings_than_the_tables_is_not_counted(write: Write) -> None:
    table = a_table()
    home = run_of(write, table, "fedavg-six-nodes", 0, [0.1, 0.62, 0.58])
    with pytest.raises(InputError, match=r"contains a run with another config: train.batch_size"):
        results.outcomes(a_table(settings=merged(TINY, {"rounds": 3, "train.batch_size": 9})), home)


def test_a_row_whose_target_one_run_does_not_reach_has_no_number(write: Write) -> None:
    table = a_table(reading={"name": "crossing", "metric": "personal/accuracy", "target": 0.6})
    run_of(write, table, "fedavg-six-nodes", 0, [0.1, 0.62, 0.58])
    found = results.outcomes(table, run_of(write, table, "fedavg-six-nodes", 1, [0.1, 0.55, 0.59]))[0]
    assert found.ours is not None
    assert found.ours.value is None
    assert found.agrees is False
    assert results.as_text(table, [found])[1][0][3] == "not reached"


@pytest.mark.parametrize(
    ("reading", "best"),
    [(READING, "lr=0.5"), ({"name": "crossing", "metric": "personal/accuracy", "target": 0.5}, "lr=0.1")],
)
def test_a_row_with_a_grid_is_its_best_setting(write: Write, reading: dict[str, Any], best: str) -> None:
    grid = {"key": "train.optimizer.lr", "values": [0.1, 0.2, 0.5]}
    table = a_table(reading=reading, rows=[{"method": "FedAvg", "cell": "c", "grid": grid, "paper": {"value": 65.0}}])
    configs = table.configs_of(table.rows[0])
    assert [(name, config.train.optimizer.lr) for name, config in configs.items()] == [
        ("fedavg-c,lr=0.1", 0.1), ("fedavg-c,lr=0.2", 0.2), ("fedavg-c,lr=0.5", 0.5),
    ]  # fmt: skip
    run_of(write, table, "fedavg-c,lr=0.1", 0, [0.1, 0.52, 0.58])
    run_of(write, table, "fedavg-c,lr=0.2", 0, [0.1, 0.2, 0.3])
    home = run_of(write, table, "fedavg-c,lr=0.5", 0, [0.1, 0.49, 0.655])
    found = results.outcomes(table, home)[0]
    assert found.ours is not None
    assert found.ours.setting == f"fedavg-c,{best}"
    assert len(found.every) == 3
    assert results.as_text(table, [found])[1][0][0] == f"FedAvg, c ({best})"
    assert [
        one["setting"] for one in results.as_record("t", table, [found], home, quick=False)["rows"][0]["settings"]
    ] == list(configs)


def test_rows_may_read_the_same_runs_in_another_way(write: Write) -> None:
    """The nodes of a written run lie 0.1 below and above its mean."""
    rows = [
        {"method": "FedAvg", "cell": "c", "paper": {"value": 60.0, "spread": 5.0}},
        {"method": "FedAvg", "cell": "c, by node", "runs": "fedavg-c", "reading": BY_NODE},
    ]
    table = a_table(rows=rows)
    home = run_of(write, table, "fedavg-c", 0, [0.1, 0.2, 0.6])
    run_of(write, table, "fedavg-c", 1, [0.1, 0.2, 0.7])
    found = results.outcomes(table, home)[1].ours
    assert found is not None
    assert found.numbers[0] == pytest.approx([50.0, 70.0])
    assert (found.value, found.spread) == (pytest.approx(65.0), pytest.approx(10.0))
    assert len(results.jobs_of(table, table.rows, 2, home.parent / "new").jobs) == 2
    for wrong in ({"runs": "nobody"}, {"runs": "fedavg-c", "set": {"rounds": 3}}):
        with pytest.raises(ValueError, match="must name another row"):
            a_table(rows=[rows[0], {"method": "x", "cell": "y", **wrong}])


def test_another_metric_is_read_in_the_best_round(write: Write) -> None:
    """`personal/accuracy` is best in round 2 of the first two."""
    reading = {"name": "at_best", "metric": "global/accuracy", "of": "personal/accuracy", "last": 2}
    table = a_table(reading=reading)
    home = run_of(write, table, "fedavg-six-nodes", 0, [0.1, 0.6, 0.9])
    change_lines(home / "fedavg-six-nodes,seed=0", {1: 0.7, 2: 0.4, 3: 0.8})
    found = results.outcomes(table, home)[0].ours
    assert found is not None
    assert found.numbers == {0: [pytest.approx(40.0)]}
    change_lines(home / "fedavg-six-nodes,seed=0", {1: 0.7, 2: None, 3: 0.8})
    with pytest.raises(InputError, match=r"global/accuracy was not measured in round 2, the best one by personal/acc"):
        results.outcomes(table, home)


def change_lines(home: Path, values: dict[int, float | None]) -> None:
    """Write values of `global/accuracy` into the rounds of a run; None: it is not measured."""
    changed = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
    for line in changed:
        line["metrics"].pop("global/accuracy", None)
        if values.get(line["round"]) is not None:
            line["metrics"]["global/accuracy"] = values[line["round"]]
    (home / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))


def test_each_nodes_best_round_is_read(write: Write) -> None:
    """The nodes of a written run lie 0.1 below and above its mean: both are best in round 2, without round 3."""
    table = a_table(reading={"name": "best_of_nodes", "metric": "personal/accuracy", "last": 2})
    found = results.outcomes(table, run_of(write, table, "fedavg-six-nodes", 0, [0.1, 0.3, 0.9]))[0].ours
    assert found is not None
    assert found.numbers == {0: [pytest.approx(30.0)]}


def test_rounds_outside_of_a_reading_do_not_count(write: Write) -> None:
    table = a_table(reading=READING | {"last": 2})
    found = results.outcomes(table, run_of(write, table, "fedavg-six-nodes", 0, [0.1, 0.3, 0.9]))[0]
    assert found.ours is not None
    assert found.ours.value == pytest.approx(30.0)


def run_of(write: Write, table: PublishedTable, setting: str, seed: int, values: list[float]) -> Path:
    path: Path = write(f"{setting},seed={seed}", seed, values, summary={"seconds": {"total": 6.0}})
    configs = {name: config for row in table.rows for name, config in table.configs_of(row, seed=seed).items()}
    (path / "config.toml").write_text(tomli_w.dumps(to_table(resolved(configs[setting]))))
    return path.parent


@pytest.mark.xdist_group("ray")
def test_the_command_runs_a_table_and_goes_on(tmp_path: Path) -> None:
    whole = a_table().model_dump(exclude_none=True) | {"seeds": 1}
    (tmp_path / "table.toml").write_text(tomli_w.dumps(whole))
    words = ["reproduce", str(tmp_path / "table.toml"), "--out", str(tmp_path / "out")]
    first = RUNNER.invoke(app, [*words, "--rows", "FedAvg"])
    assert first.exit_code == 0, first.output
    assert "not run" in first.stdout
    again = RUNNER.invoke(app, words)
    assert again.exit_code == 0, again.output
    assert "not run" not in again.stdout
    kept = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [row["row"] for row in kept["rows"]] == [row.name for row in a_table().rows]
    assert all(row["settings"][0]["value"] > 10 for row in kept["rows"])


def test_tables_are_listed_and_an_unknown_one_is_refused() -> None:
    listed = RUNNER.invoke(app, ["reproduce", "--list"])
    assert listed.exit_code == 0
    for name in tables.names():
        assert f"{name}: {tables.read(name).title}" in " ".join(listed.stdout.split())
    refused = RUNNER.invoke(app, ["reproduce", "fedgen-mnis"])
    assert refused.exit_code == 2
    assert "did you mean 'fedgen-mnist'" in " ".join(refused.output.split())


# The authors' deals and networks


def test_fedgens_deal_is_the_one_of_its_script(mnist_root: Path) -> None:
    """121 to 1,825 images and 2 to 8 labels a node; 15,000 images in all: printed by the authors' script, seed 42."""
    table, row = row_of("fedgen-mnist", "fedavg-alpha-0.1")
    config = table.configs_of(row)[row.name].data.model_copy(update={"root": str(mnist_root)})
    data = federate(config, 0)
    counts = data.label_counts()
    sizes, labels = counts.sum(1), (counts > 0).sum(1)
    assert (sizes.min(), sizes.max(), sizes.sum()) == (121, 1825, 15_000)
    assert (labels.min(), labels.max()) == (2, 8)
    tests = np.concatenate([data.test_parts[node] for node in range(20)])
    assert len(np.unique(tests)) == len(tests)
    for node in range(20):
        own = np.bincount(data.test_of(node).labels, minlength=10)
        assert ((own > 0) == (counts[node] > 0)).all()
        assert set(own[own > 0]) <= set(range(44, 57))


def test_fedgens_deal_gives_no_image_twice_and_caps_nodes() -> None:
    labels = np.repeat(np.arange(4), 400)
    pool = Pool(labels, np.zeros(1600, np.int64), tuple("abcd"), ("x",))
    parts = fedgen(pool, numpy_stream(0, 0, "server", "x"), clients=4, alpha=0.5).parts
    every = np.concatenate(list(parts))
    assert len(np.unique(every)) == len(every) == 4 * 200


def test_the_deal_of_fedprox_is_two_labels_a_node_with_log_normal_shares() -> None:
    sizes = (700, 650, 801)
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(3), sizes))
    pool = Pool(labels, np.zeros(len(labels), np.int64), tuple("abc"), ("x",))
    parts = fedprox(pool, np.random.default_rng(7), clients=30, sigma=2.0).parts
    shares = np.random.default_rng(7).lognormal(0.0, 2.0, (3, 10, 2))
    for node, part in enumerate(parts):
        whole = 0
        for place in range(2):
            label = (node + place) % 3
            left = sizes[label] - 20 * 5
            whole += 5 + int(left * shares[label, node // 3, place] / shares[label].sum())
        assert len(part) == whole - whole // 10
        assert set(labels[part]) == {node % 3, (node + 1) % 3}
    every = np.concatenate(list(parts))
    assert len(np.unique(every)) == len(every)


@pytest.mark.parametrize(("clients", "classes"), [(31, 3), (63, 3)])
def test_the_deal_of_fedprox_needs_whole_turns_and_enough_images(clients: int, classes: int) -> None:
    labels = np.repeat(np.arange(classes), 200)
    pool = Pool(labels, np.zeros(len(labels), np.int64), tuple("abc"), ("x",))
    with pytest.raises(InputError, match=f"data.partition.clients = {clients}: it must be a multiple of the 3 classes"):
        fedprox(pool, np.random.default_rng(0), clients=clients)


def test_the_deal_of_fedprox_on_mnist(mnist_root: Path) -> None:
    table, row = row_of("fedprox-mnist", "fedprox-mu-2-no-stragglers")
    config = table.configs_of(row)[row.name]
    data = federate(config.data.model_copy(update={"root": str(mnist_root)}), 0)
    counts = data.label_counts()
    assert ((counts > 0).sum(1) == 2).all()
    assert counts.sum(1).min() >= 9
    assert 53_000 < counts.sum() < 54_500  # nine tenths, and a few images less by rounding down


def test_the_deal_of_feddf_has_two_parts_of_ten_nodes_with_caps_and_a_least_share() -> None:
    """A node has at least half of an equal share, 50, and with a whole share, 100, gets no images of later classes."""
    labels = np.repeat(np.arange(4), 500)
    pool = Pool(labels, np.zeros(2000, np.int64), tuple("abcd"), ("x",))
    parts = list(feddf(pool, numpy_stream(0, 0, "server", "x"), clients=20, alpha=0.5).parts)
    assert sorted(np.concatenate(parts)) == list(range(2000))
    sizes = [len(part) for part in parts]
    assert (sum(sizes[:10]), sum(sizes[10:])) == (1000, 1000)
    assert min(sizes) >= 50
    counts = np.stack([np.bincount(labels[part], minlength=4) for part in parts])
    before = np.cumsum(counts, 1) - counts
    assert (counts[before >= 100] == 0).all()
    assert (counts[:, 1:][before[:, 1:] < 100] > 0).mean() > 0.9
    assert max(sizes) > 100


def test_a_reading_of_the_last_rounds_is_one_number_a_run(write: Write) -> None:
    reading = {"name": "last_rounds", "count": 2, "metric": "personal/accuracy"}
    table = a_table(reading=reading)
    found = results.outcomes(table, run_of(write, table, "fedavg-six-nodes", 0, [0.1, 0.62, 0.58]))[0].ours
    assert found is not None
    assert found.numbers == {0: [pytest.approx(60.0)]}


@pytest.mark.parametrize(
    ("name", "shape", "weights"),
    [
        ("fedgen_cnn", (1, 28, 28), 26_434), ("dropout_cnn", (1, 28, 28), 21_840), ("niid_cnn", (1, 28, 28), 44_426),
        ("niid_cnn", (3, 32, 32), 62_006), ("lg_mlp", (1, 28, 28), 633_226), ("dropout_mlp", (1, 28, 28), 159_010),
        ("feddf_resnet8", (3, 32, 32), 78_042),
    ],
)  # fmt: skip
def test_the_networks_have_the_published_numbers_of_weights(
    name: str, shape: tuple[int, int, int], weights: int
) -> None:
    with torch.random.fork_rng():
        model = build(f"fedkd.published.models:{name}", {}, Form("image", shape), 10)
    assert sum(p.numel() for p in model.parameters()) == weights


def test_the_model_of_fedproxs_table_is_logistic_regression() -> None:
    table, row = row_of("fedprox-mnist", "fedprox-mu-2-no-stragglers")
    (architecture,) = table.configs_of(row)[row.name].model.architectures
    with torch.random.fork_rng():
        model = build(architecture.name, architecture.options, Form("image", (1, 28, 28)), 10)
    assert sum(p.numel() for p in model.parameters()) == 7850
