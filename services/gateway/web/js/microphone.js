// The user's microphone: opened when asked for, muted, changed, and how loud it is.

/** Why there is no microphone: "denied", "none", "busy", "insecure" or "failed". */
export class NoMicrophone extends Error {
  constructor(reason) {
    super(`no microphone: ${reason}`);
    this.reason = reason;
  }
}

const REASONS = {
  NotAllowedError: "denied",
  SecurityError: "denied",
  NotFoundError: "none",
  NotReadableError: "busy",
  AbortError: "busy",
};
const QUIETEST = -60; // dBFS that shows as nothing
const LOUDEST = -12; // and as everything

/** Fires "lost" when the device goes away, "opened" when there is another. */
export class Microphone extends EventTarget {
  #stream;
  #context;
  #analyser;
  #samples;
  #talking = true;

  get track() {
    return this.#stream?.getAudioTracks()[0];
  }

  get deviceId() {
    return this.track?.getSettings().deviceId;
  }

  /** Whether it can be opened without asking the user. */
  static async allowed() {
    try {
      return (await navigator.permissions.query({ name: "microphone" })).state === "granted";
    } catch {
      return false; // this browser does not say
    }
  }

  /**
   * @param {string} [deviceId] when it is gone, any other
   * @throws {NoMicrophone}
   */
  async open(deviceId) {
    if (!navigator.mediaDevices) throw new NoMicrophone("insecure");
    const stream = await this.#granted(deviceId);
    this.close();
    this.#stream = stream;
    this.track.enabled = this.#talking;
    this.track.addEventListener("ended", () => this.dispatchEvent(new Event("lost")), { once: true });
    this.#listen();
    this.dispatchEvent(new Event("opened"));
  }

  async #granted(deviceId) {
    const audio = { echoCancellation: true, noiseSuppression: true, autoGainControl: true };
    if (deviceId) audio.deviceId = { exact: deviceId };
    try {
      return await navigator.mediaDevices.getUserMedia({ audio });
    } catch (error) {
      if (deviceId && ["OverconstrainedError", "NotFoundError"].includes(error.name)) {
        return this.#granted();
      }
      throw new NoMicrophone(REASONS[error.name] ?? "failed");
    }
  }

  close() {
    this.#stream?.getTracks().forEach((track) => track.stop());
    this.#stream = undefined;
    this.#context?.close();
    this.#context = undefined;
  }

  /** Whether what it hears leaves this page. */
  set talking(talking) {
    this.#talking = talking;
    if (this.track) this.track.enabled = talking;
  }

  #listen() {
    this.#context = new AudioContext();
    this.#analyser = this.#context.createAnalyser();
    this.#analyser.fftSize = 1024;
    this.#samples = new Float32Array(this.#analyser.fftSize);
    this.#context.createMediaStreamSource(this.#stream).connect(this.#analyser);
  }

  /** How loud it is just now, 0 to 1. */
  get level() {
    if (!this.#context) return 0;
    if (this.#context.state === "suspended") this.#context.resume();
    this.#analyser.getFloatTimeDomainData(this.#samples);
    let power = 0;
    for (const sample of this.#samples) power += sample * sample;
    const decibels = 10 * Math.log10(power / this.#samples.length + 1e-12);
    return Math.min(1, Math.max(0, (decibels - QUIETEST) / (LOUDEST - QUIETEST)));
  }
}

/** @returns {Promise<{inputs: MediaDeviceInfo[], outputs: MediaDeviceInfo[]}>} */
export async function devices() {
  const all = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
  const of = (kind) => all.filter((device) => device.kind === kind && device.deviceId);
  return { inputs: of("audioinput"), outputs: of("audiooutput") };
}
