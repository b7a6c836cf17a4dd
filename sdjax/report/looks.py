"""A colour and a mark for each method, the same in page and pictures."""

import dataclasses
from typing import Any

from sdjax.report.runs import BASE, Groups

_KNOWN = {'sd': 0, 'sd_k3': 1, 'rl': 2, 'rl_diversity': 3}
_MARKERS = 'os^DvPX*'


@dataclasses.dataclass(frozen=True)
class Theme:
  """Colours of a picture, to stand on a light or a dark page.

  `faint` is for axes and the base model's line. The methods' are those of sd,
  sd_k3, rl, rl_diversity, then spare ones; none of them the red or the green
  of wrong and right answers.
  """

  page: str
  ink: str
  faint: str
  grid: str
  methods: tuple[str, ...]


THEMES = {
  'light': Theme(
    page='#ffffff',
    ink='#1d2430',
    faint='#7a8494',
    grid='#e6e9ee',
    methods=(
      '#7b3fc4', '#e58a1f', '#1f6fb2', '#0aa2b5',
      '#8a6a3d', '#c75fae', '#5b6577', '#a3b81c',
    ),
  ),
  'dark': Theme(
    page='#161a22',
    ink='#e4e8ef',
    faint='#8d97a8',
    grid='#2a303c',
    methods=(
      '#b68cff', '#ffb454', '#5fa8f0', '#4fd8e8',
      '#c9a877', '#f0a0de', '#a3afc2', '#cfe05a',
    ),
  ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Look:
  """A method as it is shown in the page, its place before it.

  The colour is CSS that follows the page's theme, the shape of its mark has
  matplotlib's name; `base`: a ring.
  """

  label: str
  colour: str
  shape: str
  place: str = ''


def looks(groups: Groups) -> dict[str, Look]:
  """Returns how the page shows each method, by label; the base model too."""
  number = len(THEMES['light'].methods)
  found = {
    label: Look(label, f'var(--m{index % number})', _marker(index))
    for label, index in _indices(groups).items()
  }
  return found | {BASE: Look(BASE, 'var(--faint)', 'base')}


def styles(groups: Groups, theme: str = 'light') -> dict[str, dict[str, Any]]:
  """Returns matplotlib's keywords for each method, by label."""
  colours = THEMES[theme].methods
  return {
    label: {'color': colours[index % len(colours)], 'marker': _marker(index)}
    for label, index in _indices(groups).items()
  }


def _indices(groups: Groups) -> dict[str, int]:
  """Gives each label a number of its own.

  A label that is a known method's name has that method's; any other takes
  that of its variant if no one else does, else a spare one.
  """
  wanted = {g.label: _KNOWN[g.label] for g in groups if g.label in _KNOWN}
  for one in groups:
    index = _KNOWN.get(one.variant)
    if one.label not in wanted and index not in (None, *wanted.values()):
      wanted[one.label] = index
  spare = (i for i in range(len(_KNOWN), 1000) if i not in wanted.values())
  return {
    one.label: wanted[one.label] if one.label in wanted else next(spare)
    for one in groups
  }


def _marker(index: int) -> str:
  # A colour that comes again comes with another marker.
  again = index // len(THEMES['light'].methods)
  return _MARKERS[(index + again) % len(_MARKERS)]
