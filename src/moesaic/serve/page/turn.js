// One message of the conversation: its text with the marks of its tokens, figures, an error in words, and buttons.

import { html } from "./dom.js";
import { draw } from "./markdown.js";
import { count, money, percent, short, time } from "./numbers.js";

const ENDS = { length: "cut at its length limit", abort: "given up by the server" };

export class Turn {
  /** `role`: "user" or "assistant". `actions`: [label, function of this turn] of its buttons. */
  constructor(role, content = "", actions = []) {
    this.role = role;
    this.actions = actions;
    this.body = html("div", { class: "body" });
    this.foot = html("div", { class: "foot" });
    this.element = html(
      "article",
      { class: `turn ${role}`, "aria-label": role === "user" ? "You" : "Answer" },
      html("h2", { class: "who" }, role === "user" ? "You" : "Model"),
      this.body,
      this.foot,
    );
    this.begin();
    this.content = content;
    if (role === "user") this.body.textContent = content;
    this.showFoot();
  }

  /** Empties it for a new answer. */
  begin() {
    this.content = "";
    this.tokens = []; // {start, end, drafted, lenient}: ranges of the content
    this.usage = null;
    this.finish = null;
    this.error = null;
    this.stopped = false;
    this.frame = 0;
    this.body.replaceChildren();
    this.foot.replaceChildren();
  }

  /** Takes new text and the tokens behind it. */
  push(text, tokens = []) {
    let at = this.content.length;
    this.content += text;
    for (const { text: piece, drafted, lenient } of tokens) {
      if (!this.content.startsWith(piece, at)) break; // marks that do not fit the text are not shown
      this.tokens.push({ start: at, end: at + piece.length, drafted, lenient });
      at += piece.length;
    }
    this.frame ||= requestAnimationFrame(() => this.draw());
  }

  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    draw(this.body, this.content, (start, end) => this.marked(start, end));
    this.drawn?.();
  }

  /** Text nodes of a range, tokens of the draft in spans. */
  marked(start, end) {
    const nodes = [];
    let at = start;
    for (let i = this.firstAfter(start); i < this.tokens.length && this.tokens[i].start < end; i++) {
      const token = this.tokens[i];
      if (!token.drafted && !token.lenient) continue;
      const from = Math.max(token.start, at);
      const to = Math.min(token.end, end);
      if (to <= from) continue;
      if (from > at) nodes.push(this.content.slice(at, from));
      nodes.push(html("span", { class: token.lenient ? "drafted lenient" : "drafted" }, this.content.slice(from, to)));
      at = to;
    }
    if (at < end) nodes.push(this.content.slice(at, end));
    return nodes;
  }

  /** Index of the first token that ends after `position`. */
  firstAfter(position) {
    let low = 0;
    let high = this.tokens.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.tokens[middle].end <= position) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  busy(yes) {
    this.element.classList.toggle("busy", yes);
    if (yes) this.element.setAttribute("aria-busy", "true");
    else this.element.removeAttribute("aria-busy");
  }

  /** After the answer's end: figures, the error if there was one, and buttons. */
  end() {
    if (this.role === "assistant") this.draw();
    this.showFoot();
  }

  /** `last`: whether it can still be answered anew. */
  showFoot(last = true) {
    this.foot.replaceChildren();
    if (this.error) this.foot.append(html("p", { class: "error", role: "alert" }, this.error));
    const figures = this.figures();
    if (figures.length) {
      this.foot.append(html("ul", { class: "figures", "aria-label": "Figures of this answer" }, ...figures.map(([text, title]) => html("li", { title }, text))));
    }
    const buttons = this.actions.filter(([, , whole]) => (whole ? this.content : last)); // of every text, or of the last turn
    if (buttons.length) {
      this.foot.append(
        html("div", { class: "buttons" }, ...buttons.map(([label, act]) => html("button", { type: "button", class: "quiet", onclick: () => act(this) }, typeof label === "function" ? label(this) : label))),
      );
    }
  }

  /** [text, explanation] of each figure that is known. */
  figures() {
    const figures = [];
    const add = (text, title) => figures.push([text, title]);
    const usage = this.usage;
    const more = usage?.moesaic ?? {};
    if (usage) {
      const cached = usage.prompt_tokens_details?.cached_tokens;
      add(`${count(usage.completion_tokens)} tokens`, `${count(usage.prompt_tokens)} tokens of prompt${cached ? `, ${count(cached)} of them cached` : ""}`);
    }
    if (more.tokens_per_s != null) add(`${short(more.tokens_per_s)} tokens/s`, "Tokens of the answer for each second of it");
    if (more.ttft_s != null) add(`first token after ${time(more.ttft_s)}`, "From the request's arrival to its first token");
    if (this.tokens.some((token) => token.drafted)) {
      const drafted = this.tokens.filter((token) => token.drafted).length / this.tokens.length;
      add(`${percent(drafted)} from the draft`, "Tokens that the draft guessed and the model accepted");
    }
    if (more.mean_shift != null) {
      const exact = !more.mean_shift && !more.lenient_tokens;
      add(exact ? "exact" : `shift ${percent(more.mean_shift)}`, "How far leniency moved the distribution of a token on average: total variation, 0 is exact");
    }
    if (more.lenient_tokens) add(`${count(more.lenient_tokens)} lenient`, "Tokens that the exact rule would have rejected");
    if (more.cost != null) add(money(more.cost), "Cost of this answer at the configured price");
    if (ENDS[this.finish]) add(ENDS[this.finish], "Why the answer ended");
    if (this.stopped) add("stopped", "You stopped it; what came before counts as the answer");
    return figures;
  }
}
