// Where tiles lie: the cells that the server tells, which tile is under a place, which are inside a line, and their outlines.

export class Places {
  constructor({ head, data, start }) {
    Object.assign(this, head); // y, x, height, width of the cells in level-0 px; rows, cols, tiles, lattice
    this.cell = new Int32Array(data, start, this.rows * this.cols);
    this.tileY = new Int32Array(data, start + this.cell.byteLength, this.tiles);
    this.tileX = new Int32Array(data, start + this.cell.byteLength + this.tileY.byteLength, this.tiles);
    this.status = new Int8Array(data, start + this.cell.byteLength + 2 * this.tileY.byteLength, this.tiles);
    this.cellHeight = this.height / this.rows;
    this.cellWidth = this.width / this.cols;
    this.grid = this.runs((a, b) => a >= 0 || b >= 0);
    this.border = this.runs((a, b) => a >= 0 !== b >= 0);
  }

  /** The tile at a place, -1 where there is none. */
  at(y, x) {
    const row = Math.floor((y - this.y) / this.cellHeight), col = Math.floor((x - this.x) / this.cellWidth);
    return row < 0 || col < 0 || row >= this.rows || col >= this.cols ? -1 : this.cell[row * this.cols + col];
  }

  /** Lines between cells for which `drawn(one, other)`, neighbours joined: y0, x0, y1, x1 of each, level-0 px. */
  runs(drawn) {
    const found = [], { rows, cols, cell } = this;
    const get = (row, col) => (row < 0 || col < 0 || row >= rows || col >= cols ? -1 : cell[row * cols + col]);
    const sweep = (lines, length, pair, add) => {
      for (let line = 0; line <= lines; line++) {
        let from = -1;
        for (let at = 0; at <= length; at++) {
          const on = at < length && drawn(...pair(line, at));
          if (on && from < 0) from = at;
          if (!on && from >= 0) add(line, from, at), (from = -1);
        }
      }
    };
    const y = (row) => this.y + row * this.cellHeight, x = (col) => this.x + col * this.cellWidth;
    sweep(rows, cols, (line, at) => [get(line - 1, at), get(line, at)], (line, from, to) => found.push(y(line), x(from), y(line), x(to)));
    sweep(cols, rows, (line, at) => [get(at, line - 1), get(at, line)], (line, from, to) => found.push(y(from), x(line), y(to), x(line)));
    return new Float64Array(found);
  }

  /** Tiles whose centres lie inside a closed line of [x, y] in level-0 px. */
  inside(line, extent) {
    const found = [], half = extent / 2;
    const [left, top, right, bottom] = bounds(line);
    for (let tile = 0; tile < this.tiles; tile++) {
      const y = this.tileY[tile] + half, x = this.tileX[tile] + half;
      if (x >= left && x <= right && y >= top && y <= bottom && isInside(line, x, y)) found.push(tile);
    }
    return found;
  }

  /** A picture of one px a cell, of 32-bit colours by tile. */
  picture(colours) {
    const canvas = new OffscreenCanvas(this.cols, this.rows), image = new ImageData(this.cols, this.rows);
    const out = new Uint32Array(image.data.buffer);
    for (let k = 0; k < out.length; k++) if (this.cell[k] >= 0) out[k] = colours(this.cell[k]);
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas;
  }
}

export function bounds(line) {
  let left = Infinity, top = Infinity, right = -Infinity, bottom = -Infinity;
  for (const [x, y] of line) {
    left = Math.min(left, x), right = Math.max(right, x), top = Math.min(top, y), bottom = Math.max(bottom, y);
  }
  return [left, top, right, bottom];
}

/** Whether a place is inside a closed line, by crossings. */
export function isInside(line, x, y) {
  let inside = false;
  for (let k = 0, before = line.length - 1; k < line.length; before = k++) {
    const [x0, y0] = line[k], [x1, y1] = line[before];
    if (y0 > y !== y1 > y && x < ((x1 - x0) * (y - y0)) / (y1 - y0) + x0) inside = !inside;
  }
  return inside;
}
