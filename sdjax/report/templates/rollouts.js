(() => {
const data = JSON.parse(document.getElementById('data').textContent);
const [METHOD, SEED, STEP, ID, QUESTION, ALL, RIGHT, SOLUTIONS] =
  Array(8).keys();
const [ASKED, SAMPLE, ANSWER, CORRECT, REASON, REWARD, CONCEPTS,
  DEMONSTRATIONS] = Array(8).keys();
const names = ['method', 'step', 'verdict', 'concept', 'text'];
const field = name => document.getElementById('f-' + name);
const at = id => document.getElementById(id);
const distinct = values => [...new Set(values)];
const seeds = new Set(data.asked.map(a => a[METHOD] + ' ' + a[SEED])).size >
  new Set(data.asked.map(a => a[METHOD])).size;
const choices = {
  method: distinct(data.asked.map(a => data.methods[a[METHOD]])),
  step: distinct(data.asked.map(a => String(a[STEP])))
    .sort((a, b) => a - b),
  verdict: ['correct', 'wrong',
    ...distinct(data.rows.map(r => r[REASON])).filter(x => x &&
      x !== 'correct' && x !== 'wrong').sort()],
  concept: distinct(data.rows.flatMap(r => r[CONCEPTS])).sort(),
};
for (const [name, values] of Object.entries(choices)) {
  field(name).append(new Option('all', ''),
    ...values.map(value => new Option(value, value)));
}
const PAGE = 12;
let found = [], shown = 0;

function element(tag, kind, text) {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  // As text, never as HTML: all of it was written by a model.
  if (text !== undefined) made.textContent = text;
  return made;
}

function count(number, noun) {
  return number + ' ' + noun + (number === 1 ? '' : 's');
}

function summary(asked) {
  const right = asked[RIGHT] + ' of ' + asked[ALL] + ' right';
  return asked[SOLUTIONS] === null || !asked[RIGHT] ? right :
    right + ', ' + count(asked[SOLUTIONS], 'solution');
}

function rollout(row, times) {
  const box = element('div', 'roll');
  box.append(
    element('span', row[CORRECT] ? 'right' : 'wrong',
      row[CORRECT] ? 'correct' : row[REASON] || 'wrong'),
    ' ', element('code', '', row[ANSWER]));
  const facts = [...row[CONCEPTS]];
  if (row[REWARD] !== null) facts.unshift('reward ' + +row[REWARD].toFixed(3));
  if (times > 1) facts.unshift(times + ' times');
  if (facts.length) {
    box.append(' ', element('span', 'n', facts.join(' · ')));
  }
  for (const place of row[DEMONSTRATIONS]) {
    const line = element('p');
    line.append(element('span', '', 'demonstration'), ' ',
      data.texts[place]);
    box.append(line);
  }
  return box;
}

function render([place, rows]) {
  const asked = data.asked[place];
  const box = element('div', 'ask'), side = element('div', 'm');
  const body = element('div');
  side.append(element('b', '', data.methods[asked[METHOD]]),
    element('div', '', (seeds ? 'seed ' + asked[SEED] + ', ' : '') +
      'step ' + asked[STEP]),
    element('div', '', 'question ' + asked[ID]));
  const question = element('div', 'q', data.texts[asked[QUESTION]]);
  question.title = 'click for all of it';
  question.onclick = () => question.classList.toggle('o');
  body.append(element('div', 's', summary(asked)), question);
  // What is the same in all but its number is shown once.
  const alike = new Map();
  for (const row of rows) {
    const key = JSON.stringify(row.slice(ANSWER));
    alike.set(key, [row, (alike.get(key)?.[1] ?? 0) + 1]);
  }
  for (const [row, times] of alike.values()) body.append(rollout(row, times));
  box.append(side, body);
  return box;
}

function more() {
  const next = found.slice(shown, shown + PAGE);
  at('list').append(...next.map(render));
  shown += next.length;
  at('more').hidden = shown >= found.length;
}

function passes(row, want) {
  const asked = data.asked[row[ASKED]];
  if (want.method && data.methods[asked[METHOD]] !== want.method) return false;
  if (want.step && String(asked[STEP]) !== want.step) return false;
  const verdict = row[CORRECT] ? 'correct' : 'wrong';
  if (want.verdict && ![verdict, row[REASON]].includes(want.verdict)) {
    return false;
  }
  if (want.concept && !row[CONCEPTS].includes(want.concept)) return false;
  if (!want.text) return true;
  const text = [data.texts[asked[QUESTION]], row[ANSWER],
    ...row[DEMONSTRATIONS].map(place => data.texts[place])].join('\n');
  return text.toLowerCase().includes(want.text.toLowerCase());
}

function update() {
  const want = Object.fromEntries(names.map(n => [n, field(n).value]));
  const rows = data.rows.filter(row => passes(row, want));
  const right = rows.filter(row => row[CORRECT]).length;
  at('found').textContent = rows.length + ' of ' + data.rows.length +
    ' rollouts, ' + right + ' correct';
  const asked = new Map();
  for (const row of rows) {
    if (!asked.has(row[ASKED])) asked.set(row[ASKED], []);
    asked.get(row[ASKED]).push(row);
  }
  found = [...asked];
  at('list').replaceChildren();
  shown = 0;
  more();
}

function write() {
  const set = names.filter(n => field(n).value).map(n => [n, field(n).value]);
  const hash = set.length ? '#' + new URLSearchParams(set) : '#rollouts';
  // Offline pages have no history to change in some browsers.
  try { history.replaceState(null, '', hash); } catch { }
}

function read() {
  const given = new URLSearchParams(location.hash.slice(1));
  const any = names.some(name => given.has(name));
  for (const name of names) {
    field(name).value = given.get(name) ?? '';
    // A value that no rollout has selects nothing: show all instead.
    if (field(name).selectedIndex === -1) field(name).value = '';
  }
  update();
  if (any) at('rollouts').scrollIntoView();
}

for (const name of names) {
  field(name).addEventListener('input', () => { write(); update(); });
}
at('clear').onclick = () => {
  for (const name of names) field(name).value = '';
  write();
  update();
};
at('more').onclick = more;
addEventListener('hashchange', read);
read();
})();
