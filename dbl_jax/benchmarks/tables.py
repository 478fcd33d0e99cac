"""Results of the benchmark for people: a table for each case."""

from collections.abc import Mapping, Sequence
from typing import Any

_HEAD = ("system", "median", "min", "max", "peak MiB", "temp. MiB", "ours is")


def case_table(case: Mapping[str, Any]) -> str:
  """One case as text.

  Args:
    case: as `runner.run_case` gives it.

  Returns:
    Several lines: the case, then each system with its figures, its memory
    and how many times as fast dbl_jax is; what was skipped, with why.
  """
  head = (_HEAD[0], f"{_HEAD[1]} {case['unit']}", *_HEAD[2:])
  measured = [row for row in case["systems"] if "skipped" not in row]
  rows = [head, *(_cells(row, case["systems"][0]) for row in measured)]
  kept = [i for i in range(len(head)) if any(row[i] for row in rows[1:])]
  shown = [[row[i] for i in kept] for row in rows]
  widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
  lines = [f"{case['part']}: {case['case']}"]
  if measured:
    lines += [_line(row, widths) for row in shown]
  lines += [
    f"  {row['system']}: skipped: {row['skipped']}"
    for row in case["systems"]
    if "skipped" in row
  ]
  lines += [
    f"  {row['system']}: {share}"
    for row in measured
    if (share := _roofline(row["roofline"]))
  ]
  return "\n".join(lines)


def _cells(row: Mapping[str, Any], ours: Mapping[str, Any]) -> tuple[str, ...]:
  ratio = row["times_as_fast"]
  fast = "" if row is ours or ratio is None else f"{ratio:.2f}x as fast"
  values = (number(row[name]) for name in ("median", "min", "max"))
  temporary = row["temporary_mib"]
  memory = (
    f"{row['peak_mib']:.0f}",
    "" if temporary is None else number(temporary),
  )
  return (row["system"], *values, *memory, fast)


def number(value: float) -> str:
  """About three digits that count, and no powers of ten."""
  if value >= 100:
    return f"{value:,.0f}"
  return f"{value:.{2 if value >= 1 or value == 0 else 4}f}"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
  first, *rest = zip(row, widths, strict=True)
  cells = [f"{first[0]:<{first[1]}}"]
  cells += [f"{cell:>{width}}" for cell, width in rest]
  return ("  " + "  ".join(cells)).rstrip()


def _roofline(shares: Mapping[str, Any]) -> str:
  if not shares:
    return ""
  return (
    f"{shares['share_of_roofline']:.0%} of the roofline"
    f" ({shares['share_of_peak_flops']:.0%} of {shares['peak_bf16_tflops']}"
    f" bf16 TFLOP/s, {shares['share_of_peak_bandwidth']:.0%} of"
    f" {shares['peak_gb_per_s']} GB/s; {shares['device_kind']})"
  )
