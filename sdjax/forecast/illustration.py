"""The paper's one-dimensional example.

`python -m sdjax.forecast.illustration --out=FOLDER` draws it.

One question with 100 possible answers in four quarters, of which the first
and the third are correct. The base policy is four bumps, slightly higher in
the first of the correct quarters. Expectations are exact: nothing is sampled,
so what collapses here collapses without any sampling noise.

  GRPO      descends -E_pi[R] + beta KL(pi || pi0)
  SDSD      descends E_c[KL(pi || q_c)] + beta KL(pi || pi0)
  mixture   descends KL(pi || E_c[q_c]) + beta KL(pi || pi0)

with q_c(y) proportional to sg[pi(y)] K(y, c), a teacher that is the current
policy shown answer c, and c drawn from the policy's own correct answers.
SDSD averages the losses, as the paper does, which pools the q_c
geometrically; `mixture` averages the teachers.

Source: arXiv 2606.26091, sec. 3.1 and Fig. 2. The paper gives neither the
bumps nor the kernel, steps, rate or threshold; these are OURS:

  bumps      Gaussians of standard deviation 5 around 12, 37, 62 and 87, of
             mass 0.18, 0.33, 0.168 and 0.322: base reward 0.351, theirs 0.348
  kernel     exp(-(y - c)^2 / (2 5^2)) + 0.01. The floor of 0.01 is a teacher
             that is never wholly sure, as a language model's. WITHOUT it
             this training does not give the paper's picture: log K is then a
             parabola, so its mean over demonstrations in two quarters peaks
             between them, in the second quarter, which is wrong. (Under the
             natural gradient it escapes to the first: what is likely already
             does not hold it there)
  GRPO       A = R - E[R], without a division by the standard deviation, which
             would make beta weaker the surer the policy is
  training   20,000 steps of gradient descent on logits at rate 1, from base;
             100,000 change no reward by more than 0.003. Without a floor the
             policy still creeps through the second quarter then
  coverage   share of the correct quarters that hold at least 0.05 of the
             probability

Compare columns of a row, not rows at one beta: log K spans 4.6 nats where the
reward spans 1, so the same beta weighs less in SDSD.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.forecast import closed_forms as theory
from sdjax.report import plots
from sdjax.report.looks import Theme

NUM_ACTIONS = 100
QUARTER = NUM_ACTIONS // 4
CORRECT_QUARTERS = (0, 2)
BETAS = (0.0, 0.1, 0.5)
COVERED = 0.05

ACTIONS = np.arange(NUM_ACTIONS)
REWARD = np.isin(ACTIONS // QUARTER, CORRECT_QUARTERS).astype(float)

PUBLISHED = {
  'base': [(0.348, 1.0)] * 3,
  'GRPO': [(0.976, 0.5), (0.970, 1.0), (0.877, 1.0)],
  'SDSD': [(0.990, 0.5), (0.977, 0.5), (0.899, 0.5)],
}
"""Reward and coverage for each of `BETAS` (arXiv 2606.26091, Fig. 2)."""

NOTE = (
  'Coverage is the share of the two correct quarters that hold at least '
  f'{COVERED} of the probability. The paper does not give its settings; ours '
  'are stated at the top of `sdjax/forecast/illustration.py`.'
)


@dataclasses.dataclass(frozen=True)
class Variant:
  """A way to train, or to know, the policy.

  The objective is `grpo`, `sdsd`, `mixture`, or `closed_form`: the optimum of
  SDSD for a teacher and demonstrations that stay those of the base. The
  teacher's kernel has a width, in actions, and never falls below `floor`.
  `natural` descends along the natural gradient, which does not favour what is
  likely already, with a rate of a hundredth.
  """

  name: str
  objective: str
  floor: float = 0.01
  kernel_sd: float = 5.0
  natural: bool = False


MAIN = (
  Variant('GRPO', 'grpo'),
  Variant('SDSD', 'sdsd'),
  Variant('SDSD, mixture teacher', 'mixture'),
  Variant('SDSD, no floor', 'sdsd', floor=0.0),
)
OTHERS = (
  Variant('SDSD, floor 0.1', 'sdsd', floor=0.1),
  Variant('SDSD, floor 0.001', 'sdsd', floor=0.001),
  Variant('SDSD, kernel twice as wide', 'sdsd', kernel_sd=10.0),
  Variant('mixture, floor 0.1', 'mixture', floor=0.1),
  Variant('mixture, floor 0.001', 'mixture', floor=0.001),
  Variant('mixture, kernel twice as wide', 'mixture', kernel_sd=10.0),
  Variant('GRPO, natural gradient', 'grpo', natural=True),
  Variant('SDSD, natural gradient', 'sdsd', natural=True),
  Variant('SDSD, no floor, natural gradient', 'sdsd', floor=0.0, natural=True),
  Variant('mixture, natural gradient', 'mixture', natural=True),
  Variant('SDSD, teacher and demos of the base', 'closed_form'),
)


def base_policy() -> np.ndarray:
  """The policy before training, float64 [100]."""
  policy = np.zeros(NUM_ACTIONS)
  for centre, mass in ((12, 0.18), (37, 0.33), (62, 0.168), (87, 0.322)):
    bump = np.exp(-((ACTIONS - centre) ** 2) / (2 * 5**2))
    policy += mass * bump / bump.sum()
  return policy


def log_kernel(variant: Variant) -> np.ndarray:
  """How the teacher favours action y when shown c: log K(y, c), [100, 100]."""
  gap = ACTIONS[:, None] - ACTIONS
  near = -(gap**2) / (2 * variant.kernel_sd**2)
  if not variant.floor:
    return near  # the logarithm of its exponential would underflow
  return np.log(np.exp(near) + variant.floor)


def train(
  variant: Variant, betas: Sequence[float] = BETAS, steps: int = 20_000
) -> np.ndarray:
  """Trains the base policy, once for each of B weights of KL(pi || base).

  So many steps of gradient descent on the logits. Returns probabilities,
  float64 [B, 100]. Raises ValueError for an unknown objective.
  """
  log_base = np.log(base_policy())
  log_k = log_kernel(variant)
  if variant.objective == 'closed_form':
    return np.stack([_closed_form(log_base, log_k, beta) for beta in betas])
  kernel = np.exp(log_k)
  weight_B1 = np.array(betas)[:, None]
  logits = np.tile(log_base, (len(betas), 1))
  for _ in range(steps):
    policy = theory.softmax(logits)
    # The derivative of the loss by the policy, but for a constant. The
    # teachers share the factor pi, which cancels in log pi - log q.
    if variant.objective == 'grpo':
      slope = -REWARD
    else:
      shown = policy * REWARD / (policy @ REWARD)[:, None]
      if variant.objective == 'sdsd':
        slope = -shown @ log_k
      elif variant.objective == 'mixture':
        slope = -np.log((shown / (policy @ kernel)) @ kernel)
      else:
        raise ValueError(
          f'objective={variant.objective!r} is not one of grpo, sdsd, '
          'mixture, closed_form.'
        )
    slope = slope + weight_B1 * (logits - log_base)
    slope -= np.sum(policy * slope, axis=1, keepdims=True)
    logits -= 0.01 * slope if variant.natural else policy * slope
  return theory.softmax(logits)


def _closed_form(
  log_base: np.ndarray, log_k: np.ndarray, beta: float
) -> np.ndarray:
  """Prop. 2: a frozen teacher, shown the base policy's correct answers."""
  log_teacher = log_base[:, None] + log_k
  log_teacher -= np.log(np.exp(log_teacher).sum(axis=0))
  shown = np.exp(log_base) * REWARD
  tilt = theory.pcmi(log_teacher, log_base) @ (shown / shown.sum())
  return theory.sdsd_optimum(log_base, tilt, beta)


