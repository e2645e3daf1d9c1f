// The state of the page in its address: reload, back and a link that is sent show the same.

import { later } from "./dom.js";
import { displayFrom, displayWords } from "./image.js";
import { Latest } from "./latest.js";

const TOGETHER = 800; // ms in which changes are one step back: a click marks a tile and lays a layer

const TABS = ["layers", "similar", "scatter", "selection", "draw", "image"];

const part = (value) => encodeURIComponent(value);

/** `pane=id,x,y,z,layer,tile,look,display` for each pane, and what all have in common. */
function written(app) {
  const parts = app.panes.map((pane) => {
    const view = pane.looking(), number = (value) => (value === undefined ? "" : Number(value.toPrecision(7)));
    return `pane=${[pane.facts?.id ?? "", number(view?.x), number(view?.y), number(view?.z), pane.key, pane.marked, pane.look, displayWords(pane.display)].map(part).join()}`;
  });
  const common = { opacity: app.active.opacity, k: app.k, panel: app.tab, linked: Number(app.linked), active: app.panes.indexOf(app.active), outlines: Number(app.active.outlines) };
  return `#${[...parts, ...Object.entries(common).map(([name, value]) => `${name}=${part(value)}`)].join("&")}`;
}

function read(hash) {
  const found = { panes: [] };
  for (const each of hash.replace(/^#/, "").split("&")) {
    const at = each.indexOf("="), name = each.slice(0, at), value = each.slice(at + 1);
    if (name === "pane") {
      const [id, x, y, z, key, tile, look, display] = value.split(",").map(decodeURIComponent);
      found.panes.push({ id, view: z > 0 ? { x: Number(x), y: Number(y), z: Number(z) } : null, key: key ?? "", tile: Number(tile ?? -1), look: look ?? "", display: displayFrom(display) });
    } else if (at > 0) found[name] = decodeURIComponent(value);
  }
  return found;
}

export async function startAddress(app) {
  let quiet = true, stepped = -TOGETHER;
  const restoring = new Latest();
  const keep = later(() => quiet || history.replaceState(null, "", written(app)), 250);
  const step = () => {
    if (quiet) return;
    const now = written(app);
    if (now === location.hash) return;
    const joined = performance.now() - stepped < TOGETHER;
    if (!joined) stepped = performance.now();
    history[joined ? "replaceState" : "pushState"](null, "", now);
  };

  function restore(hash) {
    quiet = true;
    stepped = -TOGETHER;
    const told = read(hash), number = (name, low, high, otherwise) => (told[name] === undefined || !(told[name] >= low && told[name] <= high) ? otherwise : Number(told[name]));
    app.k = number("k", 2, 20, app.k);
    app.setTab(TABS.includes(told.panel) ? told.panel : ""); // first: it takes room from the slides
    return restoring.run(async (signal) => {
      await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
      signal.throwIfAborted();
      await Promise.all(app.panes.map((pane, k) => {
        const wanted = told.panes[k] ?? { view: null, key: "", tile: -1, look: "", display: null };
        const slide = pane.output.slides.find((each) => each.id === wanted.id)?.number ?? pane.output.first;
        pane.opacity = number("opacity", 0, 1, pane.opacity);
        pane.outlines = number("outlines", 0, 1, 1) === 1;
        app.setDisplay(pane, wanted.display);
        if (slide !== pane.number || !pane.places) return app.showSlide(pane, slide, wanted);
        pane.stay();
        if (pane.look !== wanted.look) pane.relook(wanted.look);
        if (pane.marked !== wanted.tile) pane.mark(wanted.tile < pane.facts.tiles ? wanted.tile : -1);
        pane.go(wanted.view, true);
        return pane.key !== wanted.key || wanted.key === "similarity" ? pane.lay(wanted.key) : null;
      }));
    }, () => {
      const [first, ...others] = app.panes.map((pane) => pane.facts);
      const alike = others.length > 0 && others.every((facts) => facts && facts.width === first?.width && facts.height === first.height);
      app.setLinked(told.linked === undefined ? alike : told.linked === "1");
      app.activate(app.panes[number("active", 0, app.panes.length - 1, 0)]);
      for (const pane of app.panes) pane.recolour();
      app.emit("restored");
      quiet = false;
      keep();
    }, (error) => {
      quiet = false;
      throw error;
    });
  }

  await restore(location.hash);
  app.on("view opacity display", keep);
  app.on("slide laying layer mark look tab linked active outlines", step);
  window.addEventListener("popstate", () => restore(location.hash));
}
