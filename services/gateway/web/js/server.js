// The gateway's HTTP side: characters, settings, and opening calls. docs/webrtc.md describes it.

/** What went wrong, in the gateway's words. `code` is a gRPC status, or one of ours: */
export const UNREACHABLE = "UNREACHABLE"; // nobody answered

export class ServerError extends Error {
  constructor({ code, message, ...more }) {
    super(message);
    this.code = code;
    this.field = more.field;
    this.got = more.got;
    this.expected = more.expected;
    this.kind = more.kind;
    this.quota = more.quota;
    this.limit = more.limit;
    this.retryAfter = more.retry_after; // seconds
  }
}

const PATIENCE = 20_000; // ms for an answer
const PICTURE_PATIENCE = 120_000; // a character is computed while we wait

export class Server {
  #key;

  constructor(key) {
    this.#key = key;
  }

  set key(key) {
    this.#key = key;
  }

  config() {
    return this.#json("v1/config");
  }

  async iceServers() {
    return (await this.#json("v1/ice")).ice_servers;
  }

  /** All characters, by name. */
  async characters() {
    const found = [];
    let token = "";
    do {
      const page = await this.#json(`v1/avatars?page_size=100&page_token=${encodeURIComponent(token)}`);
      found.push(...page.avatars);
      token = page.next_page_token;
    } while (token);
    return found;
  }

  /** @returns {Promise<string>} an address for an image element */
  async portrait(character) {
    const answer = await this.#ask(character.portrait);
    return URL.createObjectURL(await answer.blob());
  }

  /** @param {{image: File, display_name: string, instructions?: string, greeting?: string}} given */
  create(given) {
    const form = new FormData();
    for (const [name, value] of Object.entries(given)) {
      if (value) form.append(name, value);
    }
    return this.#json("v1/avatars", { method: "POST", body: form }, PICTURE_PATIENCE);
  }

  async forget(character) {
    await this.#ask(`v1/avatars/${encodeURIComponent(character.id)}`, { method: "DELETE" });
  }

  /** @returns {Promise<{call: string, sdp: string}>} */
  open(wish) {
    return this.#json("v1/calls", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(wish),
    });
  }

  /** Hang up, also while the page goes away. Nobody waits for it. */
  close(call) {
    this.#ask(`v1/calls/${encodeURIComponent(call)}`, { method: "DELETE", keepalive: true }).catch(() => {});
  }

  async #json(path, options, patience) {
    const answer = await this.#ask(path, options, patience);
    return answer.json();
  }

  async #ask(path, options = {}, patience = PATIENCE) {
    const headers = new Headers(options.headers);
    if (this.#key) headers.set("Authorization", `Bearer ${this.#key}`);
    let answer;
    try {
      answer = await fetch(path, { ...options, headers, signal: AbortSignal.timeout(patience) });
    } catch (error) {
      throw new ServerError({ code: UNREACHABLE, message: error.message });
    }
    if (!answer.ok) throw await refusal(answer);
    return answer;
  }
}

async function refusal(answer) {
  try {
    return new ServerError((await answer.json()).error);
  } catch {
    // A proxy in between speaks for a gateway that is not there.
    const gone = [502, 503, 504].includes(answer.status);
    return new ServerError({ code: gone ? UNREACHABLE : "INTERNAL", message: `HTTP ${answer.status}` });
  }
}
