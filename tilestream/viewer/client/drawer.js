// How tiles of the zoom are drawn: from edge to edge on whole pixels of the screen. At the scale of a level they are copied as they are, sharp and without a filter.

export class EdgeDrawer extends OpenSeadragon.CanvasDrawer {
  /** Edges that two tiles share are rounded alike: no seam has to be covered. */
  minimumOverlapRequired() {
    return false;
  }

  _drawTile(tile, ...more) {
    const fine = OpenSeadragon.pixelDensityRatio, { position, size } = tile;
    const whole = (edge) => Math.round(edge * fine) / fine, left = whole(position.x), top = whole(position.y);
    tile.size = new OpenSeadragon.Point(whole(position.x + size.x) - left, whole(position.y + size.y) - top);
    tile.position = new OpenSeadragon.Point(left, top);
    super._drawTile(tile, ...more);
  }
}
