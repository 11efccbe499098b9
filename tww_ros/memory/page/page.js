'use strict';
// The page of a memory: lists, search and timeline over the data that report.py wrote beside this.
// Every text of the data goes into the page as text, never as HTML.

const data = JSON.parse(document.getElementById('data').textContent);
const $ = id => document.getElementById(id);
const HUES = ['#2f7fb8', '#c0772a', '#5a9e4b', '#9a5fb0', '#c2506b', '#3fa39b', '#8c8238', '#6a6fd0'];
const hue = camera => HUES[camera % HUES.length];

const segments = data.segments.map(([id, camera, epoch, start, end, frames, tokens, note, pose]) =>
  ({ id, camera, epoch, start, end, frames, tokens, note, pose, kind: 'segment' }));
const byId = new Map(segments.map(segment => [segment.id, segment]));
const episodes = data.episodes.map(([first, last, note]) => {
  const run = segments.filter(segment => segment.id >= first && segment.id <= last);
  return { kind: 'episode', id: first, last, note, camera: run[0].camera, epoch: run[0].epoch,
    start: Math.min(...run.map(s => s.start)), end: Math.max(...run.map(s => s.end)), count: run.length };
});
const answers = data.answers.map(([question, answer, asked, asOf, epoch, session, choices, chances,
  reasoning, evidence, took]) =>
  ({ question, answer, asked, asOf, epoch, session, choices, chances, reasoning, evidence, took }));

// Words

const fold = text => text.normalize('NFD').replace(/[\u0300-\u036f]/g, '').toLowerCase();
for (const item of [...segments, ...episodes]) {
  item.words = fold(`${item.note} ${data.cameras[item.camera]} #${item.id}`);
}
for (const item of answers) {
  item.words = fold([item.question, item.answer, item.reasoning, item.session, ...item.choices].join(' '));
}
let terms = [];
// Letters and digits are looked for at the beginning of words ('red', not 'covered'); whatever else,
// and scripts that set no spaces, anywhere.
const plain = term => /^[a-z0-9]+$/.test(term);
const pattern = term => (plain(term) ? '(?<![\\p{L}\\p{N}])' : '') + term.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');

function clock(ms, precise = true) {
  if (data.dated) {
    return new Date(ms).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23' });
  }
  const whole = Math.floor(ms / 1000);
  const [hours, minutes, seconds] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const tenth = precise && ms % 1000 ? `.${Math.floor(ms % 1000 / 100)}` : '';
  const two = value => String(value).padStart(2, '0');
  return hours ? `${hours}:${two(minutes)}:${two(seconds)}` : `${minutes}:${two(seconds)}${tenth}`;
}
const day = ms => new Date(ms).toLocaleDateString([], { year: 'numeric', month: 'short', day: 'numeric' });
const span = item => `${clock(item.start)} – ${clock(item.end)}`;
const number = value => value.toLocaleString('en');
function lasting(ms) {
  const units = [['d', 86400e3], ['h', 3600e3], ['min', 60e3], ['s', 1e3]];
  const first = units.findIndex(([, size]) => ms >= size);
  if (first < 0) return `${Math.round(ms)} ms`;
  return units.slice(first, first + 2).map(([unit, size]) => {
    const count = Math.floor(ms / size);
    ms -= count * size;
    return count ? `${count} ${unit}` : '';
  }).filter(Boolean).join(' ');
}
const counted = (count, one, many) => `${number(count)} ${count === 1 ? one : many}`;

// Elements

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === 'style') element.style.cssText = value;
    else if (name.startsWith('on')) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter(child => child !== null && child !== undefined));
  return element;
}

function marked(text) {
  if (!terms.length || !text) return [text || ''];
  return text.split(new RegExp(`(${terms.map(pattern).join('|')})`, 'iu'))
    .map((part, index) => (index % 2 ? make('mark', {}, part) : part));
}

const picture = id => (data.pictures[id] ? `data:image/jpeg;base64,${data.pictures[id]}` : '');
const shot = id => (picture(id) ? make('img', { class: 'shot', alt: '', src: picture(id) }) : null);

function when(item, ...more) {
  return make('div', { class: 'when' }, make('b', {}, span(item)),
    make('span', { class: 'camera', style: `--hue:${hue(item.camera)}` }, data.cameras[item.camera]), ...more);
}

