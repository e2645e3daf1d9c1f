// Signs on a slide: legend, scale bar, magnification, position.

import { byId, count, css, make } from "./dom.js";

const STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000];
const WIDEST = 130; // px of the scale bar
const LONGEST = 12; // classes in the legend on the slide; the panel has all

export function drawLegend(pane) {
  const { legend, layer } = pane, told = layer?.legend;
  const name = pane.facts?.layers?.find((each) => each.key === pane.key)?.name ?? "";
  legend.hidden = !told && !pane.layers.waits;
  if (legend.hidden) return;
  const parts = [make("b", {}, name, pane.layers.waits ? make("span", { class: "coming" }) : null)];
  if (told) parts.push(...explained(pane, told, name));
  legend.replaceChildren(...parts);
}

function explained(pane, told, name) {
  const parts = [];
  if (told.words && told.words !== name) parts.push(make("div", {}, told.words));
  if (told.bar) parts.push(ramp(told.bar), make("div", { class: "ends" }, make("span", {}, short(told.low)), make("span", {}, short(told.high))));
  for (const entry of told.entries.slice(0, LONGEST)) parts.push(make("div", { class: "entry" }, swatch(entry.colour), entry.words));
  if (told.entries.length > LONGEST) parts.push(make("div", {}, `and ${told.entries.length - LONGEST} more in the panel`));
  const here = pane.hovered >= 0 && pane.layer.words?.(pane.hovered);
  if (here) parts.push(make("div", {}, `tile ${count(pane.hovered)}: ${here}`));
  return parts;
}

const short = (value) => (Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3) ? value.toExponential(1) : String(Number(value.toPrecision(3))));

export function swatch(colour) {
  const found = make("i", { class: "swatch" });
  found.style.background = css(colour);
  return found;
}

function ramp(colours) {
  const found = make("div", { class: "ramp" });
  found.style.background = `linear-gradient(90deg, ${colours.map(css).join()})`;
  return found;
}

/** The scale bar of a pane with the pointer's place; and the magnification, where it is the active one. */
export function drawScale(pane) {
  const see = pane.view();
  if (!see) return;
  const { mpp } = pane.facts, unit = (mpp ?? 1) / see.scale; // µm, or level-0 px, a screen px
  const length = STEPS.filter((step) => step / unit <= WIDEST).pop() ?? STEPS[0];
  if (!pane.rule) {
    pane.rule = make("div", { class: "rule" });
    pane.ruleWords = make("span");
    pane.at = make("span", { class: "at" });
    pane.scale.replaceChildren(pane.rule, pane.ruleWords, pane.at);
  }
  pane.rule.style.width = `${length / unit}px`;
  write(pane.ruleWords, mpp ? (length >= 1000 ? `${length / 1000} mm` : `${length} µm`) : `${count(length)} px`);
  const [y, x] = pane.pointer ?? [];
  write(pane.at, y === undefined ? "" : mpp ? `y ${(y * mpp).toFixed(0)} x ${(x * mpp).toFixed(0)} µm` : `y ${Math.floor(y)} x ${Math.floor(x)} px`);
  if (pane === pane.app.active) {
    write(byId("power"), mpp ? `${Number((10 / unit).toPrecision(3))}x` : see.scale >= 1 ? `${Number(see.scale.toPrecision(2))}:1` : `1:${Number((1 / see.scale).toPrecision(3))}`);
    for (const button of document.querySelectorAll(".power")) if (button.disabled !== !mpp) button.disabled = !mpp;
  }
}

/** At every frame: only what changes has the page laid out anew. */
function write(element, words) {
  if (element.textContent !== words) element.textContent = words;
}
