// What the live view shows: figures, charts of steps, and facts of the model. Each is a function of what was polled.

import { legend, stepChart, table } from "./charts.js";
import { html } from "./dom.js";
import { expertsPanel, expertsTable } from "./experts.js";
import { DASH, count, money, percent, plural, quantile, short, sum, time } from "./numbers.js";

const share = (part, whole) => (whole > 0 ? part / whole : null);
const seconds = (steps) => steps.map((step) => step.seconds);
const total = (steps, key) => sum(steps.map((step) => step[key]));
const integers = (value) => (Number.isInteger(value) ? short(value) : "");

/** Tokens per second of the last five seconds that the engine worked. */
function speed(steps) {
  const last = steps.at(-1);
  const recent = steps.filter((step) => step.at > last.at - 5);
  return total(recent, "new_tokens") / (last.at - recent[0].at + recent[0].seconds);
}

/** [name, value, more] of each figure at the top; `idle`: nothing is being computed now. */
export function tiles({ steps, info, idle }) {
  const last = steps.at(-1);
  const { totals, cap_s: cap, cost_per_1k: cost, model } = info;
  const late = quantile(seconds(steps), 0.99);
  const drafted = total(steps, "drafted");
  const cached = share(totals.cached_tokens, totals.prompt_tokens);
  return [
    ["Speed", idle ? "0 tokens/s" : last ? `${short(speed(steps))} tokens/s` : DASH, "new tokens, last 5 s of work"],
    ["In the batch", last && !idle ? count(last.running) : "0", last && !idle ? `${count(last.waiting)} waiting` : "none waiting"],
    ["Step time", time(quantile(seconds(steps), 0.5)), steps.length ? `99 of 100 within ${time(late)}${cap ? `; cap ${time(cap)}` : ""}` : cap ? `cap ${time(cap)}` : "no cap"],
    ["KV cache", last ? percent(last.blocks_used / model.blocks) : DASH, `${count(last?.blocks_used ?? 0)} of ${count(model.blocks)} blocks`],
    ["Draft accepted", drafted ? percent(total(steps, "accepted") / drafted) : DASH, drafted ? `of ${count(drafted)} guesses` : "no guesses in these steps"],
    ["Shift", drafted ? percent(share(total(steps, "shift"), total(steps, "new_tokens"))) : DASH, drafted ? `${count(total(steps, "lenient"))} lenient tokens` : "0 is exact"],
    ["Cost", money(cost?.generated), cost ? "per 1,000 generated tokens" : "no price configured"],
    ["Since the start", plural(totals.requests, "request"), `${short(totals.generated_tokens)} tokens written, ${short(totals.prompt_tokens)} read${cached ? `, ${percent(cached)} cached` : ""}`],
  ];
}

/** One step in words. */
export function describe(step, { cap_s: cap }) {
  const parts = [
    `Step ${step.number}`,
    `${time(step.seconds)}${step.predicted_s ? `, predicted ${time(step.predicted_s)}` : ""}${cap && step.seconds > cap ? ", over the cap" : ""}`,
    `${plural(step.prompt_positions, "prompt position")} and ${plural(step.batch, "answer")}`,
    plural(step.new_tokens, "new token"),
    `${count(step.waiting)} waiting`,
  ];
  if (step.drafted) parts.push(`${count(step.accepted)} of ${count(step.drafted)} guesses accepted`);
  if (step.lenient) parts.push(`${count(step.lenient)} lenient`);
  return parts.join(" · ");
}

