// Draws what the page shows over time: lines, the bar of memory, and the map of layers.

const SPAN_S = 120;
const LOW_STEPS = [0.9, 0.75, 0.5, 0.25, 0];

// cividis: as clear to people who see colours differently, and light where the rate is high
const COLOURS = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74",
  "#c3b369", "#e1cc55", "#fee838"].map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));

/** Return the points that are not older than the span, seen from the newest. */
export function recent(points) {
  const end = points.length ? points[points.length - 1].time_s : 0;
  return points.filter((point) => point.time_s > end - SPAN_S);
}

/** Draw one value of the points from two minutes ago to now; the line has gaps where it is null. */
export function drawLine(svg, points, value, top, label) {
  const end = points.length ? points[points.length - 1].time_s : 0;
  const highest = Math.max(top, ...points.map(value)) || 1; // null counts as 0
  const runs = [[]];
  for (const point of points) {
    const x = (100 - ((end - point.time_s) / SPAN_S) * 100).toFixed(2);
    if (value(point) === null) runs.push([]);
    else runs[runs.length - 1].push([x, (40 - (value(point) / highest) * 38).toFixed(2)]);
  }
  const shape = (name, attributes) => {
    const element = document.createElementNS(svg.namespaceURI, name);
    for (const [key, one] of Object.entries(attributes)) element.setAttribute(key, one);
    return element;
  };
  svg.setAttribute("viewBox", "0 0 100 40");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-label", label);
  svg.replaceChildren(shape("line", { x1: 0, x2: 100, y1: 40, y2: 40 }));
  for (const run of runs.filter((one) => one.length > 1)) {
    const places = run.join(" ");
    svg.append(shape("path", { d: `M${run[0][0]},40 L${places} L${run[run.length - 1][0]},40 Z` }));
    svg.append(shape("polyline", { points: places }));
  }
}

/** Draw parts, `{kind, bytes}`, as shares of a bar. */
export function drawStack(element, parts, label) {
  const whole = parts.reduce((sum, part) => sum + part.bytes, 0) || 1;
  element.setAttribute("aria-label", label);
  while (element.children.length < parts.length) element.append(document.createElement("span"));
  parts.forEach((part, index) => {
    const span = element.children[index];
    span.className = part.kind;
    span.hidden = part.bytes === 0;
    span.style.width = `${(100 * part.bytes) / whole}%`;
  });
}

/** The hit rates of all layers over time, and the slots of each beside them. */
export class LayerMap {
  constructor(canvas, slotCanvas, onRead) {
    this.canvas = canvas;
    this.slotCanvas = slotCanvas;
    this.onRead = onRead;
    this.points = [];
    this.slots = [];
    this.experts = 1; // in each layer
    this.low = 0;
    this.cursor = null; // {layer, age}: seconds before the newest point
    canvas.addEventListener("pointermove", (event) => this.point(event));
    canvas.addEventListener("pointerdown", (event) => this.point(event));
    canvas.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && this.leave());
    canvas.addEventListener("blur", () => this.leave());
    canvas.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  show(points, slots, experts) {
    this.points = points;
    this.experts = experts;
    this.slots = slots;
    const rates = points.flatMap((point) => point.layer_hit_rates).filter((rate) => rate !== null);
    rates.sort((a, b) => a - b);
    const lowest = rates.length ? rates[Math.floor(rates.length / 50)] : 0;
    this.low = LOW_STEPS.find((step) => step <= lowest) ?? 0;
    this.draw();
  }

  get layers() {
    return this.slots.length;
  }

  draw() {
    this.drawHeat();
    this.drawSlots();
    if (this.cursor) this.read();
  }

  drawHeat() {
    const { context, width, height } = sized(this.canvas);
    if (!this.points.length || !this.layers) return;
    const end = this.points[this.points.length - 1].time_s;
    const step = width / SPAN_S;
    let right = width;
    for (let index = this.points.length - 1; index >= 0; index -= 1) {
      const point = this.points[index];
      const before = index ? this.points[index - 1].time_s : point.time_s - 1;
      const left = width - (end - Math.max(before, point.time_s - 2.5)) * step;
      right = width - (end - point.time_s) * step;
      this.drawColumn(context, point, left, right, height);
    }
    if (this.cursor) this.drawCursor(context, step, width, height);
  }

  drawColumn(context, point, left, right, height) {
    const x = Math.floor(left);
    const wide = Math.ceil(right) - x;
    point.layer_hit_rates.forEach((rate, layer) => {
      if (rate === null) return;
      const top = Math.round((layer * height) / this.layers);
      const bottom = Math.round(((layer + 1) * height) / this.layers);
      context.fillStyle = this.colour(rate);
      context.fillRect(x, top, wide, bottom - top);
    });
  }

  drawCursor(context, step, width, height) {
    const tall = height / this.layers;
    const x = width - (this.cursor.age + 1) * step;
    const y = this.cursor.layer * tall;
    context.lineWidth = 3 * ratio();
    context.strokeStyle = "#000";
    context.strokeRect(x - 2, y - 2, step + 4, tall + 4);
    context.lineWidth = 1.5 * ratio();
    context.strokeStyle = "#fff";
    context.strokeRect(x - 2, y - 2, step + 4, tall + 4);
  }

  drawSlots() {
    const { context, width, height } = sized(this.slotCanvas);
    context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--slots");
    this.slots.forEach((slots, layer) => {
      const top = Math.round((layer * height) / this.layers);
      const bottom = Math.round(((layer + 1) * height) / this.layers);
      const gap = bottom - top > 4 ? 1 : 0;
      context.fillRect(0, top, Math.min(1, slots / this.experts) * width, bottom - top - gap);
    });
  }

  colour(rate) {
    const place = (Math.max(0, (rate - this.low) / (1 - this.low)) * (COLOURS.length - 1));
    const below = Math.min(Math.floor(place), COLOURS.length - 2);
    const mixed = COLOURS[below].map((part, at) => part + (COLOURS[below + 1][at] - part) * (place - below));
    return `rgb(${mixed.map(Math.round).join(" ")})`;
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const layer = Math.floor(((event.clientY - box.top) / box.height) * this.layers);
    const age = Math.floor((1 - (event.clientX - box.left) / box.width) * SPAN_S);
    this.move(layer, age);
  }

  key(event) {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, 1], ArrowRight: [0, -1] };
    if (event.key === "Escape") this.leave();
    if (!moves[event.key]) return;
    event.preventDefault();
    const [down, back] = moves[event.key];
    const at = this.cursor ?? { layer: -down, age: -back };
    this.move(at.layer + down, at.age + back);
  }

  move(layer, age) {
    if (!this.layers) return;
    this.cursor = {
      layer: Math.min(Math.max(layer, 0), this.layers - 1),
      age: Math.min(Math.max(age, 0), SPAN_S - 1),
    };
    this.draw();
  }

  leave() {
    this.cursor = null;
    this.onRead(null);
    this.draw();
  }

  read() {
    const { layer, age } = this.cursor;
    const end = this.points.length ? this.points[this.points.length - 1].time_s : 0;
    const point = this.points.find((one) => Math.floor(end - one.time_s) === age);
    const rate = point ? point.layer_hit_rates[layer] ?? null : null;
    this.onRead({ layer, age, rate, slots: this.slots[layer] });
  }
}

function ratio() {
  return window.devicePixelRatio || 1;
}

/** Fit a canvas to the pixels of its place and clear it. */
function sized(canvas) {
  const width = Math.round(canvas.clientWidth * ratio());
  const height = Math.round(canvas.clientHeight * ratio());
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}
