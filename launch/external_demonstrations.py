"""Do diverse demonstrations make a diverse student?

  python launch/external_demonstrations.py --out=runs/external

trains the shipped model by RL with a diversity reward, samples the training
questions with its checkpoints, and shows their correct answers, of rising
variety, to the teachers of self-distillation: the usual one, and a mixture of
several. Draws the students' variety against that of what they were shown, as
in sec. 4.3 of arXiv 2606.26091. Whatever is complete is not repeated.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from matplotlib.figure import Figure

from sdjax.evaluate.rollout_file import read_records

CONFIGS = Path(__file__).parents[1] / 'configs'
SOURCE_EVERY = 25

STUDENTS: dict[str, tuple[str, dict[str, object]]] = {
  'one demonstration': ('concept_graph.py:sd', {}),
  'mixture': ('concept_graph_remedies.py:balanced', {}),
}
"""How the demonstrations are used: label to a config and changes to it."""


def run(config: str, workdir: Path, **options: object) -> None:
  """Runs `sdjax.main` with changed options, which goes on or does nothing."""
  subprocess.run(
    [
      sys.executable,
      *('-m', 'sdjax.main', f'--config={CONFIGS / config}'),
      f'--workdir={workdir}',
      *(f'--config.{k.replace("__", ".")}={v}' for k, v in options.items()),
    ],
    check=True,
    stdout=subprocess.DEVNULL,
  )


def demonstrations(out: Path, step: int, samples: int) -> Path:
  """Samples the training questions with one checkpoint of the source.

  Args:
    out: folder of everything.
    step: of the source; 0 is the shipped model.
    samples: a question.

  Returns:
    The file of answers.
  """
  folder = out / f'step{step}_n{samples}'
  file = folder / 'samples_base.jsonl'
  if file.exists():
    return file
  model = out / f'step{step}_model'
  if not (model / 'config.json').exists():
    subprocess.run(
      [
        sys.executable,
        *('-m', 'sdjax.export', f'--workdir={out / "source"}'),
        *(f'--step={step}', f'--out={model}'),
      ],
      check=True,
      stdout=subprocess.DEVNULL,
    )
  run(
    'concept_graph.py:rl',
    folder,
    mode='eval',
    model__path=model,
    eval__sets='("train",)',
    eval__during='("train",)',
    eval__num_questions=4000,
    eval__batch_questions=50,
    eval__num_samples=samples,
    eval__save_samples=True,
  )
  return file


def shown_variety(file: Path) -> float:
  """Mean number of concepts in the correct answers to a question."""
  concepts: dict[int, set[str]] = {}
  for _, record in read_records(file):
    found = concepts.setdefault(record['question_id'], set())
    if record['correct']:
      found.update(record['concepts'])
  found = [len(names) for names in concepts.values() if names]
  return sum(found) / len(found)


def student(
  out: Path, label: str, step: int, seed: int, samples: int
) -> dict[str, float]:
  """Trains, or finds, one student, and reads how it ended."""
  config, changes = STUDENTS[label]
  name = f'{label.replace(" ", "_")}_step{step}_n{samples}_s{seed}'
  folder = out / name
  file = demonstrations(out, step, samples)
  run(
    config,
    folder,
    seed=seed,
    method__demonstrations__strategy=f'external(file={str(file)!r})',
    train__eval_every=0,
    eval__sets='("in_distribution","harder")',
    **changes,
  )
  results = json.loads((folder / 'eval.json').read_text())
  return {
    'shown': shown_variety(file),
    'student': results['final/in_distribution/concepts_correct'],
    'pass@1': results['final/in_distribution/pass@1'],
    'harder pass@64': results['final/harder/pass@64'],
  }


def draw(rows: list[dict], file: Path) -> None:
  """Draws the students' variety against that of their demonstrations."""
  figure = Figure(figsize=(9, 3.8), layout='constrained')
  axes = figure.subplots(1, 2)
  names = {
    'student': 'concepts in its correct answers',
    'harder pass@64': 'pass@64 of `harder`',
  }
  for axis, (key, name) in zip(axes, names.items(), strict=True):
    for label, marker in zip(STUDENTS, 'os', strict=True):
      some = sorted(
        (row['shown'], row[key]) for row in rows if row['label'] == label
      )
      axis.plot(*zip(*some, strict=True), marker, label=label, alpha=0.8)
    axis.set_xlabel('concepts in the correct answers shown')
    axis.set_ylabel(name)
    axis.grid(alpha=0.3)
  axes[0].axline((1.5, 1.5), slope=1, color='grey', lw=0.8, ls=':')
  axes[0].legend(frameon=False)
  figure.suptitle('Students of demonstrations of rising variety')
  figure.savefig(file, dpi=130)


def table(rows: list[dict]) -> str:
  """Writes the rows as Markdown."""
  columns = ['label', 'step', 'seed', 'shown', 'student', 'pass@1']
  columns.append('harder pass@64')
  lines = [f'| {" | ".join(columns)} |', f'|{"---|" * len(columns)}']
  for row in rows:
    cells = [
      f'{row[c]:.3f}' if isinstance(row[c], float) else str(row[c])
      for c in columns
    ]
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)


def main() -> None:
  """Makes the demonstrations, trains the students, draws the figure."""
  parser = argparse.ArgumentParser(description='External demonstrations.')
  parser.add_argument('--out', type=Path, required=True, help='folder')
  parser.add_argument('--steps', default='0,25,50,150', help='of the source')
  parser.add_argument('--seeds', default='0', help='of the students')
  parser.add_argument('--samples', type=int, default=16, help='a question')
  options = parser.parse_args()
  steps = [int(step) for step in options.steps.split(',')]
  if bad := [s for s in steps if s % SOURCE_EVERY or not 0 <= s <= 150]:
    parser.error(f'--steps has {bad}; give multiples of 25 up to 150.')
  run(
    'concept_graph.py:rl_diversity',
    options.out / 'source',
    train__keep_checkpoints=100,
    train__checkpoint_every=SOURCE_EVERY,
    train__eval_every=0,
    eval__sets='("in_distribution",)',
  )
  rows = []
  for seed in map(int, options.seeds.split(',')):
    for step in steps:
      for label in STUDENTS:
        found = student(options.out, label, step, seed, options.samples)
        rows.append({'label': label, 'step': step, 'seed': seed, **found})
        print(f'{table(rows)}\n', flush=True)
        draw(rows, options.out / 'external.png')
  (options.out / 'external.md').write_text(table(rows) + '\n')


if __name__ == '__main__':
  main()