def measure(policy: np.ndarray) -> dict[str, Any]:
  """Reward and coverage, both 0..1, and the mass of each of the quarters."""
  quarters = policy.reshape(4, QUARTER).sum(axis=1)
  covered = quarters[list(CORRECT_QUARTERS)] >= COVERED
  return {
    'reward': float(policy @ REWARD),
    'coverage': float(covered.mean()),
    'quarters': quarters.tolist(),
  }


def table(policies: Mapping[str, np.ndarray]) -> str:
  """Policies from `train` at `BETAS` and the published numbers, in Markdown."""

  def row(name, pairs):
    cells = ' | '.join(f'{reward:.3f} / {cover:.2f}' for reward, cover in pairs)
    return f'| {name} | {cells} |'

  head = ' | '.join(f'beta = {beta:g}' for beta in BETAS)
  lines = [f'| reward / coverage | {head} |', '|---' * 4 + '|']
  for name, each in policies.items():
    found = [measure(policy) for policy in each]
    lines.append(row(name, [(m['reward'], m['coverage']) for m in found]))
    if name in PUBLISHED:
      lines.append(row(f'{name}, published', PUBLISHED[name]))
  return '\n'.join(lines)


def figure(policies: Mapping[str, np.ndarray]) -> bytes:
  """Draws policies from `train`, a row a variant and a column a beta, as a PNG.

  The y axes differ: a policy on one answer is a hundred times as high as one
  on two bumps.
  """
  from matplotlib.lines import Line2D

  look = plots.THEMES['light']
  colours = {
    'GRPO': look.methods[2],
    'SDSD': look.methods[0],
    'SDSD, mixture teacher': look.methods[3],
  }
  sheet, axes = plots.grid(
    len(policies), len(BETAS), 'light', height=1.5, share=False
  )
  for row, (name, each) in zip(axes, policies.items(), strict=True):
    for axis, policy in zip(row, each, strict=True):
      _draw(axis, policy, colours.get(name, look.methods[1]), look)
      axis.set_xticks(np.arange(0, NUM_ACTIONS + 1, QUARTER))
      axis.tick_params(labelbottom=axis in axes[-1])
    row[0].set_ylabel(name.replace(', ', '\n'))
  for axis, beta in zip(axes[0], BETAS, strict=True):
    plots.title(axis, f'beta = {beta:g}')
  for axis in axes[-1]:
    axis.set_xlabel('answer')
  sheet.align_ylabels(list(axes[:, 0]))
  _, base_line = axes[0, 0].lines
  trained = Line2D([], [], color=look.ink, linewidth=1.5)
  plots.legend(
    sheet,
    'light',
    ncols=3,
    handles=[trained, base_line, axes[0, 0].patches[0]],
    labels=['probability after training', 'of the base', 'correct answers'],
  )
  return plots.to_png(sheet)


