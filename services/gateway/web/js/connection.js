// One WebRTC connection to the gateway: sound out, picture and sound in, a channel for the rest.
//
// A call may use several, one after the other: call.js knows when.

const CONNECT_PATIENCE = 20_000; // ms until the channel is open
// ms without a message, once the call is on, when one comes every second: of a slow server, and of
// one that the browser does not reach any more.
const SILENT_PATIENCE = 10_000;
const UNREACHED_PATIENCE = 4_000;

/**
 * Fires "message" (detail: the message), "media" once both tracks are there (detail: one stream of
 * them) and, once, "lost".
 */
export class Connection extends EventTarget {
  #peer;
  #channel;
  #sender;
  #watch;
  #live = false;
  #heardAt = 0;
  #over = false;
  #unsent = [];
  #media = new MediaStream();

  constructor(iceServers) {
    super();
    this.#peer = new RTCPeerConnection({ iceServers });
    this.#channel = this.#peer.createDataChannel("call", { ordered: true });
    this.#channel.onmessage = ({ data }) => this.#hear(JSON.parse(data));
    this.#channel.onopen = () => this.#flush();
    this.#channel.onclose = () => this.#lose();
    this.#peer.ontrack = ({ track }) => this.#received(track);
    this.#peer.onconnectionstatechange = () => this.#changed();
  }

  /**
   * @param {MediaStreamTrack | undefined} track the microphone
   * @param {(sdp: string) => Promise<{call: string, sdp: string}>} exchange offer for answer
   * @returns {Promise<string>} the call's address
   */
  async open(track, exchange) {
    const direction = track ? "sendrecv" : "recvonly";
    this.#sender = this.#peer.addTransceiver(track ?? "audio", { direction }).sender;
    this.#peer.addTransceiver("video", { direction: "recvonly" });
    await this.#peer.setLocalDescription(await this.#peer.createOffer());
    const { call, sdp } = await exchange(this.#peer.localDescription.sdp);
    if (!this.#over) {
      await this.#peer.setRemoteDescription({ type: "answer", sdp });
      this.#loseAfter(CONNECT_PATIENCE);
    }
    return call;
  }

  /** Another microphone, without a pause. */
  async use(track) {
    await this.#sender?.replaceTrack(track ?? null);
  }

  send(message) {
    if (this.#channel.readyState === "open") this.#channel.send(JSON.stringify(message));
    else if (this.#channel.readyState === "connecting") this.#unsent.push(message);
  }

  stats() {
    return this.#peer.getStats();
  }

  /** No event comes any more. */
  close() {
    this.#over = true;
    clearTimeout(this.#watch);
    this.#peer.close();
  }

  #received(track) {
    this.#media.addTrack(track);
    if (this.#media.getTracks().length === 2) this.#tell("media", this.#media);
  }

  #flush() {
    clearTimeout(this.#watch);
    for (const message of this.#unsent.splice(0)) this.send(message);
  }

  #hear(message) {
    this.#live ||= message.type === "ready";
    this.#heardAt = Date.now();
    this.#wait();
    this.#tell("message", message);
  }

  #changed() {
    if (["failed", "closed"].includes(this.#peer.connectionState)) this.#lose();
    this.#wait();
  }

  #wait() {
    if (!this.#live) return;
    const unreached = this.#peer.connectionState === "disconnected";
    const patience = unreached ? UNREACHED_PATIENCE : SILENT_PATIENCE;
    this.#loseAfter(Math.max(0, this.#heardAt + patience - Date.now()));
  }

  #loseAfter(patience) {
    clearTimeout(this.#watch);
    if (this.#over) return;
    this.#watch = setTimeout(() => this.#lose(), patience);
  }

  #lose() {
    if (this.#over) return;
    this.close();
    this.dispatchEvent(new Event("lost"));
  }

  #tell(type, detail) {
    if (!this.#over) this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
