"""Weight EMA: an exponential moving average of the global model on the server. A cheap control of data-free methods.

Polyak, Juditsky: Acceleration of Stochastic Approximation by Averaging, 1992, in its exponential form.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from fedkd import ANY_KIND, ANY_TASK, Architecture, Kind, NamedTable, Payload, Round, Task, Tensors, Wrapper, copied


@dataclass(kw_only=True)
class WeightEMA(Wrapper):
    """Measures the average sum_s decay^(t - s) w_s / sum_s decay^(t - s) of the base's global models w_1 ... w_t.

    The clients continue from the base's own model: training is bit for bit that of the base, and sends nothing more.
    `global/accuracy` is that of the average, `latest/accuracy` that of the base's model. The average does not include
    the initial model; counters of batch norm are those of the last model.
    """

    kinds: ClassVar[frozenset[Kind]] = ANY_KIND
    tasks: ClassVar[frozenset[Task]] = ANY_TASK
    balances: ClassVar[bool] = True
    base: NamedTable = field(default_factory=lambda: NamedTable(name="fedavg"))
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    average: Tensors = field(default_factory=dict, init=False)
    mass: float = field(default=0.0, init=False)  # the sum of the powers of decay until now

    def run_round(self, federation: Round) -> None:
        """Call the base's `run_round`, and add its model to the average."""
        self.inner.run_round(federation)
        latest = self.weights or {}
        self.mass = 1 + self.decay * self.mass
        if not self.average:
            self.average = copied(latest)
        for name, tensor in latest.items():
            if tensor.is_floating_point():
                self.average[name] = torch.lerp(self.average[name], tensor, 1 / self.mass)
            else:
                self.average[name] = tensor

    def _model(self) -> Tensors:
        return self.average or self.weights or {}

    def evaluation(self, federation: Round) -> Payload:
        """Return the average."""
        return Payload(weights=self._model())

    def global_models(self) -> list[tuple[Architecture, Tensors]]:
        """Return the average."""
        return [(0, self._model())] if self.weights else []

    def stages(self) -> dict[str, tuple[Architecture, Tensors]]:
        """Return the base's own model, and the base's intermediate models."""
        return super().stages() | ({"latest": (0, self.weights)} if self.weights else {})
