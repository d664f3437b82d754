"""FedU: FedBYOL in which a node keeps its own predictor if local training has changed its encoder much.

Zhuang, Gan, Wen, Zhang, Yi: Collaborative Unsupervised Visual Representation Learning from Decentralized Data, ICCV
2021, arXiv:2108.06492; as in EasyFL's code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

from fedkd import Client, Encoder, NotNegative, Tensors, copied

from .byol import BYOL, ONLINE, BYOLClient

_PREDICTOR = "predictor"


class FedUClient(BYOLClient):
    """Keeps its predictor for the next round if the encoder has changed much."""

    def begin(self, encoder: Encoder) -> None:
        """Replace the received predictor by the stored one, if there is one."""
        kept = self.recall(_PREDICTOR)
        if kept:
            encoder.predictors[ONLINE].load_state_dict(kept)
        self.received = convolutions(encoder)
        super().begin(encoder)

    def end(self, encoder: Encoder) -> None:
        """Store the predictor if the encoder has changed by the threshold or more; otherwise delete an older one."""
        super().end(encoder)
        after = convolutions(encoder)
        moved = [float((after[name] - tensor).norm()) for name, tensor in self.received.items()]
        if sum(moved) / len(moved) < cast(FedU, self.method).threshold:
            self.state.pop(_PREDICTOR, None)
        else:
            self.keep(_PREDICTOR, copied(encoder.predictors[ONLINE].state_dict()))


def convolutions(encoder: Encoder) -> Tensors:
    """Return copies of the backbone's convolution weights; if it has none, of all its weight matrices."""
    weights = {name: p.detach().clone() for name, p in encoder.backbone.named_parameters() if p.dim() > 1}
    return {name: p for name, p in weights.items() if p.dim() == 4} or weights


@dataclass(kw_only=True)
class FedU(BYOL):
    """FedU (Zhuang et al., 2021): BYOL with the divergence-aware predictor update.

    d = mean over convolutions of ||after - before|| of local training. The next round starts from the global predictor
    if d < threshold (mu = 0.4), otherwise from the node's own. The encoder is always the global one. (EasyFL compares
    before and after local training; FedU2's authors say that FedU's own code does so too, unlike the paper.)
    """

    client: ClassVar[type[Client]] = FedUClient
    threshold: NotNegative = 0.4
