"""Sites that agree on a codec before round 1: the one of the pooled samples, in any order of replies, kept by all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tomli_w
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from helpers import HOME, lines, merged
from helpers.federations import IDS, after_round, events, failures, metrics_of, start
from helpers.loopback import Clock, Loopback
from typer.testing import CliRunner

from fedkd import InputError, RunError
from fedkd.cli import app
from fedkd.config import Config, parse_config, to_table
from fedkd.data.agreement import Agreement, agreement_of
from fedkd.data.codec import Codec
from fedkd.data.federation import federate
from fedkd.data.writing import write_sets
from fedkd.deployment.app import read_run_config
from fedkd.deployment.introduction import JOIN
from fedkd.deployment.provision import provision
from fedkd.deployment.site_codec import NO_CODEC, STATISTICS
from fedkd.messages.arrays import array_record
from fedkd.messages.payload import from_records

TABLE: dict[str, Any] = {
    "seed": 0,
    "rounds": 2,
    "model": {"name": "table_mlp"},
    "train": {"batch_size": 32, "optimizer": {"name": "sgd", "lr": 0.05}},
    "strategy": {"name": "fedavg"},
    "evaluate": {"every": 1},
}
OWN = {"label": "label", "split": "split"}


def rows(count: int = 240) -> pd.DataFrame:
    """Return rows of three wards with unlike ages, missing heights, and a category that one row alone has."""
    rng = np.random.default_rng(0)
    ward = np.array(["a", "b", "c"])[np.arange(count) % 3]
    age = 40 + 10 * (np.arange(count) % 3) + rng.normal(size=count) * 9
    height = np.where(rng.random(count) < 0.2, np.nan, 170 + rng.normal(size=count) * 8)
    sex = np.where(rng.random(count) < 0.5, "f", "m")
    sex[0] = "unsaid"
    label = np.where(age + rng.normal(size=count) * 5 > 52, "yes", "no")
    split = np.where(np.arange(count) % 4 == 3, "test", "train")
    return pd.DataFrame({"age": age, "height": height, "sex": sex, "ward": ward, "label": label, "split": split})


def described(data: dict[str, Any], folder: Path, *options: str) -> Path:
    """Return the file that `fedkd describe` writes for a config with samples on this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "own.toml").write_text(tomli_w.dumps(to_table(parse_config({**TABLE, "data": data}))))
    result = CliRunner().invoke(app, ["describe", str(folder / "own.toml"), "-o", str(folder / "spec.json"), *options])
    assert result.exit_code == 0, result.output
    return folder / "spec.json"


class Wards:
    """Three sites with the rows of a ward each, the same rows pooled, and the codec of the pooled ones."""

    def __init__(self, folder: Path, frame: pd.DataFrame | None = None, **data: Any) -> None:
        self.folder, self.frame = folder, rows() if frame is None else frame
        folder.mkdir(parents=True, exist_ok=True)
        self.frame.to_csv(folder / "all.csv", index=False)
        self.pooled = {
            "file": str(folder / "all.csv"),
            "node": "ward",
            "partition": {"scheme": "natural"},
            "min_count": 5,
            **OWN,
            **data,
        }
        self.paths = []
        for name, part in self.frame.groupby("ward"):
            self.paths.append(folder / f"{name}.csv")
            part.drop(columns="ward").to_csv(self.paths[-1], index=False)
        given, form = described(self.pooled, folder / "given"), described(self.pooled, folder / "form", "--form")
        self.codec = agreement_of(given.read_bytes()).codec
        self.given = self.config(given, {}, {})
        self.config_of = lambda **more: self.config(form, {"statistics": "federated"}, {**data, **more})
        self.federated = self.config_of()

    def config(self, spec: Path, sites: dict[str, Any], data: dict[str, Any]) -> Config:
        own = {"sites": {"count": 3, "spec": str(spec), **sites}, **OWN, **data}
        return parse_config({**TABLE, "data": own, "timeout": 5.0})

    def grid(self, config: Config | None = None) -> Loopback:
        named = enumerate(zip(IDS, self.paths, strict=False))
        sites = {id: {"data": f"file:{path}", "name": f"site-{n}"} for n, (id, path) in named}
        return Loopback(config or self.federated, sites)


