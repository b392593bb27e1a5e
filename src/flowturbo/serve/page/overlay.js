// What is painted on the source image: a mask by a brush, a box, or a point. All in pixels of the image.

const COLOUR = "#4f46e5";
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** A canvas over the source image. */
export class Overlay {
  mode = null; // "inpaint" paints a mask, "remove" drags a box, or clicks
  brush = 1; // diameter
  box = null; // [left, top, right, bottom]
  point = null; // [x, y]
  painted = false;

  /**
   * @param canvas that is painted on.
   * @param ring shows the brush.
   * @param changed called as the mask, the box or the point changes, with whether that is finished.
   */
  constructor(canvas, ring, changed) {
    this.canvas = canvas;
    this.ring = ring;
    this.changed = changed;
    this.context = canvas.getContext("2d");
    this.at = null; // of the brush
    const on = (name, listener) => canvas.addEventListener(name, listener.bind(this));
    on("pointerdown", this.#down);
    on("pointermove", this.#move);
    on("pointerup", this.#up);
    on("pointercancel", this.#up);
    on("pointerleave", this.#hide);
    on("blur", this.#hide);
    on("keydown", this.#key);
  }

  /** Take the size of another image, and clear. */
  resize(width, height) {
    Object.assign(this.canvas, { width, height });
    this.at = null;
    this.clear();
  }

  /** Remove the mask, the box and the point. */
  clear() {
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.box = null;
    this.point = null;
    this.painted = false;
  }

  /** Set the box, or none, from elsewhere. */
  put(box) {
    this.clear();
    this.box = box;
    if (!box) return;
    const [left, top, right, bottom] = box;
    this.context.fillStyle = COLOUR;
    this.context.fillRect(left, top, right - left, bottom - top);
  }

  /** A PNG that is transparent where the mask was painted. */
  mask() {
    const made = document.createElement("canvas");
    const { width, height } = Object.assign(made, { width: this.canvas.width, height: this.canvas.height });
    const context = made.getContext("2d");
    context.fillRect(0, 0, width, height);
    context.globalCompositeOperation = "destination-out";
    context.drawImage(this.canvas, 0, 0);
    return new Promise((resolve) => made.toBlob(resolve));
  }

  #place(event) {
    const seen = this.canvas.getBoundingClientRect();
    const scale = this.canvas.width / seen.width;
    return [(event.clientX - seen.left) * scale, (event.clientY - seen.top) * scale];
  }

  #down(event) {
    if (event.button) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.start = this.#place(event);
    this.at = this.start;
    this.dragged = false;
    if (this.mode === "inpaint") this.#stroke(this.start);
  }

  #move(event) {
    const place = this.#place(event);
    if (this.mode === "inpaint") {
      if (this.start) this.#stroke(place);
      this.at = place;
      this.#show();
    } else if (this.start) {
      this.dragged ||= Math.hypot(place[0] - this.start[0], place[1] - this.start[1]) >= 1;
      if (this.dragged) this.#drag(place);
    }
  }

  #up() {
    if (!this.start) return;
    if (this.mode === "remove" && !this.dragged) this.#click(this.start);
    this.start = null;
    this.changed(true);
  }

  #stroke(to) {
    const { context } = this;
    Object.assign(context, { strokeStyle: COLOUR, fillStyle: COLOUR, lineWidth: this.brush });
    context.beginPath();
    context.arc(...to, this.brush / 2, 0, 2 * Math.PI);
    context.fill();
    context.beginPath();
    context.moveTo(...this.at);
    context.lineTo(...to);
    context.stroke();
    this.at = to;
    this.painted = true;
    this.changed(false);
  }

  #drag(to) {
    const sides = [this.canvas.width, this.canvas.height];
    const low = [0, 1].map((i) => Math.max(0, Math.floor(Math.min(this.start[i], to[i]))));
    const high = [0, 1].map((i) => Math.min(sides[i], Math.ceil(Math.max(this.start[i], to[i]))));
    this.put(low[0] < high[0] && low[1] < high[1] ? [...low, ...high] : null);
    this.changed(false);
  }

  #click(place) {
    const sides = [this.canvas.width, this.canvas.height];
    this.clear();
    this.point = place.map((value, i) => Math.min(sides[i] - 1, Math.max(0, Math.floor(value))));
    this.context.fillStyle = COLOUR;
    this.context.beginPath();
    this.context.arc(...this.point.map((value) => value + 0.5), Math.max(0.75, sides[0] / 64), 0, 2 * Math.PI);
    this.context.fill();
    this.changed(false);
  }

  #key(event) {
    if (this.mode !== "inpaint") return;
    const { width, height } = this.canvas;
    this.at ??= [width / 2, height / 2];
    const step = STEPS[event.key];
    if (step) {
      const far = Math.max(1, this.brush / 2);
      const clamp = (value, most) => Math.min(most, Math.max(0, value));
      this.at = [clamp(this.at[0] + far * step[0], width), clamp(this.at[1] + far * step[1], height)];
    } else if (event.key === " ") {
      this.#stroke(this.at);
      this.changed(true);
    } else {
      return;
    }
    event.preventDefault();
    this.#show();
  }

  #show() {
    const scale = this.canvas.getBoundingClientRect().width / this.canvas.width;
    const size = `${this.brush * scale}px`;
    const [left, top] = this.at.map((value) => `${value * scale}px`);
    Object.assign(this.ring.style, { left, top, width: size, height: size });
    this.ring.hidden = false;
  }

  #hide() {
    this.ring.hidden = true;
  }
}
