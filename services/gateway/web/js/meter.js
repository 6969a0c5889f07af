// A row of bars that shows how loud the microphone is.

const BARS = 24;
const LOUD = 0.88; // of the bars: from here on it is too loud
const FALL = 0.85; // of the level per picture: quick up, slow down

/** Draws into an empty element while it is shown. */
export class Meter {
  #bars;
  #microphone;
  #held = 0;
  #running = false;

  constructor(element, microphone) {
    this.#microphone = microphone;
    this.#bars = Array.from({ length: BARS }, (_, index) => {
      const bar = document.createElement("i");
      bar.classList.toggle("loud", index >= BARS * LOUD);
      return bar;
    });
    element.replaceChildren(...this.#bars);
  }

  start() {
    if (this.#running) return;
    this.#running = true;
    this.#draw();
  }

  stop() {
    this.#running = false;
    this.#light(0);
  }

  #draw() {
    if (!this.#running) return;
    this.#held = Math.max(this.#microphone.level, this.#held * FALL);
    this.#light(Math.round(this.#held * BARS));
    requestAnimationFrame(() => this.#draw());
  }

  #light(count) {
    this.#bars.forEach((bar, index) => bar.classList.toggle("on", index < count));
  }
}