@pytest.fixture
def wards(tmp_path: Path) -> Wards:
    return Wards(tmp_path / "wards")


def agreed(folder: Path) -> Agreement:
    return agreement_of((folder / "spec.json").read_bytes())


def same(one: Codec, other: Codec) -> None:
    """Check that two codecs are equal up to rounding."""
    for name in ("mean", "deviation", "fill", "target_mean", "target_deviation"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-9), name
    assert (one.spec, one.indicators, one.instance, one.edges) == (other.spec, other.indicators, other.instance, None)
    assert [codes.tolist() for codes in one.codes] == [codes.tolist() for codes in other.codes]


def kinds_of(grid: Loopback, id: int | None = None) -> list[str]:
    """Return the kinds of the messages to one SuperNode, or to all."""
    return [one.metadata.message_type for one in grid.sent if id in (None, one.metadata.dst_node_id)]


def with_file(grid: Loopback, id: int) -> list[str]:
    """Return the requests to a SuperNode that have brought the agreed file, by round and name."""
    own = [one for one in grid.sent if one.metadata.dst_node_id == id]
    own = [one for one in own if "spec" in one.content.config_records["round"]]
    return [f"{one.metadata.group_id} {one.metadata.message_type.removeprefix('train.')}" for one in own]


@pytest.mark.parametrize("missing", ["mean", "indicator"])
def test_three_wards_agree_on_the_codec_of_their_pooled_rows(tmp_path: Path, missing: str) -> None:
    wards = Wards(tmp_path / "wards", missing=missing)
    assert json.loads((wards.folder / "form/spec.json").read_text())["codec"] is None
    grid = wards.grid()
    start(wards.federated, grid, tmp_path / "run")
    start(wards.given, wards.grid(wards.given), tmp_path / "given")
    found = agreed(tmp_path / "run")
    same(found.codec, wards.codec)
    assert found.codec.codes[0].tolist() == [1, 2, 0]  # what one row alone has is no category
    assert found.codec.indicators == ((1,) if missing == "indicator" else ())
    assert failures(tmp_path / "run") == []
    ours, theirs = metrics_of(tmp_path / "run"), metrics_of(tmp_path / "given")
    assert len(ours) == len(theirs) == 3
    for one, other in zip(ours, theirs, strict=True):
        assert one["metrics"] == pytest.approx(other["metrics"], rel=1e-4)
        assert one["bytes"] == other["bytes"]
    assert ours[-1]["metrics"]["personal/accuracy"] > 0.6
    assert kinds_of(grid).count(STATISTICS) == 3
    assert [with_file(grid, id) for id in grid.sites] == [["0 evaluate"]] * 3
    assert json.loads((tmp_path / "run/sites.json").read_text())["codec"] == found.codec.hash


def test_the_servers_own_set_is_encoded_by_the_agreed_codec(wards: Wards, tmp_path: Path) -> None:
    server = {"server": f"file:{wards.paths[0]}"}
    federated = wards.config(wards.folder / "form/spec.json", {"statistics": "federated", **server}, {})
    given = wards.config(wards.folder / "given/spec.json", server, {})
    for name, config in (("run", federated), ("given", given)):
        start(config, wards.grid(config), tmp_path / name)
    ours, theirs = (lines(tmp_path / name)[-1]["metrics"] for name in ("run", "given"))
    assert ours["global/accuracy"] > 0.6
    assert ours == pytest.approx(theirs, rel=1e-4)
    same(agreed(tmp_path / "run").codec, wards.codec)


