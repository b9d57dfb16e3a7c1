// Charts of steps as SVG: stacked bars and curves over the same horizontal axis, one place for each step.

import { html, svg } from "./dom.js";

const LEFT = 52, RIGHT = 12, TOP = 12, BOTTOM = 22;
const HEIGHT = 190;

/** Round values from 0 to about `top`. */
export function ticks(top, wanted = 4) {
  const raw = top / wanted;
  const scale = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * scale).find((s) => s >= raw * 0.999);
  return Array.from({ length: Math.floor(top / step + 1e-9) + 1 }, (_, i) => i * step);
}

/**
 * One chart of `steps`. `spec`:
 *   bars: [{color, value(step)}], stacked; curves: [{color, value(step), dashed, area}]; `value` may be null.
 *   marks: [{value, text}], lines across; format(value) of the axis; top: end of the axis if it is fixed.
 * `label` is what a screen reader says of it.
 */
export function stepChart(steps, spec, width, label) {
  const bars = spec.bars ?? [], curves = spec.curves ?? [], marks = spec.marks ?? [];
  const stacked = steps.map((step) => bars.reduce((total, bar) => total + bar.value(step), 0));
  const values = curves.flatMap((curve) => steps.map(curve.value)).filter((value) => value !== null);
  const top = spec.top ?? (Math.max(...stacked, ...values, ...marks.map((mark) => mark.value), 0) * 1.06 || 1);
  const slot = (width - LEFT - RIGHT) / steps.length;
  const x = (i) => LEFT + (i + 0.5) * slot;
  const y = (value) => HEIGHT - BOTTOM - (Math.min(value, top) / top) * (HEIGHT - TOP - BOTTOM);
  const picture = svg("svg", { class: "chart", role: "img", "aria-label": label, viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT });

  for (const value of ticks(top)) {
    picture.append(
      svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }),
      svg("text", { x: LEFT - 7, y: y(value) + 4, "text-anchor": "end" }, spec.format(value)),
    );
  }
  for (const i of steps.length > 1 ? [0, Math.floor((steps.length - 1) / 2), steps.length - 1] : [0]) {
    const anchor = steps.length === 1 ? "middle" : i === 0 ? "start" : i === steps.length - 1 ? "end" : "middle";
    const at = anchor === "start" ? LEFT : anchor === "end" ? width - RIGHT : x(i);
    picture.append(svg("text", { x: at, y: HEIGHT - 6, "text-anchor": anchor }, `step ${steps[i].number}`));
  }

  const base = steps.map(() => 0);
  for (const bar of bars) {
    let path = "";
    const gap = slot > 4 ? 1 : 0;
    steps.forEach((step, i) => {
      const value = bar.value(step);
      if (value > 0) path += `M${round(x(i) - slot / 2 + gap / 2)} ${round(y(base[i]))}V${round(y(base[i] + value))}h${round(slot - gap)}V${round(y(base[i]))}z`;
      base[i] += value;
    });
    picture.append(svg("path", { class: `bar ${bar.color}`, d: path }));
  }
  for (const curve of curves) picture.append(...drawCurve(curve, steps, x, y));
  for (const mark of marks) {
    picture.append(
      svg("line", { class: "mark", x1: LEFT, x2: width - RIGHT, y1: y(mark.value), y2: y(mark.value) }),
      svg("text", { class: "note", x: width - RIGHT - 2, y: y(mark.value) - 5, "text-anchor": "end" }, mark.text),
    );
  }
  return picture;
}

const round = (value) => Math.round(value * 100) / 100;

/** A curve with gaps where nothing is known; a lonely value is a dot. */
function drawCurve(curve, steps, x, y) {
  const pieces = [[]];
  steps.forEach((step, i) => {
    const value = curve.value(step);
    if (value === null) pieces.push([]);
    else pieces.at(-1).push([round(x(i)), round(y(value))]);
  });
  return pieces.filter((piece) => piece.length).flatMap((piece) => {
    if (piece.length === 1) return [svg("circle", { class: `dot ${curve.color}`, cx: piece[0][0], cy: piece[0][1], r: 2.5 })];
    const line = `M${piece.map((point) => point.join(" ")).join("L")}`;
    const drawn = [svg("path", { class: `curve ${curve.color}${curve.dashed ? " dashed" : ""}`, d: line })];
    if (curve.area) drawn.unshift(svg("path", { class: `area ${curve.color}`, d: `${line}L${piece.at(-1)[0]} ${y(0)}L${piece[0][0]} ${y(0)}z` }));
    return drawn;
  });
}

/** Marks the step at place `i` in a chart of `n` steps; null takes the mark away. */
export function pointAt(picture, i, n) {
  picture.querySelector(".chosen")?.remove();
  if (i === null) return;
  const width = Number(picture.getAttribute("width"));
  const slot = (width - LEFT - RIGHT) / n;
  picture.append(svg("rect", { class: "chosen", x: LEFT + i * slot, y: TOP, width: Math.max(slot, 1), height: HEIGHT - TOP - BOTTOM }));
}

/** The place of a step under a pointer, or null beside the axis. */
export function placeUnder(picture, event, n) {
  const box = picture.getBoundingClientRect();
  const share = (event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT);
  return share >= 0 && share < 1 ? Math.floor(share * n) : null;
}

/** What the colours mean. `entries`: [[class, words]]. */
export const legend = (entries) =>
  html("p", { class: "key" }, ...entries.map(([color, words]) => html("span", {}, html("i", { class: color, "aria-hidden": "true" }), words)));

/** A table. `heads` and `rows` hold texts; the first column names its row. */
export const table = (caption, heads, rows) =>
  html(
    "div",
    { class: "scroll", tabindex: "0", role: "group", "aria-label": caption },
    html(
      "table",
      {},
      html("caption", {}, caption),
      html("thead", {}, html("tr", {}, ...heads.map((head) => html("th", { scope: "col" }, head)))),
      html("tbody", {}, ...rows.map((cells) => html("tr", {}, ...cells.map((cell, i) => html(i ? "td" : "th", i ? {} : { scope: "row" }, cell))))),
    ),
  );