def _draw(axis: Any, policy: np.ndarray, colour: str, look: Theme) -> None:
  """Draws one policy over the base policy and the correct quarters."""
  for quarter in CORRECT_QUARTERS:
    left = quarter * QUARTER - 0.5
    axis.axvspan(left, left + QUARTER, color=look.grid, linewidth=0, zorder=0)
  # Steps, or the one answer that is left would look like a slope to it.
  axis.fill_between(
    ACTIONS, policy, color=colour, alpha=0.25, linewidth=0, step='mid'
  )
  axis.plot(ACTIONS, policy, color=colour, linewidth=1.5, drawstyle='steps-mid')
  axis.plot(
    ACTIONS,
    base_policy(),
    color=look.faint,
    linewidth=1.2,
    linestyle=plots.DASHED,
  )
  axis.set_xlim(-0.5, NUM_ACTIONS - 0.5)
  axis.set_ylim(0, 1.32 * policy.max())
  axis.locator_params(axis='y', nbins=4)
  axis.grid(visible=False)
  found = measure(policy)
  axis.text(
    0.985,
    0.95,
    f'reward {found["reward"]:.3f}, coverage {found["coverage"]:.1f}',
    transform=axis.transAxes,
    ha='right',
    va='top',
    fontsize=8.5,
    color=look.ink,
  )


def main(argv: Sequence[str] | None = None) -> None:
  """Writes `illustration.png`, `.md` and `.json`, and prints the table."""
  parser = argparse.ArgumentParser(
    description='The one-dimensional example of arXiv 2606.26091, Fig. 2.'
  )
  parser.add_argument(
    '--out', type=Path, required=True, help='folder to write to'
  )
  out = parser.parse_args(argv).out
  out.mkdir(parents=True, exist_ok=True)
  trained = {variant.name: train(variant) for variant in MAIN + OTHERS}
  policies = {'base': np.tile(base_policy(), (len(BETAS), 1)), **trained}
  text = table(policies)
  records = [
    {'name': name, 'beta': beta, **measure(policy)}
    for name, each in policies.items()
    for beta, policy in zip(BETAS, each, strict=True)
  ]
  content = {'results': records, 'published': PUBLISHED, 'betas': BETAS}
  (out / 'illustration.png').write_bytes(
    figure({variant.name: trained[variant.name] for variant in MAIN})
  )
  (out / 'illustration.md').write_text(f'{text}\n\n{NOTE}\n')
  (out / 'illustration.json').write_text(json.dumps(content, indent=1) + '\n')
  print(f'{text}\n\nWritten to {out}.')


if __name__ == '__main__':
  main()
