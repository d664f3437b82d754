"""What is refused of a strategy's class before round 1: each in a line with the class, the file and the line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedkd import InputError, Round, RunError
from fedkd.config import Config
from fedkd.core.contract import asked_actions
from fedkd.core.setup import make_setup
from fedkd.runs.run import run
from fedkd.strategies.dsfl import DSFL
from fedkd.strategies.fedlgd import FedLGD
from fedkd.strategies.knfu import KnFu

Make = Callable[..., Config]

HEAD = """from dataclasses import dataclass, field
from typing import ClassVar
from fedkd import Client, Payload, Round, Strategy

class MineClient(Client):
    def learn(self, request: Payload) -> Payload:
        return Payload()
    def send(self, payload: Payload) -> Payload:
        return Payload()
    def helper(self, request: Payload, more: int) -> int:
        return more

"""
GOOD = (
    HEAD
    + """@dataclass(kw_only=True)
class Mine(Strategy):
    client: ClassVar[type[Client]] = MineClient
    pull: float = 0.5
    UPPER = 3
    _hidden = 4
    def run_round(self, federation: Round) -> None:
        federation.ask("learn")
"""
)


def refusal(tiny: Make, folder: Path, code: str) -> str:
    file = folder / "mine.py"
    file.write_text(code)
    with pytest.raises(InputError) as raised:
        run(tiny({"strategy": {"name": f"{file}:Mine"}}), folder / "run")
    assert not (folder / "run").exists()
    return str(raised.value)


def test_a_class_that_keeps_the_contract_runs(tiny: Make, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(GOOD)
    summary = run(tiny({"strategy": {"name": f"{file}:Mine", "pull": 0.1}}), tmp_path / "run")
    assert summary["status"] == "completed"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('ask("learn")', 'ask("lern")', "mine.py:20: ask('lern'): MineClient has no such method; did you mean 'learn'"),
        ('ask("learn")', 'ask("send")', "MineClient.send (mine.py:8): send takes (self, payload); a method that "),
        ('ask("learn")', 'ask("helper")', "helper takes (self, request, more)"),
        ('ask("learn")', 'ask("_learn")', "ask('_learn'): MineClient has no such method"),
        ("    pull: float = 0.5", "    pull = 0.5", "pull = 0.5 has no annotation, so it is not a hyper-parameter"),
        ("@dataclass(kw_only=True)", "@dataclass", "Mine (mine.py:13): pull can be given by position: write"),
        ("@dataclass(kw_only=True)\n", "", "Mine (mine.py:13): pull is not a field yet: write @dataclass"),
        ("client: ClassVar[type[Client]]", "client: type[Client]", "client is not a hyper-parameter: write client:"),
        ("    UPPER", "    equal_models: bool = True\n    UPPER", "write equal_models: ClassVar[bool] = ..."),
        ("def run_round", "def run_rounds", "Mine (mine.py:13): the class lacks run_round: write it"),
        ("federation: Round) -> None", "federation: Round, more) -> None", "run_round takes self, federation"),
        ("    UPPER", "    def check(self): ...\n    UPPER", "check takes self, environment"),
        ("= MineClient", "= 3", "client = 3: write client: ClassVar[type[Client]] = YourClient"),
    ],
)  # fmt: skip
def test_what_breaks_the_contract_is_refused_with_what_to_write(
    tiny: Make, tmp_path: Path, before: str, after: str, message: str
) -> None:
    assert before in GOOD
    found = refusal(tiny, tmp_path, GOOD.replace(before, after))
    assert message in found
    assert "mine.py" in found


def test_all_problems_are_said_at_once(tiny: Make, tmp_path: Path) -> None:
    wrong = GOOD.replace("@dataclass(kw_only=True)", "@dataclass").replace(
        "client: ClassVar[type[Client]]", "client: type[Client]"
    )
    assert len(refusal(tiny, tmp_path, wrong).splitlines()) >= 3


def test_an_init_of_its_own_needs_annotations(tiny: Make, tmp_path: Path) -> None:
    own = "class Mine(Strategy):\n    def __init__(self, *, pull=0.5): ...\n    def run_round(self, federation): ...\n"
    assert "the hyper-parameter pull has no annotation: write pull: <type>" in refusal(tiny, tmp_path, HEAD + own)


def test_an_action_that_the_code_does_not_name_is_refused_where_it_is_asked_for(tiny: Make, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(GOOD.replace('ask("learn")', 'ask("le" + "rn")').replace('"le" + "rn"', '"".join(["le", "rn"])'))
    with pytest.raises(RunError, match=r"ask\('lern'\): unknown 'lern'; did you mean 'learn'"):
        run(tiny({"strategy": {"name": f"{file}:Mine"}}), tmp_path / "run")


@pytest.mark.parametrize(
    ("kind", "actions"),
    [(KnFu, {"extract", "finetune"}), (DSFL, {"update"}), (FedLGD, {"begin", "distil", "reveal", "fit"})],
)
def test_requests_are_found_in_the_code_with_those_that_are_inherited(kind: type, actions: set[str]) -> None:
    found = asked_actions(kind)
    assert {asked.action for asked in found} == actions
    assert all(asked.where.split(":")[0].endswith(".py") and int(asked.where.split(":")[1]) > 10 for asked in found)


def test_what_a_replaced_method_asks_for_counts_only_where_it_is_called() -> None:
    class Calls(KnFu):
        def run_round(self, federation: Round) -> None:
            super().run_round(federation)

    class Replaces(KnFu):
        def run_round(self, federation: Round) -> None:
            federation.ask("mine")

    assert {asked.action for asked in asked_actions(Calls)} == {"extract", "finetune"}
    assert {asked.action for asked in asked_actions(Replaces)} == {"mine"}


@pytest.mark.parametrize("name", ["fedftg", "fedx", "weight_ema", "fedavg_virtual"])
def test_a_wrappers_requests_are_answered_by_the_joint_client_half(tiny: Make, name: str) -> None:
    make_setup(tiny({"strategy": {"name": name}, "data.validation": {"size": 20}})).check()


def test_requests_are_read_from_the_first_two_texts_of_a_call() -> None:
    class Asks(KnFu):
        def run_round(self, federation: Any) -> None:
            federation.ask("first", "second")
            ask_third(federation, 1, "third")
            ask_second(federation, "named")
            federation.log("logged", 1)
            (lambda: ask_second)()("hidden")

    assert {asked.action for asked in asked_actions(Asks)} == {"first", "named"}


def ask_second(*arguments: Any) -> Any: ...


ask_third = ask_second


def test_a_client_half_is_a_class_of_clients(tiny: Make, tmp_path: Path) -> None:
    found = refusal(tiny, tmp_path, GOOD.replace("= MineClient", "= int"))
    assert "client = <class 'int'>: write client: ClassVar[type[Client]] = YourClient" in found
