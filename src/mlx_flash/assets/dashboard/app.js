// Keeps the page up to date: reads the server's events and writes their numbers into the page.

import { LayerMap, drawLine, drawStack, recent } from "./charts.js";
import { bytes, count, duration, percent, speed, whole } from "./numbers.js";

const KEY = "mlx-flash-key";
const SILENCE_MS = 6000;
const RETRY_MS = [500, 1000, 2000, 5000];

const STATES = {
  loading: "Loading",
  ready: "Ready",
  failed: "Failed",
  stopping: "Stopping",
  lost: "Not connected",
};
const PARTS = [
  ["resident", "Resident weights", "resident_bytes"],
  ["slots", "Slots for experts", "slot_bytes"],
  ["kv", "KV cache in use", "kv_bytes"],
  ["remembered", "Remembered prompts", "remembered_bytes"],
  ["other", "Computing", "other_bytes"],
  ["free", "Free", "free_bytes"],
];

const byId = (id) => document.getElementById(id);
const layerMap = new LayerMap(byId("heat"), byId("slots"), showReading);
const NO_READING = byId("reading").textContent;
let points = [];

// --- the connection

async function follow() {
  let failures = 0;
  for (;;) {
    const answered = await listen(() => { failures = 0; });
    if (answered === "key") {
      await askForKey();
      continue;
    }
    await new Promise((done) => setTimeout(done, RETRY_MS[Math.min(failures, RETRY_MS.length - 1)]));
    failures += 1;
  }
}

/** Show events until the connection ends; return "key" when the server asks for one. */
async function listen(onEvent) {
  const leaving = new AbortController();
  let watchdog = setTimeout(() => leaving.abort(), SILENCE_MS);
  const key = sessionStorage.getItem(KEY);
  try {
    const response = await fetch("/dashboard/events", {
      headers: key ? { Authorization: `Bearer ${key}` } : {},
      cache: "no-store",
      signal: leaving.signal,
    });
    if (response.status === 401) return "key";
    if (!response.ok) throw new Error(`status ${response.status}`);
    for await (const state of eventsOf(response.body)) {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => leaving.abort(), SILENCE_MS);
      onEvent();
      show(state);
    }
  } catch (error) {
    if (error instanceof TypeError === false && error.name !== "AbortError") console.warn(error.message);
  } finally {
    clearTimeout(watchdog);
  }
  showLost();
  return "lost";
}

async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield JSON.parse(part.slice(6));
  }
}

function askForKey() {
  const form = byId("ask-key");
  byId("wrong-key").textContent = sessionStorage.getItem(KEY) ? "That is not the key." : "";
  sessionStorage.removeItem(KEY);
  form.hidden = false;
  byId("board").hidden = true;
  byId("lost").hidden = true;
  showState("waiting", "Locked");
  byId("key").focus();
  return new Promise((done) => {
    form.onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, byId("key").value.trim());
      byId("key").value = "";
      form.hidden = true;
      done();
    };
  });
}

function showLost() {
  byId("lost").textContent = "The connection to the server is lost. Trying again…";
  byId("lost").hidden = false;
  byId("board").classList.add("stale");
  showState("lost", STATES.lost);
}

function showState(state, text) {
  byId("state").dataset.state = state;
  put("state", state, text);
}

// --- the page

/** Write a value where the page has a place for it; its raw form goes into `data-value`. */
function put(field, raw, text) {
  for (const element of document.querySelectorAll(`[data-field="${field}"]`)) {
    if (element.textContent !== text) element.textContent = text;
    element.dataset.value = raw ?? "";
  }
}

function show(state) {
  byId("lost").hidden = true;
  byId("board").hidden = state.model === null;
  byId("board").classList.toggle("stale", state.now === null);
  showState(state.state, STATES[state.state] ?? state.state);
  put("uptime_s", state.uptime_s, duration(state.uptime_s));
  put("restarts", state.restarts, String(state.restarts));
  put("version", state.version, state.version);
  put("answered", state.answered, whole(state.answered));
  put("failed", state.failed, whole(state.failed));
  showHints(state.hints);
  if (state.model) showModel(state.model);
  else showNoModel(state.state);
  if (points.length && state.points.length && state.points[0].time_s < points[points.length - 1].time_s) points = [];
  points = recent([...points, ...state.points]);
  showSpeeds();
  if (state.now) showNow(state.now, state.model);
}

function showNoModel(state) {
  const loading = state === "loading";
  put("name", "", loading ? "The model is being loaded" : "No model");
  put("about", "", loading ? "This page shows it as soon as it answers." : "The server’s log says why.");
}

function showModel(model) {
  const about = [
    model.model_type,
    `${count(model.num_parameters)} parameters`,
    model.quantization,
    `${bytes(model.size_bytes)} on disk`,
    model.layers ? `${model.layers} layers of ${model.experts_per_layer} experts` : "",
    `context ${whole(model.context_tokens)}`,
  ];
  put("name", model.name, model.name);
  put("about", "", about.filter(Boolean).join(" · "));
  put("max_batch", model.max_batch, String(model.max_batch));
  put("backend", model.backend, model.backend);
  document.title = `${model.name} – MLX-Flash`;
  byId("experts").hidden = model.layers === 0;
}

