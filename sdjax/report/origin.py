"""When a run was started and of which code: `run.json` in its folder.

Apart from `config.json`, so that two runs of one config have the same one.
"""

import datetime
import subprocess
from pathlib import Path
from typing import Any

from sdjax.data.json_files import write_json_atomic
from sdjax.report.runs import ORIGIN, starts

PACKAGE = Path(__file__).resolve().parents[1]


def record(workdir: Path) -> None:
  """Notes in a run's folder that it is started, or goes on, now.

  `run.json` there holds a list `starts`, each with `date` (ISO 8601, with its
  zone), `commit` (of the package's checkout; None where there is none) and
  `changed` (whether the package has changes that are not committed).
  """
  now = datetime.datetime.now().astimezone().isoformat(timespec='seconds')
  new = {'date': now, **checkout()}
  write_json_atomic(workdir / ORIGIN, {'starts': [*starts(workdir), new]})


def checkout(package: Path = PACKAGE) -> dict[str, Any]:
  """Says which commit a package's folder is of: `commit` and `changed`.

  Both are None when git does not track the package: a folder of installed ones
  may lie in the checkout of something else.
  """

  def git(*arguments: str) -> str:
    return subprocess.run(
      # Without locks: another git command may be at work there.
      ['git', '--no-optional-locks', '-C', str(package), *arguments],
      capture_output=True,
      text=True,
      check=True,
      timeout=20,
    ).stdout.strip()

  try:
    git('ls-files', '--error-unmatch', '__init__.py')
    commit = git('rev-parse', 'HEAD')
    changed = bool(git('status', '--porcelain', '--', '.'))
  except (OSError, subprocess.SubprocessError):
    return {'commit': None, 'changed': None}
  return {'commit': commit, 'changed': changed}
