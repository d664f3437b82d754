"""Real sites with tables and texts of their own: equal to the simulation, and refused by name where they differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tomli_w
from flwr.app import Message
from helpers import HOME, lines, merged
from helpers.federations import IDS, events, metrics_of, refused, start
from helpers.loopback import Loopback
from typer.testing import CliRunner

from fedkd.cli import app
from fedkd.config import Config, parse_config, to_table
from fedkd.data.agreement import agreement_of
from fedkd.data.federation import federate
from fedkd.data.spec import DataSpec
from fedkd.data.writing import write_sets
from fedkd.deployment.app import read_run_config
from fedkd.deployment.introduction import JOIN
from fedkd.deployment.provision import provision
from fedkd.runs.run import run

HEART: dict[str, Any] = {
    "seed": 0,
    "rounds": 2,
    "data": {"name": "heart", "partition": {"scheme": "natural"}},
    "model": {"name": "table_mlp"},
    "train": {"batch_size": 32, "optimizer": {"name": "sgd", "lr": 0.05}},
    "strategy": {"name": "fedavg"},
    "evaluate": {"every": 1},
}
OWN = {"label": "label", "split": "split"}


def described(simulated: Config, folder: Path) -> Path:
    """Return the file that `fedkd describe` writes for a config."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "heart.toml").write_text(tomli_w.dumps(to_table(simulated)))
    result = CliRunner().invoke(app, ["describe", str(folder / "heart.toml"), "-o", str(folder / "spec.json")])
    assert result.exit_code == 0, result.output
    return folder / "spec.json"


def of_sites(table: dict[str, Any], spec: Path, count: int, **data: Any) -> Config:
    """Return the config of a federation whose real sites have what nodes of a simulation have."""
    own = {"sites": {"count": count, "spec": str(spec)}, **OWN, **data}
    return parse_config({**table, "data": own, "timeout": 5.0})


@pytest.fixture
def heart(tmp_path: Path) -> tuple[Config, Config, list[Path]]:
    """Return the simulation, the federation, and the Parquet file of each of the four hospitals."""
    simulated = parse_config(HEART)
    spec = described(simulated, tmp_path)
    files = write_sets(federate(simulated.data, 0), tmp_path / "sets")
    return simulated, of_sites(HEART, spec, len(files)), files


def nodes_of(files: list[Path]) -> dict[int, dict[str, Any]]:
    return {id: {"data": f"file:{path}", "name": f"site-{n}"} for n, (id, path) in enumerate(zip(IDS, files))}  # noqa: B905


def without_global(folder: Path) -> list[dict[str, Any]]:
    found = []
    for line in metrics_of(folder):
        parts = {
            key: {name: value for name, value in line[key].items() if "global" not in name}
            for key in ("metrics", "nodes", "spread")
        }
        found.append({**{k: v for k, v in line.items() if k not in ("log", "events")}, **parts})
    return found


def test_four_hospitals_are_the_four_nodes_of_the_simulation(
    heart: tuple[Config, Config, list[Path]], tmp_path: Path
) -> None:
    simulated, config, files = heart
    assert agreement_of((tmp_path / "spec.json").read_bytes()).codec.hash == federate(simulated.data, 0).codec.hash
    frame = pd.read_parquet(files[2])
    files[2] = files[2].with_suffix(".csv")  # columns in another order, and in another type of file
    frame[frame.columns[::-1]].to_csv(files[2], index=False)
    grid = Loopback(config, nodes_of(files))
    start(config, grid, tmp_path / "sites")
    run(simulated, tmp_path / "simulated")
    assert [event for event in events(tmp_path / "sites") if "refused" in event] == []
    assert "training rows" in events(tmp_path / "sites")[0]
    ours, theirs = without_global(tmp_path / "sites"), without_global(tmp_path / "simulated")
    assert ours == theirs
    assert ours[-1]["metrics"]["personal/accuracy"] > 0.5


def test_a_sites_toml_file_names_its_own_columns(heart: tuple[Config, Config, list[Path]], tmp_path: Path) -> None:
    _, config, files = heart
    frame = pd.read_parquet(files[1]).rename(columns={"label": "ill", "split": "part"}).assign(number=range(294))
    frame.to_csv(tmp_path / "mine.csv", index=False)
    (tmp_path / "mine.toml").write_text('file = "mine.csv"\nlabel = "ill"\nsplit = "part"\ndrop = ["number"]\n')
    sites = nodes_of(files)
    sites[IDS[1]]["data"] = str(tmp_path / "mine.toml")
    start(config, Loopback(config, sites), tmp_path / "toml")
    start(config, Loopback(config, nodes_of(files)), tmp_path / "plain")
    assert metrics_of(tmp_path / "toml") == metrics_of(tmp_path / "plain")


