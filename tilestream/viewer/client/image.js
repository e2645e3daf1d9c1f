// How the picture is shown: channels on and off, brightness from and to, gamma. The slide itself stays as it is.

import { byId, make } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const NAMES = ["red", "green", "blue"];
const PLAIN = { low: 0, high: 255, gamma: 1, off: [] };

/** How a picture is shown, for the address: black at, white at, gamma, channels that are off; "" for as it is. */
export const displayWords = (told) => (told && !isPlain(told) ? [told.low, told.high, told.gamma, told.off.join("")].join("_") : "");

export function displayFrom(words) {
  const [, low, high, gamma, off] = /^(\d{1,3})_(\d{1,3})_(\d(?:\.\d+)?)_([012]*)$/.exec(words ?? "") ?? [];
  const told = { low: Number(low), high: Number(high), gamma: Number(gamma), off: [...(off ?? "")].map(Number) };
  return told.low < told.high && told.high <= 255 && told.gamma > 0 ? told : null;
}

const isPlain = ({ low, high, gamma, off }) => !off.length && low === PLAIN.low && high === PLAIN.high && gamma === PLAIN.gamma;

export function startImage(app) {
  const panel = byId("image");
  const filters = document.createElementNS(SVG, "svg");
  filters.setAttribute("aria-hidden", "true");
  filters.classList.add("filters");
  document.body.append(filters);
  const boxes = NAMES.map((name, k) => make("input", { type: "checkbox", checked: true, onchange: () => set({ off: boxes.flatMap((box, n) => (box.checked ? [] : [n])) }) }));
  const range = (words, low, high, step, name) => {
    const input = make("input", { type: "range", min: low, max: high, step, oninput: () => set({ [name]: Number(input.value) }) });
    return { input, row: make("div", { class: "row" }, make("label", {}, words, input)) };
  };
  const low = range("black at", 0, 250, 1, "low"), high = range("white at", 5, 255, 1, "high"), gamma = range("gamma", 0.3, 3, 0.05, "gamma");
  const channels = make("fieldset", { hidden: true }, make("legend", {}, "channels of the file"));
  const ends = ["black", "white"].map((name) => make("input", { type: "number", step: "any", "aria-label": `${name} is the value`, onchange: () => relook() }));
  let chosen = [];
  panel.append(make("fieldset", {}, make("legend", {}, "shown"), make("div", { class: "row" }, ...NAMES.map((name, k) => make("label", {}, boxes[k], name)))),
    low.row, high.row, gamma.row, make("button", { onclick: () => (app.setDisplay(app.active, null), show()) }, "As it is"), channels);

  function set(part) {
    const next = { ...(app.active.display ?? PLAIN), ...part };
    if (next.high <= next.low) next.high = next.low + 5;
    app.setDisplay(app.active, next);
  }

  app.setDisplay = (pane, told) => {
    pane.display = told;
    const id = `shown-${app.panes.indexOf(pane)}`, canvas = pane.osd.drawer?.canvas;
    filters.querySelector(`#${id}`)?.remove();
    const same = !told || isPlain(told);
    if (!same) filters.append(filter(id, told));
    if (canvas) canvas.style.filter = same ? "" : `url(#${id})`;
    app.emit("display", pane);
  };

  function filter(id, { low: black, high: white, gamma: power, off }) {
    const found = element("filter", { id, "color-interpolation-filters": "sRGB", x: 0, y: 0, width: 1, height: 1 });
    const slope = 255 / (white - black), on = (k) => (off.includes(k) ? 0 : 1);
    const row = (k) => [0, 1, 2].map((n) => (n === k ? slope * on(k) : 0)).concat(0, (-black / 255) * slope * on(k)).join(" ");
    found.append(element("feColorMatrix", { type: "matrix", values: `${row(0)} ${row(1)} ${row(2)} 0 0 0 1 0` }));
    const curve = element("feComponentTransfer", {});
    for (const channel of ["R", "G", "B"]) curve.append(element(`feFunc${channel}`, { type: "gamma", exponent: 1 / power }));
    found.append(curve);
    return found;
  }

  function element(tag, attributes) {
    const found = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
    return found;
  }

  function show() {
    const told = app.active.display ?? PLAIN;
    boxes.forEach((box, k) => (box.checked = !told.off.includes(k)));
    low.input.value = told.low;
    high.input.value = told.high;
    gamma.input.value = told.gamma;
  }

  /** Channels of the file as red, green and blue, and the values that are black and white. */
  function offer() {
    const { facts, look } = app.active, told = new URLSearchParams(look);
    channels.hidden = !facts || !(facts.channels?.length > 1);
    if (channels.hidden) return;
    const now = told.get("channels")?.split(",").map(Number) ?? (facts.read.length ? facts.read : [0, 1, 2]);
    chosen = NAMES.map((name, k) => make("select", { "aria-label": `shown ${name}`, onchange: () => relook() },
      ...facts.channels.map((channel, at) => make("option", { value: at, selected: at === (now[k] ?? now[0]) }, channel))));
    const window_ = told.get("window")?.split(",") ?? facts.window ?? [];
    ends.forEach((end, k) => (end.value = window_[k] ?? ""));
    channels.replaceChildren(channels.firstChild, ...NAMES.map((name, k) => make("div", { class: "row" }, make("label", {}, name, chosen[k]))),
      ...(facts.window ? [make("div", { class: "row" }, "values from", ends[0], "to", ends[1])] : []));
  }

  function relook() {
    const query = new URLSearchParams({ channels: chosen.map((each) => each.value).join() }), [from, to] = ends.map((end) => Number(end.value));
    if (app.active.facts.window && to > from) query.set("window", `${from},${to}`);
    app.active.relook(query.toString());
    app.emit("look");
  }

  app.on("active slide restored", offer);
  app.on("active slide restored", show);
  show();
}
