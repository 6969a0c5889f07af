// One call from the button to its end: waiting in line, being connected, lost and found again.
//
//   connecting ─► queued ─► live ─► over
//        └───────────────►  │ ▲
//                           ▼ │
//                       returning ─► over
//
// It knows nothing of how anything looks.

import { Connection } from "./connection.js";
import { ongoing } from "./memory.js";
import { ServerError, UNREACHABLE } from "./server.js";

const FIRST_PAUSE = 300; // ms before another try to return
const LONGEST_PAUSE = 3_000;
const KEEP_EVERY = 1_000; // ms: how exactly a reloaded page knows when it was last there
const PASSING = new Set(["UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", UNREACHABLE]);

/** Why it is over, besides a ServerError: */
export const HUNG_UP = "hung up";
export const ENDED = "ended"; // by the other side
export const LOST = "lost"; // and not found in time
export const UNCONNECTED = "unconnected"; // no way to the server was found

/**
 * Fires "state" (detail: its name), "queued" (detail: the message), "media" (detail: the stream),
 * "message" (detail: whatever else the server says) and, once, "over" (detail: why).
 */
export class Call extends EventTarget {
  #server;
  #microphone;
  #wish;
  #connection;
  #address;
  #kept;
  #state = "";
  #lostAt = 0;
  #leaving = false;
  #tries = 0; // to return, since the call was on
  #keeping;
  #wake = () => {};

  /**
   * @param {Server} server
   * @param {Microphone} microphone may have no track
   * @param {{character: object, manual: boolean, maxQueueSeconds: number}} wish
   */
  constructor(server, microphone, wish) {
    super();
    this.#server = server;
    this.#microphone = microphone;
    this.#wish = wish;
  }

  get state() {
    return this.#state;
  }

  /** Whether the user's turn ends when they say so, and not when they are silent. */
  get manual() {
    return this.#wish.manual;
  }

  get startedAt() {
    return this.#kept?.startedAt;
  }

  /** Seconds for which it makes sense to try to return. */
  get returningSeconds() {
    return Math.max(0, this.#kept.resumeSeconds - (Date.now() - this.#lostAt) / 1000);
  }

  async start() {
    this.#become("connecting");
    const persona = this.#wish.manual ? { turn_taking: { detection: "manual" } } : undefined;
    const { character, maxQueueSeconds } = this.#wish;
    try {
      await this.#connect({ avatar: character.id, max_queue_seconds: maxQueueSeconds, persona });
    } catch (error) {
      this.#finish(error);
    }
  }

  /** Return to the call that this tab had before it was loaded again. */
  resume(kept) {
    this.#kept = kept;
    this.#lostAt = kept.seen;
    return this.#return();
  }

  /** Connect anew while the call goes on: with a microphone that was not there before. */
  async renew() {
    if (this.#state !== "live") return;
    this.#lostAt = Date.now();
    await this.#return();
  }

  send(message) {
    this.#connection?.send(message);
  }

  use(track) {
    return this.#connection?.use(track);
  }

  stats() {
    return this.#connection?.stats();
  }

  hangUp() {
    if (this.#state === "over") return;
    this.send({ type: "hang_up" });
    if (this.#address) this.#server.close(this.#address);
    this.#finish(HUNG_UP);
  }

  /** Try now: the network is back, or the user is impatient. */
  hurry() {
    this.#wake();
  }

  async #connect(wish) {
    const old = this.#connection;
    const connection = new Connection(await this.#server.iceServers());
    if (this.#state === "over") return connection.close();
    this.#connection = connection;
    // What the connection before still says, while this one is made, is no longer ours.
    const on = (type, act) =>
      connection.addEventListener(type, ({ detail }) => connection === this.#connection && act(detail));
    on("message", (message) => this.#hear(message));
    on("media", (stream) => this.#emit("media", stream));
    on("lost", () => this.#lose());
    try {
      const exchange = (sdp) => this.#server.open({ sdp, ...wish });
      this.#address = await connection.open(this.#microphone.track, exchange);
    } catch (error) {
      connection.close();
      throw error;
    } finally {
      old?.close();
    }
    if (this.#state === "over") this.#server.close(this.#address);
  }

  #hear(message) {
    switch (message.type) {
      case "ready":
        return this.#begin(message);
      case "queued":
        if (this.#state === "connecting") this.#become("queued");
        return this.#emit("queued", message);
      case "going_away":
        this.#lostAt = Date.now();
        return this.#return();
      case "error":
        return this.#fail(message);
      case "ended":
        return this.#finish(ENDED);
      default:
        return this.#emit("message", message);
    }
  }

  #begin(ready) {
    const { character, manual } = this.#wish;
    this.#kept = {
      startedAt: Date.now(),
      ...this.#kept,
      character: { id: character.id, display_name: character.display_name },
      manual,
      token: ready.resume_token,
      resumeSeconds: ready.resume_seconds,
    };
    this.#lostAt = this.#tries = 0;
    this.#keep();
    clearInterval(this.#keeping);
    this.#keeping = setInterval(() => this.#keep(), KEEP_EVERY);
    this.#become("live");
    this.#emit("message", ready);
  }

  /** For a reload. Nothing new is known of a call that is lost. */
  #keep() {
    if (this.#state !== "over" && !this.#lostAt) ongoing.set(this.#kept);
  }

  #fail({ error, resumable }) {
    const failure = new ServerError(error);
    if (!resumable || !this.#kept) return this.#finish(failure);
    this.#lose();
  }

  #lose() {
    this.#connection.close();
    if (this.#state === "over" || this.#leaving) return;
    if (!this.#kept) return this.#finish(UNCONNECTED);
    this.#lostAt ||= Date.now();
    this.#return();
  }

  /** Try to return until it works, or until it is too late. */
  async #return() {
    if (this.#leaving) return;
    this.#leaving = true;
    this.#become("returning");
    while (this.#state === "returning") {
      if (this.#tries) await this.#pause();
      this.#tries += 1;
      if (Date.now() > this.#lostAt + this.#kept.resumeSeconds * 1000) this.#finish(LOST);
      if (this.#state === "over" || (await this.#returned())) break;
    }
    this.#leaving = false;
  }

  /** @returns whether trying is over: `ready`, or the reason why not, comes by the channel */
  async #returned() {
    try {
      await this.#connect({ resume: this.#kept.token });
      return true;
    } catch (error) {
      if (error instanceof ServerError && PASSING.has(error.code)) return false;
      this.#finish(error.code === "NOT_FOUND" ? LOST : error);
      return true;
    }
  }

  #pause() {
    const pause = Math.min(FIRST_PAUSE * 2 ** (this.#tries - 1), LONGEST_PAUSE);
    return new Promise((resolve) => {
      this.#wake = resolve;
      setTimeout(resolve, pause);
    });
  }

  #finish(why) {
    if (this.#state === "over") return;
    clearInterval(this.#keeping);
    this.#connection?.close();
    ongoing.forget();
    this.#become("over");
    this.#emit("over", why);
  }

  #become(state) {
    if (state === this.#state) return;
    this.#state = state;
    this.#emit("state", state);
  }

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
