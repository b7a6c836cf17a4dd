"""Scores a file: `python -m sdjax.evaluate --rollouts=FILE --out=OUT.json`.

The answers may come from any system; `sdjax.evaluate.rollout_file` has the
format.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from sdjax.data.json_files import write_json_atomic
from sdjax.evaluate.rollout_file import read_answers
from sdjax.evaluate.score_file import describe, score
from sdjax.evaluate.sentence_encoder import PACKAGES, SentenceEncoder


def main(argv: Sequence[str] | None = None) -> int:
  """Scores a file of answers; a user's mistake ends in one line, code 2."""
  parser = argparse.ArgumentParser(
    prog='python -m sdjax.evaluate',
    description='Success and variety of judged answers, one JSON line each.',
  )
  parser.add_argument('--rollouts', required=True, help='file to score')
  parser.add_argument('--out', required=True, help='JSON file to write')
  parser.add_argument(
    '--k', help='the k of pass@k, e.g. 1,8,64; by default 1,2,4,...'
  )
  parser.add_argument(
    '--step', type=int, help='only lines of this training step'
  )
  parser.add_argument(
    '--embedder',
    help='sentence encoder for embedding_diversity, e.g. '
    f'{", ".join(PACKAGES)}, a folder, or owner/model; by default none',
  )
  options = parser.parse_args(argv)
  try:
    ks = None if options.k is None else [int(k) for k in options.k.split(',')]
  except ValueError:
    parser.error(f'--k is {options.k!r}; give whole numbers, e.g. 1,8,64.')
  try:
    embed, named = None, {}
    if options.embedder is not None:
      embed = SentenceEncoder(options.embedder)
      named = {'embedder': embed.name}
    answers = read_answers(options.rollouts, options.step)
    flat = score(answers, ks, embed)
    write_json_atomic(options.out, flat | named)
  except (ValueError, OSError) as error:
    if os.environ.get('SDJAX_TRACEBACK'):
      raise
    print(f'error: {error}', file=sys.stderr)
    return 2
  if len(answers.steps) > 1:
    first, last = answers.steps[0], answers.steps[-1]
    print(
      f'answers of {len(answers.steps)} steps of training, {first} to {last}, '
      f'are scored together; --step={last} takes one of them',
      file=sys.stderr,
    )
  print(f'{describe(flat)}\n{options.out}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
