// Which experts work: a map of layers and experts, and its message in a sentence.

import { html, svg } from "./dom.js";
import { plural, short, sum } from "./numbers.js";
import { legend, table } from "./charts.js";

const LEFT = 52, RIGHT = 12, BOTTOM = 34;

/** Positions that each expert computed over `steps`, [layers][experts]; empty for a model without experts. */
export function loads(steps) {
  const total = [];
  for (const { experts } of steps) {
    experts.forEach((layer, l) => {
      total[l] ??= layer.map(() => 0);
      layer.forEach((positions, e) => (total[l][e] += positions));
    });
  }
  return total.filter((layer) => layer.length > 1 && sum(layer) > 0);
}

/** The share of its layer's load that each expert took. */
const shares = (loads) => loads.map((layer) => layer.map((positions) => positions / sum(layer)));

const times = (share, n) => `${short(share * n)} x even`;

/** In words: the hottest expert, how uneven layers are, and who got nothing. */
export function hottest(loads) {
  const cells = shares(loads).flatMap((layer, l) => layer.map((share, e) => ({ l, e, share, n: layer.length })));
  const hot = cells.reduce((a, b) => (b.share * b.n > a.share * a.n ? b : a));
  const idle = cells.filter((cell) => cell.share === 0).length;
  const most = sum(shares(loads).map((layer) => Math.max(...layer) * layer.length)) / loads.length;
  return (
    `Hottest: expert ${hot.e} of layer ${hot.l} with ${short(100 * hot.share)} % of its layer, ${times(hot.share, hot.n)}. ` +
    `The busiest expert of a layer has ${short(most)} x an even share on average. ` +
    (idle ? `${plural(idle, "expert")} of ${cells.length} got nothing.` : "No expert is idle.")
  );
}

/** Cells around an even share: stronger is further from it. */
export function heatMap(loads, width, label) {
  const rows = loads.length, columns = Math.max(...loads.map((layer) => layer.length));
  const cell = (width - LEFT - RIGHT) / columns;
  const side = Math.min(60, Math.max(6, 360 / rows));
  const height = Math.round(rows * side) + BOTTOM;
  const picture = svg("svg", { class: "chart heat", role: "img", "aria-label": label, viewBox: `0 0 ${width} ${height}`, width, height });
  const every = Math.ceil(14 / side);
  shares(loads).forEach((layer, l) => {
    const y = l * side;
    if (l % every === 0) picture.append(svg("text", { x: LEFT - 7, y: y + side / 2 + 4, "text-anchor": "end" }, String(l)));
    layer.forEach((share, e) => {
      const ratio = share * layer.length;
      const strength = ratio > 1 ? Math.min(1, (ratio - 1) / 1.5) : 1 - ratio;
      const title = `layer ${l}, expert ${e}: ${short(100 * share)} % of the layer, ${times(share, layer.length)}, ${plural(loads[l][e], "position")}`;
      picture.append(
        svg(
          "rect",
          { class: ratio > 1 ? "over" : "under", "fill-opacity": (0.06 + 0.94 * strength).toFixed(2), x: LEFT + e * cell, y, width: Math.max(0.5, cell - (columns <= 64 ? 1.5 : 0)), height: side - (side > 8 ? 1.5 : 0.5) },
          svg("title", {}, title),
        ),
      );
      if (cell > 28 && side >= 15) {
        picture.append(svg("text", { class: "value", x: LEFT + (e + 0.5) * cell, y: y + side / 2 + 3.5, "text-anchor": "middle", "aria-hidden": "true" }, (100 * share).toFixed(share < 0.0995 ? 1 : 0)));
      }
    });
  });
  const between = Math.ceil(22 / cell);
  for (let e = 0; e < columns; e += between) {
    picture.append(svg("text", { x: LEFT + (e + 0.5) * cell, y: height - BOTTOM + 14, "text-anchor": "middle" }, String(e)));
  }
  picture.append(
    svg("text", { x: LEFT + (width - LEFT - RIGHT) / 2, y: height - 4, "text-anchor": "middle" }, "expert; per cent of its layer's load"),
    svg("text", { x: 0, y: 0, "text-anchor": "middle", transform: `translate(12 ${(height - BOTTOM) / 2}) rotate(-90)` }, "layer"),
  );
  return picture;
}

/** The panel's content. */
export function expertsPanel(steps, width) {
  const found = loads(steps);
  if (!found.length) return [html("p", { class: "soft" }, "No expert worked in these steps: the model is dense, or nothing was computed.")];
  const words = hottest(found);
  return [
    legend([["under", "less than even"], ["over", "more than even"]]),
    heatMap(found, width, `Load of experts. ${words}`),
    html("p", { class: "summary" }, words),
  ];
}

export function expertsTable(steps) {
  const found = loads(steps);
  if (!found.length) return null;
  const experts = found[0].map((_, e) => `${e}`);
  return table("Load of experts, per cent of the layer", ["Layer", ...experts], shares(found).map((layer, l) => [`${l}`, ...layer.map((share) => short(100 * share))]));
}
