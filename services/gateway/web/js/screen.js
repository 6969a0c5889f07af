// The picture of a call and its sound: the portrait until the first frame, no gap between two
// connections, and silence the moment it is wanted.

const by = (id) => document.getElementById(id);

const LONGEST_HUSH = 1_500; // ms, when the server does not say that it stopped: it may not have to

/** Fires "frame" for the first frame of each connection. */
export class Screen extends EventTarget {
  #video = by("video");
  #still = by("still");
  #volume = 1;
  #quiet = false;
  #hushed = false;
  #hushing;

  /** @param {string | undefined} portrait an address */
  constructor(portrait, name) {
    super();
    by("poster").hidden = !portrait;
    by("backdrop").hidden = !portrait;
    if (portrait) {
      by("poster").onload = light;
      by("poster").src = portrait;
    }
    this.#video.setAttribute("aria-label", `Picture of ${name}`);
    this.#still.hidden = true;
    by("picture").dataset.state = "connecting";
    by("unmute").onclick = () => this.#play();
  }

  set shape({ width, height }) {
    const style = document.documentElement.style;
    style.setProperty("--shape", `${width} / ${height}`);
    style.setProperty("--shape-number", width / height);
  }

  /** Show a connection's media; until its first frame the last picture stays. */
  show(stream) {
    this.#hold();
    this.#video.srcObject = stream;
    this.#hushed = false;
    this.#play();
    this.#whenFrame(() => {
      this.#still.hidden = true;
      by("picture").dataset.state = "live";
      this.dispatchEvent(new Event("frame"));
    });
  }

  close() {
    this.#video.srcObject = null;
    this.#still.hidden = true;
    clearTimeout(this.#hushing);
  }

  get quiet() {
    return this.#quiet;
  }

  set quiet(quiet) {
    this.#quiet = quiet;
    this.#apply();
  }

  set volume(volume) {
    this.#volume = volume;
    this.#apply();
  }

  /** @param {string | undefined} deviceId */
  async speaker(deviceId) {
    await this.#video.setSinkId?.(deviceId ?? "").catch(() => {}); // it was unplugged: the default stays
  }

  /** Silent at once, until the server says that it stopped. */
  hush() {
    this.#hushed = true;
    clearTimeout(this.#hushing);
    this.#hushing = setTimeout(() => this.speaks(), LONGEST_HUSH);
    this.#apply();
  }

  /** The server stopped. What is still on its way, or made up for what is missing, is not heard. */
  stopped() {
    this.#hushed = true;
    clearTimeout(this.#hushing);
    this.#apply();
  }

  /** The character begins to speak. */
  speaks() {
    this.#hushed = false;
    clearTimeout(this.#hushing);
    this.#apply();
  }

  #apply() {
    this.#video.muted = this.#quiet || this.#hushed;
    this.#video.volume = this.#volume;
  }

  async #play() {
    this.#apply();
    by("unmute").hidden = true;
    try {
      await this.#video.play();
    } catch (error) {
      if (error.name !== "NotAllowedError") return; // another connection took its place
      // Browsers let a page that was loaded anew be seen, but not heard, until it is touched.
      by("unmute").hidden = false;
      this.#video.muted = true;
      await this.#video.play().catch(() => {});
    }
  }

  #hold() {
    const { videoWidth: width, videoHeight: height } = this.#video;
    if (!width || by("picture").dataset.state !== "live") return;
    Object.assign(this.#still, { width, height });
    this.#still.getContext("2d").drawImage(this.#video, 0, 0);
    this.#still.hidden = false;
  }

  #whenFrame(act) {
    if (this.#video.requestVideoFrameCallback) this.#video.requestVideoFrameCallback(act);
    else this.#video.addEventListener("timeupdate", act, { once: true });
  }
}

/** The room takes its light from the portrait: blurred once, by scaling, so that it costs nothing. */
function light() {
  let picture = by("poster");
  for (const side of [7, 21, 64]) {
    const canvas = side === 64 ? by("backdrop") : document.createElement("canvas");
    canvas.width = canvas.height = side;
    const paper = canvas.getContext("2d");
    paper.imageSmoothingQuality = "high";
    paper.drawImage(picture, 0, 0, side, side);
    picture = canvas;
  }
}
