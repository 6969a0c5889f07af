// The dialog that makes a character from a picture.

import { refusal } from "./words.js";

const KINDS = ["image/jpeg", "image/png", "image/webp"];
const LEAST_SIDE = 64; // pixels; the server says the same, later

const by = (id) => document.getElementById(id);

export class Upload {
  #server;
  #limits;
  #made;
  #dialog = by("upload-dialog");
  #form = by("upload-form");
  #picture = by("upload-picture");
  #name = by("upload-name");
  #send = by("upload-send");
  #drop = by("upload-drop");
  #file;

  /**
   * @param {Server} server
   * @param {{bytes: number, pixels: number}} limits of pictures
   * @param {(character: object) => void} made
   */
  constructor(server, limits, made) {
    this.#server = server;
    this.#limits = limits;
    this.#made = made;
    this.#picture.onchange = () => this.#choose(this.#picture.files[0]);
    this.#form.onsubmit = (event) => {
      event.preventDefault();
      this.#submit();
    };
    for (const button of this.#dialog.querySelectorAll("[data-close]")) {
      button.onclick = () => this.#dialog.close();
    }
    this.#acceptDrops();
  }

  open() {
    this.#form.reset();
    this.#show(undefined);
    for (const wrong of this.#form.querySelectorAll(".wrong")) wrong.textContent = "";
    this.#dialog.showModal();
  }

  #acceptDrops() {
    const over = (is) => (event) => {
      event.preventDefault();
      this.#drop.toggleAttribute("data-over", is);
    };
    this.#drop.ondragover = over(true);
    this.#drop.ondragleave = over(false);
    this.#drop.ondrop = (event) => {
      over(false)(event);
      this.#choose(event.dataTransfer.files[0]);
    };
  }

  async #choose(file) {
    if (!file) return;
    const wrong = await this.#fault(file);
    this.#say("upload-picture", wrong);
    this.#show(wrong ? undefined : file);
    if (!wrong && !this.#name.value) this.#name.focus();
  }

  /** What is wrong with a picture, as far as one can tell here. */
  async #fault(file) {
    if (!KINDS.includes(file.type)) return "This is not a JPEG, PNG or WebP picture.";
    if (file.size > this.#limits.bytes) {
      return `This picture has ${megabytes(file.size)}; ${megabytes(this.#limits.bytes)} are allowed.`;
    }
    const picture = await createImageBitmap(file).catch(() => undefined);
    if (!picture) return "This picture is damaged.";
    const { width, height } = picture;
    picture.close();
    if (Math.min(width, height) < LEAST_SIDE) return `This picture is too small: ${width} × ${height} pixels.`;
    if (width * height > this.#limits.pixels) return `This picture is too large: ${width} × ${height} pixels.`;
    return "";
  }

  #show(file) {
    this.#file = file;
    const preview = by("upload-preview");
    URL.revokeObjectURL(preview.src);
    preview.hidden = !file;
    by("upload-prompt").hidden = Boolean(file);
    if (file) preview.src = URL.createObjectURL(file);
  }

  async #submit() {
    const name = this.#name.value.trim();
    this.#say("upload-picture", this.#file ? "" : "Choose a picture.");
    this.#say("upload-name", name ? "" : "Give it a name.");
    if (!this.#file || !name) return (this.#file ? this.#name : this.#picture).focus();
    this.#busy(true);
    try {
      const made = await this.#server.create({
        image: this.#file,
        display_name: name,
        instructions: by("upload-instructions").value.trim(),
        greeting: by("upload-greeting").value.trim(),
        idempotency_key: crypto.randomUUID?.(),
      });
      this.#dialog.close();
      this.#made(made);
    } catch (error) {
      this.#refused(error);
    } finally {
      this.#busy(false);
    }
  }

  #refused(error) {
    const place = { image: "upload-picture", display_name: "upload-name" }[error.field];
    if (place) this.#say(place, refusal(error));
    else by("upload-error").textContent = refusal(error);
  }

  #say(place, wrong) {
    by(`${place}-error`).textContent = wrong;
    by(place).setAttribute("aria-invalid", String(Boolean(wrong)));
    by("upload-error").textContent = "";
  }

  #busy(busy) {
    this.#send.disabled = busy;
    this.#send.textContent = busy ? "Adding…" : "Add";
    this.#form.setAttribute("aria-busy", String(busy));
  }
}

const megabytes = (bytes) => `${(bytes / 1024 / 1024).toFixed(1)} MB`;
