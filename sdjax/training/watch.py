"""Alarms while a run goes on: told once each, logged, and ending it."""

from collections.abc import Callable, Mapping
from typing import Any

from sdjax.config.schema import Config
from sdjax.data.json_files import read_json_lines
from sdjax.training.alarm import Alert, Record, is_read, judge
from sdjax.training.hooks import Hook, Run


class Watch:
  """Follows a run and passes on each kind of alarm once a set.

  With `alarm.action` `off` it does nothing. `alerts` has the first alarm of
  each kind and set, in order.
  """

  def __init__(self, config: Config, tell: Callable[[Alert], None]):
    self._config, self._tell = config, tell
    self._history: list[Record] = []
    self._seen: set[tuple[str, str]] = set()
    self.alerts: list[Alert] = []

  def add(self, record: Record) -> None:
    """Adds a record, later than all before it, to the history and judges it."""
    if self._config.alarm.action == 'off':
      return
    # The others would fill the memory in a long run.
    self._history.append({k: v for k, v in record.items() if is_read(k)})
    for alert in judge(self._history, self._config):
      if (alert.kind, alert.where) not in self._seen:
        self._seen.add((alert.kind, alert.where))
        self.alerts.append(alert)
        self._tell(alert)

  @property
  def stops(self) -> bool:
    """Whether the run is to end."""
    return self._config.alarm.action == 'stop' and bool(self.alerts)


class Alarms(Hook):
  """Tells a run's alarms, writes `alarms.jsonl`, and may stop the run."""

  def on_start(self, run: Run) -> None:
    """Judges the history so far; alarms that its log lacks are added to it."""
    told = {
      (line['kind'], line['where'])
      for line in read_json_lines(run.folder.alarms.path)
    }

    def tell(alert: Alert) -> None:
      if (alert.kind, alert.where) not in told:
        run.progress.note(f'ALARM at step {alert.step}: {alert.text}')
        run.folder.alarms.append(alert.record())

    self._watch = Watch(run.trainer.config, tell)
    for record in run.folder.history():
      self._watch.add(record)
    self._add(run, {})

  def on_step(self, run: Run) -> None:
    """Judges the step, or the evaluation."""
    self._add(run, run.record)

  on_evaluation = on_end = on_step

  def _add(self, run: Run, record: Mapping[str, Any]) -> None:
    if record:
      self._watch.add(record)
    if self._watch.stops:
      first = self._watch.alerts[0]
      run.stop(
        f'its alarm of step {first.step}: {first.cause} '
        "alarm.action='warn', or another threshold, lets it go on."
      )
