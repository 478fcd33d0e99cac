"""Results of a case as text, and its share of a GPU's roofline."""

from collections.abc import Mapping
from typing import Any

# Part of JAX's device name -> peak dense bfloat16 TFLOP/s without sparsity and
# memory bandwidth in GB/s, from NVIDIA's data sheets. The first match counts.
PEAKS = {
  "B200": (2250, 8000),
  "H200": (989, 4800),
  "H100": (989, 3350),
  "A100-SXM4-80GB": (312, 2039),
  "A100": (312, 1555),
  "L4": (121, 300),
  "RTX 4090": (165, 1008),
}


def roofline(facts: Mapping[str, Any], seconds: float) -> dict[str, Any]:
  """Returns the share of its time a step would take at the device's limits.

  `facts` of a step have the 'device_kind', the model's 'flops' and XLA's
  estimate of 'compiled_bytes'. The share of the roofline is the greater of the
  two others. The result is empty for a device not in `PEAKS`.
  """
  kind = facts.get("device_kind", "")
  peak = next((peak for name, peak in PEAKS.items() if name in kind), None)
  if peak is None or not facts.get("flops"):
    return {}
  teraflops, gigabytes = peak
  compute = facts["flops"] / (teraflops * 1e12) / seconds
  memory = (facts.get("compiled_bytes") or 0) / (gigabytes * 1e9) / seconds
  return {
    "share_of_peak_flops": compute,
    "share_of_peak_bandwidth": memory,
    "share_of_roofline": max(compute, memory),
  }


def case_table(case: Mapping[str, Any]) -> str:
  """Returns a case, as `runner.run_case` returns it, as lines of text.

  A row for each system: measurements, memory and how many times as fast
  dbl_jax is, or the reason why it was skipped; then its share of the roofline.
  """
  head = ("median", "min", "max", "peak MiB", "temp. MiB", "ours is")
  title = f"{case['case']}, {case['unit']}"
  lines = [f"{title:40}" + "".join(f"{name:>11}" for name in head)]
  for row in case["systems"]:
    name = f"  {row['system']:38}"
    if "skipped" in row:
      lines.append(f"{name}  skipped: {row['skipped']}")
      continue
    values = [number(row[key]) for key in ("median", "min", "max", "peak_mib")]
    temporary, ratio = row["temporary_mib"], row["times_as_fast"]
    values.append("" if temporary is None else number(temporary))
    values.append("" if ratio is None else f"{ratio:.2f}x")
    lines.append(name + "".join(f"{value:>11}" for value in values))
    if shares := row["roofline"]:
      lines.append(
        f"    {shares['share_of_roofline']:.0%} of the roofline:"
        f" {shares['share_of_peak_flops']:.0%} of the peak FLOP/s,"
        f" {shares['share_of_peak_bandwidth']:.0%} of the bandwidth"
      )
  return "\n".join(lines)


def number(value: float) -> str:
  """Returns a number with about three significant digits and no exponent."""
  digits = 0 if value >= 100 else 2 if value >= 1 or value == 0 else 4
  return f"{value:,.{digits}f}"
