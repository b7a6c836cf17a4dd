"""What the parts of a report's page have in common: escaping, frame, style."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from sdjax.report import plots
from sdjax.report import tables as tables_lib

LONGEST_TEXT = 4000
"""Characters of a text from a run that are shown."""

NONE = '<span class="none">&ndash;</span>'
"""A cell without a number."""


def cut(value: Any) -> str:
  """Returns what came from a run as text, cut if it is too long."""
  text = str(value)
  if len(text) > LONGEST_TEXT:
    left = len(text) - LONGEST_TEXT
    text = f'{text[:LONGEST_TEXT]} ... ({left} more characters)'
  return text


def escape(value: Any) -> str:
  """Makes anything that came from a run harmless in HTML, and cuts it."""
  return html.escape(cut(value))


def count(number: int, noun: str) -> str:
  """Returns `1 run`, `2 runs`."""
  return f'{number} {noun}{"" if number == 1 else "s"}'


def words(name: str) -> str:
  """Returns a set's or a measure's name to be read, escaped."""
  return escape(name.replace('_', ' '))


def section(name: str, heading: str, caption: str, body: str) -> str:
  """Returns a part of the page.

  Args:
    name: its anchor.
    heading: plain text.
    caption: HTML below the heading.
    body: HTML.
  """
  caption = f'<p>{caption}</p>' if caption else ''
  return (
    f'<section id="{name}"><h2>{escape(heading)}</h2>{caption}{body}</section>'
  )


def table(
  kind: str,
  heads: Sequence[str],
  rows: Sequence[Sequence[str]],
  caption: str = '',
  above: str = '',
) -> str:
  """Returns a table that scrolls sideways where the page is narrow.

  Args:
    kind: its class, see the style.
    heads: HTML of the column heads.
    rows: HTML of the cells, the first of each row being its head.
    caption: HTML.
    above: a row of HTML above the heads.
  """
  head = ''.join(f'<th scope="col">{text}</th>' for text in heads)
  body = ''.join(
    f'<tr><th scope="row">{first}</th>'
    f'{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
    for first, *cells in rows
  )
  caption = f'<caption>{caption}</caption>' if caption else ''
  return (
    f'<div class="wide"><table class="{kind}">{caption}<thead>{above}'
    f'<tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
  )


def estimate(cell: tables_lib.Estimate | None, digits: int = 2) -> str:
  """Returns a number with its intervals as HTML."""
  if cell is None:
    return NONE
  text = f'<b>{cell.value:.3f}</b>'
  for name, ends in (('', cell.interval), ('seeds ', cell.seeds)):
    if ends is not None and not (name and ends[0] == ends[1]):
      low, high = (f'{end:.{digits}f}' for end in ends)
      text += f'<small>{name}{low}&ndash;{high}</small>'
  return text


def frame(title: str, head: str, sections: Mapping[str, str]) -> str:
  """Puts a page together.

  Args:
    title: plain text.
    head: HTML above everything.
    sections: what `section` made, by the name in the list at the top; empty
      ones are left out.

  Returns:
    An HTML document that loads nothing.
  """
  kept = {name: body for name, body in sections.items() if body}
  links = ' '.join(
    f'<a href="#{body.split(chr(34), 2)[1]}">{escape(name)}</a>'
    for name, body in kept.items()
  )
  body = '\n'.join([head, f'<nav>{links}</nav>', *kept.values()])
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta name="color-scheme" content="light dark">'
    f'<title>{escape(title)}</title><style>{_style()}</style></head>\n'
    f'<body><main>{body}</main></body></html>\n'
  )


def _style() -> str:
  def variables(theme: str) -> str:
    look = plots.THEMES[theme]
    return f'--page:{look.page};--ink:{look.ink};--faint:{look.faint};' + (
      ''.join(f'--m{i}:{value};' for i, value in enumerate(look.methods))
    )

  return _CSS.replace('/*light*/', variables('light')).replace(
    '/*dark*/', variables('dark')
  )


_CSS = """
:root{/*light*/--soft:#5b6575;--line:#e3e7ed;--panel:#f6f7f9;--right:#12724f;
--wrong:#b3263d;--warn:#fff6e0;--up:31,111,178;--down:209,73,91}
@media(prefers-color-scheme:dark){:root{/*dark*/--soft:#9aa5b6;--line:#2c3340;
--panel:#1d222c;--right:#4fd1a5;--wrong:#ff8593;--warn:#2e281a;
--up:64,140,210;--down:214,80,98}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}
main{max-width:76rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:2rem;line-height:1.2;margin:0 0 .3rem;letter-spacing:-.01em}
h2{font-size:1.25rem;margin:0 0 .3rem}
h3{font-size:1rem;margin:1.4rem 0 .3rem}
h4{font-size:.9rem;margin:1rem 0 .2rem;font-weight:600}
a{color:inherit}
nav{margin:1rem 0 0;display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;
font-size:.9rem;color:var(--soft)}
nav a{text-decoration-color:var(--line);text-underline-offset:.25em}
header p,section>p{color:var(--soft);margin:0 0 1rem;max-width:46rem}
section{margin-top:2.75rem;scroll-margin-top:1rem}
.notes{background:var(--warn);border-radius:.5rem;padding:1rem 1.25rem}
.notes ul{margin:.4rem 0 0;padding-left:1.2rem;overflow-wrap:anywhere}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;margin:0 0 1.5rem;
font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:600;padding:.6rem 0 .3rem}
th,td{padding:.45rem .6rem;text-align:right;vertical-align:top;
border-bottom:1px solid var(--line);white-space:nowrap}
thead th{color:var(--soft);font-weight:500;font-size:.85rem;
vertical-align:bottom}
tbody th{font-weight:500}
th:first-child,td:first-child{text-align:left;padding-left:0}
td b{font-weight:600}
td small{display:block;color:var(--soft);font-size:.75rem;line-height:1.4}
.results{table-layout:fixed;min-width:58rem}
.results thead th{white-space:normal}
.results th:first-child{width:11rem;overflow:hidden;text-overflow:ellipsis}
.none{color:var(--soft)}
.said td,.said th{text-align:left;font-size:.88rem}
.said td:last-child{white-space:normal;min-width:24rem}
th[colspan]{text-align:center}
th i.base{display:inline-block;width:.85rem;margin-right:.5rem;
border-top:2px dashed var(--faint);vertical-align:middle}
picture,img{display:block;max-width:100%;height:auto}
details{border:1px solid var(--line);border-radius:.5rem;margin:.5rem 0;
padding:.5rem .9rem}
summary{cursor:pointer;font-weight:500}
dt{font-weight:600;margin-top:.6rem}
dd{margin:0;color:var(--soft);max-width:46rem}
pre,code{font:.85rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;
white-space:pre-wrap;overflow-wrap:anywhere}
pre{background:var(--panel);border-radius:.4rem;padding:.7rem .9rem;
max-height:20rem;overflow:auto;margin:.4rem 0}
.right,.wrong{font-size:.78rem;font-weight:600}
.right{color:var(--right)}
.wrong{color:var(--wrong)}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(26rem,1fr));
gap:1.5rem}
.trio{grid-template-columns:repeat(auto-fit,minmax(19rem,1fr))}
@media(max-width:30rem){.charts{grid-template-columns:1fr}}
svg{display:block;width:100%;height:auto;font-size:11px}
svg text{fill:var(--ink)}
svg .t{font-size:12.5px;font-weight:700;text-anchor:middle}
svg .a{font-size:11.5px;text-anchor:middle}
svg .k{fill:var(--soft);text-anchor:middle}
svg .y{text-anchor:end}
svg .g{stroke:var(--line);fill:none}
svg .f{stroke:var(--faint);fill:none;stroke-dasharray:3 3}
svg .l{paint-order:stroke;stroke:var(--page);stroke-width:3px}
svg .m line,svg .m path{stroke:currentColor;fill:none}
svg .e{opacity:.45}
svg .w{fill:none;stroke-width:1.4;opacity:.6}
svg .s{fill:currentColor!important}
svg .o{fill:var(--page);stroke:currentColor;stroke-width:2}
.key{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;font-size:.88rem;
margin:.2rem 0 .8rem}
.key svg,th svg{display:inline-block;width:14px;height:14px;
vertical-align:-2px;margin-right:.35rem}
.chart{margin-bottom:1.6rem}
.credit{display:grid;grid-template-columns:4.5rem minmax(0,1fr) minmax(0,1fr);
gap:0 1rem;align-items:baseline;margin:.5rem 0}
.credit .h{color:var(--soft);font-size:.8rem}
.credit .d{grid-column:1/-1;color:var(--soft);font-size:.82rem;
overflow-wrap:anywhere;white-space:pre-line;
border-top:1px solid var(--line);margin-top:.35rem;
padding:.35rem 0 0 5.5rem}
.tokens{font:.85rem/1.9 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;
white-space:pre-wrap;overflow-wrap:anywhere}
.tokens u,.scale u{text-decoration:none;border-radius:.2rem;padding:.15em 0;
background:rgba(var(--up),calc(.8*var(--v)))}
.tokens u.n,.scale u.n{background:rgba(var(--down),calc(.8*var(--v)))}
.scale{font-size:.82rem;color:var(--soft);display:flex;flex-wrap:wrap;
gap:.2rem 2rem;max-width:none!important}
.scale u{padding:.15em .5em;border-radius:0;color:var(--ink)}
@media(max-width:48rem){.credit{grid-template-columns:4.5rem minmax(0,1fr)}
.credit .h:nth-child(3){display:none}.credit .a{grid-column:2}}
.filters{display:flex;flex-wrap:wrap;gap:.5rem .9rem;margin:.2rem 0 .8rem;
align-items:end}
.filters label{font-size:.8rem;color:var(--soft);display:grid;gap:.15rem}
.filters select,.filters input,button{font:inherit;font-size:.92rem;
color:var(--ink);background:var(--panel);border:1px solid var(--line);
border-radius:.35rem;padding:.3rem .55rem;max-width:16rem}
button{cursor:pointer}
#found{color:var(--soft);font-size:.9rem;margin:.3rem 0}
.ask{border-top:1px solid var(--line);padding:.7rem 0;display:grid;
grid-template-columns:9.5rem minmax(0,1fr);gap:0 1rem}
.ask .m{font-size:.82rem;color:var(--soft)}
.ask .m b{color:var(--ink);font-weight:500;overflow-wrap:anywhere}
.ask .s{font-weight:600;font-size:.9rem}
.ask .q{color:var(--soft);font-size:.8rem;display:-webkit-box;
-webkit-line-clamp:2;-webkit-box-orient:vertical;overflow:hidden;
overflow-wrap:anywhere}
.ask .q.o{display:block}
.roll{margin-top:.45rem}
.roll .n{color:var(--soft);font-size:.82rem}
.roll p{margin:0 0 0 1.2rem;font-size:.82rem;color:var(--soft);
overflow-wrap:anywhere}
.roll p span{font-style:italic}
@media(max-width:40rem){.ask{grid-template-columns:1fr}}
.short{list-style:none;margin:.9rem 0 0;padding:0;font-size:1.05rem}
.short li{margin:.15rem 0;font-variant-numeric:tabular-nums}
.short svg{display:inline-block;width:14px;height:14px;vertical-align:-2px;
margin-right:.35rem}
"""
