// A call as one sees it: everything on the screen that changes while it is on.

import { Captions, clock } from "./captions.js";
import { Figures } from "./figures.js";
import { onHold, onKeys } from "./hands.js";
import { Measurements } from "./measurements.js";
import { choices } from "./memory.js";
import { Screen } from "./screen.js";
import { Talking } from "./talking.js";
import { inLine, notice, withoutMicrophone } from "./words.js";

const by = (id) => document.getElementById(id);

const VEIL_AFTER = 1_200; // ms: a connection that changes over sooner is nobody's concern
const THOUGHT = 15_000; // ms after which nobody believes that an answer comes
const TOAST = 6_000; // ms
const TITLE = document.title;
const RING_EVERY = 80; // ms; its transition fills the time between
const QUALITY = { good: "good", fair: "fair", poor: "poor" };

export class View {
  #call;
  #character;
  #microphone;
  #settings;
  #screen;
  #captions;
  #figures;
  #talking;
  #measurements;
  #pressedAt = performance.now();
  #later = new Set(); // what waits for the voice that it belongs to
  #stops = new AbortController(); // everything that listens for this call alone
  #ticking;
  #toasting;
  #veiling;
  #thinking;
  #awake;
  #voice = "listening";

  /** @param {{call: Call, character: object, portrait?: string, microphone: Microphone, settings: Settings}} parts */
  constructor({ call, character, portrait, microphone, settings }) {
    const name = character.display_name;
    this.#call = call;
    this.#character = character;
    this.#microphone = microphone;
    this.#settings = settings;
    this.#screen = new Screen(portrait, name);
    this.#captions = new Captions(by("captions"), { user: "You", character: name }, announce);
    this.#figures = new Figures(by("overlay"));
    this.#measurements = new Measurements(call);
    this.#talking = new Talking(microphone, call, choices.get().mode);
    by("call").hidden = false;
    by("call-name").textContent = name;
    by("call-clock").textContent = "";
    by("toast").textContent = "";
    by("quality").dataset.level = "unknown";
    this.#veil({ title: `Calling ${name}`, text: "" });
    this.#follow();
    this.#handle();
    this.#applyChoices(choices.get());
    this.#showTalking();
    this.#say("listening");
    by("call-name").focus();
    document.title = `${name} – ${TITLE}`;
    if (!microphone.track) this.#missMicrophone();
    this.#stayAwake();
    this.#ticking = setInterval(() => this.#tick(), 1000);
    this.#level();
  }

