// A layer as the server tells it: codes of tiles with a palette, colours of tiles, a picture, or a head whose answers come tile by tile.

/** What lies over a slide: `picture` at `extent`, `colour(places, hidden)` which makes it, `css(tile)` for the scatter. */
export async function readLayer({ head, data, start }) {
  const layer = { ...head };
  if (head.kind === "picture") {
    layer.picture = await createImageBitmap(new Blob([new Uint8Array(data, start)], { type: "image/png" }));
    layer.extent = head;
  }
  if (head.kind !== "tiles") return layer;
  if (head.palette.length) coded(layer, new Uint8Array(data, start, head.tiles));
  else {
    const rgba = new Uint32Array(data, start, head.tiles);
    layer.colour = (places) => lay(layer, places, (tile) => rgba[tile]);
    layer.css = (tile) => `rgb(${rgba[tile] & 255},${(rgba[tile] >> 8) & 255},${(rgba[tile] >> 16) & 255})`;
  }
  return layer;
}

function lay(layer, places, colours) {
  layer.extent = places;
  layer.picture = places && places.tiles ? places.picture(colours) : null;
}

/** A layer of codes of tiles, with its palette and legend. */
export function coded(layer, codes) {
  const words = layer.palette.map(([r, g, b]) => `rgb(${r},${g},${b})`);
  layer.codes = codes;
  layer.colour = (places, hidden) => {
    const colours = new Uint32Array(layer.palette.map(([r, g, b, a], code) => (hidden.has(code) ? 0 : (a << 24) | (b << 16) | (g << 8) | r)));
    lay(layer, places, (tile) => colours[codes[tile]]);
  };
  layer.css = (tile) => (codes[tile] ? words[codes[tile]] : "#8e98a4");
  layer.words = (tile) => {
    const { low, high, entries } = layer.legend, code = codes[tile];
    if (!code) return "";
    return low === null ? entries[code - 1]?.words.replace(/ [\d,.%]+$/, "") : (low + ((code - 1) / (layer.palette.length - 2)) * (high - low)).toPrecision(3);
  };
}
