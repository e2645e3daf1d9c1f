// The panel of layers: which one lies over the slide, how strongly, what its colours mean, and classes that are hidden or selected.

import { byId, make } from "./dom.js";
import { swatch } from "./signs.js";

export function startLayers(app) {
  const panel = byId("layers");
  const choices = make("fieldset", {}, make("legend", {}, "over the slide"));
  const legend = make("fieldset", {}, make("legend", {}, "colours"));
  const opacity = make("input", { type: "range", min: 0, max: 1, step: 0.05, oninput: () => app.setOpacity(Number(opacity.value)) });
  const groups = make("input", { type: "range", min: 2, max: 20, step: 1, oninput: () => (told.textContent = groups.value), onchange: () => regroup() });
  const told = make("output");
  const outlines = make("input", { type: "checkbox", onchange: () => app.setOutlines(outlines.checked) });
  const clusters = make("div", { class: "row" }, make("label", {}, "clusters", groups), told);
  panel.append(choices, make("div", { class: "row" }, make("label", {}, "opacity", opacity), make("label", {}, outlines, "outlines")), clusters, legend);

  app.chooseLayer = (key) => {
    if (key === undefined) return;
    for (const pane of app.linked ? app.panes : [app.active]) pane.lay(key);
  };
  app.setOpacity = (value) => {
    for (const pane of app.panes) pane.opacity = value, pane.recolour();
    app.emit("opacity");
  };
  app.setOutlines = (on) => {
    for (const pane of app.panes) pane.outlines = on, pane.repaint();
    outlines.checked = on;
    app.emit("outlines");
  };
  function regroup() {
    app.k = Number(groups.value);
    for (const pane of app.panes) if (pane === app.active || pane.key === "clusters") pane.lay("clusters");
  }

  function list() {
    const { facts, key } = app.active;
    const each = [{ key: "", name: "nothing" }, ...(facts?.layers ?? [])];
    choices.replaceChildren(choices.firstChild, ...each.map((layer, k) => make("label", { class: "choice" },
      make("input", { type: "radio", name: "layer", value: layer.key, checked: layer.key === key, onchange: () => app.chooseLayer(layer.key) }),
      layer.name, k < 10 ? make("kbd", {}, String(k)) : null)));
    opacity.value = app.active.opacity;
    groups.value = told.textContent = app.k;
    clusters.hidden = !facts?.embedded;
    outlines.checked = app.active.outlines;
  }

  function explain() {
    const pane = app.active, { layer } = pane;
    for (const radio of choices.querySelectorAll("input")) radio.checked = radio.value === pane.key;
    const entries = layer?.legend?.entries ?? [], words = layer?.legend?.words ?? "";
    legend.hidden = !layer;
    legend.replaceChildren(legend.firstChild, make("p", {}, pane.key === "similarity" && !layer ? "click a tile" : words),
      ...entries.map((entry, k) => make("div", { class: "entry" },
        layer.codes ? make("input", { type: "checkbox", checked: !pane.hidden.has(k + 1), "aria-label": `show ${entry.words}`, onchange: (event) => hide(k + 1, !event.target.checked) }) : null,
        swatch(entry.colour), make("span", {}, entry.words),
        layer.codes ? make("button", { class: "end", title: "Select these tiles", "aria-label": `select ${entry.words}`, onclick: () => pick(k + 1) }, "select") : null)));
  }
  function hide(code, hidden) {
    app.active.hidden[hidden ? "add" : "delete"](code);
    app.active.recolour();
  }
  function pick(code) {
    const { layer } = app.active, found = [];
    layer.codes.forEach((each, tile) => each === code && found.push(tile));
    app.choose(app.active, found);
  }

  app.on("slide active restored layers", () => (list(), explain()));
  app.on("opacity", () => (opacity.value = app.active.opacity));
  app.on("layer laying", (pane) => pane === app.active && explain());
  app.on("layer", (pane) => pane === app.active && (groups.value = told.textContent = app.k));
}
