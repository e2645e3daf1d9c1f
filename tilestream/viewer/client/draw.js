// Annotations: regions with classes, drawn corner by corner, by hand or with a brush; kept by the server at once, as QuPath's GeoJSON.

import { byId, getJson, make, post, say } from "./dom.js";
import { bounds } from "./places.js";
import { swatch } from "./signs.js";

const NO_FOLDER = "Nothing is drawn here. To draw regions with classes, start with a folder for them: tilestream view OUTPUT --annotations FOLDER";

export function startDraw(app) {
  const panel = byId("draw");
  if (!app.told.drawing) {
    panel.append(make("p", {}, NO_FOLDER));
    app.labelTiles = () => say(NO_FOLDER);
    return;
  }
  const name = make("input", { type: "text", id: "class-name", placeholder: "new class, then Enter", "aria-label": "New class", maxLength: 200 });
  const classes = make("fieldset", {}, make("legend", {}, "class that is drawn")), told = make("p", { id: "drawn" });
  const radius = make("input", { type: "range", min: 3, max: 80, value: 20, "aria-label": "Radius of the brush, px on the screen" });
  const tools = [["polygon", "Polygon", "Corner by corner; a double click or Enter closes (G)"], ["hand", "By hand", "A line by hand (D)"], ["brush", "Brush", "Paint; joins the region in which it begins"],
    ["rub", "Rub out", "A brush that takes away"], ["erase", "Erase", "A click takes a region away"]];
  const undo = make("button", { id: "undo", disabled: true, onclick: () => back() }, "Undo");
  panel.append(name, classes, make("div", { class: "row" }, ...tools.map(([tool, words, title]) => make("button", { class: "tool", "data-tool": tool, "aria-pressed": "false", title }, words))),
    make("div", { class: "row" }, make("label", {}, "brush", radius), undo), told);
  const known = new Map(); // class to colour, in order
  let chosen = "", done = [], shown = new AbortController(), before = Promise.resolve(); // shown: ends when another slide comes

  name.onkeydown = (event) => {
    if (event.key !== "Enter" || !name.value.trim()) return;
    choose(name.value.trim());
    name.value = "";
    if (app.tool === "move") app.setTool("hand");
  };

  function choose(wanted) {
    if (!known.has(wanted)) known.set(wanted, null);
    chosen = wanted;
    list();
  }

  function list() {
    classes.hidden = !known.size;
    classes.replaceChildren(classes.firstChild, ...[...known].map(([each, colour]) => make("label", { class: "choice" },
      make("input", { type: "radio", name: "class", value: each, checked: each === chosen, onchange: () => choose(each) }), colour && swatch(colour), each)));
  }

  function show(pane, answer) {
    pane.drawn = answer.regions.map((region) => ({ ...region, box: bounds(region.polygons.flat(2)) }));
    for (const each of answer.classes) known.set(each.name, each.colour);
    if (!chosen && known.size) chosen = [...known.keys()][0];
    const counts = new Map();
    for (const region of answer.regions) counts.set(region.class || "no class", (counts.get(region.class || "no class") ?? 0) + 1);
    told.textContent = counts.size ? `${[...counts].map(([each, many]) => `${each} ${many}`).join(", ")} in ${answer.file}` : "Nothing is drawn: write the name of a class, then draw.";
    list();
    pane.repaint();
  }

  /** One request after another, so that their answers come in order; what comes when another slide is shown is not shown. */
  function inTurn(pane, ask, keep) {
    const { signal } = shown, { id } = pane.facts;
    before = before.then(async () => {
      const answer = await ask(signal);
      if (signal.aborted || !answer) return;
      if (keep && (answer.added.length || answer.removed.length)) done.push({ remove: answer.added, add: answer.removed });
      undo.disabled = !done.length;
      show(pane, answer);
    }).catch((error) => error.name !== "AbortError" && say(`regions of ${id}: ${error.message}`));
  }

  /** A change is made whatever is shown when its turn comes. */
  function change(pane, asked) {
    const { number } = pane;
    inTurn(pane, async () => (await post(`slides/${number}/regions`, asked)).json(), true);
  }

  /** Take back what was last when its turn comes. */
  function back() {
    const { number } = app.active;
    inTurn(app.active, async (signal) => {
      const last = signal.aborted ? null : done.pop();
      return last && (await post(`slides/${number}/regions`, { op: "swap", ...last })).json();
    }, false);
  }

  const withClass = (pane, asked) => (chosen ? change(pane, { ...asked, class: chosen }) : (app.setTab("draw"), say("write the name of a class first")));
  app.labelTiles = (pane, tiles, wanted) => {
    if (wanted.trim()) choose(wanted.trim());
    withClass(pane, { op: "tiles", tiles });
  };
  const add = (pane, points) => (pane.line = null, points.length > 2 && withClass(pane, { op: "add", path: points }));
  const colour = () => known.get(chosen) ?? undefined;

  app.tools.hand = {
    down: (pane, at) => (pane.line = { points: [at], closed: true, colour: colour() }),
    move: (pane, at) => pane.line?.points.push(at),
    up: (pane) => pane.line && add(pane, pane.line.points),
  };
  const close = (pane) => pane.line && add(pane, pane.line.points.slice(0, -1));
  app.tools.polygon = {
    down: (pane, at) => (pane.line ? pane.line.points.push(at) : (pane.line = { points: [at, at], closed: false, colour: colour() })),
    move: (pane, at) => pane.line && (pane.line.points[pane.line.points.length - 1] = at),
    twice: (pane) => pane.line && (pane.line.points.pop(), close(pane)),
  };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && app.tool === "polygon" && app.active.line) event.preventDefault(), close(app.active), app.active.repaint();
  });
  const brush = (erase) => {
    let down = false;
    const reach = (pane) => Number(radius.value) / pane.view().scale;
    const start = (pane, at) => (pane.line = { points: [at], radius: reach(pane), colour: erase ? [255, 255, 255] : colour() });
    return {
      down: (pane, at) => ((down = true), start(pane, at)),
      move: (pane, at) => (down ? pane.line?.points.push(at) : start(pane, at)),
      up: (pane) => {
        const { points, radius: size } = pane.line ?? {};
        down = false;
        pane.line = null;
        if (points) (erase ? change : withClass)(pane, { op: "brush", path: points, radius: size, erase });
      },
    };
  };
  app.tools.brush = brush(false);
  app.tools.rub = brush(true);
  app.tools.erase = { up: (pane, at) => change(pane, { op: "erase", at }) };

  app.on("slide", (pane) => {
    shown.abort();
    shown = new AbortController();
    done = [];
    undo.disabled = true;
    if (pane.facts.width) inTurn(pane, (signal) => getJson(`slides/${pane.number}/regions`, { signal }), false);
  });
  list();
}
