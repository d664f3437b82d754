"""FedU: FedBYOL whose nodes keep their own predictor where their encoder has moved far.

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
    """Keeps its predictor, where the rule says so, for the next round."""

    def begin(self, encoder: Encoder) -> None:
        """Put the kept predictor, if any, in place of the received one."""
        kept = self.recall(_PREDICTOR)
        if kept:
            encoder.predictors[ONLINE].load_state_dict(kept)
        self.received = convolutions(encoder)
        super().begin(encoder)

    def end(self, encoder: Encoder) -> None:
        """Keep the predictor where the encoder has moved by the threshold or more; forget an older one else."""
        super().end(encoder)
        after = convolutions(encoder)
        moved = [float((after[name] - tensor).norm()) for name, tensor in self.received.items()]
        if sum(moved) / len(moved) < cast(FedU, self.method).threshold:
            self.state.pop(_PREDICTOR, None)
        else:
            self.keep(_PREDICTOR, copied(encoder.predictors[ONLINE].state_dict()))


def convolutions(encoder: Encoder) -> Tensors:
    """Return copies of the backbone's convolution weights; of all its weight matrices where it has no convolution."""
    weights = {name: p.detach().clone() for name, p in encoder.backbone.named_parameters() if p.dim() > 1}
    return {name: p for name, p in weights.items() if p.dim() == 4} or weights


@dataclass(kw_only=True)
class FedU(BYOL):
    """FedU (Zhuang et al., 2021): BYOL with the divergence-aware predictor update.

    d = mean over convolutions of ||after - before|| of local training; the next round starts from the global predictor
    where d < threshold (mu = 0.4), else from the node's own. The encoder is always the global one. (EasyFL compares
    before and after local training; FedU2's authors say that FedU's own code does so too, unlike the paper.)
    """

    client: ClassVar[type[Client]] = FedUClient
    threshold: NotNegative = 0.4
