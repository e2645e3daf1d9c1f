// Small helpers: elements, words for a person, what the server answers.

export const byId = (id) => document.getElementById(id);

/** An element with properties (on... are listeners, data-... and aria-... attributes) and children. */
export function make(tag, properties = {}, ...children) {
  const found = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) found.addEventListener(name.slice(2), value);
    else if (name === "class") found.className = value;
    else if (/^(data-|aria-|role$|for$)/.test(name)) found.setAttribute(name, value);
    else found[name] = value;
  }
  found.append(...children.filter((child) => child != null));
  return found;
}

let saidUntil = 0;

/** Tell a person something, for a few seconds. */
export function say(words) {
  byId("say").textContent = words;
  clearTimeout(saidUntil);
  saidUntil = setTimeout(() => (byId("say").textContent = ""), 6000);
}

async function answered(address, options) {
  const answer = await fetch(address, options);
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  throw Object.assign(new Error(told.problem ?? `${answer.status} ${address}`), { status: answer.status });
}

export const getJson = async (address, options) => (await answered(address, options)).json();

export const post = (address, told) =>
  answered(address, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(told) });

/** A JSON head and where the arrays behind it begin. */
export async function getPacked(address, options) {
  const data = await (await answered(address, options)).arrayBuffer();
  const length = new DataView(data).getUint32(0, true);
  return { head: JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length))), data, start: 4 + length };
}

/** Have the browser save a file. */
export function saveFile(name, blob) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

export const count = (number) => number.toLocaleString("en");

export const css = ([r, g, b]) => `rgb(${r},${g},${b})`;

/** One call after the last of many. */
export function later(work, wait) {
  let timer = 0;
  return (...arguments_) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...arguments_), wait);
  };
}
