// The dialog for sound and talking: devices, volume, and how one's turn ends. Open before and in a call.

import { choices } from "./memory.js";
import { Meter } from "./meter.js";
import { devices } from "./microphone.js";

const by = (id) => document.getElementById(id);

const HINTS = {
  open: "Just talk. Your turn ends when you pause.",
  push: "You are heard while you hold the button or the space bar.",
  fixed: "This call began with push to talk and keeps it.",
};

/** Fires "changed" (detail: what was chosen) and "microphone" (detail: the device's id). */
export class Settings extends EventTarget {
  #dialog = by("settings-dialog");
  #microphone;
  #meter;

  constructor(microphone) {
    super();
    this.#microphone = microphone;
    this.#meter = new Meter(by("settings-meter"), microphone);
    by("speaker-field").hidden = !("setSinkId" in HTMLMediaElement.prototype);
    by("microphone-device").onchange = ({ target }) => {
      choices.set({ microphone: target.value });
      this.dispatchEvent(new CustomEvent("microphone", { detail: target.value }));
    };
    by("speaker-device").onchange = ({ target }) => this.#choose({ speaker: target.value });
    by("volume").oninput = ({ target }) => this.#choose({ volume: target.value / 100 });
    for (const name of ["room-mode", "settings-mode"]) {
      by(name).onchange = ({ target }) => this.#choose({ mode: target.value });
    }
    this.#dialog.onclose = () => this.#meter.stop();
    navigator.mediaDevices?.addEventListener("devicechange", () => this.#list());
    microphone.addEventListener("opened", () => this.#list());
    this.#show();
  }

  /** @param {{manual?: boolean, inCall?: boolean}} call what the call that is on allows */
  open({ manual = false, inCall = false } = {}) {
    this.#show();
    this.#list();
    this.#dialog.querySelector('[name="settings-mode"][value="open"]').disabled = manual;
    by("mode-hint").textContent = HINTS[manual ? "fixed" : choices.get().mode];
    by("figures-field").hidden = !inCall;
    this.#dialog.showModal();
    this.#meter.start();
  }

  #choose(changes) {
    choices.set(changes);
    this.#show();
    this.dispatchEvent(new CustomEvent("changed", { detail: changes }));
  }

  #show() {
    const { mode, volume } = choices.get();
    for (const radio of document.querySelectorAll(`[name$="-mode"]`)) radio.checked = radio.value === mode;
    by("volume").value = Math.round(100 * volume);
    by("mode-hint").textContent = HINTS[mode];
  }

  async #list() {
    const { inputs, outputs } = await devices();
    fill(by("microphone-device"), inputs, this.#microphone.deviceId, "No microphone in use");
    fill(by("speaker-device"), outputs, choices.get().speaker, "Default");
  }
}

function fill(select, found, chosen, none) {
  const options = found.map(({ deviceId, label }) => new Option(label || "Unnamed device", deviceId));
  if (!options.length) options.push(new Option(none, ""));
  select.replaceChildren(...options);
  if (found.some(({ deviceId }) => deviceId === chosen)) select.value = chosen;
  select.disabled = !found.length;
}