function noteCard(item) {
  if (item.kind === 'episode') {
    return make('article', { class: 'note episode bare' }, make('div', {},
      when(item, make('span', {}, `episode of ${counted(item.count, 'segment', 'segments')}`)),
      make('p', {}, ...marked(item.note))));
  }
  const quiet = !item.note || item.note.trim().toLowerCase() === data.quiet;
  const look = `note${quiet ? ' quiet' : ''}${picture(item.id) ? '' : ' bare'}`;
  return make('article', { class: look, id: `segment-${item.id}` },
    shot(item.id), make('div', {},
      when(item, item.pose ? make('span', {}, item.pose) : null,
        make('span', { class: 'far', title: `${item.frames} frames, ${item.tokens} tokens` }, `#${item.id}`)),
      make('p', {}, ...marked(item.note || 'no note'))));
}

function answerCard(item) {
  const best = Math.max(...item.chances, -1);
  const card = make('article', { class: 'answer' },
    make('div', { class: 'when' }, make('b', {}, clock(item.asOf)),
      make('span', {}, `session ${item.session}`),
      item.took ? make('span', { class: 'far' }, `${item.took.toFixed(2)} s`) : null),
    make('h3', {}, ...marked(item.question)), make('p', { class: 'said' }, ...marked(item.answer)));
  if (item.reasoning) card.append(make('p', { class: 'why' }, ...marked(item.reasoning)));
  if (item.choices.length) {
    card.append(make('div', { class: 'chances' }, ...item.choices.flatMap((choice, index) => {
      const chance = item.chances[index] ?? 0;
      const share = `${(100 * chance).toFixed(chance > 0 && chance < 0.01 ? 1 : 0)} %`;
      return [make('span', chance === best ? { class: 'best' } : {}, ...marked(choice)),
        make('i', { style: `--share:${100 * chance}%` }), make('span', {}, share)];
    })));
  }
  if (item.evidence.length) {
    const most = Math.max(...item.evidence.map(([, score]) => score), 1e-9);
    card.append(make('div', { class: 'proofs' }, ...item.evidence.map(([id, score]) => {
      const segment = byId.get(id);
      if (!segment) return make('button', { disabled: '', title: 'no longer in this memory' }, `#${id}`);
      return make('button', {
        title: `#${id}, ${(100 * score).toFixed(0)} % of the attention: ${segment.note}`,
        onclick: () => choose(segment, true),
      }, picture(id) ? make('img', { alt: '', src: picture(id) }) : null, clock(segment.start, false),
      make('i', { style: `--share:${100 * score / most}%` }));
    })));
  }
  return card;
}

// A list of any length: only what is near the window exists.

class List {
  constructor(root, card, height) {
    Object.assign(this, { root, card, height, items: [], parts: [] });
    this.observer = new IntersectionObserver(entries => {
      for (const { target, isIntersecting } of entries) this.fill(target, isIntersecting);
    }, { rootMargin: '1200px' });
  }

  show(items, nothing) {
    this.observer.disconnect();
    this.items = items;
    this.parts = [];
    for (let first = 0; first < items.length; first += List.SIZE) {
      const part = make('div', {});
      part.first = first;
      part.style.minHeight = `${this.height * Math.min(List.SIZE, items.length - first)}px`;
      this.parts.push(part);
    }
    this.root.replaceChildren(...this.parts);
    if (!items.length) this.root.append(make('p', { class: 'empty' }, nothing));
    // At once, so that there is something before the first frame.
    this.parts.slice(0, 1).forEach(part => this.fill(part, true));
    this.parts.forEach(part => this.observer.observe(part));
  }

  fill(part, full) {
    if (full === part.childElementCount > 0) return;
    if (full) {
      part.append(...this.items.slice(part.first, part.first + List.SIZE).map(this.card));
      part.style.minHeight = '';
    } else {
      part.style.minHeight = `${part.offsetHeight}px`;
      part.replaceChildren();
    }
  }

  reach(item) {
    const index = this.items.indexOf(item);
    if (index < 0) return null;
    const number = Math.floor(index / List.SIZE);
    for (const part of this.parts.slice(Math.max(0, number - 1), number + 2)) this.fill(part, true);
    return this.parts[number].children[index % List.SIZE];
  }
}
List.SIZE = 60;

