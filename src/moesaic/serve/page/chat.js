// The chat: send, stream, stop, answer anew, export.

import { ServerError, chat, models } from "./api.js";
import { Conversation } from "./conversation.js";
import { find, html } from "./dom.js";
import { plural } from "./numbers.js";
import { parameters, showKeyField, startSettings, valid } from "./settings.js";
import { Turn } from "./turn.js";

const STARTERS = [
  "What is a mixture of experts, in two sentences?",
  "Write a short poem about a slow computer.",
  "List three uses of a paper clip.",
];

let conversation = new Conversation();
let model = null;
let running = null; // the AbortController of the answer that is being written

const message = find("message");
const list = find("turns");

const ANSWER_ACTIONS = [
  [(turn) => (turn.error ? "Retry" : "Regenerate"), (turn) => again(turn)],
  ["Copy", (turn) => copy(turn), true],
];
const QUESTION_ACTIONS = [["Edit", (turn) => edit(turn)]];

export function startChat() {
  startSettings(connect);
  find("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  message.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  });
  message.addEventListener("input", grow);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && running) stop();
  });
  find("stop").addEventListener("click", stop);
  find("new-chat").addEventListener("click", restart);
  find("export").addEventListener("click", save);
  find("marks").addEventListener("change", () => list.classList.toggle("unmarked", !find("marks").checked));
  find("starters").append(...STARTERS.map((text) => html("button", { type: "button", onclick: () => begin(text) }, text)));
  showTurns();
  connect();
}

/** Finds out what is served; an error stands where the name would. */
async function connect() {
  const name = find("model-name");
  try {
    [model = null] = await models();
    name.textContent = model ?? "no model";
    name.classList.remove("error");
  } catch (error) {
    model = null;
    name.textContent = error.status === 401 ? "API key needed" : "not connected";
    name.classList.add("error");
  }
  name.title = name.textContent;
}

function say(text) {
  find("status").textContent = text;
}

function grow() {
  message.rows = Math.min(8, message.value.split("\n").length);
}

function begin(text) {
  message.value = text;
  send();
}

function send() {
  const text = message.value.trim();
  if (!text || running || !valid()) return;
  message.value = "";
  grow();
  conversation.last?.showFoot(false);
  conversation.turns.at(-2)?.showFoot(false);
  const answer = new Turn("assistant", "", ANSWER_ACTIONS);
  conversation.turns.push(new Turn("user", text, QUESTION_ACTIONS), answer);
  showTurns();
  write(answer);
}

function again(turn) {
  if (!running && valid()) write(turn);
}

/** Puts the last question back into the field, and forgets its answer. */
function edit(turn) {
  if (running) return;
  conversation.turns.splice(conversation.turns.indexOf(turn));
  for (const kept of conversation.turns.slice(-2)) kept.showFoot();
  message.value = turn.content;
  showTurns();
  grow();
  message.focus();
}

async function write(turn) {
  running = new AbortController();
  const { signal } = running;
  const focus = document.activeElement;
  const question = conversation.turns.at(-2);
  question.showFoot(false);
  turn.begin();
  turn.drawn = follow();
  turn.busy(true);
  showRunning(true);
  if (focus !== message) find("stop").focus(); // the button that was pressed is gone
  say("The model answers.");
  try {
    model ??= (await models())[0];
    const body = { ...parameters(), model, messages: conversation.messages(turn), stream: true, stream_options: { include_usage: true } };
    for await (const chunk of chat(body, signal)) {
      if (signal.aborted) break;
      const [choice] = chunk.choices ?? [];
      if (choice?.delta?.content) turn.push(choice.delta.content, chunk.moesaic?.tokens);
      turn.finish = choice?.finish_reason ?? turn.finish;
      turn.usage = chunk.usage ?? turn.usage;
    }
    turn.stopped = signal.aborted;
  } catch (error) {
    if (signal.aborted) turn.stopped = true;
    else if (error instanceof ServerError) turn.error = error.message;
    else throw error;
    if (error.status === 401) showKeyField();
  } finally {
    running = null;
    turn.busy(false);
    turn.end();
    turn.drawn();
    turn.drawn = null;
    question.showFoot();
    showRunning(false);
    if ([document.body, find("stop")].includes(document.activeElement)) message.focus();
    say(turn.error ? "" : `${turn.stopped ? "Stopped" : "The answer is complete"}: ${plural(turn.content.split(/\s+/).filter(Boolean).length, "word")}.`);
  }
}

function stop() {
  running?.abort();
}

/** Keeps the end in sight while the reader is there; whoever scrolled up is left in peace. */
function follow() {
  list.scrollTop = list.scrollHeight;
  let seen = list.scrollTop;
  return () => {
    if (list.scrollTop < seen - 8) return;
    list.scrollTop = list.scrollHeight;
    seen = list.scrollTop;
  };
}

function showRunning(yes) {
  find("send").hidden = yes;
  find("stop").hidden = !yes;
  find("new-chat").disabled = yes;
  list.setAttribute("aria-busy", String(yes));
}

function showTurns() {
  const { turns } = conversation;
  list.replaceChildren(...turns.map((turn) => turn.element));
  find("welcome").hidden = turns.length > 0;
  list.hidden = turns.length === 0;
  find("export").disabled = turns.length === 0;
  list.scrollTop = list.scrollHeight;
}

function restart() {
  conversation = new Conversation();
  showTurns();
  say("A new chat.");
  message.focus();
}

function save() {
  const text = JSON.stringify(conversation.file(model), null, 2);
  const address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const stamp = new Date().toISOString().slice(0, 19).replaceAll(":", "-");
  html("a", { href: address, download: `chat-${stamp}.json` }).click();
  URL.revokeObjectURL(address);
  say("The conversation was exported.");
}

async function copy(turn) {
  try {
    await navigator.clipboard.writeText(turn.content);
    say("Copied.");
  } catch {
    say("The browser does not let this page copy; select the text instead.");
  }
}
