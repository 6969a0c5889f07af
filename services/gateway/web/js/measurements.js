// How the connection is doing, from the browser's own counters, once a second.

const EVERY = 1_000; // ms

// The connection is fair from the first of each pair on, and poor from the second.
const LOSS = [0.02, 0.08]; // of packets
const ROUND_TRIP = [0.25, 0.6]; // seconds
const SLOW = [0.9, 0.6]; // of the stream's pictures per second, below

/** Fires "measured" (detail: the figures) while it runs. */
export class Measurements extends EventTarget {
  #call;
  #timer;
  #before;
  #fps;

  constructor(call) {
    super();
    this.#call = call;
  }

  /** @param {number} fps of the stream */
  start(fps) {
    this.#fps = fps;
    this.#timer ??= setInterval(() => this.#measure(), EVERY);
  }

  stop() {
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  /** Counters begin anew: there is another connection. */
  restart() {
    this.#before = undefined;
  }

  async #measure() {
    const report = await this.#call.stats();
    if (!report) return;
    const now = counters([...report.values()]);
    const before = this.#before;
    this.#before = now;
    if (!before || before.id !== now.id) return;
    const figures = { ...now, ...rates(before, now) };
    figures.level = level(figures, this.#fps);
    this.dispatchEvent(new CustomEvent("measured", { detail: figures }));
  }
}

/** The counters that we look at, as one flat object. */
function counters(stats) {
  const inbound = (kind) => stats.find((one) => one.type === "inbound-rtp" && one.kind === kind) ?? {};
  const [video, audio] = [inbound("video"), inbound("audio")];
  const sent = stats.find((one) => one.type === "outbound-rtp" && one.kind === "audio") ?? {};
  const codec = (of) => stats.find((one) => one.id === of.codecId)?.mimeType?.split("/")[1];
  const transport = stats.find((one) => one.type === "transport");
  const pair = stats.find((one) => one.id === transport?.selectedCandidatePairId)
    ?? stats.find((one) => one.type === "candidate-pair" && one.nominated) ?? {};
  return {
    id: video.id,
    at: video.timestamp / 1000,
    width: video.frameWidth,
    height: video.frameHeight,
    decoded: video.framesDecoded ?? 0,
    dropped: video.framesDropped ?? 0,
    freezes: video.freezeCount ?? 0,
    received: (video.bytesReceived ?? 0) + (audio.bytesReceived ?? 0),
    sent: sent.bytesSent ?? 0,
    packets: (video.packetsReceived ?? 0) + (audio.packetsReceived ?? 0),
    lost: (video.packetsLost ?? 0) + (audio.packetsLost ?? 0),
    samples: audio.totalSamplesReceived ?? 0,
    concealed: (audio.concealedSamples ?? 0) - (audio.silentConcealedSamples ?? 0),
    videoCodec: codec(video),
    audioCodec: codec(audio),
    videoBuffer: video.jitterBufferDelay / video.jitterBufferEmittedCount || undefined,
    audioBuffer: audio.jitterBufferDelay / audio.jitterBufferEmittedCount || undefined,
    roundTrip: pair.currentRoundTripTime,
    // Both on the sender's clock: what of each is played just now. Positive: pictures are late.
    skew: (audio.estimatedPlayoutTimestamp - video.estimatedPlayoutTimestamp) / 1000 || undefined,
  };
}

function rates(before, now) {
  const seconds = now.at - before.at || 1;
  const grown = (name) => Math.max(0, now[name] - before[name]);
  const lost = grown("lost");
  return {
    fps: grown("decoded") / seconds,
    bitrateIn: (8 * grown("received")) / seconds,
    bitrateOut: (8 * grown("sent")) / seconds,
    loss: lost / Math.max(1, lost + grown("packets")),
    concealment: grown("concealed") / Math.max(1, grown("samples")),
  };
}

/** "good", "fair" or "poor". */
function level({ loss, roundTrip = 0, fps }, wanted) {
  const pace = wanted ? fps / wanted : 1;
  for (const [grade, name] of [[1, "poor"], [0, "fair"]]) {
    if (loss >= LOSS[grade] || roundTrip >= ROUND_TRIP[grade] || pace < SLOW[grade]) return name;
  }
  return "good";
}
