// Light Markdown as DOM nodes: paragraphs, headings, lists, quotes, code, bold, italic. Everything else stays text.
//
// The parser speaks of ranges [start, end) of the text, and a caller's `write(start, end)` makes the text nodes, so that
// marks of single tokens survive. Blocks that a longer text leaves as they were are kept, so a stream redraws its end only.

import { html } from "./dom.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)\s*$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)]) +/;
const HEADING = /^(#{1,6}) +/;
const QUOTE = /^> ?/;

/** Lines of `text` as {start, end, line}; `end` is before the line's break. */
function linesOf(text) {
  const lines = [];
  for (let start = 0; start <= text.length; ) {
    const stop = text.indexOf("\n", start);
    const end = stop < 0 ? text.length : stop;
    lines.push({ start, end, line: text.slice(start, end) });
    start = end + 1;
  }
  return lines;
}

/** Blocks {kind, start, end, ...} in order. */
export function blocksOf(text) {
  const blocks = [];
  const lines = linesOf(text);
  let open = null; // the block that the next line may continue
  for (let i = 0; i < lines.length; i++) {
    const { start, end, line } = lines[i];
    const fence = FENCE.exec(line);
    if (fence) {
      let last = i + 1;
      const closes = (l) => l.trim().startsWith(fence[1]) && !l.trim().slice(fence[1].length).replaceAll(fence[1][0], "");
      while (last < lines.length && !closes(lines[last].line)) last++;
      const from = Math.min(end + 1, text.length);
      const to = last > i + 1 ? lines[last - 1].end : from;
      blocks.push({ kind: "code", start: from, end: to, language: fence[2] });
      i = last;
      open = null;
    } else if (!line.trim()) {
      open = null;
    } else if (HEADING.test(line)) {
      const [all, marks] = HEADING.exec(line);
      blocks.push({ kind: `h${Math.min(6, Math.max(3, marks.length + 1))}`, start: start + all.length, end });
      open = null;
    } else if (ITEM.test(line)) {
      const [all, indent, mark] = ITEM.exec(line);
      const kind = /\d/.test(mark) ? "ol" : "ul";
      const previous = blocks.at(-1);
      const item = { start: start + all.length, end, level: Math.min(3, Math.floor(indent.length / 2)) };
      if (previous?.kind === kind) {
        previous.items.push(item);
        previous.end = end;
      } else {
        blocks.push({ kind, start: item.start, end, items: [item], first: parseInt(mark, 10) || 1 });
      }
      open = "item";
    } else if (QUOTE.test(line)) {
      const from = start + QUOTE.exec(line)[0].length;
      if (open === "quote") {
        blocks.at(-1).lines.push({ start: from, end });
        blocks.at(-1).end = end;
      } else {
        blocks.push({ kind: "blockquote", start: from, end, lines: [{ start: from, end }] });
      }
      open = "quote";
    } else if (open === "item") {
      blocks.at(-1).items.at(-1).end = end;
      blocks.at(-1).end = end;
    } else if (open === "text") {
      blocks.at(-1).end = end;
    } else {
      blocks.push({ kind: "p", start, end });
      open = "text";
    }
  }
  return blocks;
}

// Code wins over emphasis. An underscore within a word is a name, not emphasis.
const INLINE = /(`+)(?!`)([^]*?[^`])\1(?!`)|(\*\*|__)(?=\S)([^]*?\S)\3|(?<![\w*])([*_])(?=[^\s*_])([^*_\n]*[^\s*_])\5(?!\w)/g;

function inline(text, start, end, write) {
  const nodes = [];
  let at = start;
  for (const found of text.slice(start, end).matchAll(INLINE)) {
    const from = start + found.index;
    const mark = found[1] ?? found[3] ?? found[5];
    const inner = [from + mark.length, from + found[0].length - mark.length];
    nodes.push(...write(at, from));
    if (found[1]) nodes.push(html("code", {}, ...write(...inner)));
    else nodes.push(html(found[3] ? "strong" : "em", {}, ...inline(text, ...inner, write)));
    at = from + found[0].length;
  }
  nodes.push(...write(at, end));
  return nodes;
}

function build(block, text, write) {
  const written = (part) => inline(text, part.start, part.end, write);
  switch (block.kind) {
    case "code":
      return html(
        "pre",
        { tabindex: "0", role: "group", "aria-label": block.language ? `Code, ${block.language}` : "Code" },
        html("code", {}, ...write(block.start, block.end)),
      );
    case "ul":
    case "ol": {
      const items = block.items.map((item) => html("li", { class: item.level ? `level-${item.level}` : null }, ...written(item)));
      return html(block.kind, { start: block.kind === "ol" && block.first !== 1 ? block.first : null }, ...items);
    }
    case "blockquote":
      return html("blockquote", {}, ...block.lines.map((line) => html("p", {}, ...written(line))));
    default:
      return html(block.kind, {}, ...written(block));
  }
}

/** Draws `text` into `parent`, block by block; what is there from a shorter text and did not change stays. */
export function draw(parent, text, write) {
  const blocks = blocksOf(text);
  blocks.forEach((block, i) => {
    const name = `${block.kind}:${block.start}:${block.end}`;
    const old = parent.children[i];
    if (old?.block === name && i < blocks.length - 1) return;
    const node = build(block, text, write);
    node.block = name;
    if (old) old.replaceWith(node);
    else parent.append(node);
  });
  while (parent.children.length > blocks.length) parent.lastElementChild.remove();
}
