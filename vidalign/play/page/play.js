// The page of vidalign play: asks for one chunk after the other, a little ahead of what is shown.
// Whatever a user typed is shown through textContent alone.

import { Scores } from "./scores.js";
import { Screen } from "./screen.js";

const AHEAD = 2;       // chunks that are made before they are shown
const AGAIN = 3000;    // milliseconds before another try for a place
const FULL = 1013;
const by = id => document.getElementById(id);

let socket, stage, screen, scores;
let starting = false;  // a clip was asked for and has not begun
let asking = false;    // a chunk was asked for
let chunk = 1;         // frames of the last chunk
let milliseconds = []; // of every chunk, one number a pane

function connect() {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  socket = new WebSocket(`${scheme}://${location.host}/stream`);
  socket.binaryType = "arraybuffer";
  socket.onmessage = event => typeof event.data === "string" ? heard(JSON.parse(event.data)) : received(event.data);
  socket.onclose = event => {
    starting = asking = false;
    by("start").disabled = by("switch").disabled = true;
    if (screen) screen.pause();
    if (event.code === FULL) setTimeout(connect, AGAIN);
    else by("state").textContent = "The connection is closed. Reload the page, or run vidalign play again.";
  };
}

function send(type, fields = {}) {
  if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ type, ...fields }));
}

