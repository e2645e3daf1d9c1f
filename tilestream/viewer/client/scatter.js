// The scatter of embeddings, tied to the slide: what is pointed at, marked or selected in one is so in both.

import { byId, count, getPacked, make, say } from "./dom.js";
import { Latest } from "./latest.js";
import { bounds, isInside } from "./places.js";

const NEAR = 7, DOT = 3; // px
const EDGE = 14;

export function startScatter(app) {
  const panel = byId("scatter"), canvas = make("canvas", { role: "img", "aria-label": "Scatter of the embeddings of tiles" });
  const kind = make("select", { "aria-label": "How tiles are placed", onchange: () => load() },
    ...["PCA", ...(app.told.umap ? ["UMAP"] : [])].map((name) => make("option", {}, name)));
  const told = make("span");
  panel.append(make("div", { class: "row" }, kind, told), canvas, make("p", {}, "Drag around points to select them, the wheel zooms, a click goes to the tile, a double click shows all."));
  let points = null, seen = null, base = null, line = null, shownFor = "";
  const asked = new Latest();

  /** Points of the slide that is shown; those of another are forgotten at once. */
  function load() {
    const pane = app.active, wanted = `${pane.number} ${kind.value}`;
    if (wanted !== shownFor) forget();
    if (app.tab !== "scatter" || !pane.facts?.width || wanted === shownFor) return draw();
    shownFor = wanted;
    told.textContent = kind.value === "PCA" ? "placing ..." : "placing by UMAP, up to a minute ...";
    draw();
    asked.run((signal) => getPacked(`slides/${pane.number}/points?kind=${kind.value}`, { signal }), ({ head, data, start }) => {
      points = { n: head.points, at: new Float32Array(data, start, 2 * head.points), tile: new Int32Array(data, start + 8 * head.points, head.points) };
      points.of = new Map(Array.from(points.tile, (tile, k) => [tile, k]));
      told.textContent = points.n ? points.n < pane.facts.tiles ? `${count(points.n)} of ${count(pane.facts.tiles)} tiles` : `${count(points.n)} tiles` : "no tiles with embeddings";
      whole();
      draw();
    }, (error) => {
      forget();
      say(error.message);
    });
  }

  function forget() {
    asked.stop();
    points = line = base = null;
    shownFor = told.textContent = "";
  }

  function whole() {
    const [left, top, right, bottom] = bounds(Array.from({ length: points.n }, (_, k) => [points.at[2 * k], points.at[2 * k + 1]]));
    const scale = Math.min((canvas.clientWidth - 2 * EDGE) / (right - left || 1), (canvas.clientHeight - 2 * EDGE) / (bottom - top || 1));
    seen = { scale, x: canvas.clientWidth / 2 - (scale * (left + right)) / 2, y: canvas.clientHeight / 2 + (scale * (top + bottom)) / 2 };
  }

  const place = (k) => [seen.x + points.at[2 * k] * seen.scale, seen.y - points.at[2 * k + 1] * seen.scale];

  /** All points in the colours of the layer, once for each view. */
  function paintBase(fine) {
    const pane = app.active, pen = (base = new OffscreenCanvas(canvas.width, canvas.height)).getContext("2d");
    pen.scale(fine, fine);
    const colour = pane.layer?.css ?? (() => "#6cb6ff"), byColour = new Map();
    const picked = pane.selected.length ? new Set(pane.selected) : null;
    for (let k = 0; k < points.n; k++) {
      const name = picked && !picked.has(points.tile[k]) ? "rgba(142,152,164,.25)" : colour(points.tile[k]);
      byColour.get(name)?.push(k) ?? byColour.set(name, [k]);
    }
    for (const [name, those] of byColour) {
      pen.fillStyle = name;
      for (const k of those) {
        const [x, y] = place(k);
        pen.fillRect(x - DOT / 2, y - DOT / 2, DOT, DOT);
      }
    }
  }

  function draw() {
    const fine = window.devicePixelRatio || 1, width = Math.round(canvas.clientWidth * fine), height = Math.round(canvas.clientHeight * fine);
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
      base = null;
      if (points?.n) whole();
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, width, height);
    if (!points?.n) return;
    if (!base) paintBase(fine);
    pen.drawImage(base, 0, 0);
    pen.scale(fine, fine);
    ring(pen, app.active.hovered, "#fff", 5);
    ring(pen, app.active.marked, "#ffe600", 6);
    if (line) {
      pen.strokeStyle = "#ffe600";
      pen.lineWidth = 1.5;
      pen.beginPath();
      for (const [x, y] of line) pen.lineTo(x, y);
      pen.closePath();
      pen.stroke();
    }
  }

  function ring(pen, tile, colour, radius) {
    const k = points.of.get(tile);
    if (k === undefined) return;
    for (const [style, width] of [["#000", 4], [colour, 2]]) {
      pen.strokeStyle = style;
      pen.lineWidth = width;
      pen.beginPath();
      pen.arc(...place(k), radius, 0, 7);
      pen.stroke();
    }
  }

  function nearest(x, y) {
    let best = -1, least = NEAR * NEAR;
    for (let k = 0; points?.n && k < points.n; k++) {
      const [px, py] = place(k), away = (px - x) ** 2 + (py - y) ** 2;
      if (away < least) (least = away), (best = points.tile[k]);
    }
    return best;
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button || !points?.n) return;
    canvas.setPointerCapture(event.pointerId);
    line = [[event.offsetX, event.offsetY]];
  });
  canvas.addEventListener("pointermove", (event) => {
    if (line) line.push([event.offsetX, event.offsetY]), draw();
    else app.active.hover(nearest(event.offsetX, event.offsetY));
  });
  canvas.addEventListener("pointerleave", () => app.active.hover(-1));
  canvas.addEventListener("pointerup", (event) => {
    const drawn = line;
    line = null;
    if (!drawn) return;
    const [left, top, right, bottom] = bounds(drawn);
    if (right - left < 4 && bottom - top < 4) {
      const tile = nearest(event.offsetX, event.offsetY);
      if (tile >= 0) app.active.goTile(tile), app.ask(app.active, tile);
    } else {
      const found = [];
      for (let k = 0; k < points.n; k++) if (isInside(drawn, ...place(k))) found.push(points.tile[k]);
      app.choose(app.active, found, "scatter");
    }
    draw();
  });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    if (!seen) return;
    const factor = Math.exp(-event.deltaY / 400);
    seen = { scale: seen.scale * factor, x: event.offsetX + (seen.x - event.offsetX) * factor, y: event.offsetY + (seen.y - event.offsetY) * factor };
    base = null;
    draw();
  }, { passive: false });
  canvas.addEventListener("dblclick", () => points?.n && (whole(), (base = null), draw()));
  new ResizeObserver(draw).observe(canvas);

  app.on("tab slide active restored", load);
  app.on("layer select", (pane) => pane === app.active && ((base = null), draw()));
  app.on("hover mark", (pane) => pane === app.active && app.tab === "scatter" && draw());
  app.scatter = { at: (tile) => points?.of.has(tile) ? place(points.of.get(tile)) : null, get points() { return points?.n ?? 0; } };
}
