// Keys and the push-to-talk button: what is pressed, held and let go.

/**
 * Keys of the call, wherever the focus is, unless it is where they mean something else.
 *
 * @param {Record<string, () => void>} keys what each does
 * @param {AbortSignal} signal until when
 */
export function onKeys(keys, signal) {
  document.addEventListener("keydown", (event) => {
    if (!event.repeat && !elsewhere(event)) keys[event.key]?.();
  }, { signal });
}

/**
 * The space bar and a button that are held to talk.
 *
 * @param {HTMLButtonElement} button
 * @param {{on: () => boolean, held: () => boolean, press: () => void, release: () => void}} talk
 *   `on`: whether the space bar is for this just now
 * @param {AbortSignal} signal until when
 */
export function onHold(button, { on, held, press, release }, signal) {
  document.addEventListener("keydown", (event) => {
    if (event.key !== " " || !on() || elsewhere(event)) return;
    event.preventDefault(); // it presses no button and scrolls nothing
    if (!event.repeat) press();
  }, { signal });
  document.addEventListener("keyup", (event) => {
    if (event.key !== " " || !held()) return;
    event.preventDefault();
    release();
  }, { signal });
  window.addEventListener("blur", release, { signal });
  button.onpointerdown = (event) => {
    button.setPointerCapture(event.pointerId);
    press();
  };
  button.onpointerup = button.onpointercancel = release;
  button.oncontextmenu = (event) => event.preventDefault(); // a long touch is no menu here
  // Enter, and screen readers, only ever press: once to begin, once more to end.
  button.onclick = ({ detail }) => {
    if (detail) return;
    if (held()) release();
    else press();
  };
}

/** Whether a key belongs to something else than the call. */
function elsewhere(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return true;
  const at = document.activeElement;
  if (at.matches("input, textarea, select")) return true;
  return event.key === " " && at.matches("button:not(#push), a");
}
