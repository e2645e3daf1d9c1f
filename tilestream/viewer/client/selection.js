// Selections of tiles, by lasso or box on the slide, in the scatter or by class: looked at, and kept as a file or as a region.

import { byId, count, make, post, saveFile, say } from "./dom.js";

const SHOWN = 24;

export function startSelection(app) {
  const panel = byId("selection"), told = make("p"), tiles = make("div", { class: "tiles" });
  const name = make("input", { type: "text", placeholder: "class (for labels)", "aria-label": "Class of the selection", maxLength: 200 });
  const button = (words, act, title) => make("button", { onclick: act, title }, words);
  const save = make("div", { class: "row" },
    button("CSV", () => keep("csv"), "Table of the tiles"), button("GeoJSON", () => keep("geojson"), "Tiles as QuPath's GeoJSON"),
    button("Labels for fit", () => keep("labels"), "One region with the class, as target.annotations of tilestream fit takes it"),
    app.told.drawing ? button("Add to drawing", () => app.labelTiles(app.active, app.active.selected, name.value), "Keep as a region with the class") : null,
    button("Clear", () => app.active.select([]), "Forget the selection (Esc)"));
  panel.append(told, name, save, tiles);

  app.choose = (pane, chosen, from = "slide") => {
    pane.select(chosen);
    if (!chosen.length) return say("no tile is inside");
    if (from === "slide" || window.innerWidth > 1000) if (from !== "scatter") app.setTab("selection");
    say(`${count(chosen.length)} tiles selected`);
  };

  async function keep(kind) {
    const pane = app.active;
    try {
      const answer = await post(`slides/${pane.number}/selection`, { tiles: pane.selected, as: kind, class: name.value.trim() });
      const file = /filename="([^"]+)"/.exec(answer.headers.get("Content-Disposition"))[1];
      saveFile(file, await answer.blob());
      say(`saved ${file}`);
    } catch (error) {
      say(error.message);
    }
  }

  function show() {
    const { selected, facts, number } = app.active, none = !selected.length;
    told.textContent = none ? "Choose Lasso or Box and draw around tiles, draw in the scatter, or select a class in Layers." : `${count(selected.length)} tiles of ${facts.id}`;
    for (const each of [name, save]) each.hidden = none;
    const step = Math.max(1, selected.length / SHOWN), shown = Array.from({ length: Math.min(SHOWN, selected.length) }, (_, k) => selected[Math.floor(k * step)]);
    tiles.replaceChildren(...shown.map((tile) => make("button", { title: `tile ${count(tile)}`, onclick: () => app.follow(app.active, number, tile) },
      make("img", { src: `crops/${number}/${tile}.jpg`, alt: `tile ${tile}`, loading: "lazy" }))));
  }

  app.on("select", (pane) => pane === app.active && show());
  app.on("slide active restored", show);
  app.tools = { lasso: lasso(app), box: box(app) };
  for (const pane of app.panes) listen(app, pane);
}

/** What the pointer does on the glass of a pane, while a tool is chosen. */
function listen(app, pane) {
  const { glass } = pane, at = (event) => pane.place(event.offsetX, event.offsetY).reverse(); // x, y
  const tell = (name) => (event) => {
    if (!pane.places || !pane.view() || (event.button > 0 && name !== "move")) return;
    if (name === "down") glass.setPointerCapture(event.pointerId);
    app.tools[app.tool]?.[name]?.(pane, at(event), event);
    pane.repaint();
  };
  for (const name of ["down", "move", "up"]) glass.addEventListener(`pointer${name}`, tell(name));
  glass.addEventListener("dblclick", tell("twice"));
  glass.addEventListener("wheel", (event) => {
    event.preventDefault();
    const { viewport } = pane.osd, around = viewport.pointFromPixel(new OpenSeadragon.Point(event.offsetX, event.offsetY), true);
    viewport.zoomBy(Math.exp(-event.deltaY / 350), around).applyConstraints();
  }, { passive: false });
}

function lasso(app) {
  return {
    down: (pane, at) => (pane.line = { points: [at], closed: true }),
    move: (pane, at) => pane.line?.points.push(at),
    up: (pane) => {
      const line = pane.line?.points ?? [];
      pane.line = null;
      if (line.length > 2) app.choose(pane, pane.places.inside(line, pane.facts.l0_extent));
    },
  };
}

function box(app) {
  let from = null;
  const corners = ([x0, y0], [x1, y1]) => [[x0, y0], [x1, y0], [x1, y1], [x0, y1]];
  return {
    down: (pane, at) => ((from = at), (pane.line = { points: corners(at, at), closed: true })),
    move: (pane, at) => pane.line && (pane.line.points = corners(from, at)),
    up: (pane) => {
      const line = pane.line?.points;
      pane.line = null;
      if (line) app.choose(pane, pane.places.inside(line, pane.facts.l0_extent));
    },
  };
}

