// The page: which of its screens is shown, and what leads from one to the other.
//
//   lobby ─► call ─► ended ─► call or lobby

import { Call } from "./call.js";
import { hideEnded, showEnded } from "./ended.js";
import { withKey } from "./keys.js";
import { Lobby } from "./lobby.js";
import { choices, key, ongoing } from "./memory.js";
import { Microphone } from "./microphone.js";
import { Server } from "./server.js";
import { Settings } from "./settings.js";
import { Upload } from "./upload.js";
import { View } from "./view.js";

const QUEUE_SECONDS = 300; // how long one waits in line, if the server allows it

const server = new Server(key.get());
const microphone = new Microphone();
const settings = new Settings(microphone);
const lobby = new Lobby(server, microphone);

let config;
let upload;

lobby.addEventListener("call", ({ detail }) => begin(detail));
lobby.addEventListener("settings", () => settings.open());
lobby.addEventListener("add", () => upload.open());
settings.addEventListener("microphone", ({ detail }) => lobby.use(detail));

async function start() {
  document.getElementById("starting").remove();
  const call = ongoing.get();
  if (call) return takeUp(call);
  lobby.enter();
  await prepare();
}

/** Learn what the server offers, and show whom one can call. */
async function prepare() {
  lobby.fail(undefined);
  try {
    config ??= await server.config();
    if (!config.converse) return lobby.fail(NO_CONVERSATION, prepare);
    await withKey(server, () => lobby.refresh());
    upload ??= new Upload(server, config.image, (made) => lobby.refresh(made.id));
  } catch (error) {
    config = undefined;
    lobby.fail(error, prepare);
  }
}

const NO_CONVERSATION = { code: "", message: "This server has no conversation model: its characters cannot be called." };

async function begin(character) {
  if (!config) await prepare(); // the call before was one that a loaded page returned to
  await lobby.listen(); // without a microphone one can still type
  const wish = {
    character,
    manual: choices.get().mode === "push",
    maxQueueSeconds: Math.min(QUEUE_SECONDS, config?.max_queue_seconds ?? 0),
  };
  const call = new Call(server, microphone, wish);
  await show(call, character);
  call.start();
}

/** The page was loaded again during a call: return to it. */
async function takeUp(kept) {
  await microphone.open(choices.get().microphone).catch(() => {});
  const character = { ...kept.character, portrait: `v1/avatars/${kept.character.id}/portrait` };
  const call = new Call(server, microphone, { character, manual: kept.manual });
  await show(call, character);
  call.resume(kept);
}

async function show(call, character) {
  const portrait = await lobby.portrait(character);
  lobby.leave();
  hideEnded();
  const view = new View({ call, character, portrait, microphone, settings });
  call.addEventListener("over", ({ detail: why }) => {
    view.close();
    microphone.close();
    showEnded(why, character, portrait, { again: () => begin(character), back });
  });
}

function back() {
  hideEnded();
  lobby.enter();
  prepare();
}

start();
