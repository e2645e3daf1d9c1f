// Neighbours: the tiles most like the marked one, of this slide and of the others of its output; each leads to its place.

import { byId, count, getPacked, make } from "./dom.js";
import { Latest } from "./latest.js";

const SHOWN = 12;

export function startSimilar(app) {
  const panel = byId("similar");
  const told = make("p", {}, "Click a tile of the slide: the ones most like it stand here.");
  const own = make("div", { class: "tiles" }), others = make("div", { class: "tiles" });
  const ownTitle = make("h2", { hidden: true }, "on this slide"), othersTitle = make("h2", { hidden: true }, "on the other slides");
  panel.append(told, ownTitle, own, othersTitle, others);
  const asked = new Latest();

  const card = (pane, number, { tile, cosine }) => {
    const id = pane.output.slides.find((slide) => slide.number === number).id;
    return make("button", { title: `${id}, tile ${count(tile)}`, "data-slide": number, "data-tile": tile, onclick: () => app.follow(pane, number, tile) },
      make("img", { src: `crops/${number}/${tile}.jpg`, alt: `tile ${tile} of ${id}` }), cosine.toFixed(3));
  };

  app.follow = (pane, number, tile) => {
    app.activate(pane);
    if (number !== pane.number) return app.showSlide(pane, number, { tile, key: "similarity" });
    pane.goTile(tile);
    if (pane.key === "similarity") return app.ask(pane, tile); // its layer is that of the marked tile
    pane.mark(tile);
  };

  async function show(pane) {
    const { number, marked, layer } = pane;
    told.textContent = `Tile ${count(marked)} of ${pane.facts.id} and the ones most like it; numbers are cosines.`;
    ownTitle.hidden = false;
    own.replaceChildren(...layer.nearest.map((each) => card(pane, number, each)));
    others.replaceChildren();
    othersTitle.hidden = true;
    let best = [];
    for (const slide of pane.output.slides) {
      if (slide.number === number) continue;
      const query = new URLSearchParams({ key: "similarity", of: number, tile: marked });
      const ask = (signal) => getPacked(`slides/${slide.number}/layer?${query}`, { signal }).catch(() => null); // a slide of another encoder has none
      const taken = await asked.run(ask, (found) => {
        best = [...best, ...(found?.head.nearest ?? []).map((each) => ({ ...each, number: slide.number }))].sort((a, b) => b.cosine - a.cosine).slice(0, SHOWN);
        othersTitle.hidden = !best.length;
        others.replaceChildren(...best.map((each) => card(pane, each.number, each)));
      });
      if (!taken) return;
    }
  }

  app.on("layer active slide", (pane) => {
    if (pane !== app.active) return;
    asked.stop();
    if (pane.key === "similarity" && pane.layer) show(pane);
  });
  app.on("nearest", (pane) => pane === app.active && !app.tab && window.innerWidth > 1000 && app.panes.length === 1 && app.setTab("similar"));
}
