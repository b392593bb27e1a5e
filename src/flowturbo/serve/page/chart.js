// What the last requests took: a number with bars for each measure, and all of it as a table.

const MOST = 16; // requests
const SVG = "http://www.w3.org/2000/svg";
const MEASURES = [
  ["milliseconds", "ms", (ms) => Math.round(ms)],
  ["evaluations", "evaluations", (n) => n],
  ["passes", "passes", (n) => n],
];

/** A function that adds a request to the chart and the table. */
export function chart(charts, rows) {
  const kept = [];
  return (facts) => {
    kept.push(facts);
    kept.splice(0, kept.length - MOST);
    charts.replaceChildren(...MEASURES.map((measure) => drawn(kept, ...measure)));
    rows.replaceChildren(...kept.map(row).reverse());
  };
}

function drawn(kept, name, unit, shown) {
  const made = document.createElement("div");
  const latest = document.createElement("b");
  latest.textContent = shown(kept.at(-1)[name]);
  const label = document.createElement("span");
  label.className = "muted";
  label.textContent = unit;
  made.append(latest, label, bars(kept.map((facts) => facts[name]), name, shown));
  return made;
}

function bars(values, name, shown) {
  const svg = document.createElementNS(SVG, "svg");
  const most = Math.max(...values, 1);
  svg.setAttribute("viewBox", `0 0 ${4 * MOST} 40`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${name} of the last requests: ${values.map(shown).join(", ")}`);
  values.forEach((value, i) => {
    const height = (40 * value) / most;
    const bar = document.createElementNS(SVG, "rect");
    const place = { x: 4 * i, y: 40 - height, width: 3, height };
    Object.entries(place).forEach(([key, number]) => bar.setAttribute(key, number));
    svg.append(bar);
  });
  return svg;
}

function row(facts) {
  const made = document.createElement("tr");
  const { prompt, plan, images, evaluations, passes, milliseconds } = facts;
  for (const text of [prompt, images, evaluations, passes, Math.round(milliseconds), plan]) {
    made.insertCell().textContent = text;
  }
  return made;
}