/** Panels over the steps: title, whether it has a place for each step, and its content at a width. */
export const PANELS = [
  {
    title: "Batch",
    draw: ({ steps }, width) => {
      const words = `In ${plural(steps.length, "step")}: ${plural(total(steps, "prompt_positions"), "position")} of prompts, ${plural(total(steps, "new_tokens"), "new token")}, at most ${plural(Math.max(...steps.map((s) => s.batch)), "answer")} in a step and ${count(Math.max(...steps.map((s) => s.waiting)))} waiting.`;
      const waited = steps.some((s) => s.waiting);
      return [
        legend([["c1", "prompt positions"], ["c0", "answers being written"], ...(waited ? [["c5 line", "waiting"]] : [])]),
        stepChart(
          steps,
          { bars: [{ color: "c0", value: (s) => s.batch }, { color: "c1", value: (s) => s.prompt_positions }], curves: waited ? [{ color: "c5", value: (s) => s.waiting }] : [], format: integers },
          width,
          `Batch of each step. ${words}`,
        ),
        html("p", { class: "summary" }, words),
      ];
    },
  },
  {
    title: "Time of a step",
    draw: ({ steps, info }, width) => {
      const cap = info.cap_s;
      const near = cap && cap <= 4 * Math.max(...seconds(steps)); // else the curves would lie on the axis
      const over = steps.filter((s) => s.seconds > cap).length;
      const errors = steps.filter((s) => s.predicted_s).map((s) => Math.abs(s.predicted_s / s.seconds - 1));
      const words = [
        `Median ${time(quantile(seconds(steps), 0.5))}, longest ${time(Math.max(...seconds(steps)))}.`,
        cap ? `${over ? count(over) : "None"} of ${count(steps.length)} over the cap of ${time(cap)}.` : "No cap is set.",
        errors.length ? `Predictions miss by ${percent(quantile(errors, 0.5))} (median).` : "",
      ].join(" ").trim();
      return [
        legend([["c0 line", "measured"], ["c1 line", "predicted"], ...(cap ? [["c5 line", near ? "cap" : `cap of ${time(cap)}, above the chart`]] : [])]),
        stepChart(
          steps,
          {
            curves: [{ color: "c0", value: (s) => s.seconds }, { color: "c1", dashed: true, value: (s) => s.predicted_s ?? null }],
            marks: near ? [{ value: cap, text: `cap ${time(cap)}` }] : [],
            format: time,
          },
          width,
          `Time of each step. ${words}`,
        ),
        html("p", { class: "summary" }, words),
      ];
    },
  },
  { title: "Experts", draw: ({ steps }, width) => expertsPanel(steps, width) },
  {
    title: "KV cache",
    draw: ({ steps, info }, width) => {
      const { blocks, kv_tokens: tokens } = info.model;
      const used = (s) => s.blocks_used / blocks;
      const words = `${percent(used(steps.at(-1)))} of ${count(blocks)} blocks in use, at most ${percent(Math.max(...steps.map(used)))} in these steps.${tokens ? ` Room for ${count(tokens)} tokens.` : ""}`;
      const most = Math.max(...steps.map(used));
      return [
        stepChart(steps, { curves: [{ color: "c6", area: true, value: used }], top: most > 0.25 ? 1 : undefined, format: percent }, width, `Use of the KV cache. ${words}`),
        html("p", { class: "summary" }, words),
      ];
    },
  },
  {
    title: "Guesses of the draft",
    draw: ({ steps }, width) => {
      const drafted = total(steps, "drafted");
      if (!drafted) return [html("p", { class: "soft" }, "No draft guessed in these steps.")];
      const words = `${percent(total(steps, "accepted") / drafted)} of ${count(drafted)} guesses were accepted; ${short(total(steps, "new_tokens") / Math.max(1, total(steps, "batch")))} tokens per answer and step.`;
      return [
        legend([["c2", "accepted"], ["c7", "rejected"]]),
        stepChart(
          steps,
          { bars: [{ color: "c2", value: (s) => s.accepted }, { color: "c7", value: (s) => s.drafted - s.accepted }], format: integers },
          width,
          `Guesses of the draft. ${words}`,
        ),
        html("p", { class: "summary" }, words),
      ];
    },
  },
  {
    title: "Shift per token",
    draw: ({ steps }, width) => {
      const shift = total(steps, "shift"), lenient = total(steps, "lenient"), tokens = total(steps, "new_tokens");
      if (!shift && !lenient) return [html("p", { class: "soft" }, "Every token follows the model's own distribution: no leniency was used in these steps.")];
      const words = `Mean ${percent(shift / tokens)} per token; ${count(lenient)} of ${count(tokens)} tokens would have been rejected by the exact rule.`;
      return [
        stepChart(steps, { curves: [{ color: "c3", area: true, value: (s) => (s.new_tokens ? s.shift / s.new_tokens : null) }], format: percent }, width, `Total-variation shift per token. ${words}`),
        html("p", { class: "summary" }, words),
      ];
    },
  },
  { title: "Cost", draw: ({ info }) => costs(info) },
];

