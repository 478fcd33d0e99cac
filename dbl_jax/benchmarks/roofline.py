"""How near to the limits of a GPU a program comes."""

from typing import Any

# By a part of the name JAX gives a device: peak dense bfloat16 TFLOP/s without
# sparsity, and memory bandwidth in GB/s, from NVIDIA's data sheets. The first
# that fits counts. V100 and T4 have no bfloat16: their float16.
PEAKS = {
  "B200": (2250, 8000),
  "GH200": (989, 4000),
  "H200": (989, 4800),
  "H100 PCIe": (756, 2000),
  "H100 NVL": (835, 3900),
  "H100": (989, 3350),
  "A100-SXM4-80GB": (312, 2039),
  "A100 80GB PCIe": (312, 1935),
  "A100": (312, 1555),
  "L40S": (362, 864),
  "L4": (121, 300),
  "A10": (125, 600),
  "RTX 4090": (165, 1008),
  "RTX 3090": (71, 936),
  "V100": (125, 900),
  "T4": (65, 320),
}


def shares(facts: dict[str, Any], seconds: float) -> dict[str, Any]:
  """Which share of its time a program would need at the device's limits.

  FLOPs are those of the model, counted on flax's plain layers before
  compilation; bytes are what XLA's compiled program reads and writes, by its
  own estimate. The greater of the two shares is the share of the roofline.

  Args:
    facts: of a step on a GPU, as `ours.step` gives them.
    seconds: that the step took.

  Returns:
    The numbers used and the shares; empty for a device that is not in `PEAKS`.
  """
  kind = facts.get("device_kind", "")
  peak = next((peak for name, peak in PEAKS.items() if name in kind), None)
  if peak is None or not facts.get("flops"):
    return {}
  teraflops, gigabytes = peak
  compute = facts["flops"] / (teraflops * 1e12) / seconds
  memory = (facts.get("compiled_bytes") or 0) / (gigabytes * 1e9) / seconds
  return {
    "device_kind": kind,
    "peak_bf16_tflops": teraflops,
    "peak_gb_per_s": gigabytes,
    "flops_per_step": facts["flops"],
    "share_of_peak_flops": compute,
    "share_of_peak_bandwidth": memory,
    "share_of_roofline": max(compute, memory),
  }
