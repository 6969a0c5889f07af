// When the user is heard: muted or not, all the time or while a button is held.

// The last word is still on its way from the microphone when the button is let go.
const TAIL = 200; // ms
const ARRIVAL = 150; // ms until what was sent before can be taken to have arrived

/** Fires "changed". */
export class Talking extends EventTarget {
  #microphone;
  #call;
  #mode;
  #muted = false;
  #held = false;
  #ending;

  constructor(microphone, call, mode) {
    super();
    this.#microphone = microphone;
    this.#call = call;
    this.#mode = mode;
    this.#apply();
  }

  get mode() {
    return this.#mode;
  }

  set mode(mode) {
    this.#mode = mode;
    this.#held = false;
    this.#apply();
  }

  get muted() {
    return this.#muted;
  }

  set muted(muted) {
    this.#muted = muted;
    this.#apply();
    this.tell();
  }

  get held() {
    return this.#held;
  }

  /** The server, which may have forgotten it with a connection, is told whether to listen. */
  tell() {
    this.#call.send({ type: "microphone", on: !this.#muted });
  }

  press() {
    clearTimeout(this.#ending);
    if (this.#mode !== "push") return;
    this.#held = true;
    this.#apply();
  }

  release() {
    if (!this.#held) return;
    this.#held = false;
    this.dispatchEvent(new Event("changed"));
    this.#ending = setTimeout(() => {
      this.#apply();
      if (this.#call.manual) this.#ending = setTimeout(() => this.#call.send({ type: "end_of_speech" }), ARRIVAL);
    }, TAIL);
  }

  #apply() {
    this.#microphone.talking = this.#mode === "push" ? this.#held : !this.#muted;
    this.dispatchEvent(new Event("changed"));
  }
}
