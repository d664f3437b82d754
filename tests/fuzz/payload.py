"""Fuzz what decodes and checks a reply: `python tests/fuzz/payload.py -max_total_time=3600` (`pip install atheris`).

Any bytes as an array, as the header of one, and as records of every kind: nothing but PayloadError may come out,
nothing may take long, and no more memory than a few times the input.
"""

import contextlib
import sys
import time
import tracemalloc

import atheris

with atheris.instrument_imports(include=["fedkd"]):
    import numpy as np
    import torch
    from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

    from fedkd.config import KINDS, Limits
    from fedkd.errors import PayloadError
    from fedkd.messages.arrival import receive
    from fedkd.messages.ledger import count_bytes
    from fedkd.messages.payload import IMAGES, ArraySpec, Expected

LIMITS = Limits(2**20, {"images": 2**16})
EXPECTED = Expected(
    weights={"w": ArraySpec((2, 3))},
    logits={"z": ArraySpec((None, 3), probabilities=True)},
    statistics={"counts": ArraySpec((3,), torch.int32, counts=True)},
    numbers={"examples": IMAGES},
    most_images=100,
)
SECONDS = 1.0  # of the processor
OVERHEAD = 2**20  # of the checks themselves, in bytes


def array(data: atheris.FuzzedDataProvider) -> Array:
    """Return an array of any bytes, or a header with anything in it, or a sound array that was damaged."""
    choice = data.ConsumeIntInRange(0, 2)
    stype = "numpy.ndarray" if data.ConsumeBool() else data.ConsumeUnicodeNoSurrogates(20)
    if choice == 0:
        return Array("float32", (1,), stype, data.ConsumeBytes(400))
    if choice == 1:
        shape = data.ConsumeUnicodeNoSurrogates(40)
        code = data.PickValueInList(["<f4", "<f8", "<i4", "|b1", "|u1", "|O", ">f4", "<f16"])
        header = f"{{'descr': '{code}', 'fortran_order': {data.ConsumeBool()}, 'shape': ({shape}), }}\n".encode()
        length = len(header) if data.ConsumeBool() else data.ConsumeIntInRange(0, 2**16 - 1)
        body = b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + header + data.ConsumeBytes(64)
        return Array("float32", (1,), stype, body)
    shape = tuple(data.ConsumeIntInRange(0, 3) for _ in range(data.ConsumeIntInRange(0, 5)))
    sound = bytearray(Array(np.zeros(shape, data.PickValueInList([np.float32, np.int32, np.bool_, np.float16]))).data)
    for _ in range(data.ConsumeIntInRange(0, 4)):
        sound[data.ConsumeIntInRange(0, len(sound) - 1)] = data.ConsumeIntInRange(0, 255)
    return Array("float32", (1,), stype, bytes(sound))


def records(data: atheris.FuzzedDataProvider) -> RecordDict:
    """Return records under names that are ours or anything."""
    made = RecordDict()
    for _ in range(data.ConsumeIntInRange(0, 4)):
        name = data.PickValueInList([*KINDS, "arrays", "numbers", "strings", "report", "round", "site", "x"])
        keys = data.PickValueInList([["w"], ["z"], ["counts"], ["examples"], ["w", "other"]])
        kind = data.ConsumeIntInRange(0, 2)
        if kind == 0:
            made[name] = ArrayRecord({key: array(data) for key in keys})
        elif kind == 1:
            number = data.ConsumeFloat() if data.ConsumeBool() else data.ConsumeInt(8)
            made[name] = MetricRecord({key: [number] if data.ConsumeBool() else number for key in keys})
        else:
            text = data.ConsumeUnicodeNoSurrogates(20)
            made[name] = ConfigRecord({key: text.encode() if data.ConsumeBool() else text for key in keys})
    return made


def once(raw: bytes) -> None:
    """Receive one reply."""
    data = atheris.FuzzedDataProvider(raw)
    made = records(data)
    begin = time.process_time()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    with contextlib.suppress(PayloadError):
        receive(made, EXPECTED if data.ConsumeBool() else None, LIMITS)
    assert time.process_time() - begin < SECONDS, "it hangs"
    taken = tracemalloc.get_traced_memory()[1] - before
    assert taken < 4 * sum(count_bytes(made).values()) + OVERHEAD, f"it takes {taken} bytes"


if __name__ == "__main__":
    tracemalloc.start()
    torch.set_num_threads(1)
    atheris.Setup(sys.argv, once)
    atheris.Fuzz()
