"""What a tower did: rows gathered on its device, and the sinks that they go to."""

from hyperstack.telemetry.jsonl import JsonLines, Record, read_record
from hyperstack.telemetry.recorder import Recorder, Sink

__all__ = ["JsonLines", "Record", "Recorder", "Sink", "read_record"]
