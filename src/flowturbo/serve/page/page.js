// The page: what is typed and painted becomes a request, and its events become images.

import { ApiError, keep, model, stream } from "./api.js";
import { chart } from "./chart.js";
import { Overlay } from "./overlay.js";

const PAUSE = 40; // milliseconds without a change, after which it is drawn
const PATIENCE = 800; // milliseconds after which an error in what is being typed is shown
const PREVIEWS = 3;
const IDEAS = 8;
const GAP = 8; // pixels between images
const NEEDED = {
  source: "Choose an image first.",
  prompt: "Type what to draw.",
  mask: "Paint over what should change.",
  box: "Click an object, or drag a box over what to remove.",
  shows: "Type what the image shows.",
};
const PROMPTS = {
  generate: "Prompt",
  img2img: "Prompt",
  inpaint: "What the whole image should show",
  remove: "What remains (may be empty)",
  edit: "What the new image should show",
};

const $ = (id) => document.getElementById(id);
const overlay = new Overlay($("overlay"), $("brush-ring"), painted);
const record = chart($("charts"), $("rows"));

let mode = "generate";
let served = null; // the model
let source = null; // { blob, width, height }
let results = []; // { blob, url, width, height, whole, and then seed, name } of each image
let selected = 0;
let running = null; // the AbortController of the request
let timer = 0;
let complaint = 0; // the timer of an error

// -- requests -----------------------------------------------------------------------------------

/** What a request lacks, or null. */
function missing() {
  if (mode !== "generate" && !source) return NEEDED.source;
  if (mode === "edit" && !$("source-prompt").value.trim()) return NEEDED.shows;
  if (mode === "inpaint" && !overlay.painted) return NEEDED.mask;
  if (mode === "remove" && !overlay.box && !overlay.point) return NEEDED.box;
  if (mode !== "remove" && !$("prompt").value.trim()) return NEEDED.prompt;
  return null;
}

/** Whether a part of the page belongs to the mode. */
function offered(part) {
  return part.closest("[data-modes]")?.dataset.modes.split(" ").includes(mode) ?? true;
}

/** The fields of the request that the controls describe. */
async function fields() {
  const number = (id) => (offered($(id)) && $(id).value !== "" ? Number($(id).value) : undefined);
  const plan = mode === "edit" || $("plan").value === "*" ? $("notation").value.trim() : $("plan").value;
  const found = {
    model: served.id,
    prompt: $("prompt").value.trim(),
    n: number("count"),
    seed: $("random").checked ? undefined : number("seed"),
    style: $("style").value || undefined,
    plan: plan || undefined,
    guidance_scale: number("guidance"),
  };
  if (mode === "generate") return { ...found, partial_images: PREVIEWS };
  Object.assign(found, { image: source.blob, task: mode });
  if (mode === "img2img") found.strength = number("strength");
  if (mode === "inpaint") found.mask = await overlay.mask();
  if (mode === "remove" && overlay.point) found.click = overlay.point.join(",");
  else if (mode === "remove") found.box = overlay.box.join(",");
  if (mode === "edit") {
    found.source_prompt = $("source-prompt").value.trim();
    found.keep = number("keep");
  }
  return found;
}

/** Draw what the controls describe; a request that runs is aborted, which the server cancels. */
async function draw(typed = false) {
  clearTimeout(timer);
  clearTimeout(complaint);
  running?.abort();
  if (!served) return;
  const lacks = missing();
  if (lacks) {
    busy(null);
    complain(typed ? "" : lacks);
    return;
  }
  const mine = new AbortController();
  busy(mine);
  try {
    const sent = await fields();
    const path = mode === "generate" ? "v1/images/generations" : "v1/images/edits";
    let last = null;
    let images = 0;
    for await (const event of stream(path, sent, mine.signal)) {
      if (mine.signal.aborted) return;
      show(event, sent);
      if (event.flowturbo) {
        last = event.flowturbo;
        images += 1;
      }
    }
    if (!last) throw new Error("the stream ended early");
    busy(null);
    complain("");
    finished(sent, last, images);
  } catch (error) {
    if (mine.signal.aborted) return;
    busy(null);
    failed(error, typed);
  }
}

function changed() {
  clearTimeout(timer);
  clearTimeout(complaint);
  if ($("live").checked) timer = setTimeout(draw, PAUSE, true);
}

function failed(error, typed) {
  const known = error instanceof ApiError;
  if (!known) console.error(error);
  $("key-form").hidden = error.status !== 401;
  if (error.status === 401) $("key").focus();
  const wait = typed && error.status === 400 ? PATIENCE : 0;
  complaint = setTimeout(complain, wait, known ? error.message : "The response of the server was cut off.");
}

function complain(text) {
  clearTimeout(complaint);
  $("error").textContent = text;
}

function busy(controller) {
  running = controller;
  $("result-frame").setAttribute("aria-busy", String(controller !== null));
}

// -- images -------------------------------------------------------------------------------------