function showSpeeds() {
  const last = points[points.length - 1];
  const generation = last ? last.generation_tps : 0;
  const prompt = last ? last.prompt_tps : 0;
  put("generation_tps", generation, speed(generation));
  put("prompt_tps", prompt, speed(prompt));
  put("read_bps", last ? last.read_bps : 0, ((last ? last.read_bps : 0) / 1e9).toFixed(2));
  put("stall_share", last ? last.stall_share : 0, percent(last ? last.stall_share : 0));
  line("generation", (point) => point.generation_tps, 0, (least, most) => `up to ${speed(most)}`);
  line("prompt", (point) => point.prompt_tps, 0, (least, most) => `up to ${speed(most)}`);
  line("hits", (point) => point.hit_rate, 1, (least, most) => `${percent(least)} to ${percent(most)}`);
  line("disk", (point) => point.read_bps, 0, (least, most) => `up to ${(most / 1e9).toFixed(2)}`);
}

function line(name, value, top, words) {
  const known = points.map(value).filter((one) => one !== null);
  const range = known.length ? words(Math.min(...known), Math.max(...known)) : "";
  put(`${name}_range`, "", range);
  drawLine(byId(`spark-${name}`), points, value, top, `The last two minutes: ${range || "nothing"}`);
}

function showNow(now, model) {
  for (const name of ["running", "waiting", "generation_tokens", "prompt_tokens"]) {
    put(name, now[name], whole(now[name]));
  }
  const prefixShare = now.prompt_tokens ? now.cached_tokens / now.prompt_tokens : 0;
  put("prefix_share", prefixShare, percent(prefixShare));
  put("hit_rate", now.hit_rate, percent(now.hit_rate));
  put("hit_note", "", model.layers ? `${count(now.asks - now.hits)} of ${count(now.asks)} experts were read` : "Nothing is streamed");
  put("ssd_bytes_written", now.ssd_bytes_written, bytes(now.ssd_bytes_written));
  put("bytes_read", now.bytes_read, bytes(now.bytes_read));
  const degrees = now.disk_temperature_c;
  put("disk_temperature_c", degrees, degrees === null ? "not known" : `${Math.round(degrees)} °C`);
  put("direct_io", now.direct_io, now.direct_io ? "bypassed" : "used");
  showMemory(now.memory);
  const used = now.prefetched ? now.prefetch_hits / now.prefetched : null;
  put("prefetch_share", used, used === null ? "none made" : percent(used));
  put("resized", now.resized, now.resized === 1 ? "once" : `${now.resized} times`);
  if (model.layers) showLayers(now, model.experts_per_layer);
}

function showMemory(memory) {
  const parts = PARTS.map(([kind, label, field]) => ({ kind, label, bytes: memory[field] }));
  const used = parts.reduce((sum, part) => sum + part.bytes, 0) - memory.free_bytes;
  put("memory_used", used, bytes(used));
  put("memory_limit_bytes", memory.limit_bytes, bytes(memory.limit_bytes));
  put("rss_bytes", memory.rss_bytes, bytes(memory.rss_bytes));
  put("peak_bytes", memory.peak_bytes, bytes(memory.peak_bytes));
  const kvShare = memory.kv_limit_bytes ? memory.kv_bytes / memory.kv_limit_bytes : 0;
  put("kv_share", kvShare, `${percent(kvShare)} of ${bytes(memory.kv_limit_bytes)}`);
  const words = parts.map((part) => `${part.label} ${bytes(part.bytes)}`).join(", ");
  drawStack(byId("stack"), parts, words);
  const legend = byId("memory-legend");
  if (!legend.children.length) legend.append(...PARTS.map(legendRow));
  for (const part of parts) put(`memory-${part.kind}`, part.bytes, bytes(part.bytes));
}

function legendRow([kind, label]) {
  const row = document.createElement("div");
  const colour = document.createElement("i");
  const term = document.createElement("dt");
  const value = document.createElement("dd");
  colour.className = kind;
  term.textContent = label;
  value.dataset.field = `memory-${kind}`;
  row.append(colour, term, value);
  return row;
}

function showLayers(now, experts) {
  const fewest = Math.min(...now.slots);
  const most = Math.max(...now.slots);
  put("slots", now.slots.join(" "), `${fewest === most ? most : `${fewest}–${most}`} of ${experts}`);
  byId("last-layer").textContent = String(now.slots.length - 1);
  layerMap.show(points, now.slots, experts);
  byId("scale-low").textContent = percent(layerMap.low);
  const rates = now.layer_hit_rates.map((rate, layer) => [rate, layer]).filter(([rate]) => rate !== null).sort((a, b) => a[0] - b[0]);
  if (!rates.length) return;
  const [worst, worstLayer] = rates[0];
  const [best, bestLayer] = rates[rates.length - 1];
  byId("heat").setAttribute(
    "aria-label",
    `Hit rate of each layer over time. Since loading, the lowest is ${percent(worst)} in layer ${worstLayer}, the highest ${percent(best)} in layer ${bestLayer}.`,
  );
}

function showReading(reading) {
  if (reading === null) {
    byId("reading").textContent = NO_READING;
    return;
  }
  const when = reading.age === 0 ? "now" : `${reading.age} s ago`;
  const rate = reading.rate === null ? "nothing was asked" : `${percent(reading.rate)} found in memory`;
  byId("reading").textContent = `Layer ${reading.layer}, ${when}: ${rate}; ${reading.slots} slots`;
}

/** Return an option of the command line as code, anything else as it is. */
function optionOrText(text) {
  if (!text.startsWith("--")) return text;
  const code = document.createElement("code");
  code.textContent = text;
  return code;
}

function showHints(hints) {
  const list = byId("hints");
  const texts = JSON.stringify(hints);
  list.hidden = hints.length === 0;
  if (list.dataset.shown === texts) return;
  list.dataset.shown = texts;
  list.replaceChildren(...hints.map((hint) => {
    const item = document.createElement("li");
    item.dataset.kind = hint.kind;
    item.append(...hint.text.split(/(--[a-z-]+(?: \d+)?)/).map(optionOrText));
    return item;
  }));
}

follow();
