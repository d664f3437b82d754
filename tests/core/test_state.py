"""The server's state: what is declared comes back from a checkpoint, what is not declared is an error."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedkd import InputError, Strategy
from fedkd.config import Config
from fedkd.core.state import State, StateWatch, pack, restore_state, state_of, unpack
from fedkd.core.wrapper import make_strategy
from fedkd.runs.run import resume, run

Make = Callable[..., Config]

PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5)
VALUES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
        | st.tuples(inner, inner)
        | st.sets(st.integers(), max_size=3)
    ),
    max_leaves=8,
)


def written(state: State) -> State:
    return State(state.tensors, json.loads(json.dumps(state.form)))


@given(VALUES)
def test_plain_values_come_back_as_they_were(value: Any) -> None:
    back = unpack(written(pack(value, "a test")))
    assert json.dumps(pack(back, "a test").form) == json.dumps(pack(value, "a test").form)  # NaN and -0.0 too
    assert type(back) is type(value)


def test_tensors_and_arrays_come_back_as_copies() -> None:
    kept = {3: {"w": torch.arange(4.0)}, "n": np.arange(3), "pair": (torch.tensor([True]), [torch.tensor(2)])}
    state = written(pack(kept, "a test"))
    kept[3]["w"] += 1  # type: ignore[index]
    back = unpack(state)
    assert back[3]["w"].tolist() == [0, 1, 2, 3]
    assert isinstance(back["n"], np.ndarray)
    assert back["n"].tolist() == [0, 1, 2]
    assert back["pair"][0].dtype == torch.bool
    assert int(back["pair"][1][0]) == 2


@pytest.mark.parametrize("value", [object(), {(1, 2): 3}, [torch.nn.Linear(1, 1)], {True: 1}])
def test_what_a_checkpoint_cannot_keep_is_named(value: Any) -> None:
    with pytest.raises(InputError, match=r"a test: .*(cannot store|has keys)"):
        pack({"mine": value}, "a test")


def test_equal_names_at_different_places_are_kept_apart() -> None:
    value = {
        "a": {"b/c": torch.zeros(1)},
        "a/b": {"c": torch.ones(1)},
        1: torch.full((1,), 2.0),
        "1": torch.full((1,), 3.0),
    }
    back = unpack(written(pack(value, "a test")))
    assert [float(back[a][b]) for a, b in (("a", "b/c"), ("a/b", "c"))] == [0, 1]
    assert [float(back[key]) for key in (1, "1")] == [2, 3]


def test_a_wrappers_state_is_its_own_and_its_bases(tiny: Make) -> None:
    table = tiny({"strategy": {"name": "weight_ema", "base": {"name": "scaffold"}}}).strategy
    strategy, again = make_strategy(table)[0], make_strategy(table)[0]
    strategy.weights = {"w": torch.ones(2)}
    strategy.mass = 2.5  # type: ignore[attr-defined]
    strategy.inner.control = {"w": torch.zeros(2)}  # type: ignore[attr-defined]
    restore_state(again, written(state_of(strategy)))
    assert again.weights is not None
    assert again.weights["w"].tolist() == [1, 1]
    assert again.mass == 2.5  # type: ignore[attr-defined]
    assert again.inner.control["w"].tolist() == [0, 0]  # type: ignore[attr-defined]
    other = make_strategy(tiny({"strategy": {"name": "fedavg"}}).strategy)[0]
    with pytest.raises(InputError, match="another version of the strategy wrote it"):
        restore_state(other, state_of(strategy.layers()[1]))


@dataclass(kw_only=True)
class Mine(Strategy):
    pull: float = 0.5
    table: dict[str, Any] = field(default_factory=dict, init=False)

    @cached_property
    def derived(self) -> int:
        return 3

    def run_round(self, federation: Any) -> None: ...


def test_a_round_that_leaves_what_a_resumed_run_would_not_have_is_an_error() -> None:
    mine = Mine()
    mine.helper = object()  # type: ignore[attr-defined]  # set in check(), which a resumed run calls too
    watch = StateWatch(mine)
    mine.table, mine.weights = {"x": 1}, {}
    assert mine.derived == 3
    watch.check(1)
    mine.count = 1  # type: ignore[attr-defined]
    with pytest.raises(
        InputError, match=r"Round 1 set Mine.count, which is not declared.*count: int = field\(default=0, init"
    ):
        watch.check(1)
    del mine.count  # type: ignore[attr-defined]
    mine.helper = object()  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="Round 2 set Mine.helper"):
        watch.check(2)
    mine = Mine()
    mine.names, mine.sums = ["a"], torch.zeros(2)  # type: ignore[attr-defined]
    watch = StateWatch(mine)
    watch.check(1)
    mine.names.append("b")  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="Round 2 set Mine.names"):
        watch.check(2)
    mine.names.pop()  # type: ignore[attr-defined]
    mine.sums += 1  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="Round 2 set Mine.sums"):
        watch.check(2)
    mine = Mine()
    watch = StateWatch(mine)
    mine.pull *= 0.9
    with pytest.raises(InputError, match="Round 3 changed Mine.pull, a hyper-parameter"):
        watch.check(3)


def test_undeclared_state_ends_the_run_after_round_1_and_declared_state_is_resumed(tiny: Make, tmp_path: Path) -> None:
    code = (
        "from dataclasses import dataclass, field\nfrom fedkd.strategies.fedavg import FedAvg\n"
        "@dataclass(kw_only=True)\nclass Mine(FedAvg):\n    seen: list = field(default_factory=list, init=False)\n"
        "    def run_round(self, federation):\n        super().run_round(federation)\n"
        "        self.seen = [*self.seen, federation.number]\n        federation.log('seen', self.seen)\n"
    )
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(code)
    bad.write_text(
        code.replace("    seen: list = field(default_factory=list, init=False)\n", "").replace("*self.seen, ", "")
    )
    with pytest.raises(InputError, match="Round 1 set Mine.seen, which is not declared"):
        run(tiny({"strategy": f"{bad}:Mine"}), tmp_path / "bad")
    assert '"status": "failed"' in (tmp_path / "bad" / "summary.json").read_text()
    run(tiny({"strategy": f"{good}:Mine"}), tmp_path / "good")
    config = tmp_path / "good" / "config.toml"
    config.write_text(config.read_text().replace("rounds = 2", "rounds = 4"))
    resume(tmp_path / "good")
    last = json.loads((tmp_path / "good" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["log"]["seen"] == [1, 2, 3, 4]
