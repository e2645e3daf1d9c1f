// Files of a person, shown over the slide: GeoJSON (regions of QuPath, objects) and CSV (columns of obs, one row a tile).

import { byId, count, make, say } from "./dom.js";
import { Latest } from "./latest.js";
import { coded } from "./layer.js";
import { bounds } from "./places.js";

const LARGEST = 64 * 2 ** 20;
const STEPS = 255; // codes of a value
const OURS = ["row", "col", "y", "x", "slide", "tile"];

export function startBring(app) {
  const file = make("input", { type: "file", accept: ".geojson,.json,.csv", "aria-label": "GeoJSON or CSV to show", onchange: () => bring(file.files[0]) });
  byId("layers").append(make("fieldset", {}, make("legend", {}, "your GeoJSON, or CSV of obs"), file));

  const reading = new Latest();
  let reader = null;
  app.on("slide", (pane) => pane === reader && reading.stop());

  function bring(chosen) {
    if (!chosen) return;
    const pane = (reader = app.active), wrong = (error) => say(`${chosen.name} cannot be shown: ${error.message}`);
    if (chosen.size > LARGEST) return wrong(new Error(`it has ${chosen.size >> 20} MiB, at most ${LARGEST >> 20} are shown`));
    reading.run(() => chosen.text(), (text) => {
      try {
        (chosen.name.endsWith(".csv") ? columns : regions)(pane, text, chosen.name);
      } catch (error) {
        wrong(error);
      }
    }, wrong);
  }

  function regions(pane, text, name) {
    const shapes = shapesOf(JSON.parse(text), app.told.palette);
    if (!shapes.length) throw new Error("it holds no regions");
    pane.brought = shapes;
    pane.repaint();
    say(`${count(shapes.length)} regions of ${name} are shown`);
  }

  function columns(pane, text, name) {
    const [titles, ...rows] = readCsv(text), tiles = tilesOf(titles, rows, pane), found = tiles.filter((tile) => tile >= 0).length;
    if (!found) throw new Error("no row names a tile of this slide, by y and x or as <slide>_<row>_<col>");
    const made = [];
    for (const [at, title] of titles.entries()) {
      if (!title || OURS.includes(title)) continue;
      const key = `csv: ${title}`;
      pane.own.set(key, Object.assign(layerOf(title, rows.map((row) => row[at] ?? ""), tiles, pane.places.tiles, app.told), { key }));
      pane.facts.layers = [...pane.facts.layers.filter((layer) => layer.key !== key), { key, name: key }];
      made.push(key);
    }
    app.emit("layers", pane);
    if (made.length) pane.lay(made[0]);
    say(`${count(found)} tiles of ${name}: ${made.length} columns`);
  }
}

/** Regions with their colours: those that the file gives, else one a class. */
function shapesOf(told, palette) {
  const features = Array.isArray(told) ? told : told.features ?? [told], classes = new Map(), found = [];
  for (const { geometry, properties } of features) {
    const polygons = geometry?.type === "Polygon" ? [geometry.coordinates] : geometry?.type === "MultiPolygon" ? geometry.coordinates : null;
    if (!polygons) continue;
    const { name = "", color } = properties?.classification ?? {};
    if (!classes.has(name)) classes.set(name, palette[classes.size % palette.length]);
    const colour = Array.isArray(color) ? color.slice(0, 3) : Number.isInteger(color) ? [(color >> 16) & 255, (color >> 8) & 255, color & 255] : classes.get(name);
    found.push({ polygons, colour, class: name, box: bounds(polygons.flat(2)) });
  }
  return found;
}

/** Rows of fields; a field in quotes may hold commas, and quotes twice. */
function readCsv(text) {
  return text.split(/\r?\n/).filter(Boolean).map((line) =>
    Array.from(`${line},`.matchAll(/(?:"((?:[^"]|"")*)"|([^,]*)),/g), ([, quoted, plain]) => (quoted === undefined ? plain : quoted.replaceAll('""', '"'))));
}

/** The tile of each row: by y and x of its top-left, else by the end of its name; -1 for none. */
function tilesOf(titles, rows, { places, facts }) {
  const y = titles.indexOf("y"), x = titles.indexOf("x"), slide = titles.indexOf("slide");
  const at = new Map(Array.from(places.tileY, (top, tile) => [`${top},${places.tileX[tile]}`, tile]));
  return rows.map((row) => {
    if (slide >= 0 && row[slide] !== facts.id) return -1;
    if (y >= 0 && x >= 0) return at.get(`${Number(row[y])},${Number(row[x])}`) ?? -1;
    const [, id, r, c] = /^(.*)_(\d+)_(\d+)$/.exec(row[0]) ?? [];
    return id === facts.id && places.lattice && c < places.cols && r < places.rows ? places.cell[r * places.cols + Number(c)] : -1;
  });
}

function layerOf(title, values, tiles, n, told) {
  const codes = new Uint8Array(n), layer = { key: `csv: ${title}`, kind: "tiles" };
  const numbers = values.map((value) => (value === "" ? NaN : Number(value)));
  const numeric = values.every((value, k) => value === "" || Number.isFinite(numbers[k]) || value.toLowerCase() === "nan");
  if (numeric) {
    const sorted = numbers.filter(Number.isFinite).sort((a, b) => a - b);
    const low = sorted[Math.floor(0.01 * (sorted.length - 1))] ?? 0, high = sorted[Math.ceil(0.99 * (sorted.length - 1))] ?? 1;
    numbers.forEach((value, k) => {
      const place = Math.min(1, Math.max(0, (value - low) / (high - low || 1)));
      if (tiles[k] >= 0 && Number.isFinite(value)) codes[tiles[k]] = 1 + Math.round(place * (STEPS - 1));
    });
    layer.palette = [[0, 0, 0, 0], ...Array.from({ length: STEPS }, (_, k) => [...heat(told.heat, k / (STEPS - 1)), 255])];
    layer.legend = { words: title, entries: [], low, high, bar: told.heat };
  } else {
    const names = [...new Set(values.filter(Boolean))].slice(0, STEPS), order = new Map(names.map((name, k) => [name, k + 1]));
    values.forEach((value, k) => tiles[k] >= 0 && (codes[tiles[k]] = order.get(value) ?? 0));
    const counts = new Array(names.length + 1).fill(0);
    for (const code of codes) counts[code]++;
    layer.palette = [[0, 0, 0, 0], ...names.map((_, k) => [...told.palette[k % told.palette.length], 255])];
    layer.legend = { words: title, low: null, high: null, bar: null, entries: names.map((name, k) => ({ colour: told.palette[k % told.palette.length], words: `${name} ${count(counts[k + 1])}` })) };
  }
  coded(layer, codes);
  return layer;
}

function heat(stops, place) {
  const at = place * (stops.length - 1), k = Math.min(stops.length - 2, Math.floor(at));
  return stops[k].map((low, channel) => Math.round(low + (at - k) * (stops[k + 1][channel] - low)));
}
