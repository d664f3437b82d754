"""A codec on a device: raw samples to encoded ones, and back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .codec import Codec
from .samples import LARGEST


class Encoder:
    """A codec on a device."""

    def __init__(self, codec: Codec, device: torch.device) -> None:
        self.codec, self.device = codec, device
        spec = codec.spec
        axes = {"image": (1, -1, 1, 1), "series": (1, -1, 1), "table": (1, -1)}.get(spec.kind, (-1,))
        # of images and series in float32, as they are; a table's numbers have many digits
        kind = torch.float64 if spec.kind == "table" else torch.float32
        self.mean, self.deviation = (
            torch.from_numpy(np.asarray(one, np.float64)).to(device, kind).view(axes)
            for one in (codec.mean, codec.deviation)
        )
        self._fill = torch.from_numpy(codec.fill).to(device)
        self._codes = [torch.from_numpy(one.astype(np.int64)).to(device) for one in codec.codes]
        self._edges = None if codec.edges is None else torch.from_numpy(codec.edges).to(device)
        self._numeric, self._categorical = (
            torch.tensor(one, dtype=torch.int64, device=device) for one in (spec.numeric(), spec.categorical())
        )
        self._indicators = torch.tensor(codec.indicators, dtype=torch.int64, device=device)

    def __call__(self, raw: Tensor) -> Tensor:
        """Return raw samples on the device, B x ..., as the codec's `form` says."""
        kind, largest = self.codec.spec.kind, self.codec.spec.largest
        if kind == "table":
            return self._row(raw)
        if kind == "tokens":
            return self._codes[0][raw.long()]
        # contiguous strides: an array's strides may differ between processes, and then torch chooses other kernels
        values = raw.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        if kind == "series":
            return self._series(values)
        return self.normalise(values.div_(largest) if largest else values)

    def normalise(self, values: Tensor) -> Tensor:
        """Subtract the mean and divide by the deviation, in place."""
        return values.sub_(self.mean).div_(self.deviation)

    def _row(self, raw: Tensor) -> Tensor:
        numbers = raw[:, self._numeric]
        absent = torch.isnan(numbers)
        filled = torch.where(absent, self._fill, numbers)
        scaled = (filled - self.mean) / self.deviation if self._edges is None else self._quantiles(filled)
        codes = []
        for place, table in zip(self._categorical, self._codes, strict=True):
            column = raw[:, place]
            unknown = torch.isnan(column) | (column >= len(table))
            codes.append(torch.where(unknown, 0, table[torch.where(unknown, 0, column).long()]))
        parts = [scaled, absent[:, self._indicators].double()]
        return torch.cat([*parts, *(code[:, None].double() for code in codes)], dim=1).float()

    def _quantiles(self, numbers: Tensor) -> Tensor:
        """Return the normal deviate of each number's quantile, as scikit-learn's QuantileTransformer: within 5.2."""
        assert self._edges is not None
        count = self._edges.shape[1]
        shares = torch.linspace(0, 1, count, dtype=torch.float64, device=numbers.device)
        columns = []
        for column, edges in zip(numbers.T.contiguous(), self._edges, strict=True):
            up = _interpolated(column, edges, shares)
            down = _interpolated(-column, -edges.flip(0), -shares.flip(0))
            columns.append((up - down) / 2)
        most = torch.special.ndtri(torch.tensor(1 - (1e-7 - np.spacing(1)), dtype=torch.float64))
        return torch.special.ndtri(torch.stack(columns, dim=1)).clamp(-float(most), float(most))

    def _series(self, values: Tensor) -> Tensor:
        here = ~torch.isnan(values).all(1)  # steps with a value in some channel
        mask = here.flip(1).cumsum(1).flip(1) > 0  # all up to the last of them
        if self.codec.instance:
            known = ~torch.isnan(values)
            counts = known.sum(2, keepdim=True).clamp(min=1)
            values = values - torch.where(known, values, 0).sum(2, keepdim=True) / counts
            deviation = (torch.where(known, values, 0).square().sum(2, keepdim=True) / counts).sqrt()
            values = values / torch.where(deviation > 0, deviation, 1)
        scaled = self.normalise(values).nan_to_num_(nan=0.0)
        return torch.cat([scaled * mask[:, None], mask[:, None].to(scaled.dtype)], dim=1)

    def decode(self, encoded: Tensor) -> np.ndarray:
        """Return encoded samples, B x ... as the codec's `form` says, as raw ones; of images and numbers, in range."""
        spec = self.codec.spec
        if spec.kind == "tokens":
            return self._first_of_code(0)[encoded.cpu().numpy()]
        if spec.kind == "table":
            return self._decoded_rows(encoded)
        if spec.kind == "series":
            mask = encoded[:, -1:] > 0.5
            values = encoded[:, :-1].mul(self.deviation).add(self.mean)
            return torch.where(mask, values, torch.nan).cpu().numpy()
        values = encoded.mul(self.deviation).add(self.mean)
        if spec.largest is None:
            return values.cpu().numpy()
        whole = values.clamp(0, 1).mul(spec.largest).round()
        return whole.cpu().numpy().astype(np.uint8 if spec.largest == LARGEST["uint8"] else np.uint16)

    def _decoded_rows(self, encoded: Tensor) -> np.ndarray:
        spec, codec = self.codec.spec, self.codec
        rows = np.full((len(encoded), len(spec.columns)), np.nan)
        found = encoded.double().cpu().numpy()
        count = len(codec.fill)
        numbers = found[:, :count] * codec.deviation + codec.mean
        if codec.edges is not None:
            quantiles = torch.special.ndtr(torch.from_numpy(found[:, :count])).numpy()
            shares = np.linspace(0, 1, codec.edges.shape[1])
            columns = zip(quantiles.T, codec.edges, strict=True)
            numbers = np.stack([np.interp(column, shares, edges) for column, edges in columns], axis=1)
        for place, number in enumerate(codec.indicators):
            numbers[found[:, count + place] > 0.5, number] = np.nan
        rows[:, spec.numeric()] = numbers
        for place, column in enumerate(spec.categorical()):
            code = found[:, count + len(codec.indicators) + place].round().astype(np.int64)
            raw = self._first_of_code(place)[np.clip(code, 0, None)]
            rows[:, column] = np.where(code > 0, raw, np.nan)
        return rows

    def _first_of_code(self, place: int) -> np.ndarray:
        """Return for each code the raw code that becomes it; of several, the first."""
        codes = self.codec.codes[place]
        back = np.zeros(int(codes.max(initial=0)) + 1, np.int64)
        back[codes[::-1]] = np.arange(len(codes))[::-1]
        return back


def _interpolated(values: Tensor, edges: Tensor, shares: Tensor) -> Tensor:
    """Return `numpy.interp(values, edges, shares)`."""
    if len(edges) < 2:
        return torch.full_like(values, 0.5)
    right = torch.searchsorted(edges, values, right=True).clamp(1, len(edges) - 1)
    left = right - 1
    width = edges[right] - edges[left]
    part = torch.where(width > 0, (values - edges[left]) / torch.where(width > 0, width, 1), 1.0).clamp(0, 1)
    return shares[left] + part * (shares[right] - shares[left])
