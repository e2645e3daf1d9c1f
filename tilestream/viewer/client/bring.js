// GeoJSON of others, shown over the slide: regions of QuPath, objects, what was exported from here.

import { byId, make, say } from "./dom.js";
import { bounds } from "./places.js";

const LARGEST = 64 * 2 ** 20;
const COLOURS = [[230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178], [213, 94, 0], [204, 121, 167]];

export function startBring(app) {
  const file = make("input", { type: "file", accept: ".geojson,.json", "aria-label": "GeoJSON to show", onchange: () => bring(file.files[0]) });
  byId("layers").append(make("fieldset", {}, make("legend", {}, "GeoJSON of others"), file));

  async function bring(chosen) {
    if (!chosen) return;
    try {
      if (chosen.size > LARGEST) throw new Error(`it has ${chosen.size >> 20} MiB, at most ${LARGEST >> 20} are shown`);
      const shapes = shapesOf(JSON.parse(await chosen.text()));
      if (!shapes.length) throw new Error("it holds no regions");
      app.active.brought = shapes;
      app.active.repaint();
      say(`${shapes.length} regions of ${chosen.name} are shown`);
    } catch (error) {
      say(`${chosen.name} cannot be shown: ${error.message}`);
    }
  }
}

/** Regions with their colours: those that the file gives, else one a class. */
export function shapesOf(told) {
  const features = Array.isArray(told) ? told : told.features ?? [told], classes = new Map(), found = [];
  for (const { geometry, properties } of features) {
    const polygons = geometry?.type === "Polygon" ? [geometry.coordinates] : geometry?.type === "MultiPolygon" ? geometry.coordinates : null;
    if (!polygons) continue;
    const { name = "", color } = properties?.classification ?? {};
    if (!classes.has(name)) classes.set(name, COLOURS[classes.size % COLOURS.length]);
    const colour = Array.isArray(color) ? color.slice(0, 3) : Number.isInteger(color) ? [(color >> 16) & 255, (color >> 8) & 255, color & 255] : classes.get(name);
    found.push({ polygons, colour, class: name, box: bounds(polygons.flat(2)) });
  }
  return found;
}
