"""Metrics of a run: metrics.jsonl and TensorBoard's event files."""

import contextlib

from dbl_jax.runtime import logs


def test_damaged_lines_are_left_out(tmp_path, caplog):
  path = tmp_path / "metrics.jsonl"
  whole = b'{"phase": "pretrain", "step": 1, "loss": 0.5}'
  damaged = [b"{", b"5", b'{"step": 1}', b'{"phase": "a", "step": "\xff"}']
  damaged.append(b"\xff")
  path.write_bytes(b"\n".join([*damaged, whole, b'{"phase": "pre']))
  assert logs.read_rows(path) == [{"phase": "pretrain", "step": 1, "loss": 0.5}]
  assert caplog.text.count("a line is damaged") == 6


def test_each_start_has_its_own_file_readable_at_once(tmp_path):
  for step in (1, 2):
    with logs.MetricWriter(tmp_path, True) as writer:
      writer.write("pretrain", step, 1.0, {"loss": 0.25})
      assert read_events(tmp_path / "tensorboard") == [
        (done, {"pretrain/loss": 0.25}) for done in range(1, step + 1)
      ]


def read_events(directory):
  """Step and figures of all events, checksums verified."""
  from tensorboard.compat.proto.event_pb2 import Event
  from tensorboard.compat.tensorflow_stub import errors
  from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import (
    PyRecordReader_New,
  )

  found = []
  for path in sorted(directory.glob("events.out.tfevents.*")):
    reader = PyRecordReader_New(str(path))
    events = []
    with contextlib.suppress(errors.OutOfRangeError):  # the file's end
      while True:
        reader.GetNext()
        events.append(Event.FromString(reader.record()))
    assert events[0].file_version == "brain.Event:2"
    found += [
      (event.step, {v.tag: v.simple_value for v in event.summary.value})
      for event in events[1:]
    ]
  return found
