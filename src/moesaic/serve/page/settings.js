// The form of parameters: what of it goes into a request. An empty field is not sent.

import { apiKey, setApiKey } from "./api.js";
import { find } from "./dom.js";

const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed", "leniency"];

const field = (name) => find(`p-${name}`);

/** Parameters that were set, by their names in the API. */
export function parameters() {
  const set = NUMBERS.filter((name) => field(name).value.trim() !== "");
  return Object.fromEntries(set.map((name) => [name, field(name).valueAsNumber]));
}

export const systemMessage = () => field("system").value.trim();

/** Shows the first field that cannot be sent, and says whether all can. */
export function valid() {
  if (find("settings").checkValidity()) return true;
  find("parameters").open = true;
  find("settings").reportValidity();
  return false;
}

export function showKeyField() {
  find("parameters").open = true;
  field("key").focus();
}

/** `keyChanged` is called when another API key was entered. */
export function startSettings(keyChanged) {
  const form = find("settings");
  field("key").value = apiKey();
  field("key").addEventListener("change", () => {
    setApiKey(field("key").value);
    keyChanged();
  });
  field("leniency").addEventListener("input", sayLeniency);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", (event) => {
    event.preventDefault(); // the key stays
    for (const name of [...NUMBERS, "system"]) field(name).value = "";
    sayLeniency();
  });
  if (matchMedia("(max-width: 899px)").matches) find("parameters").open = false;
}

function sayLeniency() {
  const leniency = field("leniency").valueAsNumber;
  const bound = (1 / (1 - leniency)).toPrecision(3);
  find("h-leniency").textContent =
    leniency > 0 && leniency < 1
      ? `no token becomes more than ${Number(bound)} times likelier`
      : "exact: the draft changes the speed, not the distribution";
}