  close() {
    this.#stops.abort();
    clearInterval(this.#ticking);
    this.#forgetLater();
    this.#measurements.stop();
    this.#screen.close();
    this.#microphone.talking = true;
    for (const timer of [this.#veiling, this.#toasting, this.#thinking]) clearTimeout(timer);
    by("overlay").hidden = true;
    by("call").hidden = true;
    by("settings-dialog").close();
    document.title = TITLE;
    this.#awake?.release();
  }

  // ---- What the call tells ----

  #follow() {
    const on = (source, type, act) =>
      source.addEventListener(type, ({ detail }) => act(detail), { signal: this.#stops.signal });
    on(this.#call, "state", (state) => this.#become(state));
    on(this.#call, "queued", (queued) => this.#veil(inLine(queued)));
    on(this.#call, "media", (stream) => this.#screen.show(stream));
    on(this.#call, "message", (message) => this.#hear(message));
    on(this.#screen, "frame", () => this.#firstFrame());
    on(this.#talking, "changed", () => this.#showTalking());
    on(this.#measurements, "measured", (figures) => this.#measured(figures));
    on(this.#settings, "changed", (changes) => this.#applyChoices(changes));
    on(this.#settings, "microphone", (device) => this.#useMicrophone(device));
    on(this.#microphone, "lost", () => this.#lostMicrophone());
    on(window, "online", () => this.#call.hurry());
  }

  #become(state) {
    clearTimeout(this.#veiling);
    switch (state) {
      case "live":
        return this.#veil(undefined);
      case "returning":
        this.#forgetLater();
        this.#say("listening");
        this.#veiling = setTimeout(() => this.#veilReturn(), VEIL_AFTER);
    }
  }

  #veilReturn() {
    if (this.#call.state !== "returning") return;
    const left = Math.round(this.#call.returningSeconds);
    this.#veil({ title: "Connection lost", text: `Reconnecting, for up to ${left} s` });
    this.#veiling = setTimeout(() => this.#veilReturn(), 1000);
  }

  #hear(message) {
    switch (message.type) {
      case "ready":
        return this.#begin(message);
      case "turn_started":
        this.#screen.speaks();
        return this.#after(message.delay, () => this.#say("speaking"));
      case "turn_ended":
        return this.#after(message.delay, () => this.#say("listening"));
      case "interrupted":
        return this.#interrupted(message);
      case "user_speech":
        return this.#voice !== "speaking" && this.#say(message.speaking ? "hearing" : "listening");
      case "transcript":
        return this.#transcript(message);
      case "statistics":
        return this.#figures.update({ s: message });
      case "notice":
        return this.#toast(notice(message, this.#character.display_name));
    }
  }

  #begin(ready) {
    this.#screen.shape = ready;
    this.#measurements.restart();
    this.#measurements.start(ready.fps);
    this.#figures.update({ p: { fps: ready.fps } });
    if (this.#talking.muted) this.#talking.tell();
    this.#tick();
  }

  #interrupted({ turn }) {
    this.#forgetLater();
    this.#captions.cut(turn);
    this.#screen.stopped();
    this.#say("listening");
  }

  #transcript(message) {
    this.#captions.take(message);
    if (message.party === "user" && message.final && message.text && this.#voice !== "speaking") {
      this.#say("thinking");
    }
  }

  #firstFrame() {
    if (this.#pressedAt === undefined) return; // later connections of the call
    this.#figures.update({ p: { firstFrame: (performance.now() - this.#pressedAt) / 1000 } });
    this.#pressedAt = undefined;
  }

  #measured(figures) {
    this.#figures.update({ b: figures });
    const level = QUALITY[figures.level];
    by("quality").dataset.level = level;
    by("quality-says").textContent = `Connection: ${level}. Show figures`;
  }

  // ---- What the user does ----

  #handle() {
    const press = (id, act) => by(id).addEventListener("click", act, { signal: this.#stops.signal });
    press("hang-up", () => this.#call.hangUp());
    press("interrupt", () => this.#interrupt());
    press("mute", () => this.#mute());
    press("sound", () => this.#toggleSound());
    press("captions-toggle", () => this.#toggleCaptions());
    press("call-settings", () => this.#settings.open({ manual: this.#call.manual, inCall: true }));
    press("quality", () => this.#toggleFigures());
    by("figures-switch").onchange = () => this.#toggleFigures();
    by("compose").onsubmit = (event) => this.#write(event);
    by("compose-text").oninput = ({ target }) => (by("compose-send").disabled = !target.value.trim());
    const keys = {
      d: () => this.#toggleFigures(),
      m: () => this.#talking.mode === "open" && this.#mute(),
      Escape: () => this.#interrupt(),
    };
    onKeys(keys, this.#stops.signal);
    const talk = {
      on: () => this.#talking.mode === "push",
      held: () => this.#talking.held,
      press: () => this.#press(),
      release: () => this.#talking.release(),
    };
    onHold(by("push"), talk, this.#stops.signal);
  }

  #press() {
    if (!this.#microphone.track) return this.#askMicrophone();
    if (this.#voice === "speaking") this.#interrupt();
    this.#talking.press();
  }

  #interrupt() {
    if (this.#voice !== "speaking") return;
    this.#screen.hush();
    this.#call.send({ type: "interrupt" });
  }

  #mute() {
    if (!this.#microphone.track) return this.#askMicrophone();
    this.#talking.muted = !this.#talking.muted;
  }

  /** Who cannot talk can type. */
  #missMicrophone() {
    this.#applyChoices({ captions: true });
    this.#toast("There is no microphone: you can type.");
  }

  /** Phones stay lit. */
  async #stayAwake() {
    this.#awake = await navigator.wakeLock?.request("screen").catch(() => undefined);
    if (this.#stops.signal.aborted) this.#awake?.release();
  }

  /** There was no microphone when the call began, or it is gone. */
  async #askMicrophone() {
    await this.#useMicrophone(choices.get().microphone);
    if (this.#microphone.track) await this.#call.renew(); // the call was offered none
  }

  async #useMicrophone(device) {
    try {
      await this.#microphone.open(device || undefined);
      await this.#call.use(this.#microphone.track);
    } catch (error) {
      this.#toast(withoutMicrophone(error.reason ?? "failed"));
    }
    this.#showTalking();
  }

  async #lostMicrophone() {
    this.#toast("The microphone was disconnected.");
    this.#microphone.close();
    await this.#useMicrophone();
  }

  #toggleSound() {
    this.#screen.quiet = !this.#screen.quiet;
    press("sound", this.#screen.quiet, this.#screen.quiet ? "#icon-speaker-off" : "#icon-speaker");
  }

  #toggleCaptions() {
    this.#applyChoices({ captions: by("conversation").hidden });
    choices.set({ captions: !by("conversation").hidden });
  }

  #toggleFigures() {
    this.#figures.shown = !this.#figures.shown;
    by("figures-switch").checked = this.#figures.shown;
    by("quality").setAttribute("aria-expanded", String(this.#figures.shown));
  }

  #write(event) {
    event.preventDefault();
    const text = by("compose-text").value.trim();
    if (!text) return;
    if (this.#voice === "speaking") this.#screen.hush();
    this.#call.send({ type: "text", text });
    by("compose").reset();
    by("compose-send").disabled = true;
  }

  #applyChoices({ mode, volume, speaker, captions }) {
    if (mode) this.#talking.mode = mode;
    if (volume !== undefined) this.#screen.volume = volume;
    if (speaker !== undefined) this.#screen.speaker(speaker);
    if (captions === undefined) return;
    by("conversation").hidden = !captions;
    by("captions-toggle").setAttribute("aria-pressed", String(captions));
  }

  // ---- What is shown ----

  #say(voice) {
    clearTimeout(this.#thinking);
    if (voice === "thinking") this.#thinking = setTimeout(() => this.#say("listening"), THOUGHT);
    this.#voice = voice;
    by("picture").dataset.voice = voice;
    by("interrupt").setAttribute("aria-disabled", String(voice !== "speaking")); // it keeps the focus
    by("call-state").textContent = STATES[voice];
  }

  #showTalking() {
    const { mode, muted, held } = this.#talking;
    const none = !this.#microphone.track;
    by("push").hidden = mode !== "push";
    by("mute").hidden = mode === "push";
    by("push").toggleAttribute("data-held", held);
    by("push-label").textContent = none ? "Turn on the microphone" : held ? "Release to send" : "Hold to talk";
    press("mute", muted || none, muted || none ? "#icon-microphone-off" : "#icon-microphone");
    by("mute").querySelector(".tool-name").textContent = none ? "No mic" : muted ? "Unmute" : "Mute";
  }

  #veil(words) {
    by("veil").hidden = !words;
    if (!words) return;
    by("veil-title").textContent = words.title;
    by("veil-detail").textContent = words.text;
  }

  #toast(text) {
    if (!text) return;
    clearTimeout(this.#toasting);
    by("toast").textContent = text;
    this.#toasting = setTimeout(() => (by("toast").textContent = ""), TOAST);
  }

  #tick() {
    if (this.#call.startedAt) {
      by("call-clock").textContent = clock((Date.now() - this.#call.startedAt) / 1000);
    }
  }

  /** The ring around the microphone's button follows the user's voice. */
  #level() {
    if (this.#stops.signal.aborted) return;
    const { mode, muted, held } = this.#talking;
    const heard = mode === "push" ? held : !muted;
    by("mute").style.setProperty("--level", heard ? this.#microphone.level.toFixed(1) : 0);
    setTimeout(() => this.#level(), RING_EVERY);
  }

  #after(delay, act) {
    if (!delay) return act();
    const timer = setTimeout(() => {
      this.#later.delete(timer);
      act();
    }, delay * 1000);
    this.#later.add(timer);
  }

  #forgetLater() {
    this.#later.forEach(clearTimeout);
    this.#later.clear();
  }
}

const STATES = { speaking: "Speaking", hearing: "Hears you", thinking: "Thinking", listening: "Listening" };

function press(id, pressed, icon) {
  by(id).setAttribute("aria-pressed", String(pressed));
  by(id).querySelector("use").setAttribute("href", icon);
}

function announce(text) {
  by("announcer").textContent = text;
}