const noteList = new List($('notes'), noteCard, 78);
const answerList = new List($('answers'), answerCard, 190);
const feed = [...segments];
for (const episode of episodes) {
  const at = feed.findIndex(item => item.kind === 'segment' && item.id >= episode.id && item.id <= episode.last);
  feed.splice(at, 0, episode);
}

function search(text) {
  terms = fold(text).split(/\s+/).filter(Boolean);
  const patterns = terms.map(term => new RegExp(pattern(term), 'u'));
  const matches = item => patterns.every(each => each.test(item.words));
  const notes = terms.length ? feed.filter(matches) : feed;
  const found = terms.length ? answers.filter(matches) : answers;
  noteList.show(notes, terms.length ? 'No note has these words.' : 'Nothing has been remembered yet.');
  answerList.show(found, terms.length ? 'No question or answer has these words.' : 'Nothing has been asked.');
  timeline.matches = terms.length ? new Set(notes) : null;
  $('count').textContent = terms.length
    ? `${counted(notes.length, 'note', 'notes')}, ${counted(found.length, 'answer', 'answers')}` : '';
  timeline.draw();
}

let chosen = null;
function choose(segment, move) {
  if (!noteList.items.includes(segment)) {
    $('search').value = '';
    search('');
  }
  show('notes');
  document.querySelectorAll('.chosen').forEach(element => element.classList.remove('chosen'));
  chosen = segment;
  const card = noteList.reach(segment);
  card.classList.add('chosen');
  card.scrollIntoView({ block: 'center' });
  if (move) timeline.reveal(segment);
  history.replaceState(null, '', `#segment=${segment.id}`);
  timeline.draw();
}

function show(what) {
  document.querySelector('main').dataset.shown = what;
  for (const name of ['notes', 'answers']) $(`show-${name}`).setAttribute('aria-pressed', name === what);
}

// Timeline. Time runs without the hours (and the epochs) between which nothing was seen: `runs` are
// stretches of time, each at its place `at` on one axis, in ms.

