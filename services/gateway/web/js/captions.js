// What both sides say, as it is said: pieces appear with the voice, final texts replace them.

const MOST = 100; // utterances that are kept

/** Captions of one call, in a list element. */
export class Captions {
  #list;
  #names;
  #announce;
  #lines = new Map(); // by utterance
  #waiting = new Set(); // pieces whose voice is still to come

  /**
   * @param {HTMLElement} list
   * @param {{user: string, character: string}} names
   * @param {(text: string) => void} announce tells screen readers what was said, once
   */
  constructor(list, names, announce) {
    this.#list = list;
    this.#names = names;
    this.#announce = announce;
    list.replaceChildren();
  }

  /** @param message `transcript` of docs/webrtc.md */
  take(message) {
    const piece = { message };
    const show = () => {
      this.#waiting.delete(piece);
      this.#show(message);
    };
    if (!message.delay) return show();
    piece.timer = setTimeout(show, message.delay * 1000);
    this.#waiting.add(piece);
  }

  /** The character was cut off: of this turn and those before, nothing is still to come. */
  cut(turn) {
    for (const piece of this.#waiting) {
      if (piece.message.party !== "character" || piece.message.turn > turn) continue;
      clearTimeout(piece.timer);
      this.#waiting.delete(piece);
    }
  }

  #show(message) {
    const { party, utterance, text, final } = message;
    const line = this.#lines.get(utterance) ?? this.#begun(message);
    line.text = final ? text : line.text + text;
    line.element.hidden = !line.text.trim();
    line.spoken.textContent = line.text.trim();
    line.element.classList.toggle("partial", !final);
    line.element.classList.toggle("cut", Boolean(message.interrupted));
    if (final && line.text.trim()) this.#announce(`${this.#names[party]}: ${line.text.trim()}`);
    this.#list.scrollTop = this.#list.scrollHeight;
  }

  #begun({ party, utterance, start }) {
    const element = document.createElement("li");
    element.className = `caption from-${party}`;
    const head = element.appendChild(document.createElement("div"));
    head.className = "caption-head";
    head.append(this.#names[party], stamp(start));
    const spoken = element.appendChild(document.createElement("div"));
    spoken.className = "caption-text";
    const line = { element, spoken, text: "" };
    this.#lines.set(utterance, line);
    this.#list.append(element);
    while (this.#list.children.length > MOST) this.#list.firstElementChild.remove();
    return line;
  }
}

function stamp(seconds) {
  const time = document.createElement("time");
  time.textContent = clock(seconds);
  time.dateTime = `PT${Math.max(0, seconds).toFixed(1)}S`;
  return time;
}

/** Minutes and seconds, or hours as well. */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const two = (number) => String(number).padStart(2, "0");
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  const rest = two(whole % 60);
  return hours ? `${hours}:${two(minutes)}:${rest}` : `${minutes}:${rest}`;
}
