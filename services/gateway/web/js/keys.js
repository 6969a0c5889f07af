// The access key: asked for when the server wants one, and when it refuses the one it got.

import { key as kept } from "./memory.js";
import { refusal } from "./words.js";

const dialog = document.getElementById("key-dialog");
const form = document.getElementById("key-form");
const input = document.getElementById("key");
const wrong = document.getElementById("key-error");

/**
 * Ask until the server accepts one.
 *
 * @param {Server} server
 * @param {() => Promise<T>} attempt something that takes a valid key
 * @returns {Promise<T>} what the attempt gave
 * @template T
 */
export async function withKey(server, attempt) {
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      if (error.code !== "UNAUTHENTICATED") throw error;
      wrong.textContent = kept.get() ? refusal(error) : "";
      input.setAttribute("aria-invalid", String(Boolean(kept.get())));
    }
    const given = await asked();
    kept.set(given);
    server.key = given;
  }
}

function asked() {
  dialog.showModal();
  input.select();
  return new Promise((resolve) => {
    // There is nothing to do without a key: who closes the dialog otherwise sees it again.
    dialog.onclose = () => dialog.showModal();
    form.onsubmit = (event) => {
      event.preventDefault();
      if (!input.value.trim()) return;
      dialog.onclose = null;
      dialog.close();
      resolve(input.value.trim());
    };
  });
}