function element(name, text = "", kind = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

// --- what the server says ---

function heard(message) {
  ({ hello, started, ended, scores: scored, switching, error, note, full })[message.type](message);
}

function hello(message) {
  by("start").disabled = false;
  by("state").textContent = `${message.width} x ${message.height}, ${message.fps} frames a second`;
  say("");
  if (stage) return;
  stage = message;
  by("panes").replaceChildren(...stage.panes.map(pane));
  by("commands").replaceChildren(...stage.panes.map(command));
  by("seconds").value = stage.seconds;
  by("scaling").hidden = !stage.scale;
  by("scaling").firstElementChild.textContent = stage.scale;
  by("prompt").value ||= stage.prompts[0] || "";
  by("proposals").hidden = stage.prompts.length < 2;
  by("proposals").append(...stage.prompts.map(text => new Option(text, text)));
  by("judged").hidden = !stage.metrics.length;
  scores = new Scores(by("scores"), stage.panes);
  screen = new Screen([...document.querySelectorAll("#panes canvas")], stage.fps, shown);
}

function started(message) {
  starting = asking = false;
  milliseconds = [];
  screen.reset(message.frames);
  scores.reset();
  by("again").hidden = false;
  described(message);
  shown(screen);
}

function ended() {
  asking = false;
}

function scored(message) {
  if (!starting) scores.add(message.index, message.values);
}

function switching(message) {
  const item = element("li");
  item.append(element("b", "next chunk"), element("span", message.prompt));
  by("changes").append(item);
}

function error(message) {
  starting = asking = false;
  if (screen) screen.pause();
  say(message.message);
}

function note(message) {
  say(message.message, "note");
}

function full(message) {
  by("state").textContent = "waiting for a place";
  say(message.message, "note");
}

function received(data) {
  const length = new DataView(data).getUint32(0);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  let at = 4 + length;
  const parts = header.sizes.map(size => data.slice(at, at += size));
  if (header.type === "file") return saved(header.name, parts[0]);
  asking = false;
  if (starting) return;    // of the clip before
  const pictures = parts.map(part => new Blob([part], { type: header.media }));
  chunk = header.frames;
  for (let k = 0; k < chunk; k++) screen.frames.push(stage.panes.map((_, n) => pictures[n * chunk + k]));
  milliseconds.push(header.milliseconds);
  described(header);
  shown(screen);
}

function saved(name, data) {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([data], { type: name.endsWith(".gif") ? "image/gif" : "video/mp4" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// --- what the page shows ---

function say(text, kind = "") {
  by("message").textContent = text;
  by("message").className = kind;
  by("message").hidden = !text;
}

function pane(label, number) {
  const figure = element("figure"), caption = element("figcaption"), canvas = element("canvas"), save = element("button", "Save clip");
  [canvas.width, canvas.height] = [stage.width, stage.height];
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", label);
  save.type = "button";
  save.disabled = true;
  save.setAttribute("aria-label", `Save clip: ${label}`);
  save.onclick = () => send("save", { pane: number });
  caption.append(swatch(number), element("b", label), element("span", "", "ms"), save);
  figure.append(canvas, caption);
  return figure;
}

function swatch(number) {
  const made = element("span", "", "swatch");
  made.style.setProperty("--c", `var(--s${number})`);
  return made;
}

function command(label) {
  const part = element("div", "", "command"), head = element("div"), text = element("code"), block = element("pre"), copy = element("button", "Copy");
  copy.type = "button";
  copy.setAttribute("aria-label", `Copy the command: ${label}`);
  copy.onclick = () => navigator.clipboard.writeText(text.textContent);
  head.append(element("span", label), copy);
  block.append(text);
  part.append(head, block);
  return part;
}

function described(state) {
  document.querySelectorAll("#commands code").forEach((code, n) => { code.textContent = state.commands[n]; });
  by("changes").replaceChildren(...state.prompts.map(([second, prompt]) => {
    const item = element("li");
    item.append(element("b", `${second.toFixed(2)} s`), element("span", prompt));
    return item;
  }));
}

function shown(screen) {
  const { at, total, frames } = screen;
  by("frame").textContent = `${at + 1} / ${total}`;
  by("scrub").max = Math.max(total - 1, 0);
  by("scrub").value = Math.max(at, 0);
  by("scrub").disabled = by("play").disabled = !total;
  by("play").textContent = screen.playing ? "Pause" : screen.ended ? "Play again" : "Play";
  by("switch").disabled = !frames.length || frames.length >= total;
  document.querySelectorAll("#panes button").forEach(button => { button.disabled = !frames.length; });
  document.querySelectorAll("#panes .ms").forEach((cell, n) => { cell.textContent = times(n); });
  by("speed").textContent = speed(screen);
  ask();
}

function times(pane) {
  if (!milliseconds.length) return "";
  const own = milliseconds.map(all => all[pane]), later = own.slice(1);
  const mean = later.length ? `, mean ${Math.round(later.reduce((a, b) => a + b) / later.length)}` : "";
  return `${Math.round(own[own.length - 1])} ms a chunk${mean}`;
}

function speed(screen) {
  if (!screen.total) return "No clip yet.";
  if (screen.waiting) return "Waiting for a chunk.";
  const rate = screen.rate ? `${screen.rate.toFixed(1)} of ${stage.fps} frames a second are shown` : `${stage.fps} frames a second`;
  return `${rate}; the picture waited ${(screen.waited / 1000).toFixed(1)} s; ${screen.frames.length} of ${screen.total} frames are made`;
}

// --- what the user does ---

function ask() {
  const wanted = screen.playing && screen.frames.length < screen.total && screen.ahead < AHEAD * chunk;
  if (!wanted || asking || starting) return;
  asking = true;
  send("next");
}

function start() {
  if (!by("form").reportValidity()) return;
  const [seed, seconds, scale] = ["seed", "seconds", "scale"].map(id => Number(by(id).value));
  starting = true;
  say("");
  send("start", { prompt: by("prompt").value, seed, seconds, scale });
}

by("form").onsubmit = event => { event.preventDefault(); start(); };
by("switch").onclick = () => { say(""); send("switch", { prompt: by("prompt").value }); };
by("prompt").onkeydown = event => {
  if (event.key !== "Enter" || event.shiftKey) return;
  event.preventDefault();
  if (!by("switch").disabled) by("switch").click();
  else if (!by("start").disabled) start();
};
by("proposals").onchange = event => {
  if (event.target.value) by("prompt").value = event.target.value;
  event.target.value = "";
};
by("scale").oninput = event => { by("value").textContent = Number(event.target.value).toFixed(2); };
by("scale").onchange = () => { if (screen.total) start(); };
by("play").onclick = () => screen.toggle();
by("scrub").oninput = event => screen.seek(Number(event.target.value));

connect();
