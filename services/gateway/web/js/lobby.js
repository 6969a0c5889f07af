// Before a call: the characters, whether one is heard, and the button.

import { choices } from "./memory.js";
import { Meter } from "./meter.js";
import { Microphone } from "./microphone.js";
import { refusal, withoutMicrophone } from "./words.js";

const by = (id) => document.getElementById(id);

const WAITING = 8; // tiles while characters are fetched

/**
 * Fires "call" (detail: the character), "add", "settings".
 */
export class Lobby extends EventTarget {
  #server;
  #microphone;
  #meter;
  #characters = [];
  #portraits = new Map(); // by id, promises of addresses
  #chosen;
  #ready = false;

  constructor(server, microphone) {
    super();
    this.#server = server;
    this.#microphone = microphone;
    this.#meter = new Meter(by("room-meter"), microphone);
    by("characters").onchange = ({ target }) => this.#choose(target.value);
    by("characters").onkeydown = ({ key, target }) => {
      if (key === "Enter" && target.matches("input")) this.#call();
    };
    by("call-button").onclick = () => this.#call();
    by("check-microphone").onclick = () => this.#toggleMicrophone();
    by("room-settings").onclick = () => this.dispatchEvent(new Event("settings"));
    by("delete-character").onclick = () => this.#forget();
    microphone.addEventListener("lost", () => this.#heard("The microphone was disconnected.", true));
    this.#wait();
  }

  get chosen() {
    return this.#chosen;
  }

  portrait(character) {
    if (!this.#portraits.has(character.id)) {
      this.#portraits.set(character.id, this.#server.portrait(character).catch(() => undefined));
    }
    return this.#portraits.get(character.id);
  }

  /** Fetch the characters, and show them. */
  async refresh(chosen = choices.get().character) {
    this.#characters = await this.#server.characters();
    const tiles = this.#characters.map((character) => this.#tile(character));
    by("characters").replaceChildren(...tiles, this.#addTile());
    by("characters").setAttribute("aria-busy", "false");
    const known = this.#characters.find(({ id }) => id === chosen) ?? this.#characters[0];
    this.#ready = true;
    this.#choose(known?.id);
  }

  /** Shown, with the microphone on if that needs no question. */
  async enter() {
    by("lobby").hidden = false;
    if (this.#microphone.track || (await Microphone.allowed())) await this.listen();
    else this.#heard("Check that you are heard, or just call.");
  }

  leave() {
    this.#meter.stop();
    by("lobby").hidden = true;
  }

  /** Nothing can be called, and why; `again` is what may help. */
  fail(error, again) {
    const box = by("lobby-message");
    box.replaceChildren();
    box.hidden = !error;
    if (!error) return;
    const text = document.createElement("p");
    text.textContent = refusal(error);
    const button = document.createElement("button");
    button.type = "button";
    button.className = "quiet";
    button.textContent = "Try again";
    button.onclick = again;
    box.append(text, button);
  }

  /** Open the microphone. @returns {Promise<boolean>} whether there is one */
  async listen() {
    try {
      if (!this.#microphone.track) await this.#microphone.open(choices.get().microphone);
    } catch (error) {
      this.#heard(withoutMicrophone(error.reason), true);
      return false;
    }
    this.#heard(`Say something: the bars move when you are heard.`);
    this.#meter.start();
    return true;
  }

  /** Another device, while this is shown. */
  async use(device) {
    if (by("lobby").hidden) return;
    this.#microphone.close();
    choices.set({ microphone: device });
    await this.listen();
  }

  async #toggleMicrophone() {
    if (!this.#microphone.track) return this.listen();
    this.#microphone.close();
    this.#meter.stop();
    return this.#heard("The microphone is off.");
  }

  #heard(text, bad = false) {
    const says = by("microphone-says");
    const on = Boolean(this.#microphone.track?.readyState === "live");
    says.textContent = text;
    says.classList.toggle("bad", bad);
    by("check-microphone").setAttribute("aria-pressed", String(on));
    by("check-microphone").querySelector("use").setAttribute("href", on ? "#icon-microphone" : "#icon-microphone-off");
  }

  #call() {
    if (this.#chosen && this.#ready) this.dispatchEvent(new CustomEvent("call", { detail: this.#chosen }));
  }

  async #choose(id) {
    this.#chosen = this.#characters.find((character) => character.id === id);
    const { display_name: name, shared } = this.#chosen ?? {};
    const radio = by("characters").querySelector(`[value="${id}"]`);
    if (radio) radio.checked = true;
    if (id) choices.set({ character: id });
    by("room-name").textContent = name ?? "";
    by("call-label").textContent = name ? `Call ${name}` : "Call";
    by("call-button").disabled = !this.#chosen;
    by("delete-character").hidden = !this.#chosen || shared;
    const picture = by("room-portrait");
    picture.hidden = true;
    const source = this.#chosen && (await this.portrait(this.#chosen));
    if (!source || this.#chosen.id !== id) return;
    picture.src = source;
    picture.hidden = false;
  }

  async #forget() {
    const { display_name: name } = this.#chosen;
    if (!window.confirm(`Delete ${name}? This cannot be undone.`)) return;
    try {
      await this.#server.forget(this.#chosen);
      await this.refresh();
    } catch (error) {
      this.fail(error, () => this.#forget());
    }
  }

  #wait() {
    const tiles = Array.from({ length: WAITING }, () => {
      const tile = document.createElement("div");
      tile.className = "character waiting";
      return tile;
    });
    by("characters").replaceChildren(...tiles);
  }

  #tile(character) {
    const tile = document.createElement("label");
    tile.className = "character";
    const radio = document.createElement("input");
    Object.assign(radio, { type: "radio", name: "character", value: character.id });
    const picture = document.createElement("img");
    picture.alt = "";
    picture.hidden = true;
    this.portrait(character).then((source) => {
      if (!source) return;
      picture.src = source;
      picture.hidden = false;
    });
    const name = document.createElement("span");
    name.className = "character-name";
    name.textContent = character.display_name;
    tile.append(picture, radio, name, chosenSign());
    tile.ondblclick = () => this.#call();
    return tile;
  }

  #addTile() {
    const tile = document.createElement("button");
    tile.type = "button";
    tile.className = "character add";
    tile.id = "add-character";
    tile.append(icon("add"), "Add");
    tile.setAttribute("aria-label", "Add a character");
    tile.onclick = () => this.dispatchEvent(new Event("add"));
    return tile;
  }
}

function chosenSign() {
  const sign = document.createElement("span");
  sign.className = "chosen";
  sign.append(icon("tick"));
  return sign;
}

function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("aria-hidden", "true");
  const use = svg.appendChild(document.createElementNS(space, "use"));
  use.setAttribute("href", `#icon-${name}`);
  return svg;
}