def test_an_introduction_has_no_value_of_a_site(heart: tuple[Config, Config, list[Path]], tmp_path: Path) -> None:
    _, config, files = heart
    frame = pd.read_parquet(files[0])
    frame.loc[:2, "thal"] = "a name of a patient"
    frame.to_parquet(files[0], index=False)
    grid, heard = Loopback(config, nodes_of(files)), []

    def keep(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == JOIN:
            heard.append({k: dict(v) for k, v in reply.content.config_records.items()})
        return reply

    grid.tampered = keep
    start(config, grid, tmp_path / "run")
    assert len(heard) == 4
    assert "thal" in str(heard)
    for value in ("patient", "reversible", "typical angina"):  # not even categories that all have agreed on
        assert value not in str(heard)


def altered(column: str, change: Any) -> Any:
    return lambda frame: frame.assign(**{column: change(frame)})


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        (lambda frame: frame.drop(columns="age"), ["it has no column 'age'"]),
        (lambda frame: frame.assign(bmi=1.5), ["it has a column 'bmi', which is not known here"]),
        (
            lambda frame: frame.rename(columns={"age": "years"}),
            ["it has no column 'age'", "it has a column 'years', which is not known here"],
        ),
        (
            altered("age", lambda f: np.where(f["age"] > 50, "old", "young")),
            ["its column 'age' is categorical, here it is numeric"],
        ),
        (altered("sex", lambda f: f["age"]), ["its column 'sex' is numeric, here it is categorical"]),
        (altered("label", lambda f: "maybe"), ["its classes are maybe; here they are no, yes"]),
        (altered("sex", lambda f: f["sex"].str.upper()), ["column 'sex': most of its values are no category"]),
        (altered("label", lambda f: f["age"] + 0.015625), ["its data cannot be read as the config says"]),
    ],
)
def test_a_site_that_differs_is_refused_by_name(
    heart: tuple[Config, Config, list[Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Any,
    reasons: list[str],
) -> None:
    _, config, files = heart
    change(pd.read_parquet(files[3])).to_parquet(files[3], index=False)
    said = refused(config, nodes_of(files), tmp_path, monkeypatch)
    assert "3 of 4 sites are here" in said
    for reason in reasons:
        assert f"refused: {reason}" in said or f"refused: InputError: {reason}" in said
    assert "015625" not in said  # the site's log says which value it was
    assert "FEMALE" not in said


def test_units_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"{i % 7},{i % 5},{i % 2},{'train' if i % 4 else 'test'},s{i % 2}" for i in range(40)]
    (tmp_path / "all.csv").write_text("\n".join(["chol,age,label,split,who", *rows]) + "\n")
    data = {"file": str(tmp_path / "all.csv"), "node": "who", "partition": {"scheme": "natural"}, **OWN}
    table = {**HEART, "data": {**data, "units": {"chol": "mg/dl"}}}
    spec = described(parse_config(table), tmp_path)
    config = of_sites(HEART, spec, 1, units={"chol": "mmol/l"}, drop=["who"])
    said = refused(config, nodes_of([tmp_path / "all.csv"]), tmp_path, monkeypatch)
    assert "its column 'chol' is in mmol/l, here in mg/dl" in said
    same = of_sites(HEART, spec, 1, units={"chol": "mg/dl"}, drop=["who"])
    (tmp_path / "own.toml").write_text('file = "all.csv"\nunits = { chol = "mmol/l" }\n')
    said = refused(same, {IDS[0]: {"data": str(tmp_path / "own.toml"), "name": "a"}}, tmp_path / "own", monkeypatch)
    assert "its column 'chol' is in mmol/l, here in mg/dl" in said
    start(same, Loopback(same, nodes_of([tmp_path / "all.csv"])), tmp_path / "good")


def test_another_kind_and_another_codec_are_refused(
    heart: tuple[Config, Config, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, config, files = heart
    sites = nodes_of(files)
    sites[IDS[0]]["data"] = "digits"
    said = refused(config, sites, tmp_path, monkeypatch)
    assert "its samples are of kind image, here they are of kind table" in said

    table = json.loads((tmp_path / "spec.json").read_bytes())
    table["codec"]["mean"][0] += 1
    (tmp_path / "other.json").write_text(json.dumps(table))
    other = of_sites(HEART, tmp_path / "other.json", 4)
    grid = Loopback(config, nodes_of(files))
    other_grid = Loopback(other, nodes_of(files))
    grid.app = other_grid.app
    monkeypatch.setattr("helpers.federations.Loopback", lambda *args: grid)
    said = refused(config, nodes_of(files), tmp_path / "codec", monkeypatch)
    assert "it encodes its samples with other numbers, categories or words" in said


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda spec: "[" * 10**5, "string 'spec' is no description of samples: it is nested too deeply"),
        (lambda spec: spec.replace('"kind": "table"', '"kind": "video"'), "string 'spec' is no description of samples"),
        (lambda spec: spec.replace('"categories": []', '"categories": ["f"]'), "has names of categories, or words"),
        (
            lambda spec: spec.replace('"name": "age"', '"name": "\\u001b[2J"'),
            "the name of a column is empty, not",
        ),
    ],
)
def test_a_description_of_a_stranger_is_read_strictly(
    heart: tuple[Config, Config, list[Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Any,
    reason: str,
) -> None:
    _, config, files = heart
    grid = Loopback(config, nodes_of(files))

    def tampered(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == JOIN and message.metadata.dst_node_id == IDS[1]:
            record = next(r for r in reply.content.config_records.values() if "spec" in r)
            record["spec"] = change(str(record["spec"]))
        return reply

    grid.tampered = tampered
    monkeypatch.setattr("helpers.federations.Loopback", lambda *args: grid)
    said = refused(config, nodes_of(files), tmp_path, monkeypatch)
    assert "bad introduction" in said
    assert reason in said
    assert "\x1b" not in said


def test_nodes_of_a_table_introduce_themselves_too(tmp_path: Path) -> None:
    config = parse_config(HEART)
    grid = Loopback(config, {id: {"partition-id": n} for n, id in zip(range(4), IDS, strict=False)})
    start(config, grid, tmp_path / "sites")
    run(config, tmp_path / "simulated")
    assert metrics_of(tmp_path / "sites") == metrics_of(tmp_path / "simulated")


def test_series_are_equal_too(tmp_path: Path) -> None:
    table = merged(HEART, {"data.name": "spoken_digits", "model": {"name": "resnet1d"}, "rounds": 1})
    simulated = parse_config(table)
    spec = described(simulated, tmp_path)
    files = write_sets(federate(simulated.data, 0), tmp_path / "sets")
    config = parse_config({**table, "data": {"sites": {"count": len(files), "spec": str(spec)}}, "timeout": 5.0})
    start(config, Loopback(config, nodes_of(files)), tmp_path / "sites")
    run(simulated, tmp_path / "simulated")
    assert without_global(tmp_path / "sites") == without_global(tmp_path / "simulated")


def test_texts_are_equal_too_and_their_words_stay(tmp_path: Path) -> None:
    frame = pd.read_csv(HOME / "fedkd/data/shipped/sentences.csv").groupby("site").head(60)
    frame["split"] = np.where(np.arange(len(frame)) % 5 == 4, "test", "train")
    frame.to_csv(tmp_path / "all.csv", index=False)
    keys = {"label": "label", "split": "split", "text": "text"}
    data = {"file": str(tmp_path / "all.csv"), "node": "site", "partition": {"scheme": "natural"}, **keys}
    simulated = parse_config({**HEART, "data": data, "model": {"name": "text_cnn"}, "rounds": 1})
    spec = described(simulated, tmp_path)
    files = []
    for name, part in frame.groupby("site"):
        files.append(tmp_path / f"{name}.csv")
        part.drop(columns="site").to_csv(files[-1], index=False)
    config = of_sites({**HEART, "model": {"name": "text_cnn"}, "rounds": 1}, spec, len(files), **keys)
    grid, heard = Loopback(config, nodes_of(files)), []

    def keep(message: Message, reply: Message) -> Message:
        heard.append(str([dict(record) for record in reply.content.config_records.values()]))
        return reply

    grid.tampered = keep
    start(config, grid, tmp_path / "sites")
    run(simulated, tmp_path / "simulated")
    assert without_global(tmp_path / "sites") == without_global(tmp_path / "simulated")
    assert not any("movie" in one for one in heard)


@pytest.mark.parametrize("strategy", ["fedavg", "knfu"])
def test_a_public_set_and_the_servers_own_set_are_encoded_alike(
    heart: tuple[Config, Config, list[Path]], tmp_path: Path, strategy: str
) -> None:
    _, _, files = heart
    public = {"public": {"name": f"file:{files[0]}", "size": 60}} if strategy == "knfu" else {}
    sites = {"count": 3, "spec": str(tmp_path / "spec.json"), "server": f"file:{files[0]}"}
    data = {"sites": sites, **public, **OWN}
    config = parse_config({**HEART, "strategy": {"name": strategy}, "data": data, "timeout": 5.0})
    start(config, Loopback(config, nodes_of(files[1:])), tmp_path / "run")
    last = lines(tmp_path / "run")[-1]
    assert last["failures"] == []
    assert last["metrics"]["personal/accuracy" if strategy == "knfu" else "global/accuracy"] > 0.4


def test_the_federations_folder_has_the_file_in_its_app(
    heart: tuple[Config, Config, list[Path]], tmp_path: Path
) -> None:
    _, config, files = heart
    (tmp_path / "sites.toml").write_text(tomli_w.dumps(to_table(config)))
    done = provision(tmp_path / "federation", tmp_path / "sites.toml", 4, "127.0.0.1", 9443, insecure=True)
    assert done == (None, ["spec.json"])
    own = read_run_config(tmp_path / "federation/app", {"config": "federation.toml"})
    (tmp_path / "spec.json").unlink()  # each site has the app's
    assert own.data.sites is not None
    assert own.data.sites.spec == "spec.json"
    start(own, Loopback(own, nodes_of(files)), tmp_path / "run")
    assert "spec.json" in (tmp_path / "run/origin.json").read_text()


def test_descriptions_without_values_still_differ() -> None:
    spec = federate(parse_config(HEART).data, 0).spec
    assert spec.without_values().misfit(spec.without_values()) == []
    assert isinstance(spec.without_values(), DataSpec)
    assert {column.categories for column in spec.without_values().columns} == {None, ()}


@pytest.fixture
def prices(tmp_path: Path) -> tuple[Config, dict[str, Any], list[Path]]:
    """Return a simulation of two targets, `[data]` of the federation, and the Parquet file of each of three towns."""
    draw = np.random.default_rng(0)
    rooms = draw.uniform(1, 9, 120)
    frame = pd.DataFrame({
        "rooms": rooms, "town": [f"t{i % 3}" for i in range(120)],
        "price": 1e5 * rooms + draw.normal(0, 1e4, 120), "rent": 300 * rooms + draw.normal(0, 30, 120),
    })  # fmt: skip
    frame.to_csv(tmp_path / "towns.csv", index=False)
    data = {
        "file": str(tmp_path / "towns.csv"), "label": ["price", "rent"], "task": "regression", "node": "town",
        "units": {"price": "EUR", "rooms": "rooms"}, "partition": {"scheme": "natural"},
    }  # fmt: skip
    simulated = parse_config({**HEART, "data": data})
    spec = described(simulated, tmp_path)
    files = write_sets(federate(simulated.data, 0), tmp_path / "sets")
    kept = {key: data[key] for key in ("label", "task", "units")}
    return simulated, {**kept, "spec": spec, "split": "split"}, files


def test_sites_predict_numbers_as_the_simulation_does(
    prices: tuple[Config, dict[str, Any], list[Path]], tmp_path: Path
) -> None:
    simulated, data, files = prices
    config = of_sites(HEART, data.pop("spec"), 3, **data)
    start(config, Loopback(config, nodes_of(files)), tmp_path / "sites")
    run(simulated, tmp_path / "simulated")
    ours, theirs = without_global(tmp_path / "sites"), without_global(tmp_path / "simulated")
    assert ours == theirs
    assert ours[-1]["metrics"]["personal/mae"] < ours[0]["metrics"]["personal/mae"]


def test_sites_agree_on_the_scaling_of_targets(
    prices: tuple[Config, dict[str, Any], list[Path]], tmp_path: Path
) -> None:
    simulated, data, files = prices
    (tmp_path / "form.toml").write_text(tomli_w.dumps(to_table(simulated)))
    spec = tmp_path / "form.json"
    result = CliRunner().invoke(app, ["describe", str(tmp_path / "form.toml"), "--form", "-o", str(spec)])
    assert result.exit_code == 0, result.output
    sites = {"count": 3, "spec": str(spec), "statistics": "federated"}
    kept = {key: value for key, value in data.items() if key != "spec"}
    config = parse_config({**HEART, "data": {**kept, "sites": sites}, "timeout": 5.0})
    start(config, Loopback(config, nodes_of(files)), tmp_path / "sites")
    agreed = agreement_of((tmp_path / "sites" / "spec.json").read_bytes()).codec
    pooled = federate(simulated.data, 0).codec
    np.testing.assert_allclose(agreed.target_mean, pooled.target_mean, rtol=1e-12)
    np.testing.assert_allclose(agreed.target_deviation, pooled.target_deviation, rtol=1e-12)


def test_a_site_with_targets_in_another_unit_is_refused(
    prices: tuple[Config, dict[str, Any], list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, data, files = prices
    (tmp_path / "mine.toml").write_text(
        f'file = "{files[1]}"\nlabel = ["price", "rent"]\nunits = {{ price = "USD", rooms = "rooms" }}\n'
    )
    config = of_sites({**HEART, "min_replies": 3}, data.pop("spec"), 3, **data)
    sites = nodes_of(files)
    sites[IDS[1]]["data"] = str(tmp_path / "mine.toml")
    said = refused(config, sites, tmp_path, monkeypatch)
    assert "site-1 refused: its targets are in USD, no unit, here in EUR, no unit" in said
