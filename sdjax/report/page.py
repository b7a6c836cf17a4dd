"""Fills the page's templates: texts made harmless, numbers written out.

What a page looks like stands in `templates/`; the modules beside this one
hand over numbers and plain texts.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jinja2
from markupsafe import Markup

from sdjax.report.looks import THEMES
from sdjax.report.tables import Estimate

LONGEST_TEXT = 4000
"""Characters of a text from a run that are shown."""


@dataclasses.dataclass(frozen=True)
class Cell:
  """A cell of a table: text in a tag of HTML, and small lines below it."""

  text: str
  small: tuple[str, ...] = ()
  tag: str = 'b'


def estimate(one: Estimate | None, digits: int = 2) -> Cell | None:
  """Returns a number with its intervals; None: there is none."""
  if one is None:
    return None
  small = []
  for name, ends in (('', one.interval), ('seeds ', one.seeds)):
    if ends is not None and not (name and ends[0] == ends[1]):
      small.append(f'{name}{ends[0]:.{digits}f}–{ends[1]:.{digits}f}')
  return Cell(f'{one.value:.3f}', tuple(small))


def cut(value: Any) -> str:
  """Returns what came from a run as text, cut if it is too long."""
  text = str(value)
  if len(text) > LONGEST_TEXT:
    left = len(text) - LONGEST_TEXT
    text = f'{text[:LONGEST_TEXT]} ... ({left} more characters)'
  return text


def count(number: int, noun: str) -> str:
  """Returns `1 run`, `2 runs`."""
  return f'{number} {noun}{"" if number == 1 else "s"}'


def words(name: str) -> str:
  """Returns a set's or a measure's name to be read."""
  return name.replace('_', ' ')


def render(template: str, **values: Any) -> Markup:
  """Fills a file of `templates/`; text is escaped and cut, all but `Markup`."""
  return Markup(_environment().get_template(template).render(values))


def frame(title: str, head: str, sections: Mapping[str, str]) -> Markup:
  """Puts a page together, an HTML document that loads nothing.

  Of its title, HTML above everything, and HTML by anchor; what is empty is
  left out.
  """
  kept = {name: body for name, body in sections.items() if body}
  return render(
    'page.html', title=title, head=head, sections=kept, themes=THEMES
  )


@functools.cache
def _environment() -> jinja2.Environment:
  loader = jinja2.PackageLoader('sdjax.report')
  environment = jinja2.Environment(
    loader=loader,
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    finalize=lambda x: x if isinstance(x, Markup) else cut(x),
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.globals |= {
    'count': count,
    # Not a template: braces mean something else in styles and scripts.
    'asset': lambda name: Markup(loader.get_source(environment, name)[0]),
  }
  environment.filters['words'] = words
  return environment