class Timeline {
  constructor(canvas) {
    this.canvas = canvas;
    this.images = new Map();
    this.aspects = [];
    this.matches = null;
    this.layRuns();
    this.lanes = data.cameras.map((_, camera) => segments.filter(segment => segment.camera === camera));
    this.top = 24 + (answers.length ? 20 : 0);
    this.first = this.top + (episodes.length ? 16 : 0);
    this.laneHeight = Timeline.LANE;
    this.fit();
    this.listen();
    // Whole from the beginning; everything later waits for the next frame.
    this.paint();
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  layRuns() {
    const sorted = [...segments].sort((a, b) => a.epoch - b.epoch || a.start - b.start);
    const covered = segments.reduce((sum, s) => sum + s.end - s.start, 0) / Math.max(1, data.cameras.length);
    const longest = Math.max(60e3, covered / 20);
    this.runs = [];
    for (const { epoch, start, end } of sorted) {
      const run = this.runs[this.runs.length - 1];
      if (run && run.epoch === epoch && start - run.end <= longest) run.end = Math.max(run.end, end);
      else this.runs.push({ epoch, start, end });
    }
    this.gap = Math.max(1e3, covered / 60);
    let at = 0;
    for (const run of this.runs) {
      run.at = at;
      at += Math.max(1, run.end - run.start) + this.gap;
    }
    this.total = Math.max(1, at - this.gap);
    for (const segment of segments) {
      segment.from = this.place(segment.epoch, segment.start);
      segment.to = this.place(segment.epoch, segment.end);
    }
  }

  place(epoch, ms) {
    const runs = this.runs.filter(run => run.epoch === epoch);
    if (!runs.length) return -1;
    const run = runs.reduce((best, each) => (each.start <= ms ? each : best), runs[0]);
    return run.at + Math.min(Math.max(0, ms - run.start), run.end - run.start);
  }

  fit() {
    this.from = -this.total / 100;
    this.to = this.total * 1.01;
    this.draw();
  }

  zoom(factor, middle = (this.from + this.to) / 2) {
    const width = Math.min(this.total * 1.02, Math.max(2e3, (this.to - this.from) * factor));
    this.from = middle - (middle - this.from) * width / (this.to - this.from);
    this.to = this.from + width;
    this.move(0);
  }

  move(ms) {
    const width = this.to - this.from;
    this.from = Math.max(-this.total / 100, Math.min(this.from + ms, this.total * 1.01 - width));
    this.to = this.from + width;
    this.draw();
  }

  reveal(segment) {
    const width = this.to - this.from;
    if (segment.from < this.from || segment.to > this.to) this.move((segment.from + segment.to - width) / 2 - this.from);
  }

  get width() { return this.canvas.clientWidth; }
  x(at) { return (at - this.from) / (this.to - this.from) * this.width; }
  time(x) { return this.from + x / this.width * (this.to - this.from); }

  draw() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      this.paint();
    });
  }

  paint() {
    const { canvas } = this;
    const height = this.first + Math.max(1, this.lanes.length) * this.laneHeight;
    const ratio = devicePixelRatio || 1;
    canvas.style.height = `${height}px`;
    canvas.width = this.width * ratio;
    canvas.height = height * ratio;
    const g = canvas.getContext('2d');
    const style = getComputedStyle(document.documentElement);
    const colour = name => style.getPropertyValue(`--${name}`).trim();
    g.scale(ratio, ratio);
    g.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    g.textBaseline = 'middle';
    this.paintAxis(g, colour, height);
    for (const episode of episodes) {
      const [from, to] = [this.x(byId.get(episode.id)?.from ?? this.place(episode.epoch, episode.start)),
        this.x(this.place(episode.epoch, episode.end))];
      g.fillStyle = colour('accent');
      g.globalAlpha = this.matches && !this.matches.has(episode) ? 0.25 : 0.8;
      g.fillRect(from, this.top + 3, Math.max(2, to - from - 1), 5);
    }
    this.lanes.forEach((lane, camera) => this.paintLane(g, colour, lane, camera));
    g.globalAlpha = 1;
    g.fillStyle = colour('question');
    for (const answer of answers) {
      const x = this.x(this.place(answer.epoch, answer.asOf));
      g.beginPath();
      g.moveTo(x, 25);
      g.lineTo(x + 5.5, 31);
      g.lineTo(x, 37);
      g.lineTo(x - 5.5, 31);
      g.fill();
    }
    this.tellRange();
  }

  paintAxis(g, colour, height) {
    const steps = [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400];
    const perPixel = (this.to - this.from) / this.width;
    const step = 1e3 * (steps.find(each => each * 1e3 / perPixel >= 84) ?? 604800);
    g.lineWidth = 1;
    let last = -Infinity;
    for (const run of this.runs) {
      if (run.at > this.to || run.at + run.end - run.start < this.from) continue;
      const shift = data.dated ? new Date(run.start).getTimezoneOffset() * 60e3 : 0;
      const begin = Math.max(run.start, run.start + this.from - run.at);
      for (let at = Math.ceil((begin - shift) / step) * step + shift; at <= run.end; at += step) {
        const x = this.x(run.at + at - run.start);
        if (x > this.width) break;
        g.strokeStyle = colour('line');
        g.beginPath();
        g.moveTo(Math.round(x) + 0.5, 18);
        g.lineTo(Math.round(x) + 0.5, height);
        g.stroke();
        const label = clock(at);
        const half = g.measureText(label).width / 2;
        const left = Math.min(this.width - 2 * half, Math.max(0, x - half));
        if (left > last + 8) {
          g.fillStyle = colour('soft');
          g.fillText(label, left, 9);
          last = left + 2 * half;
        }
      }
    }
    for (const run of this.runs.slice(1)) {
      const x = this.x(run.at - this.gap / 2);
      g.strokeStyle = colour('faint');
      g.setLineDash([3, 4]);
      g.beginPath();
      g.moveTo(x, 20);
      g.lineTo(x, height);
      g.stroke();
      g.setLineDash([]);
    }
  }

  paintLane(g, colour, lane, camera) {
    const y = this.first + camera * this.laneHeight;
    const film = Timeline.FILM;
    g.globalAlpha = 1;
    g.fillStyle = colour('soft');
    g.fillText(data.cameras[camera], 0, y + 9);
    // Pictures side by side, each of the segment in the middle of its slot.
    const slot = film * (this.aspects[camera] ?? 4 / 3);
    const start = this.time(0);
    const slotTime = this.time(slot) - start;
    const phase = Math.floor(start / slotTime);
    for (let index = phase; this.x(index * slotTime) < this.width; index += 1) {
      const found = this.pictured(lane, (index + 0.5) * slotTime, slotTime / 4);
      if (!found) continue;
      const image = this.image(found.id, camera);
      if (!image.complete || !image.naturalWidth) continue;
      const x = this.x(index * slotTime);
      g.globalAlpha = this.matches && !this.matches.has(found) ? 0.25 : 1;
      g.drawImage(image, x + 1, y + 19, slot - 2, film);
    }
    // Bars: one a pixel at most.
    let edge = -1;
    for (let index = this.after(lane, this.from); index < lane.length; index += 1) {
      const segment = lane[index];
      if (segment.from > this.to) break;
      const [from, to] = [this.x(segment.from), this.x(segment.to)];
      const hit = this.matches?.has(segment);
      if (to < edge && !hit && segment !== chosen) continue;
      const quiet = !segment.note || segment.note.trim().toLowerCase() === data.quiet;
      g.globalAlpha = this.matches ? (hit ? 1 : 0.15) : (quiet ? 0.35 : 0.95);
      g.fillStyle = segment === chosen ? colour('accent') : hue(camera);
      const wide = Math.max(1.5, to - from - 1);
      g.fillRect(from, y + film + 23, wide, segment === chosen ? 12 : 8);
      edge = from + 1;
    }
    g.globalAlpha = 1;
  }

  after(lane, at) {
    let [low, high] = [0, lane.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (lane[middle].to < at) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  pictured(lane, at, reach) {
    const index = this.after(lane, at);
    let best = null;
    for (let step = 0; step < 12 && !best; step += 1) {
      best = [lane[index + step], lane[index - step]].find(segment => segment && picture(segment.id)
        && segment.from < at + reach && segment.to > at - reach) ?? null;
    }
    return best;
  }

  image(id, camera) {
    if (!this.images.has(id)) {
      const image = new Image();
      image.onload = () => {
        this.aspects[camera] ??= Math.min(2, Math.max(0.6, image.naturalWidth / image.naturalHeight));
        this.draw();
      };
      image.src = picture(id);
      this.images.set(id, image);
    }
    return this.images.get(id);
  }

  tellRange() {
    const run = this.runs.find(each => each.at + each.end - each.start >= this.from);
    const last = [...this.runs].reverse().find(each => each.at <= this.to);
    if (!run || !last) return;
    const from = Math.max(run.start, run.start + this.from - run.at);
    const to = Math.min(last.end, last.start + this.to - last.at);
    $('range').textContent = `${clock(from, false)} – ${clock(to, false)}`;
  }

  at(x, y) {
    const lane = this.lanes[Math.floor((y - this.first) / this.laneHeight)];
    if (!lane) return null;
    const at = this.time(x);
    const index = this.after(lane, at);
    const near = [lane[index - 1], lane[index]].filter(Boolean);
    const distance = segment => Math.max(0, segment.from - at, at - segment.to);
    const best = near.sort((a, b) => distance(a) - distance(b))[0];
    return best && distance(best) / (this.to - this.from) * this.width < 8 ? best : null;
  }

  tip(x, y) {
    const segment = this.at(x, y);
    const tip = $('tip');
    tip.hidden = !segment;
    if (!segment) return;
    tip.replaceChildren(...[picture(segment.id) ? make('img', { alt: '', src: picture(segment.id) }) : null,
      make('b', {}, `${span(segment)} · ${data.cameras[segment.camera]}`), segment.note || 'no note'].filter(Boolean));
    tip.style.left = `${Math.max(0, Math.min(x - tip.offsetWidth / 2, this.width - tip.offsetWidth))}px`;
    tip.style.top = `${this.first + (Math.floor((y - this.first) / this.laneHeight) + 1) * this.laneHeight + 4}px`;
  }

  listen() {
    const { canvas } = this;
    const fingers = new Map();
    let moved = 0;
    canvas.addEventListener('pointerdown', event => {
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, event.offsetX);
      moved = 0;
    });
    canvas.addEventListener('pointermove', event => {
      if (!fingers.has(event.pointerId)) {
        this.tip(event.offsetX, event.offsetY);
        return;
      }
      const before = [...fingers.values()];
      const old = fingers.get(event.pointerId);
      fingers.set(event.pointerId, event.offsetX);
      const now = [...fingers.values()];
      moved += Math.abs(event.offsetX - old);
      if (now.length === 2) {
        const wide = pair => Math.max(12, Math.abs(pair[0] - pair[1]));
        this.zoom(wide(before) / wide(now), this.time((now[0] + now[1]) / 2));
      } else {
        this.move(this.time(old) - this.time(event.offsetX));
      }
    });
    const lift = event => {
      const was = fingers.delete(event.pointerId);
      if (was && event.type === 'pointerup' && moved < 5) {
        const segment = this.at(event.offsetX, event.offsetY);
        if (segment) choose(segment, false);
      }
    };
    canvas.addEventListener('pointerup', lift);
    canvas.addEventListener('pointercancel', lift);
    canvas.addEventListener('pointerleave', () => { $('tip').hidden = true; });
    canvas.addEventListener('wheel', event => {
      if (event.ctrlKey || event.metaKey) this.zoom(Math.exp(event.deltaY / 200), this.time(event.offsetX));
      else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
        this.move((event.deltaX || event.deltaY) / this.width * (this.to - this.from));
      } else return;
      event.preventDefault();
    }, { passive: false });
    canvas.addEventListener('dblclick', event => this.zoom(0.4, this.time(event.offsetX)));
    canvas.addEventListener('keydown', event => {
      const width = this.to - this.from;
      const does = { ArrowLeft: () => this.move(-width / 8), ArrowRight: () => this.move(width / 8),
        '+': () => this.zoom(0.6), '-': () => this.zoom(1 / 0.6), 0: () => this.fit() }[event.key];
      if (does) {
        event.preventDefault();
        does();
      }
    });
  }
}
Timeline.FILM = 52;
Timeline.LANE = 96;

