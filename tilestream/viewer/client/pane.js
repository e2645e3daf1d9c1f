// One output: its slide in OpenSeadragon, what lies over it, and what a person does there.

import { getJson, getPacked, make, say } from "./dom.js";
import { EdgeDrawer } from "./drawer.js";
import { Latest } from "./latest.js";
import { readLayer } from "./layer.js";
import { litPicture, paint } from "./paint.js";
import { Places } from "./places.js";
import { drawLegend, drawScale } from "./signs.js";

const FARTHEST = 0.5, NEAREST = 8; // of the whole slide in the window; screen px for a level-0 px
const FINEST = 0.6; // screen px, at least, for a px of the level that is drawn: a level at its own scale is not drawn from the one twice as fine

export class Pane {
  constructor(app, output) {
    Object.assign(this, { app, output, facts: null, places: null, layer: null, key: "", opacity: 0.6, outlines: true, hidden: new Set() });
    Object.assign(this, { marked: -1, hovered: -1, selected: [], lit: null, line: null, drawn: [], brought: [], look: "", display: null, own: new Map() }); // own: layers from a person's files, by key
    Object.assign(this, { slides: new Latest(), layers: new Latest(), opened: Promise.resolve(), base: null }); // base: the slide in OpenSeadragon's world
    this.stage = make("div", { class: "stage" });
    this.canvas = make("canvas", { class: "over" });
    this.glass = make("div", { class: "glass", hidden: true });
    this.head = make("div", { class: "chip head" });
    this.legend = make("div", { class: "chip legend", hidden: true });
    this.scale = make("div", { class: "chip scale" });
    this.map = make("div", { class: "map" });
    this.wrong = make("div", { class: "wrong", hidden: true });
    this.element = make("section", { class: "pane", "aria-label": output.name },
      this.stage, this.canvas, this.glass, this.head, this.legend, this.scale, this.map, this.wrong);
  }

  get shapes() {
    return [this.brought, this.drawn];
  }