/** Show a partial or finished image. */
function show(event, sent) {
  const count = sent.n ?? 1;
  const index = event.image_index;
  if ($("result").children.length !== count) lay(count);
  const bytes = Uint8Array.from(atob(event.b64_json), (char) => char.charCodeAt(0));
  const blob = new Blob([bytes], { type: `image/${event.output_format}` });
  const [width, height] = event.size.split("x").map(Number);
  const made = { blob, url: URL.createObjectURL(blob), width, height, whole: Boolean(event.flowturbo) };
  if (made.whole) {
    made.seed = event.flowturbo.seed + index;
    made.name = `${sent.prompt.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60) || mode}-seed${made.seed}.png`;
  }
  if (results[index]) URL.revokeObjectURL(results[index].url);
  results[index] = made;
  const image = $("result").children[index].firstChild;
  image.src = made.url;
  image.alt = `${sent.prompt || "The image"}${count > 1 ? `, ${index + 1} of ${count}` : ""}`;
  if (index === 0) fit();
  if (index === selected) select(index);
}

/** Make place for so many images. */
function lay(count) {
  results.forEach((made) => URL.revokeObjectURL(made.url));
  results = [];
  selected = 0;
  const places = Array.from({ length: count }, (_, i) => {
    const button = document.createElement("button");
    button.type = "button";
    const image = document.createElement("img");
    image.className = "pixels";
    button.append(image);
    button.addEventListener("click", () => select(i));
    return button;
  });
  $("result").classList.toggle("one", count === 1);
  $("result").replaceChildren(...places);
  $("empty").hidden = true;
}

function select(index) {
  selected = index;
  [...$("result").children].forEach((b, i) => b.setAttribute("aria-pressed", String(i === index)));
  const { url, name, whole } = results[index] ?? {};
  $("actions").hidden = !whole;
  if (whole) Object.assign($("download"), { href: url, download: name });
  caption();
}

function caption() {
  const { width, height, seed, whole } = results[selected] ?? {};
  if (!width) return;
  const shown = $("result").children[selected].firstChild.getBoundingClientRect().width / width;
  const parts = [`${width} \u00d7 ${height} pixels`, enlarged(shown)];
  if (whole) parts.push(`seed ${seed}`);
  $("caption").textContent = parts.filter(Boolean).join(" \u00b7 ");
}

function enlarged(scale) {
  if (scale > 1) return `shown ${scale.toFixed(1).replace(".0", "")} times as large`;
  return scale < 1 ? `shown at ${Math.round(100 * scale)} %` : "";
}

function finished(sent, facts, images) {
  record({ ...facts, prompt: sent.prompt || mode, images });
  $("figures").hidden = false;
  if ($("random").checked) $("seed").value = facts.seed;
  $("status").textContent =
    `${images} image${images > 1 ? "s" : ""} of ${sent.prompt || mode}: ${facts.evaluations} evaluations, ` +
    `${facts.passes} passes, ${Math.round(facts.milliseconds)} milliseconds`;
}

/** Enlarge images by whole numbers, as far as there is room. */
function fit() {
  const side = Math.min($("result-frame").clientWidth, Math.max(240, window.innerHeight * 0.6));
  for (const frame of ["source-frame", "result-frame"]) $(frame).style.minHeight = `${side}px`;
  const count = results.length || 1;
  const columns = Math.ceil(Math.sqrt(count));
  if (results[0]) {
    $("result").style.gridTemplateColumns = `repeat(${columns}, auto)`;
    const { width, height } = results[0];
    const images = [...$("result").children].map((button) => button.firstChild);
    enlarge(images, width, height, (side - GAP * (columns - 1)) / columns);
    caption();
  }
  if (source) {
    const parts = [$("source-image"), $("overlay"), $("layers")];
    const scale = enlarge(parts, source.width, source.height, side);
    const size = `${source.width} \u00d7 ${source.height} pixels`;
    $("source-caption").textContent = [size, enlarged(scale)].filter(Boolean).join(" \u00b7 ");
  }
}

function enlarge(elements, width, height, side) {
  const exact = side / Math.max(width, height);
  const scale = exact > 1 ? Math.floor(exact) : exact;
  for (const element of elements) {
    Object.assign(element.style, { width: `${width * scale}px`, height: `${height * scale}px` });
  }
  return scale;
}

// -- source -------------------------------------------------------------------------------------

async function take(blob) {
  try {
    const { width, height } = await createImageBitmap(blob);
    source = { blob, width, height };
  } catch {
    complain("This file is not a readable image; choose PNG, JPEG or WebP.");
    return;
  }
  complain("");
  URL.revokeObjectURL($("source-image").src);
  $("source-image").src = URL.createObjectURL(blob);
  $("drop").hidden = true;
  $("layers").hidden = $("replace").hidden = false;
  overlay.resize(source.width, source.height);
  const side = Math.min(source.width, source.height);
  Object.assign($("brush"), { max: Math.ceil(side / 2), value: Math.ceil(side / 5) });
  read();
  fit();
  changed();
}