// The page

const watch = matchMedia('(prefers-color-scheme: dark)');
const setTheme = theme => {
  document.documentElement.dataset.theme = theme;
  timeline.draw();
};
const timeline = new Timeline($('canvas'));
setTheme(watch.matches ? 'dark' : 'light');
watch.addEventListener('change', () => setTheme(watch.matches ? 'dark' : 'light'));

$('title').textContent = data.title;
const length = timeline.runs.reduce((sum, run) => sum + run.end - run.start, 0);
$('about').textContent = [
  segments.length && data.dated ? day(segments[0].start) : '',
  segments.length ? `${lasting(length)} watched` : 'nothing watched yet',
  data.cameras.length > 1 ? `cameras ${data.cameras.join(', ')}` : data.cameras[0] && `camera ${data.cameras[0]}`,
  data.model].filter(Boolean).join(' · ');
const noted = segments.filter(segment => segment.note).length;
$('numbers').append(...[['segments', segments.length], ['notes', noted], ['episodes', episodes.length],
  ['questions', answers.length]].filter(([, count]) => count).map(([name, count]) =>
  make('div', {}, make('dt', {}, name), make('dd', {}, number(count)))));
$('made').textContent = data.made;
if (data.leftOut) {
  $('thinned').hidden = false;
  $('thinned').textContent = `${counted(data.leftOut, 'picture was', 'pictures were')} left out to keep this page small; those that answers rest on are all here, the others evenly over time.`;
}
document.querySelector('main').classList.toggle('alone', !answers.length);
document.querySelector('.find').classList.toggle('alone', !answers.length);

$('search').addEventListener('input', event => {
  search(event.target.value);
  history.replaceState(null, '', event.target.value ? `#search=${encodeURIComponent(event.target.value)}` : '#');
});
$('show-notes').onclick = () => show('notes');
$('show-answers').onclick = () => show('answers');
$('in').onclick = () => timeline.zoom(0.6);
$('out').onclick = () => timeline.zoom(1 / 0.6);
$('fit').onclick = () => timeline.fit();
$('theme').onclick = () => setTheme(document.documentElement.dataset.theme === 'dark' ? 'light' : 'dark');

function follow() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  if (wanted.has('theme')) setTheme(wanted.get('theme'));
  if (wanted.has('show')) show(wanted.get('show'));
  $('search').value = wanted.get('search') ?? '';
  search($('search').value);
  const segment = byId.get(Number(wanted.get('segment') ?? NaN));
  if (segment) choose(segment, true);
}
addEventListener('hashchange', follow);
follow();
document.documentElement.dataset.ready = 'yes';
