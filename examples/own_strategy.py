"""A method of your own in one file, which a run names by its path; and the checks of what fedkd promises.

python examples/own_strategy.py
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

import fedkd
from fedkd import GlobalModelClient, Payload, Round, Strategy, expected_model, weighted_mean


@dataclass(kw_only=True)
class Damped(Strategy):
    """The server moves a part of the way towards the mean of the nodes' models: w <- w + rate (mean - w)."""

    client = GlobalModelClient
    equal_models = True
    global_model = True
    rate: Annotated[float, Field(gt=0, le=1)] = 0.5

    def run_round(self, federation: Round) -> None:
        """Send the model, average what comes back, move towards it."""
        before = self.weights
        assert before is not None
        expect = expected_model(before)
        mean = federation.ask("fit", Payload(weights=before), expect=expect, merge=weighted_mean).weights
        self.weights = {
            name: (old + self.rate * (mean[name] - old)) if old.is_floating_point() else mean[name]
            for name, old in before.items()
        }


if __name__ == "__main__":
    own = {"name": f"{Path(__file__).resolve()}:Damped", "rate": 0.8}
    for strategy in ("fedavg", own):
        run = fedkd.run("fedavg/quick", rounds=6, strategy=strategy, show=False)
        print(f"{run.summary['strategy'].rpartition(':')[2]}: {run.summary['final']['global/accuracy']:.3f}")
    print("next: fedkd check examples/own_strategy.py:Damped")
