// What lies over a slide, drawn at every move: layer, outlines, selection, marks, regions, and the line that is being drawn.

const DARK = "rgba(0,0,0,.6)", LIGHT = "#6fe3ff", MARK = "#ffe600", LIT = "#00f0ff";
const SMALLEST_CELL = 6; // px a side from which each tile has its outline; below, all together have one

/** Draw everything of a pane on its canvas. */
export function paint(pane) {
  const { canvas, width, height } = pane, fine = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * fine) || canvas.height !== Math.round(height * fine)) {
    canvas.width = Math.round(width * fine);
    canvas.height = Math.round(height * fine);
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(fine, 0, 0, fine, 0, 0);
  pen.clearRect(0, 0, width, height);
  const see = pane.view();
  if (!see || !pane.places) return;
  layPicture(pen, see, pane.layer?.picture, pane.layer?.extent, pane.opacity);
  layPicture(pen, see, pane.lit, pane.places, 0.7);
  if (pane.outlines) outline(pen, see, pane);
  for (const shapes of pane.shapes) regions(pen, see, shapes);
  if (pane.hovered >= 0) square(pen, see, pane, pane.hovered, "#fff", 1.5);
  if (pane.marked >= 0) square(pen, see, pane, pane.marked, MARK, 3);
  if (pane.line) sketch(pen, see, pane.line);
}

function layPicture(pen, see, picture, extent, opacity) {
  if (!picture) return;
  pen.imageSmoothingEnabled = false;
  pen.globalAlpha = opacity;
  pen.drawImage(picture, see.x(extent.x), see.y(extent.y), extent.width * see.scale, extent.height * see.scale);
  pen.globalAlpha = 1;
}

/** Twice, dark and light, so that lines are seen on every slide. */
function twice(pen, path, colour, width) {
  pen.lineJoin = "round";
  pen.lineWidth = width + 2;
  pen.strokeStyle = DARK;
  pen.stroke(path);
  pen.lineWidth = width;
  pen.strokeStyle = colour;
  pen.stroke(path);
}

/** Lines on whole pixels, as rectangles: a path of as many lines takes longer where no GPU draws it. */
function outline(pen, see, pane) {
  const { places } = pane, rectangles = [];
  const lines = places.lattice && Math.min(places.cellHeight, places.cellWidth) * see.scale >= SMALLEST_CELL ? places.grid : places.border;
  const { top, left, bottom, right } = see;
  for (let k = 0; k < lines.length; k += 4) {
    const y0 = lines[k], x0 = lines[k + 1], y1 = lines[k + 2], x1 = lines[k + 3];
    if (y1 < top || y0 > bottom || x1 < left || x0 > right) continue;
    const x = Math.round(see.x(Math.max(x0, left - 9))), y = Math.round(see.y(Math.max(y0, top - 9)));
    rectangles.push([x, y, Math.round(see.x(Math.min(x1, right + 9))) - x, Math.round(see.y(Math.min(y1, bottom + 9))) - y]);
  }
  const fill = (colour, around) => {
    pen.fillStyle = colour;
    for (const [x, y, width, height] of rectangles) pen.fillRect(x - around, y - around, width + 1 + 2 * around, height + 1 + 2 * around);
  };
  if (pane.layer?.picture) return fill("rgba(0,0,0,.35)", 0); // colours matter more than outlines
  fill(DARK, 1);
  fill(LIGHT, 0);
}

function square(pen, see, pane, tile, colour, width) {
  const path = new Path2D(), side = pane.facts.l0_extent * see.scale;
  path.rect(see.x(pane.places.tileX[tile]), see.y(pane.places.tileY[tile]), side, side);
  twice(pen, path, colour, width);
}

function regions(pen, see, shapes) {
  for (const { polygons, box, colour } of shapes) {
    if (box[0] > see.right || box[2] < see.left || box[1] > see.bottom || box[3] < see.top) continue;
    const path = new Path2D();
    for (const rings of polygons) for (const ring of rings) trace(path, see, ring, true);
    pen.fillStyle = `rgba(${colour.join()},.28)`;
    pen.fill(path, "evenodd");
    twice(pen, path, `rgb(${colour.join()})`, 2);
  }
}

function trace(path, see, ring, closed) {
  ring.forEach(([x, y], k) => (k ? path.lineTo(see.x(x), see.y(y)) : path.moveTo(see.x(x), see.y(y))));
  if (closed) path.closePath();
}

function sketch(pen, see, { points, closed, radius, colour }) {
  if (!points.length) return;
  const path = new Path2D();
  if (radius) {
    const [x, y] = points[points.length - 1];
    pen.lineCap = pen.lineJoin = "round";
    pen.lineWidth = 2 * radius * see.scale;
    pen.strokeStyle = `rgba(${(colour ?? [255, 230, 0]).join()},.4)`;
    trace(path, see, points.length > 1 ? points : [points[0], [points[0][0] + 0.01, points[0][1]]], false);
    pen.stroke(path);
    const ring = new Path2D();
    ring.arc(see.x(x), see.y(y), radius * see.scale, 0, 7);
    return twice(pen, ring, "#fff", 1);
  }
  trace(path, see, points, closed);
  twice(pen, path, colour ? `rgb(${colour.join()})` : MARK, 2);
  if (!closed) for (const [x, y] of points.length < 60 ? points : []) pen.fillStyle = "#fff", pen.fillRect(see.x(x) - 2, see.y(y) - 2, 5, 5);
}

/** A picture that lights up tiles. */
export function litPicture(places, tiles) {
  if (!tiles.length) return null;
  const lit = new Uint8Array(places.tiles);
  for (const tile of tiles) lit[tile] = 1;
  return places.picture((tile) => (lit[tile] ? 0xfffff000 : 0));
}

export { LIT, MARK };
