// What keys do, where nobody writes.

import { byId } from "./dom.js";

const STEP = 0.2; // of the window, for an arrow

export function startKeys(app) {
  const pan = (x, y) => () => {
    const bounds = app.active.osd.viewport.getBounds();
    app.active.osd.viewport.panBy(new OpenSeadragon.Point(x * STEP * bounds.width, y * STEP * bounds.height)).applyConstraints();
  };
  const keys = {
    "+": app.zoomIn, "=": app.zoomIn, "-": app.zoomOut, _: app.zoomOut, Home: app.home,
    ArrowLeft: pan(-1, 0), ArrowRight: pan(1, 0), ArrowUp: pan(0, -1), ArrowDown: pan(0, 1),
    v: () => app.setTool("move"), l: () => app.setTool("lasso"), b: () => app.setTool("box"),
    o: () => app.setOutlines(!app.active.outlines), p: () => app.foldPanel(), "?": () => byId("keys").showModal(), Escape: () => escape(app),
    0: () => app.chooseLayer(""),
  };
  for (let digit = 1; digit < 10; digit++) keys[digit] = () => app.chooseLayer(app.active.facts?.layers?.[digit - 1]?.key);
  document.addEventListener("keydown", (event) => {
    const writes = event.target.closest?.("input:not([type=checkbox]):not([type=radio]), select, textarea, dialog[open]");
    const moves = event.target.closest?.("input[type=radio]") && event.key.startsWith("Arrow");
    if (event.ctrlKey || event.metaKey || event.altKey || ((writes || moves) && event.key !== "Escape") || byId("keys").open) return;
    const act = keys[event.key] ?? keys[event.key.toLowerCase()];
    if (!act || !app.active.facts?.width) return;
    event.preventDefault();
    act();
  });
}

/** One thing at a time: the line that is drawn, the tool, the selection, the mark. */
function escape(app) {
  const pane = app.active;
  if (pane.line) pane.line = null, app.emit("dropped"), pane.repaint();
  else if (app.tool !== "move") app.setTool("move");
  else if (pane.selected.length) pane.select([]);
  else if (pane.marked >= 0) {
    pane.mark(-1);
    if (pane.key === "similarity") pane.lay("");
  }
}
