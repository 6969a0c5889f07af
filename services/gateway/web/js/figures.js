// The figures of a call, for those who want to know: over the picture, opened with D.

const NONE = "–";

const milliseconds = (seconds) => (seconds === undefined ? NONE : `${Math.round(seconds * 1000)} ms`);
const perSecond = (bits) => (bits >= 1e6 ? `${(bits / 1e6).toFixed(2)} Mbit/s` : `${Math.round(bits / 1e3)} kbit/s`);
const percent = (part) => `${(100 * part).toFixed(1)} %`;
const known = (value) => value ?? NONE;

// What is shown: of the browser's measurements (b), the server's statistics (s) and the page (p).
const GROUPS = [
  ["Answer", [
    ["first frame here", ({ p }) => milliseconds(p.firstFrame)],
    ["first frame, server", ({ s }) => milliseconds(s.first_frame)],
    ["answer", ({ s }) => milliseconds(s.answer)],
  ]],
  ["Picture", [
    ["frames", ({ b, p }) => (b.fps === undefined ? NONE : `${b.fps.toFixed(1)} of ${known(p.fps)} /s`)],
    ["size, codec", ({ b }) => (b.width ? `${b.width}×${b.height} ${known(b.videoCodec)}` : NONE)],
    ["dropped here, server", ({ b, s }) => `${known(b.dropped)}, ${known(s.frames_dropped)}`],
    ["freezes, held", ({ b, s }) => `${known(b.freezes)}, ${milliseconds(s.held)}`],
  ]],
  ["Sync", [
    ["skew here", ({ b }) => milliseconds(b.skew)],
    ["skew as sent", ({ s }) => milliseconds(s.av_skew)],
    ["buffer picture, sound", ({ b }) => `${milliseconds(b.videoBuffer)}, ${milliseconds(b.audioBuffer)}`],
    ["sound concealed", ({ b }) => (b.concealment === undefined ? NONE : percent(b.concealment))],
  ]],
  ["Network", [
    ["round trip", ({ b }) => milliseconds(b.roundTrip)],
    ["down", ({ b }) => (b.bitrateIn === undefined ? NONE : perSecond(b.bitrateIn))],
    ["up", ({ b }) => (b.bitrateOut === undefined ? NONE : perSecond(b.bitrateOut))],
    ["lost", ({ b }) => (b.loss === undefined ? NONE : percent(b.loss))],
  ]],
  ["Fleet", [
    ["stages", ({ s }) => stages(s.stages)],
    ["lead", ({ s }) => milliseconds(s.lead)],
    ["late chunks", ({ s }) => known(s.deadline_misses)],
    ["moves, rebuilds", ({ s }) => `${known(s.hand_overs)}, ${known(s.rebuilds)}`],
  ]],
];

function stages(times) {
  const parts = Object.entries(times ?? {}).map(([stage, time]) => `${stage} ${Math.round(time * 1000)}`);
  return parts.length ? `${parts.join(", ")} ms` : NONE;
}

/** Fills an element; `update` as often as anything is known anew. */
export class Figures {
  #element;
  #cells = [];
  #known = { b: {}, s: {}, p: {} };

  constructor(element) {
    this.#element = element;
    element.replaceChildren();
    for (const [title, rows] of GROUPS) this.#group(title, rows);
    this.#draw();
  }

  get shown() {
    return !this.#element.hidden;
  }

  set shown(shown) {
    this.#element.hidden = !shown;
    this.#draw();
  }

  /** @param {{b?: object, s?: object, p?: object}} changed */
  update(changed) {
    for (const [source, figures] of Object.entries(changed)) Object.assign(this.#known[source], figures);
    this.#draw();
  }

  #group(title, rows) {
    const head = document.createElement("h2");
    head.textContent = title;
    const list = document.createElement("dl");
    for (const [name, value] of rows) {
      const term = document.createElement("dt");
      term.textContent = name;
      const cell = document.createElement("dd");
      list.append(term, cell);
      this.#cells.push([cell, value]);
    }
    this.#element.append(head, list);
  }

  #draw() {
    if (!this.shown) return;
    for (const [cell, value] of this.#cells) cell.textContent = value(this.#known);
  }
}