const COSTS = { prompt: "1,000 prompt tokens", generated: "1,000 generated tokens", waste: "of these, guesses that were rejected", wall: "1,000 tokens of both, idle time included" };

function costs({ cost_per_1k: cost, price_per_hour: price }) {
  if (price == null) return [html("p", { class: "soft" }, "The server was started without a price, so it cannot tell what a token costs.")];
  const lines = Object.entries(COSTS).map(([key, name]) => [name, money(cost?.[key])]);
  return [
    html("dl", { class: "lines" }, ...[...lines, ["the machine, an hour", money(price)]].flatMap(([name, value]) => [html("dt", {}, name), html("dd", {}, value)])),
  ];
}

const MOST_ROWS = 60;

/** The same as tables. */
export function tables({ steps, info }) {
  const recent = steps.slice(-MOST_ROWS).reverse();
  const heads = ["Step", "Time", "Predicted", "Prompt positions", "Answers", "New tokens", "Waiting", "KV blocks", "Guesses", "Accepted", "Lenient", "Shift per token"];
  const rows = recent.map((s) => [
    `${s.number}`, time(s.seconds), time(s.predicted_s), count(s.prompt_positions), count(s.batch), count(s.new_tokens), count(s.waiting),
    count(s.blocks_used), count(s.drafted), count(s.accepted), count(s.lenient), percent(share(s.shift, s.new_tokens)),
  ]);
  const cap = info.cap_s ? `; cap ${time(info.cap_s)}` : "";
  return [table(`The last ${count(recent.length)} steps, newest first${cap}`, heads, rows), expertsTable(steps)].filter(Boolean);
}

const NAMES = { kv_tokens: "KV cache, tokens", blocks: "KV cache, blocks", parameters: "Parameters", dtype: "Weights in", name: "Model", block_size: "Tokens in a block", timeline: "Start" };

const LIMITS = { max_running: "answers at once", memory: "memory of keys and values" };

/** Facts that change rarely: [title, content]. */
export function facts({ model, batches }) {
  const lines = Object.entries(model).filter(([, value]) => value !== null && value !== undefined);
  const words = (value) => {
    if (typeof value === "number") return value >= 1e5 ? short(value) : value.toLocaleString("en");
    if (!Array.isArray(value)) return typeof value === "object" ? Object.entries(value).map(([k, v]) => `${k} ${words(v)}`).join(", ") : String(value);
    return value.map((item) => (Array.isArray(item) ? `${item[0]} ${typeof item[1] === "number" ? time(item[1]) : item[1]}` : String(item))).join(", ");
  };
  const found = [["Model", html("dl", { class: "lines" }, ...lines.flatMap(([key, value]) => [html("dt", {}, NAMES[key] ?? key.replaceAll("_", " ").replace(/^./, (c) => c.toUpperCase())), html("dd", {}, words(value))]))]];
  if (batches.length) {
    found.push(["Largest batch at each context", table("How many answers fit at once, and what limits them", ["Context", "Batch", "Limited by"], batches.map(([context, batch, why]) => [count(context), count(batch), LIMITS[why] ?? why]))]);
  }
  return found;
}