def test_no_value_of_a_row_leaves_a_site(wards: Wards, tmp_path: Path) -> None:
    grid, heard = wards.grid(), []

    def keep(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == STATISTICS:
            heard.append((from_records(reply.content), {k: set(v) for k, v in reply.content.items()}))
        return reply

    grid.tampered = keep
    start(wards.federated, grid, tmp_path / "run")
    assert len(heard) == 3
    for payload, records in heard:
        shapes = {name: tuple(array.shape) for name, array in payload.statistics.items()}
        assert shapes == {"count": (2,), "mean": (2,), "squares": (2,), "known": (3,)}
        assert payload.statistics["known"].dtype == torch.bool
        assert records == {"statistics": set(shapes), "site": {"node", "request"}}
        assert not payload.statistics["known"][2]  # the category of one row


def test_test_rows_change_nothing(wards: Wards, tmp_path: Path) -> None:
    far = wards.frame.copy()
    far.loc[far["split"] == "test", ["age", "height"]] = 1e6
    other = Wards(tmp_path / "other", far)
    other.federated = wards.federated
    start(wards.federated, wards.grid(), tmp_path / "run")
    start(wards.federated, other.grid(), tmp_path / "far")
    assert (tmp_path / "run/spec.json").read_bytes() == (tmp_path / "far/spec.json").read_bytes()


def test_the_order_of_replies_changes_nothing(wards: Wards, tmp_path: Path) -> None:
    start(wards.federated, wards.grid(), tmp_path / "run")
    grid = wards.grid()
    grid.sites = {id: grid.sites[id] for id in reversed(grid.sites)}
    asked: list[int] = []

    def held(message: Message, node_config: dict[str, Any]) -> bool:
        """Let the first site that was asked answer last."""
        if message.metadata.message_type != STATISTICS:
            return False
        asked.append(message.metadata.dst_node_id)
        return message.metadata.dst_node_id == asked[0] and asked.count(asked[0]) < 3

    grid.held = held
    start(wards.federated, grid, tmp_path / "late")
    assert (tmp_path / "run/spec.json").read_bytes() == (tmp_path / "late/spec.json").read_bytes()


def test_series_agree_per_channel_over_their_steps(tmp_path: Path) -> None:
    data = {"name": "spoken_digits", "partition": {"scheme": "natural"}}
    table = merged(TABLE, {"data": data, "model": {"name": "resnet1d"}, "rounds": 1})
    same(federation_of(table, tmp_path).codec, federate(parse_config(table).data, 0).codec)


def test_images_agree_per_channel(tmp_path: Path) -> None:
    data = {"name": "digits", "partition": {"scheme": "iid", "clients": 3}, "node_test": 20}
    table = merged(TABLE, {"data": data, "model": {"name": "mlp", "hidden": [8]}, "rounds": 1})
    pooled = federate(parse_config(table).data, 0)
    pixels = pooled.train.inputs[pooled.pooled()] / 255
    found = federation_of(table, tmp_path).codec
    assert found.mean == pytest.approx([pixels.mean()], rel=1e-9)  # not those that the named set comes with
    assert found.deviation == pytest.approx([pixels.std()], rel=1e-9)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_arrays_agree_and_so_do_targets(tmp_path: Path, task: str) -> None:
    rng = np.random.default_rng(0)
    x = (5 + rng.normal(size=(90, 2, 3, 2)) * 3).astype(np.float32)
    y = (
        np.stack([1e5 + rng.normal(size=90) * 3e4, rng.normal(size=90)], 1)
        if task == "regression"
        else x[:, 0, 0, 0] > 5
    )
    y = y if task == "regression" else y.astype(np.int64)
    np.savez(tmp_path / "all.npz", x_train=x[:72], y_train=y[:72], x_test=x[72:], y_test=y[72:], kind="array")
    data = {"file": str(tmp_path / "all.npz"), "task": task, "partition": {"scheme": "iid", "clients": 3}}
    table = merged(TABLE, {"data": data, "model": {"name": "mlp", "hidden": [8]}, "rounds": 1})
    pooled = federate(parse_config(table).data, 0)
    found = federation_of(table, tmp_path).codec
    same(found, pooled.codec)
    assert len(found.target_mean) == (2 if task == "regression" else 0)


def federation_of(table: dict[str, Any], folder: Path) -> Agreement:
    """Run a federation of real sites that have what the nodes of a simulation have; return what they agree on."""
    simulated = parse_config(table)
    data = to_table(simulated)["data"]
    spec = described(data, folder / "form", "--form")
    files = write_sets(federate(simulated.data, 0), folder / "sets")
    own = {"sites": {"count": len(files), "spec": str(spec), "statistics": "federated"}}
    config = parse_config({**table, "data": own, "timeout": 5.0})
    named = enumerate(zip(IDS, files, strict=False))
    sites = {id: {"data": f"file:{path}", "name": f"site-{n}"} for n, (id, path) in named}
    start(config, Loopback(config, sites), folder / "run")
    assert failures(folder / "run") == []
    assert [event for event in events(folder / "run") if "joined" not in event] == []
    return agreed(folder / "run")


def test_a_site_with_few_rows_sends_nothing_and_takes_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frame = rows()
    few = frame[(frame["ward"] != "c") | (frame.index < 30)]  # ward c: 10 rows, 8 of them for training
    wards = Wards(tmp_path / "wards", few)
    grid = wards.grid()
    start(wards.federated, grid, tmp_path / "run")
    others = Wards(tmp_path / "others", few[few["ward"] != "c"])
    same(agreed(tmp_path / "run").codec, others.codec)
    assert "This site has 8 training rows, fewer than 10: it sends no statistics" in caplog.text
    assert "0 site-2: has no statistics: fewer than 10 training samples with a value" in events(tmp_path / "run")
    assert failures(tmp_path / "run") == []
    assert set(lines(tmp_path / "run")[-1]["nodes"]["personal/accuracy"]) == {"0", "1", "2"}


def test_a_column_with_few_values_at_a_site_says_nothing_there(tmp_path: Path) -> None:
    """The mean of three people's values is nearly what one of them has."""
    frame = rows()
    in_c = frame.index[(frame["ward"] == "c") & (frame["split"] == "train")]
    frame.loc[in_c[3:], "height"] = np.nan
    wards = Wards(tmp_path / "wards", frame)
    start(wards.federated, wards.grid(), tmp_path / "run")
    found, training = agreed(tmp_path / "run").codec, frame[frame["split"] == "train"]
    assert found.mean[0] == pytest.approx(training["age"].mean(), rel=1e-9)
    assert found.mean[1] == pytest.approx(training[training["ward"] != "c"]["height"].mean(), rel=1e-9)
    assert found.mean[1] != pytest.approx(training["height"].mean(), rel=1e-6)


def test_a_site_of_rare_categories_takes_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its categories are those of the file, so it is no other column and no other spelling."""
    frame = rows()
    frame["street"] = np.where(frame["ward"] == "c", [f"s{i // 9}" for i in range(len(frame))], "main")
    wards = Wards(tmp_path / "wards", frame, min_count=1)
    config = wards.config_of(min_count=5)
    with caplog.at_level("INFO", "fedkd"):
        start(config, wards.grid(config), tmp_path / "run")
    assert failures(tmp_path / "run") == []
    assert agreed(tmp_path / "run").codec.codes[1].tolist() == [1] + [0] * 27
    assert (
        "column 'street': 80 values are not a category that the sites have agreed on; they become code 0" in caplog.text
    )


def test_the_federations_folder_has_the_form_in_its_app(wards: Wards, tmp_path: Path) -> None:
    (tmp_path / "sites.toml").write_text(tomli_w.dumps(to_table(wards.federated)))
    done = provision(tmp_path / "federation", tmp_path / "sites.toml", 3, "127.0.0.1", 9443, insecure=True)
    assert done == (None, ["spec.json"])
    own = read_run_config(tmp_path / "federation/app", {"config": "federation.toml"})
    (wards.folder / "form/spec.json").unlink()
    start(own, wards.grid(own), tmp_path / "run")
    same(agreed(tmp_path / "run").codec, wards.codec)


def test_a_column_without_a_value_at_any_site_is_named(tmp_path: Path) -> None:
    wards = Wards(tmp_path / "wards")
    for path in wards.paths:
        pd.read_csv(path).assign(height=np.nan).to_csv(path, index=False)
    with pytest.raises(InputError, match="column 'height': no site has 10 training samples with a value; drop it"):
        start(wards.federated, wards.grid(), tmp_path / "run")
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "failed"


def replaced(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[RecordDict], None]:
    def alter(content: RecordDict) -> None:
        arrays = dict(from_records(content).statistics)
        arrays[name] = change(arrays[name])
        content["statistics"] = array_record(arrays)

    return alter


def dropped(name: str) -> Callable[[RecordDict], None]:
    def alter(content: RecordDict) -> None:
        arrays = {key: array for key, array in from_records(content).statistics.items() if key != name}
        content["statistics"] = array_record(arrays)

    return alter


@pytest.mark.parametrize(
    ("alter", "reason"),
    [
        (replaced("mean", lambda t: t * float("nan")), "statistics 'mean' has values that are not finite"),
        (replaced("squares", lambda t: t * float("inf")), "statistics 'squares' has values that are not finite"),
        (replaced("count", lambda t: -t), "statistics 'count' has values outside 0.0"),
        (replaced("count", lambda t: t + 0.5), "statistics 'count' has values that are not whole"),
        (replaced("count", lambda t: t + 1e6), "not 0 to what the site's samples have"),
        (replaced("squares", lambda t: -t), "statistics 'squares' has values outside 0.0"),
        (replaced("mean", lambda t: t * 0 + 1e31), "statistics 'mean' has values outside"),
        (replaced("squares", lambda t: t * 0 + 1e65), "statistics 'mean' or 'squares' is of values beyond 5e+29"),
        (replaced("count", lambda t: t * 0), "statistics 'mean' or 'squares' has a number of no values"),
        (replaced("mean", lambda t: t[:1]), "statistics 'mean' has shape (1,), expected was (2,)"),
        (replaced("mean", lambda t: t.float()), "statistics 'mean' has dtype torch.float32"),
        (replaced("known", lambda t: t.to(torch.uint8) * 9), "statistics 'known' has dtype torch.uint8"),
        (dropped("squares"), "statistics without 'squares'"),
        (replaced("known", lambda t: t[:2]), "statistics 'known' has shape (2,)"),
    ],
)
def test_a_hostile_site_is_named_and_the_others_agree_without_it(
    wards: Wards, tmp_path: Path, alter: Callable[[RecordDict], None], reason: str
) -> None:
    grid = wards.grid()

    def tampered(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == STATISTICS and message.metadata.dst_node_id == IDS[1]:
            alter(reply.content)
        return reply

    grid.tampered = tampered
    start(wards.federated, grid, tmp_path / "run")
    named = [event for event in events(tmp_path / "run") if "statistics" in event]
    assert len(named) == 1
    assert named[0].startswith("0 site-1: its statistics do not count: bad reply: ")
    assert reason in named[0]
    others = Wards(tmp_path / "others", wards.frame[wards.frame["ward"] != "b"])
    assert agreed(tmp_path / "run").codec.mean == pytest.approx(others.codec.mean, rel=1e-9)
    assert failures(tmp_path / "run") == []  # it takes part with the others' codec


def test_too_few_good_replies_end_the_run_and_it_can_go_on(wards: Wards, tmp_path: Path) -> None:
    config = wards.federated.model_copy(update={"min_replies": 3})
    grid = wards.grid(config)

    def tampered(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == STATISTICS:
            dropped("mean")(reply.content)
        return reply

    grid.tampered = tampered

    with pytest.raises(RunError, match=r"0 good replies, min_replies is 3. site-0: bad reply: statistics without"):
        start(config, grid, tmp_path / "run")
    start(config, wards.grid(config), tmp_path / "run", resume=True)
    same(agreed(tmp_path / "run").codec, wards.codec)


def test_a_site_that_is_late_is_named(wards: Wards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedkd.deployment.sites.time", Clock())
    grid = wards.grid()
    grid.held = lambda message, own: message.metadata.message_type == STATISTICS and own["name"] == "site-2"
    start(wards.federated, grid, tmp_path / "run")
    assert "0 site-2: its statistics do not count: no reply within 5 s" in events(tmp_path / "run")


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_site_that_restarts_gets_the_codec_again_if_it_has_lost_it(
    wards: Wards, tmp_path: Path, on_disk: bool
) -> None:
    config = wards.federated.model_copy(update={"rounds": 4})
    grid = wards.grid(config)
    if on_disk:
        grid.sites[IDS[1]]["state"] = str(tmp_path / "state")
    start(config, grid, tmp_path / "run", on_round=after_round(2, lambda: grid.restart(IDS[1])))
    assert failures(tmp_path / "run") == []
    assert with_file(grid, IDS[1]) == ["0 evaluate"] + ["3 fit"] * (not on_disk)
    assert with_file(grid, IDS[0]) == ["0 evaluate"]
    assert kinds_of(grid, IDS[1]).count(STATISTICS) == 1


def test_a_damaged_file_of_a_site_is_sent_again(wards: Wards, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = wards.federated.model_copy(update={"rounds": 3})
    grid = wards.grid(config)
    grid.sites[IDS[1]]["state"] = str(tmp_path / "state")

    def damage() -> None:
        (kept,) = (tmp_path / "state").rglob("spec.json")
        kept.write_text(kept.read_text()[:-40])
        grid.restart(IDS[1])

    start(config, grid, tmp_path / "run", on_round=after_round(1, damage))
    assert failures(tmp_path / "run") == []
    assert with_file(grid, IDS[1]) == ["0 evaluate", "2 fit"]
    assert "What the sites have agreed on cannot be read" in caplog.text


def test_a_site_that_loses_the_codec_between_two_requests_says_so(wards: Wards, tmp_path: Path) -> None:
    config = wards.federated.model_copy(update={"rounds": 3})
    grid = wards.grid(config)
    start(config, grid, tmp_path / "run", on_round=after_round(1, lambda: grid.contexts[IDS[1]].state.clear()))
    assert [one for one in failures(tmp_path / "run") if "2 1 fit" in one] == [f"2 1 fit: {NO_CODEC}"]
    assert with_file(grid, IDS[1]) == ["0 evaluate", "2 evaluate"]


def test_a_site_that_joins_late_gets_the_codec_and_is_asked_nothing(wards: Wards, tmp_path: Path) -> None:
    assert wards.federated.data.sites is not None
    two = wards.federated.data.sites.model_copy(update={"count": 2})
    config = wards.federated.model_copy(
        update={"rounds": 3, "data": wards.federated.data.model_copy(update={"sites": two})}
    )
    grid = wards.grid(config)
    grid.online.discard(IDS[2])
    start(config, grid, tmp_path / "run", on_round=after_round(1, lambda: grid.online.add(IDS[2])))
    assert failures(tmp_path / "run") == []
    assert with_file(grid, IDS[2]) == ["2 fit"]
    assert kinds_of(grid, IDS[2]).count(STATISTICS) == 0
    others = Wards(tmp_path / "others", wards.frame[wards.frame["ward"] != "c"])
    same(agreed(tmp_path / "run").codec, others.codec)


def test_a_resumed_run_asks_nobody_again(wards: Wards, tmp_path: Path) -> None:
    whole, grid = wards.federated.model_copy(update={"rounds": 4}), wards.grid()
    start(whole, wards.grid(whole), tmp_path / "whole")
    start(wards.federated, grid, tmp_path / "run")
    before = (tmp_path / "run/spec.json").read_bytes()
    grid.app = wards.grid(whole).app
    grid.run_id += 1
    for id in grid.sites:
        grid.restart(id)
    sent = len(grid.sent)
    start(whole, grid, tmp_path / "run", resume=True)
    assert (tmp_path / "run/spec.json").read_bytes() == before
    assert STATISTICS not in [one.metadata.message_type for one in grid.sent[sent:]]
    ours, theirs = metrics_of(tmp_path / "run"), metrics_of(tmp_path / "whole")
    assert [one["metrics"] for one in ours] == [one["metrics"] for one in theirs]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "spec.json cannot be read: No such file"),
        (lambda path: path.write_text(path.read_text()[:-30]), "spec.json cannot be read"),
        (lambda path: path.write_text(path.read_text().replace('"mean": [\n   ', '"mean": [\n   1')), "is not what"),
    ],
)
def test_a_run_does_not_go_on_with_another_codec(
    wards: Wards, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    start(wards.federated, wards.grid(), tmp_path / "run")
    damage(tmp_path / "run/spec.json")
    more = wards.federated.model_copy(update={"rounds": 3})
    with pytest.raises(InputError, match=message):
        start(more, wards.grid(more), tmp_path / "run", resume=True)


def test_a_site_with_another_codec_is_refused(wards: Wards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedkd.deployment.sites.time", Clock())
    grid = wards.grid()

    def tampered(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == JOIN and message.metadata.dst_node_id == IDS[1]:
            record = next(r for r in reply.content.config_records.values() if "codec" in r)
            record["codec"] = "0" * 24
        return reply

    grid.tampered = tampered
    with pytest.raises(RunError, match="it encodes its samples with other numbers"):
        start(wards.federated, grid, tmp_path / "run")


def test_a_site_sends_statistics_only_if_its_config_says_so(wards: Wards) -> None:
    for config, sent in ((wards.federated, True), (wards.given, False)):
        grid, about = wards.grid(config), {"federation": "0" * 32, "node": 0, "request": "000000-000001"}
        (id,) = grid.push_messages([Message(RecordDict({"round": ConfigRecord(about)}), IDS[0], STATISTICS)])
        _, reply = grid.replies[id]
        assert reply.has_error() is not sent
        assert sent or "data.sites.statistics is not 'federated'" in reply.error.reason


def test_missing_numbers_can_be_refused_at_a_site(
    wards: Wards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedkd.deployment.sites.time", Clock())
    config = wards.config_of(missing="refuse")
    with pytest.raises(RunError, match="numbers are missing, .* of them in column 'height'"):
        start(config, wards.grid(config), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scaling": "quantile"}, "data.scaling = 'quantile': it needs the order of all values"),
        ({"missing": "median"}, "data.missing = 'median': it needs the order of all values"),
        ({"scaling": "instance"}, "data.scaling = 'instance' is for series"),
        ({"missing": "hold"}, "data.missing = 'hold': the samples are rows"),
    ],
)
def test_what_sums_cannot_say_is_refused(wards: Wards, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        federate(wards.config_of(**changes).data, 0)


def test_the_file_and_the_key_must_say_the_same(wards: Wards, tmp_path: Path) -> None:
    federated, given = wards.federated.data.sites, wards.given.data.sites
    assert federated is not None
    assert given is not None
    swapped = federated.model_copy(update={"spec": given.spec}), given.model_copy(update={"spec": federated.spec})
    for sites, message in zip(
        swapped, ["it has a codec, but", "its codec is null; set data.sites.statistics"], strict=True
    ):
        with pytest.raises(InputError, match=message):
            federate(wards.federated.data.model_copy(update={"sites": sites}), 0)


def test_words_do_not_leave_a_site(tmp_path: Path) -> None:
    data = {
        "file": str(HOME / "fedkd/data/shipped/sentences.csv"), "label": "label", "text": "text", "node": "site",
        "partition": {"scheme": "natural"},
    }  # fmt: skip
    (tmp_path / "own.toml").write_text(tomli_w.dumps({**TABLE, "model": {"name": "text_cnn"}, "data": data}))
    command = ["describe", str(tmp_path / "own.toml"), "--form", "-o", str(tmp_path / "spec.json")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert "set tokenizer = 'bytes'" in " ".join(result.stderr.split())
    result = CliRunner().invoke(app, [*command, "--set", "data.tokenizer=bytes"])
    assert result.exit_code == 0, result.output
    table = json.loads((tmp_path / "spec.json").read_text())
    table["spec"]["learned"] = True
    (tmp_path / "spec.json").write_text(json.dumps(table))
    sites = {"count": 2, "spec": str(tmp_path / "spec.json"), "statistics": "federated"}
    config = parse_config({**TABLE, "data": {"sites": sites, "label": "label", "text": "text"}})
    with pytest.raises(InputError, match="the words of texts would have to leave the sites"):
        federate(config.data, 0)
