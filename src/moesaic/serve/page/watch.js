// The live view: polls the engine's steps while it is seen, and draws them.

import { live } from "./api.js";
import { placeUnder, pointAt } from "./charts.js";
import { find, html } from "./dom.js";
import { PANELS, describe, facts, tables, tiles } from "./panels.js";

const EVERY_MS = 500, AFTER_AN_ERROR_MS = 2000, IDLE_AFTER_MS = 1500, KEPT = 600;

const state = { steps: [], info: null, error: "", shown: false, paused: false, chosen: null, tables: false, lastNew: -Infinity, drawn: "" };
let timer = null, waiting = null;

export function startLive() {
  find("pause").addEventListener("click", () => {
    state.paused = pressed("pause", state.paused);
    schedule(0);
    draw(true);
  });
  find("tables").addEventListener("click", () => {
    state.tables = pressed("tables", state.tables);
    draw(true);
  });
  find("window").addEventListener("change", () => draw(true));
  find("pick").addEventListener("input", () => {
    const steps = seen();
    const i = Number(find("pick").value);
    choose(i >= steps.length - 1 ? null : steps[i].number);
  });
  document.addEventListener("visibilitychange", () => schedule(0));
  new ResizeObserver(() => draw(true)).observe(find("panels"));
  const panels = find("panels");
  panels.addEventListener("pointermove", (event) => {
    const picture = event.target.closest?.("svg.chart:not(.heat)");
    const steps = seen();
    const i = picture ? placeUnder(picture, event, steps.length) : null;
    if (i !== null && steps[i]) choose(steps[i].number);
  });
  panels.addEventListener("pointerleave", () => choose(null));
}

function pressed(id, before) {
  find(id).setAttribute("aria-pressed", String(!before));
  return !before;
}

/** Called when the view appears or goes away. */
export function showLive(shown) {
  state.shown = shown;
  schedule(0);
  if (shown) draw(true);
}

function schedule(delay) {
  clearTimeout(timer);
  timer = null;
  if (!state.shown || document.hidden || state.paused) {
    waiting?.abort();
    return;
  }
  if (!waiting) timer = setTimeout(poll, delay);
}

async function poll() {
  waiting = new AbortController();
  let delay = EVERY_MS;
  try {
    take(await live(state.steps.at(-1)?.number ?? -1, waiting.signal));
    state.error = "";
  } catch (error) {
    if (error.name !== "AbortError") {
      state.error = error.message;
      delay = AFTER_AN_ERROR_MS;
    }
  }
  waiting = null;
  draw();
  schedule(delay);
}

function take(found) {
  const before = state.info?.totals;
  if (before && found.totals.seconds < before.seconds) state.steps = []; // the server was started anew
  const last = state.steps.at(-1)?.number ?? -1;
  const fresh = found.steps.filter((step) => step.number > last);
  const past = state.info ? 0 : Date.now() / 1000 - (fresh.at(-1)?.at ?? 0); // the first answer brings old steps too
  if (fresh.length) state.lastNew = performance.now() - 1000 * Math.max(0, past);
  state.steps = [...state.steps, ...fresh].slice(-KEPT);
  state.info = found;
}

const seen = () => state.steps.slice(-Number(find("window").value));

const idle = () => performance.now() - state.lastNew > IDLE_AFTER_MS;

function sayState() {
  const line = find("live-state");
  let text = "connecting…", kind = "";
  if (state.error) [text, kind] = [state.error, "bad"];
  else if (state.paused) text = "paused";
  else if (state.info && !state.steps.length) text = "idle";
  else if (state.info) [text, kind] = idle() ? [`idle; the last step ended ${ago()}`, ""] : ["working", "good"];
  if (line.textContent !== text) line.textContent = text;
  line.className = `state ${kind}`;
}

function ago() {
  const seconds = Math.max(0, Date.now() / 1000 - state.steps.at(-1).at);
  if (seconds < 60) return seconds < 5 ? "just now" : `${Math.floor(seconds / 5) * 5} s ago`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min ago` : `${Math.round(seconds / 3600)} h ago`;
}

/** Draws what changed since the last time; `anew`: everything. */
function draw(anew = false) {
  if (!state.shown) return;
  sayState();
  if (!state.info) return;
  const steps = seen();
  const view = { steps, info: state.info, idle: idle() };
  find("idle").hidden = steps.length > 0;
  find("picker").hidden = steps.length === 0;
  find("tiles").replaceChildren(...tiles(view).map(([name, value, more]) => html("div", {}, html("dt", {}, name), html("dd", {}, html("b", {}, value), html("span", { class: "soft" }, more)))));
  const name = `${steps.at(-1)?.number} ${steps.length}`;
  if (!anew && name === state.drawn) return;
  state.drawn = name;
  find("facts").replaceChildren(...facts(state.info).map(([title, content]) => panel(title, content)));
  drawSteps(view);
  showChosen();
}

function panel(title, ...content) {
  return html("section", { class: "panel", "aria-label": title }, html("h2", {}, title), ...content);
}

function drawSteps(view) {
  const panels = find("panels");
  panels.classList.toggle("wide", state.tables);
  if (!view.steps.length) panels.replaceChildren();
  else if (state.tables) panels.replaceChildren(...tables(view).map((found) => html("section", { class: "panel" }, found)));
  else {
    const columns = getComputedStyle(panels).gridTemplateColumns.split(" ");
    const width = Math.max(260, Math.floor(parseFloat(columns[0]) || panels.clientWidth) - 34); // less the panel's padding and border
    panels.replaceChildren(...PANELS.map(({ title, draw: content }) => panel(title, ...content(view, width))));
    const map = panels.querySelector("svg.heat");
    const tall = map?.getAttribute("height") > 260;
    map?.closest(".panel").classList.toggle("tall", tall);
    panels.lastElementChild.classList.toggle("across", !tall); // no hole in the grid
  }
}

function choose(number) {
  state.chosen = number;
  showChosen();
}

/** The chosen step, or the last one, in words and in each chart. */
function showChosen() {
  const steps = seen();
  if (!steps.length) return;
  const at = steps.findIndex((step) => step.number === state.chosen);
  const i = at < 0 ? steps.length - 1 : at;
  const words = describe(steps[i], state.info);
  const pick = find("pick");
  pick.max = steps.length - 1;
  pick.value = i;
  pick.setAttribute("aria-valuetext", words);
  find("step").textContent = words;
  for (const picture of find("panels").querySelectorAll("svg.chart:not(.heat)")) pointAt(picture, at < 0 ? null : i, steps.length);
}
