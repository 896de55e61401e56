"""Cards: what the vendors' data sheets say. The one table that the gateway's first guess and the planner share."""

from __future__ import annotations

import re

from proxy.core.records import record


@record
class Gpu:
    """One card. Dense rates, without sparsity; `fp16_tflops` with 32-bit accumulation, `watts` the board's limit.

    `memory_gib` as the driver shows it: error correction takes a sixteenth of some cards' GDDR."""

    name: str
    memory_gib: float
    bandwidth_gb_s: float
    fp16_tflops: float
    watts: int
    gddr: bool = False  # in place of HBM
    fp8: bool = False  # twice the rate at 8-bit floats
    int8: bool = True  # twice the rate at 8-bit integers

    @property
    def memory_bytes(self) -> float:
        return self.memory_gib * 2**30

    @property
    def bandwidth_bytes_s(self) -> float:
        return self.bandwidth_gb_s * 1e9

    @property
    def fp16_flops(self) -> float:
        return self.fp16_tflops * 1e12


GPUS: dict[str, Gpu] = {gpu.name: gpu for gpu in (
    Gpu("T4", 15, 320, 65, 70, gddr=True),
    Gpu("V100", 16, 900, 125, 300, int8=False),
    Gpu("A10", 22.5, 600, 125, 150, gddr=True),
    Gpu("L4", 22.5, 300, 121, 72, gddr=True, fp8=True),
    Gpu("RTX-3090", 24, 936, 71, 350, gddr=True),
    Gpu("RTX-4090", 24, 1008, 165, 450, gddr=True, fp8=True),
    Gpu("RTX-5090", 32, 1792, 209, 575, gddr=True, fp8=True),
    Gpu("A30", 24, 933, 165, 165),
    Gpu("A40", 45, 696, 150, 300, gddr=True),
    Gpu("A6000", 48, 768, 155, 300, gddr=True),
    Gpu("L40S", 45, 864, 362, 350, gddr=True, fp8=True),
    Gpu("A100-40GB", 40, 1555, 312, 400),
    Gpu("A100-80GB", 80, 2039, 312, 400),
    Gpu("H100-PCIE", 80, 2000, 756, 350, fp8=True),
    Gpu("H100-NVL", 94, 3938, 835, 400, fp8=True),
    Gpu("H100", 80, 3350, 989, 700, fp8=True),
    Gpu("H200", 141, 4800, 989, 700, fp8=True),
    Gpu("B200", 180, 8000, 2250, 1000, fp8=True),
    Gpu("MI300X", 192, 5300, 1307, 750, fp8=True),
)}


def find_gpu(text: str) -> Gpu | None:
    """The card that a name begins with, the longest such: 'H100 SXM5' is an H100, 'A100-SXM4-80GB' an A100-80GB.

    None where none does: an 'A100' without its memory is none of the two, and no A10; an 'L40' is no L4.
    """
    wanted = text.strip().upper().replace(" ", "-").replace("_", "-").removeprefix("NVIDIA-").removeprefix("AMD-")
    wanted = re.sub(r"^A100-.*\b([48]0)(GB)?$", r"A100-\1GB", wanted)
    for name in sorted(GPUS, key=len, reverse=True):
        if wanted.startswith(name) and not wanted[len(name):len(name) + 1].isdigit():
            return GPUS[name]
    return None
