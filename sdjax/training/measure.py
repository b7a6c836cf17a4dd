"""Measuring weights, with the numbers left in a run's folder."""

from typing import Any

from sdjax.data.json_files import write_json_lines_atomic
from sdjax.feedback import grading
from sdjax.feedback.grading import Graded
from sdjax.training.evaluator import Evaluator
from sdjax.training.log import Progress
from sdjax.training.run_folder import Workdir
from sdjax.types import Params


def measure(
  workdir: Workdir,
  evaluator: Evaluator,
  params: Params,
  when: str,
  progress: Progress,
  step: int | None = None,
) -> None:
  """Measures weights, and leaves the numbers in the folder.

  Args:
    workdir: of the run; with `eval.save_samples` the answers go to
      `samples_WHEN.jsonl`.
    evaluator: of the run.
    params: the weights, an adapter applied.
    when: `base`, `final` or `best`; the latter also by the sets that are
      measured during training, by one of which it was chosen: there it looks
      better than it is, on the others not.
    progress: shows how far it is.
    step: of the best.
  """
  options = evaluator.config.eval
  sets = options.sets
  if when == 'best':
    sets = tuple(dict.fromkeys(sets + options.during))
  lines: list[dict[str, Any]] | None = [] if options.save_samples else None

  def keep(name: str, graded: Graded) -> None:
    if lines is not None:
      lines.extend({'set': name, **line} for line in grading.records(graded))

  flat, questions = evaluator(params, sets, keep, progress.evaluated)
  if lines is not None:
    write_json_lines_atomic(workdir.path / f'samples_{when}.jsonl', lines)
  workdir.add_eval(when, flat, questions, step)
