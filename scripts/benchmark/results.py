"""Results of a case as text, and its share of a GPU's roofline."""

from collections.abc import Mapping, Sequence
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
_HEAD = ("system", "median", "min", "max", "peak MiB", "temp. MiB", "ours is")


def roofline(facts: Mapping[str, Any], seconds: float) -> dict[str, Any]:
  """Returns the share of its time a step would take at the device's limits.

  FLOPs are the model's, counted on flax's layers before compilation. Bytes
  are XLA's estimate for the compiled program. The share of the roofline is
  the greater of the two shares.

  Args:
    facts: 'device_kind', 'flops' and 'compiled_bytes' of a step.
    seconds: of a step.

  Returns:
    The numbers used and the shares; empty for a device not in `PEAKS`.
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


def case_table(case: Mapping[str, Any]) -> str:
  """Returns a case as lines of text.

  Args:
    case: as `runner.run_case` returns it.

  Returns:
    A row of measurements for each system with its memory and how many times
    as fast dbl_jax is, the reason where one was skipped, and its roofline.
  """
  head = (_HEAD[0], f"{_HEAD[1]} {case['unit']}", *_HEAD[2:])
  measured = [row for row in case["systems"] if "skipped" not in row]
  rows = [head, *(_cells(row, case["systems"][0]) for row in measured)]
  used = [i for i in range(len(head)) if any(row[i] for row in rows[1:])]
  cells = [[row[i] for i in used] for row in rows]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = [f"{case['part']}: {case['case']}"]
  if measured:
    lines += [_line(row, widths) for row in cells]
  for row in case["systems"]:
    if "skipped" in row:
      lines.append(f"  {row['system']}: skipped: {row['skipped']}")
    elif row["roofline"]:
      lines.append(f"  {row['system']}: {_roofline_text(row['roofline'])}")
  return "\n".join(lines)


def _cells(row: Mapping[str, Any], ours: Mapping[str, Any]) -> tuple[str, ...]:
  ratio, temporary = row["times_as_fast"], row["temporary_mib"]
  return (
    row["system"],
    *(number(row[name]) for name in ("median", "min", "max")),
    f"{row['peak_mib']:.0f}",
    "" if temporary is None else number(temporary),
    "" if row is ours or ratio is None else f"{ratio:.2f}x as fast",
  )


def number(value: float) -> str:
  """Returns a number with about three significant digits and no exponent."""
  if value >= 100:
    return f"{value:,.0f}"
  return f"{value:.{2 if value >= 1 or value == 0 else 4}f}"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
  first = f"  {row[0]:<{widths[0]}}"
  rest = (f"{c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True))
  return "  ".join([first, *rest]).rstrip()


def _roofline_text(shares: Mapping[str, Any]) -> str:
  return (
    f"{shares['share_of_roofline']:.0%} of the roofline"
    f" ({shares['share_of_peak_flops']:.0%} of {shares['peak_bf16_tflops']}"
    f" bf16 TFLOP/s, {shares['share_of_peak_bandwidth']:.0%} of"
    f" {shares['peak_gb_per_s']} GB/s; {shares['device_kind']})"
  )
