"""A colour and a shape for each method, the same in the whole page."""

from collections.abc import Sequence

from sdjax.report import plots
from sdjax.report import runs as runs_lib
from sdjax.report.tables import BASE
from sdjax.report.page import escape

SHAPES = {
  'o': '<circle r="4.6" class="s"/>',
  's': '<path class="s" d="M-4-4H4V4H-4Z"/>',
  '^': '<path class="s" d="M0-5L5 4H-5Z"/>',
  'D': '<path class="s" d="M0-5.4L5.4 0L0 5.4L-5.4 0Z"/>',
  'v': '<path class="s" d="M0 5L5-4H-5Z"/>',
  'P': '<path class="s" d="M-2-5H2V-2H5V2H2V5H-2V2H-5V-2H-2Z"/>',
  'X': '<path class="s" d="M-5-2.6L-2.6-5L0-2.4L2.6-5L5-2.6L2.4 0L5 2.6L2.6 5'
  'L0 2.4L-2.6 5L-5 2.6L-2.4 0Z"/>',
  '*': '<path class="s" d="M0-6L1.7-2H5.8L2.6 .9L3.7 5.2L0 2.8L-3.7 5.2'
  'L-2.6 .9L-5.8-2H-1.7Z"/>',
  'base': '<circle r="5" class="o"/>',
}
"""Marks by matplotlib's names for them, so that all pictures agree."""


def colours(groups: Sequence[runs_lib.Group]) -> dict[str, str]:
  """Gives each method its colour as CSS that follows the page's theme.

  Args:
    groups: the methods.

  Returns:
    Label to `var(--m0)` and so on; the base model's among them.
  """
  known = plots.THEMES['light'].methods
  result = {
    label: f'var(--m{known.index(style["color"])})'
    for label, style in plots.styles(groups).items()
  }
  return result | {BASE: 'var(--faint)'}


def labels(groups: Sequence[runs_lib.Group]) -> dict[str, str]:
  """Returns each method's name behind its mark, as HTML."""
  colour = colours(groups)
  result = {
    label: f'{mark(colour[label], style["marker"])}{escape(label)}'
    for label, style in plots.styles(groups).items()
  }
  return result | {BASE: f'<i class="base"></i>{BASE}'}


def mark(colour: str, shape: str) -> str:
  """Returns a mark to stand in a line of text.

  Args:
    colour: CSS.
    shape: key of `SHAPES`.
  """
  return (
    f'<svg viewBox="-7 -7 14 14" style="color:{colour}">{SHAPES[shape]}</svg>'
  )


def key(entries: Sequence[tuple[str, str, str]]) -> str:
  """Returns a legend: (label, colour, shape) each, as HTML."""
  items = ''.join(
    f'<span>{mark(colour, shape)}{escape(label)}</span>'
    for label, colour, shape in entries
  )
  return f'<div class="key">{items}</div>'
