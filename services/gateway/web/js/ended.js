// The screen after a call, or instead of one: why, and what one can do.

import { duration, ending } from "./words.js";

const by = (id) => document.getElementById(id);

let counting;

/**
 * @param why of Call's "over"
 * @param {{display_name: string}} character
 * @param {string | undefined} portrait an address
 * @param {{again: () => void, back: () => void}} act
 */
export function showEnded(why, character, portrait, act) {
  const { title, text, detail, wrong, wait } = ending(why, character.display_name);
  by("ended").hidden = false;
  by("ended-title").textContent = title;
  by("ended-text").textContent = text;
  by("ended-detail").textContent = detail ?? "";
  by("ended-sign").toggleAttribute("hidden", !wrong);
  by("ended-portrait").hidden = wrong || !portrait;
  if (portrait) by("ended-portrait").src = portrait;
  const again = button("solid", wrong ? "Try again" : "Call again", act.again);
  by("ended-actions").replaceChildren(again, button("quiet", "Choose another", act.back));
  by("ended-title").focus();
  if (wait) countDown(wait, text);
}

export function hideEnded() {
  clearInterval(counting);
  by("ended").hidden = true;
}

/** When another try makes sense. */
function countDown(seconds, text) {
  const until = Date.now() + seconds * 1000;
  const tell = () => {
    const left = (until - Date.now()) / 1000;
    by("ended-text").textContent = left > 0.5 ? `${text} Try again in ${duration(left)}.` : `${text} Try again now.`;
    if (left <= 0.5) clearInterval(counting);
  };
  tell();
  counting = setInterval(tell, 1000);
}

function button(kind, label, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = kind;
  made.textContent = label;
  made.onclick = act;
  return made;
}
