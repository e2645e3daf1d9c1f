// The bar: zoom, magnification, pointer tools, one view for all panes, the side panel; and the hint.

import { byId, make } from "./dom.js";

const HINT = "Click a tile to see the ones like it. Drag moves, the wheel zooms; Panel has layers, scatter and drawing; ? shows keys.";

export function startTools(app) {
  const zoom = (factor) => () => app.active.osd.viewport?.zoomBy(factor).applyConstraints();
  app.zoomIn = zoom(1.5);
  app.zoomOut = zoom(1 / 1.5);
  app.home = () => app.active.go(null);
  byId("in").onclick = app.zoomIn;
  byId("out").onclick = app.zoomOut;
  byId("home").onclick = app.home;
  for (const button of document.querySelectorAll(".power")) {
    button.onclick = () => {
      const mpp = app.active.facts?.mpp, view = app.active.looking();
      if (mpp && view) app.active.go({ ...view, z: 10 / Number(button.dataset.power) / mpp });
    };
  }
  app.setTool = (tool) => {
    app.tool = tool;
    for (const button of document.querySelectorAll(".tool")) button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
    for (const pane of app.panes) {
      pane.glass.hidden = tool === "move";
      pane.line = null;
      pane.repaint();
    }
    app.emit("tool");
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.(".tool");
    if (button) app.setTool(button.dataset.tool);
  });
  startPanel(app);
  startLinks(app);
  const hint = make("div", { class: "chip hint" }, HINT);
  app.panes[0].element.append(hint);
  app.on("mark tab select layer", (pane) => (pane.layer || pane.marked >= 0 || app.tab || pane.selected.length) && hint.remove());
  byId("help").onclick = () => byId("keys").showModal();
}

function startPanel(app) {
  const side = byId("side"), fold = byId("fold"), tabs = [...document.querySelectorAll("[role=tab]")];
  let last = "layers";
  app.setTab = (name) => {
    if (name === app.tab) return;
    app.tab = name;
    last = name || last;
    side.hidden = !name;
    fold.setAttribute("aria-expanded", String(Boolean(name)));
    for (const tab of tabs) {
      const on = tab.id === `tab-${last}`;
      tab.setAttribute("aria-selected", String(on));
      tab.tabIndex = on ? 0 : -1;
      byId(tab.getAttribute("aria-controls")).hidden = !on;
    }
    app.emit("tab");
  };
  app.foldPanel = () => app.setTab(app.tab ? "" : last);
  fold.onclick = app.foldPanel;
  for (const [k, tab] of tabs.entries()) {
    tab.onclick = () => app.setTab(tab.id.slice(4));
    tab.onkeydown = (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      event.stopPropagation();
      const next = tabs[(k + step + tabs.length) % tabs.length];
      next.click();
      next.focus();
    };
  }
  const tell = () => (byId("whose").textContent = app.panes.length > 1 ? `${app.active.output.name}: ${app.active.facts?.id ?? ""}` : "");
  app.on("active slide tab", tell);
}

function startLinks(app) {
  byId("linkbox").hidden = app.panes.length < 2;
  byId("linked").onchange = (event) => {
    app.linked = event.target.checked;
    if (app.linked) app.moved(app.active);
    app.emit("linked");
  };
  app.setLinked = (on) => (byId("linked").checked = app.linked = on);
}
