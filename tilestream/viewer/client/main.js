// The page: a pane for each output, the side panel, and what ties them together.

import { startAddress } from "./address.js";
import { startBring } from "./bring.js";
import { byId, getJson, say } from "./dom.js";
import { startDraw } from "./draw.js";
import { startImage } from "./image.js";
import { startKeys } from "./keys.js";
import { startLayers } from "./layers.js";
import { Pane } from "./pane.js";
import { startScatter } from "./scatter.js";
import { startSelection } from "./selection.js";
import { startSimilar } from "./similar.js";
import { startTools } from "./tools.js";

/** What all parts share. Parts hear of each other by `on`: slide, laying (a layer is asked for), layer, mark, select, hover, active, view, tab. */
export class App {
  constructor(told) {
    Object.assign(this, { told, k: 6, linked: false, tab: "", panes: [], tool: "move", hearers: {} });
    this.panes = told.outputs.map((output) => new Pane(this, output));
    this.active = this.panes[0];
  }

  on(names, hear) {
    for (const name of names.split(" ")) (this.hearers[name] ??= []).push(hear);
  }

  emit(name, pane = this.active) {
    for (const hear of this.hearers[name] ?? []) hear(pane);
  }

  activate(pane) {
    if (pane === this.active) return;
    this.active = pane;
    for (const each of this.panes) each.element.classList.toggle("active", each === pane);
    pane.repaint();
    this.emit("active");
  }

  /** Another slide in a pane, with a place to look at or a tile to go to; resolves when it is shown, or something else was asked for. Channels are those of one file. */
  async showSlide(pane, number, { view = null, tile = -1, key = null, look = "" } = {}) {
    let laid = null;
    await pane.show(number, { view, tile, look }, () => {
      this.emit("slide", pane);
      if (pane.facts.problem) return;
      if (tile >= 0 && tile < pane.facts.tiles) pane.mark(tile);
      laid = pane.lay(key ?? pane.key);
    });
    await Promise.all([pane.opened, laid]);
  }

  /** A click on a slide is one on all that show the same place. */
  click(pane, y, x) {
    for (const each of this.linked ? this.panes : [pane]) if (each.places) this.ask(each, each.places.at(y, x), each === pane);
  }

  /** Mark a tile and show what is like it. */
  async ask(pane, tile, loud = true) {
    if (tile < 0 || !(pane.facts.embedded && pane.places.status[tile] >= 0)) {
      if (loud) say(tile < 0 ? "no tile is here" : "this tile has no embedding yet");
      return;
    }
    const status = pane.facts.statuses[pane.places.status[tile]];
    pane.mark(tile);
    const laid = await pane.lay("similarity", (error) => loud && say(error.status === 404 ? `tile ${tile} has no embedding: ${status ?? ""}` : error.message));
    if (laid) this.emit("nearest", pane);
  }

  /** All panes follow the one that is moved. */
  moved(pane) {
    if (this.following) return;
    if (pane === this.active && this.linked) {
      this.following = true;
      const view = pane.looking(true);
      for (const each of this.panes) if (each !== pane && view && each.facts?.width) each.go(view, true);
      this.following = false;
    }
    this.emit("view", pane);
  }
}

const app = new App(await getJson("outputs.json"));
window.tilestream = app;
document.title = `tilestream: ${app.told.outputs.map((output) => output.name).join(", ")}`;
byId("panes").classList.toggle("alone", app.panes.length === 1);
byId("panes").append(...app.panes.map((pane) => pane.element));
app.active.element.classList.add("active");
for (const pane of app.panes) pane.start();
for (const start of [startTools, startKeys, startLayers, startSimilar, startScatter, startSelection, startDraw, startImage, startBring]) start(app);
await startAddress(app);
document.body.dataset.ready = "yes";
