// The page: two views, chosen by the address (#chat, #live).

import { startChat } from "./chat.js";
import { find } from "./dom.js";
import { showLive, startLive } from "./watch.js";

const VIEWS = { chat: "Chat", live: "Live" };

function show() {
  const asked = location.hash.slice(1);
  if (asked && !(asked in VIEWS)) return; // the skip link's target
  const view = asked || "chat";
  for (const name of Object.keys(VIEWS)) {
    find(name).hidden = name !== view;
    if (name === view) find(`to-${name}`).setAttribute("aria-current", "page");
    else find(`to-${name}`).removeAttribute("aria-current");
  }
  document.title = `${VIEWS[view]} · moesaic`;
  showLive(view === "live");
  if (view === "chat") find("message").focus({ preventScroll: true });
}

startChat();
startLive();
addEventListener("hashchange", show);
show();