/** The mask or the box changed; `whole` as the pointer is released. */
function painted(whole) {
  if (mode === "remove") {
    [0, 1, 2, 3].forEach((i) => ($(`box-${i}`).value = overlay.box?.[i] ?? ""));
  }
  if (whole) changed();
}

function typedBox() {
  const given = [0, 1, 2, 3].map((i) => $(`box-${i}`).value);
  const [left, top, right, bottom] = given.map(Number);
  const whole = given.every((text) => text !== "") && left < right && top < bottom;
  overlay.put(whole ? [left, top, right, bottom] : null);
}

// -- controls -----------------------------------------------------------------------------------

function choose(next) {
  mode = next;
  running?.abort();
  busy(null);
  clearTimeout(timer);
  complain("");
  document.querySelectorAll("[role=tab]").forEach((tab) => {
    const mine = tab.dataset.mode === mode;
    tab.setAttribute("aria-selected", String(mine));
    tab.tabIndex = mine ? 0 : -1;
    if (mine) tab.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
  $("panel").setAttribute("aria-labelledby", `tab-${mode}`);
  document.querySelectorAll("[data-modes]").forEach((part) => {
    part.hidden = !offered(part);
  });
  $("prompt-label").textContent = PROMPTS[mode];
  if (overlay.mode !== mode) overlay.clear();
  overlay.mode = mode;
  const what = mode === "remove" ? "click an object, or drag a box over what to remove" : "paint over what should change";
  $("overlay").setAttribute("aria-label", `Source image: ${what}`);
  painted(false);
  read();
  fit();
}

/** Show the values of controls. */
function read() {
  document.querySelectorAll("output").forEach((output) => {
    output.value = $(output.htmlFor.value).value;
  });
  overlay.brush = Number($("brush").value);
  $("notation-field").hidden = mode !== "edit" && $("plan").value !== "*";
  $("seed").readOnly = $("random").checked;
}

function offer(entry) {
  served = entry;
  const option = (value) => Object.assign(document.createElement("option"), { value, textContent: value });
  $("about").textContent = `${entry.id} \u00b7 ${entry.size.replace("x", " \u00d7 ")} pixels`;
  document.title = `FlowTurbo: ${entry.id}`;
  const plans = Object.keys(entry.plans);
  $("plan").lastElementChild.before(...plans.map(option));
  if (plans.includes("fast")) $("plan").value = "fast";
  $("style").append(...entry.styles.map(option));
  $("style-field").hidden = entry.styles.length === 0;
  $("names").replaceChildren(...entry.names.map(option));
  $("guidance").value = entry.defaults.guidance ?? 1;
  const ideas = chosen(entry.names, IDEAS);
  if (ideas.length) $("prompt").placeholder = `such as ${ideas[0]}`;
  $("ideas").replaceChildren(
    ...ideas.map((name) => {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: name });
      button.addEventListener("click", () => {
        $("prompt").value = name;
        $("prompt").focus();
        draw();
      });
      return button;
    }),
  );
  read();
}

/** The shortest of each of so many parts of a list. */
function chosen(names, most) {
  const count = Math.min(most, names.length);
  const cut = (i) => Math.floor((i * names.length) / count);
  const shorter = (a, b) => (b.length < a.length ? b : a);
  return Array.from({ length: count }, (_, i) => names.slice(cut(i), cut(i + 1)).reduce(shorter));
}

async function begin() {
  try {
    const entry = await model();
    if (!served) offer(entry);
    $("key-form").hidden = true;
    complain("");
  } catch (error) {
    failed(error, false);
  }
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  draw();
});
$("form").addEventListener("input", (event) => {
  if (event.target === $("file") || event.target === $("live")) return;
  if (event.target.id.startsWith("box-")) typedBox();
  read();
  if (event.target !== $("brush")) changed();
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keep($("key").value);
  begin();
});
$("clear").addEventListener("click", () => {
  overlay.clear();
  painted(false);
});
$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  if (file) take(file);
  $("file").value = "";
});
$("use").addEventListener("click", () => {
  const { blob } = results[selected];
  if (mode === "generate") {
    $("source-prompt").value = $("prompt").value;
    choose("img2img");
    $("tab-img2img").focus();
  }
  take(blob);
});
const over = (whether) => $("panel").classList.toggle("over", whether);
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  over(true);
});
document.addEventListener("dragleave", (event) => event.relatedTarget || over(false));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  over(false);
  const [file] = event.dataTransfer.files;
  if (!file) return;
  if (mode === "generate") choose("img2img");
  take(file);
});
const tabs = [...document.querySelectorAll("[role=tab]")];
tabs.forEach((tab, i) => {
  tab.addEventListener("click", () => choose(tab.dataset.mode));
  tab.addEventListener("keydown", (event) => {
    const next = { ArrowLeft: i - 1, ArrowRight: i + 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    const other = tabs.at(next % tabs.length);
    choose(other.dataset.mode);
    other.focus();
  });
});
new ResizeObserver(fit).observe($("form"));

choose("generate");
begin();