  /** Once the element is on the page. */
  start() {
    this.osd = OpenSeadragon({
      element: this.stage, navigatorElement: this.map, showNavigator: true, navigatorDisplayRegionColor: "#ffe600", navigatorBorderColor: "#fff",
      navigatorBackground: "#101214", navigatorOpacity: 1, navigatorAutoFade: false, showNavigationControl: false, drawer: EdgeDrawer, navigatorDrawer: "canvas", minPixelRatio: FINEST,
      minZoomImageRatio: FARTHEST, maxZoomPixelRatio: NEAREST, visibilityRatio: 0.2, animationTime: 0.35, springStiffness: 9, zoomPerScroll: 1.3,
      minScrollDeltaTime: 10, immediateRender: false, maxTilesPerFrame: 4, imageLoaderLimit: 6, keyboardNavEnabled: false, smoothTileEdgesMinZoom: 1e6,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: false }, gestureSettingsTouch: { dblClickToZoom: false },
      gestureSettingsPen: { clickToZoom: false }, subPixelRoundingForTransparency: OpenSeadragon.SUBPIXEL_ROUNDING_OCCURRENCES.ALWAYS,
      placeholderFillStyle: "#e9e9ec",
    });
    for (const name of ["update-viewport", "resize"]) this.osd.addHandler(name, () => this.moved());
    this.osd.addHandler("canvas-key", (event) => (event.preventDefaultAction = true));
    this.osd.addHandler("canvas-click", (event) => {
      if (event.quick && this.view()) this.app.click(this, ...this.place(event.position.x, event.position.y));
    });
    this.osd.canvas.setAttribute("role", "application");
    this.osd.canvas.setAttribute("aria-label", `Slide of ${this.output.name}; keys: question mark`);
    for (const each of this.map.querySelectorAll("[tabindex]")) each.tabIndex = -1;
    this.map.setAttribute("aria-hidden", "true");
    this.element.addEventListener("pointerdown", () => this.app.activate(this), true);
    this.element.addEventListener("wheel", () => this.app.activate(this), { capture: true, passive: true });
    this.stage.addEventListener("pointermove", (event) => this.over(event));
    this.stage.addEventListener("pointerleave", () => this.over(null));
    new ResizeObserver(() => this.sized()).observe(this.element);
    this.sized();
  }

  sized() {
    this.width = this.element.clientWidth;
    this.height = this.element.clientHeight;
    this.element.classList.toggle("narrow", this.width < 480);
    this.repaint();
  }

  // -- the slide --------------------------------------------------------------------------------------------------

  /**
   * Ask for a slide: what was shown stays until the other is here, then all of it changes at once and `then` is called.
   * `view` is {x, y, z}: the centre and level-0 px a screen px; without one, `tile` is brought into the middle.
   */
  show(number, told, then) {
    this.head.classList.add("coming");
    return this.slides.run(async (signal) => {
      const facts = await getJson(`slides/${number}.json`, { signal });
      return { facts, places: facts.problem ? null : new Places(await getPacked(`slides/${number}/places`, { signal })) };
    }, ({ facts, places }) => {
      this.put(number, facts, places, told);
      then();
    }, (error) => {
      this.drawHead();
      say(error.message);
    });
  }

  /** Stay with the slide that is shown, whatever was asked for. */
  stay() {
    this.slides.stop();
    this.drawHead();
  }

  put(number, facts, places, { view, tile, look }) {
    this.layers.stop();
    Object.assign(this, { number, facts, places, look, layer: null, overItems: [], base: null, marked: -1, hovered: -1, pointer: null, lit: null, selected: [] });
    Object.assign(this, { line: null, drawn: [], brought: [], hidden: new Set(), own: new Map() });
    this.wrong.hidden = !facts.problem;
    this.wrong.textContent = facts.problem ? `${facts.id} cannot be shown: ${facts.problem}` : "";
    this.drawHead();
    drawLegend(this);
    if (facts.problem) return this.osd.close();
    this.opened = new Promise((done) => this.osd.addOnceHandler("open", () => {
      this.base = this.osd.world.getItemAt(0);
      this.go(view, true);
      if (!view && tile >= 0 && tile < facts.tiles) this.goTile(tile);
      this.repaint();
      done();
    }));
    this.osd.open(this.source(`tiles/${number}`, "jpg", look));
  }

  /** Tiles of the zoom, for OpenSeadragon. */
  source(path, kind, query = "") {
    const { width, height, side, levels } = this.facts, last = query && `?${query}`;
    return { width, height, tileSize: side, tileOverlap: 0, minLevel: 0, maxLevel: levels, getTileUrl: (level, x, y) => `${path}/${level}/${x}/${y}.${kind}${last}` };
  }

  /** Read the slide anew, with other channels. */
  relook(query) {
    this.look = query;
    const number = this.number, { world } = this.osd;
    const success = ({ item }) => {
      if (this.number !== number || this.look !== query) return world.removeItem(item);
      if (this.base) world.removeItem(this.base);
      this.base = item;
    };
    this.osd.addTiledImage({ tileSource: this.source(`tiles/${number}`, "jpg", query), index: 0, success });
  }

  drawHead() {
    const { facts, output } = this;
    this.head.classList.remove("coming");
    if (!facts) return;
    const several = output.slides.length > 1;
    const choose = several && make("select", { "aria-label": `Slide of ${output.name}`, onchange: (event) => this.app.showSlide(this, Number(event.target.value)) },
      ...output.slides.map((slide) => make("option", { value: slide.number, selected: slide.number === this.number }, slide.id)));
    const named = this.app.panes.length > 1 || several ? [make("b", {}, output.name), several ? make("br") : " · "] : [];
    this.head.replaceChildren(...named, several ? choose : make("b", {}, facts.id),
      make("span", { class: "words" }, [facts.words, ...(facts.answers ?? [])].filter(Boolean).join(" · ")),
      ...(facts.gone ? [make("span", { class: "gone" }, `The image cannot be read, the stored thumbnail is shown: ${facts.gone}`)] : []));
  }

  // -- where we look ----------------------------------------------------------------------------------------------

  /** From level-0 px to the screen, or null where nothing is shown. */
  view(current = true) {
    if (!this.facts?.width || !this.osd.world.getItemCount()) return null;
    const { viewport } = this.osd, zero = viewport.pixelFromPoint(new OpenSeadragon.Point(0, 0), current);
    const scale = (viewport.getZoom(current) * this.width) / this.facts.width;
    return {
      scale, x: (x) => zero.x + x * scale, y: (y) => zero.y + y * scale,
      left: -zero.x / scale, top: -zero.y / scale, right: (this.width - zero.x) / scale, bottom: (this.height - zero.y) / scale,
    };
  }

  /** {x, y, z}: the centre, and level-0 px a screen px. */
  looking(current = false) {
    const see = this.view(current);
    return see && { x: (see.left + see.right) / 2, y: (see.top + see.bottom) / 2, z: 1 / see.scale };
  }

  /** Look at {x, y, z}, or at all. */
  go(view, immediately = false) {
    if (!this.facts?.width) return;
    const { viewport } = this.osd;
    if (!this.osd.isOpen()) return;
    if (!view) return viewport.goHome(immediately);
    viewport.zoomTo(this.facts.width / (view.z * this.width), null, immediately);
    viewport.panTo(new OpenSeadragon.Point(view.x / this.facts.width, view.y / this.facts.width), immediately);
  }

  /** Bring a tile into the middle. */
  goTile(tile) {
    const half = this.facts.l0_extent / 2, z = Math.min(this.looking().z, (this.facts.l0_extent * 8) / Math.min(this.width, this.height));
    this.go({ x: this.places.tileX[tile] + half, y: this.places.tileY[tile] + half, z });
  }

  /** y, x in level-0 px of a place on the stage. */
  place(x, y) {
    const see = this.view();
    return [(y - see.y(0)) / see.scale, (x - see.x(0)) / see.scale];
  }

  moved() {
    this.repaint(true);
    this.app.moved(this);
  }

  repaint(now = false) {
    if (now) return paint(this), drawScale(this);
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      paint(this);
      drawScale(this);
    });
  }

  over(event) {
    this.pointer = event && this.facts?.width && this.view() ? this.place(event.offsetX, event.offsetY) : null;
    const tile = this.pointer && this.places ? this.places.at(...this.pointer) : -1;
    drawScale(this);
    this.hover(tile);
  }

  hover(tile) {
    if (tile === this.hovered) return;
    this.hovered = tile;
    drawLegend(this);
    this.repaint();
    this.app.emit("hover", this);
  }

  // -- what lies over it ------------------------------------------------------------------------------------------

  /** Lay a layer over the slide, "" lays none; whether it lies there then. */
  lay(key, wrong = (error) => say(error.message)) {
    this.key = key;
    this.hidden = new Set();
    const own = this.own.get(key);
    if (own || !this.facts?.layers?.some((each) => each.key === key) || (key === "similarity" && this.marked < 0)) {
      this.layers.stop();
      this.setLayer(own ?? null);
      return Promise.resolve(Boolean(own));
    }
    if (this.layer && this.layer.key !== key) this.setLayer(null); // what loads is never named over the colours of another
    const query = new URLSearchParams({ key, k: this.app.k, ...(key === "similarity" ? { of: this.number, tile: this.marked } : {}) });
    const laid = this.layers.run(async (signal) => readLayer(await getPacked(`slides/${this.number}/layer?${query}`, { signal })),
      (layer) => this.setLayer(layer),
      (error) => {
        this.key = "";
        this.setLayer(null);
        wrong(error);
      });
    drawLegend(this);
    this.app.emit("laying", this);
    return laid;
  }

  setLayer(layer) {
    for (const item of this.overItems ?? []) this.osd.world.removeItem(item);
    this.overItems = [];
    this.layer = layer;
    if (layer?.kind === "zoom") {
      this.osd.addTiledImage({
        tileSource: this.source(`objects/${this.number}/${layer.head}`, "png"), opacity: this.opacity,
        success: ({ item }) => (this.layer === layer ? this.overItems.push(item) : this.osd.world.removeItem(item)),
      });
    }
    this.recolour();
    this.app.emit("layer", this);
  }

  recolour() {
    this.layer?.colour?.(this.places, this.hidden);
    for (const item of this.overItems ?? []) item.setOpacity(this.opacity);
    drawLegend(this);
    this.repaint();
  }

  /** Mark a tile, or none with -1. */
  mark(tile) {
    this.marked = tile;
    this.repaint();
    this.app.emit("mark", this);
  }

  select(tiles) {
    this.selected = tiles;
    this.lit = this.places && litPicture(this.places, tiles);
    this.repaint();
    this.app.emit("select", this);
  }
}

