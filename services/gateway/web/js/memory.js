// What the page keeps: choices for the next visit, the call and the key for this tab alone.

const CHOICES = "talkingmachines.choices";
const CALL = "talkingmachines.call";
const KEY = "talkingmachines.key";

function read(store, name) {
  try {
    return JSON.parse(store.getItem(name)) ?? undefined;
  } catch {
    return undefined; // private windows may refuse, and what is kept may be damaged
  }
}

function write(store, name, value) {
  try {
    if (value === undefined) store.removeItem(name);
    else store.setItem(name, JSON.stringify(value));
  } catch {
    // Nothing is remembered then; nothing else depends on it.
  }
}

/** How one talks, is heard and hears: kept on this device. */
export const choices = {
  get: () => ({ mode: "open", volume: 1, captions: true, ...read(localStorage, CHOICES) }),
  set: (changes) => write(localStorage, CHOICES, { ...choices.get(), ...changes }),
};

export const key = {
  get: () => read(sessionStorage, KEY),
  set: (value) => write(sessionStorage, KEY, value || undefined),
};

/** The call of this tab, as it takes to return to it after a reload. */
export const ongoing = {
  /** @returns the call, while it can still be returned to */
  get() {
    const call = read(sessionStorage, CALL);
    if (call && Date.now() < call.seen + call.resumeSeconds * 1000) return call;
    ongoing.forget();
    return undefined;
  },
  set: (call) => write(sessionStorage, CALL, { ...call, seen: Date.now() }),
  forget: () => write(sessionStorage, CALL, undefined),
};
