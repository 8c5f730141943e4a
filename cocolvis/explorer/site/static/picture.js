// One picture: panes for the labels and each run, with a shared pointer, zoom, outline and opacity. Every state is in the address.
import { Mask } from "./mask.js";

const data = JSON.parse(document.getElementById("data").textContent);
const colours = new Map(data.classes.map((c) => [c.class, [1, 3, 5].map((at) => parseInt(c.colour.slice(at, at + 2), 16))]));
const names = named(() => true); // the classes that were added to several runs may share a number
const $ = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const PIXEL = 32; // the largest zoom: CSS pixels per pixel of the picture
const DRAG = 4; // CSS pixels from which a press is a drag and not a click

const state = {
  zoom: Math.max(1, Number(query.get("zoom")) || 1),
  x: Number(query.get("x") ?? data.width / 2) || 0, // the middle of what is seen, in pixels of the picture
  y: Number(query.get("y") ?? data.height / 2) || 0,
  opacity: query.has("opacity") ? Math.min(100, Math.max(0, Number(query.get("opacity")) || 0)) : 55,
  outline: [...names].find(([id, name]) => id && name === query.get("outline"))?.[0] ?? null,
  names: query.get("names") === "1",
  held: false, // whether N is held
  preview: null, // the class of the row of the table that is pointed at
  pointer: null, // [x, y]
};

class Pane {
  constructor(stage, number) {
    this.stage = stage;
    this.called = named((c) => !c.added || c.runs[number - 1]?.pixels);
    this.layers = stage.querySelector(".layers");
    this.canvas = stage.querySelector("canvas");
    this.title = stage.closest("figure").querySelector("figcaption")?.firstChild.textContent.trim() ?? "";
    this.names = addTo(stage, "div", "names");
    this.cross = addTo(stage, "div", "cross");
    this.tag = addTo(stage, "div", "tag");
    for (const part of [this.names, this.cross, this.tag]) part.setAttribute("aria-hidden", "true");
    this.painted = undefined;
    this.listen();
  }

  async load() {
    const response = await fetch(this.stage.dataset.source);
    if (!response.ok) throw new Error(await response.text());
    this.mask = new Mask(await response.arrayBuffer(), data.width, data.height);
    this.stage.dataset.loaded = "yes";
  }

  get box() {
    return this.stage.getBoundingClientRect();
  }

  get unit() { // CSS pixels per pixel of the picture, before zooming
    return this.stage.clientWidth / data.width;
  }

  get offset() { // what the layers are moved by, in CSS pixels
    const { clientWidth: width, clientHeight: height } = this.stage;
    const limit = (size, middle) => Math.min(0, Math.max(size - size * state.zoom, size / 2 - middle * this.unit * state.zoom));
    return [limit(width, state.x), limit(height, state.y)];
  }

  toPicture(clientX, clientY) {
    const box = this.box, [left, top] = this.offset, scale = this.unit * state.zoom;
    return [(clientX - box.left - this.stage.clientLeft - left) / scale, (clientY - box.top - this.stage.clientTop - top) / scale];
  }

  toStage(x, y) {
    const [left, top] = this.offset, scale = this.unit * state.zoom;
    return [left + x * scale, top + y * scale];
  }

  draw() {
    const only = state.preview ?? state.outline, scale = this.unit * state.zoom;
    const [left, top] = this.offset;
    this.layers.style.transform = `translate(${left}px, ${top}px) scale(${state.zoom})`;
    this.layers.classList.toggle("pixels", scale >= 2);
    this.stage.style.touchAction = state.zoom > 1 ? "none" : ""; // a finger moves an enlarged picture, and scrolls the page otherwise
    this.canvas.style.opacity = only === null ? state.opacity / 100 : 1;
    if (this.mask && this.painted !== only) {
      this.mask.paint(this.canvas.getContext("2d"), colours, only);
      this.painted = only;
    }
    this.drawNames();
    this.drawPointer();
  }

  drawNames() {
    const shown = state.names || state.held;
    this.names.hidden = !shown;
    if (!shown || !this.mask) return;
    const taken = [], labels = [];
    for (const [id, x, y] of this.mask.places()) {
      const [left, top] = this.toStage(x, y);
      if (left < 0 || top < 0 || left > this.stage.clientWidth || top > this.stage.clientHeight) continue;
      const width = 7 * (this.called.get(id) ?? "").length + 16, half = width / 2;
      const middle = Math.min(Math.max(left, half + 2), Math.max(half + 2, this.stage.clientWidth - half - 2));
      const place = [0, 1, -1, 2, -2].map((step) => top + step * 22).find((at) => at > 10 && at < this.stage.clientHeight - 10
        && !taken.some(([a, b, w]) => Math.abs(a - middle) < (w + width) / 2 && Math.abs(b - at) < 22));
      if (place === undefined) continue;
      taken.push([middle, place, width]);
      labels.push(tag(id, this.called.get(id), middle, place));
    }
    this.names.replaceChildren(...labels);
  }

  drawPointer() {
    const at = state.pointer;
    this.cross.hidden = this.tag.hidden = !at || !this.mask;
    if (this.cross.hidden) return;
    const [x, y] = at, [left, top] = this.toStage(x + 0.5, y + 0.5), id = this.mask.at(x, y);
    this.cross.style.transform = `translate(${left}px, ${top}px)`;
    paintTag(this.tag, id, this.called.get(id));
    const right = left + 14 + this.tag.offsetWidth > this.stage.clientWidth, low = top + 40 > this.stage.clientHeight;
    this.tag.style.transform = `translate(${right ? Math.max(0, left - 14 - this.tag.offsetWidth) : left + 14}px, ${low ? top - 34 : top + 12}px)`;
  }

  listen() {
    let press = null;
    this.stage.addEventListener("pointermove", (event) => {
      if (press) {
        const [dx, dy] = [event.clientX - press.x, event.clientY - press.y];
        press.dragged ||= Math.hypot(dx, dy) > DRAG;
        if (press.dragged && state.zoom > 1) {
          moveTo(press.middle[0] - dx / (this.unit * state.zoom), press.middle[1] - dy / (this.unit * state.zoom));
        }
      }
      point(...this.toPicture(event.clientX, event.clientY));
    });
    this.stage.addEventListener("pointerleave", () => { if (document.activeElement !== this.stage) point(null); });
    this.stage.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      press = { x: event.clientX, y: event.clientY, middle: [state.x, state.y], dragged: false };
      this.stage.setPointerCapture(event.pointerId); // the press ends here even if the pointer is released elsewhere
    });
    this.stage.addEventListener("pointerup", (event) => {
      if (press && !press.dragged) { point(...this.toPicture(event.clientX, event.clientY)); explain(); }
      press = null;
    });
    this.stage.addEventListener("pointercancel", () => { press = null; });
    this.stage.addEventListener("dblclick", (event) => zoomBy(2, this.toPicture(event.clientX, event.clientY)));
    this.stage.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && document.activeElement !== this.stage) return; // the page scrolls until the picture is clicked
      event.preventDefault();
      zoomBy(Math.exp(-event.deltaY / 300), this.toPicture(event.clientX, event.clientY));
    }, { passive: false });
    this.stage.addEventListener("keydown", (event) => key(event, this));
    this.stage.addEventListener("focus", () => { if (!state.pointer) point(state.x, state.y); });
  }
}

// Class -> name of the classes that are chosen; names of the same number are joined.
function named(chosen) {
  const found = new Map([[0, "unlabelled"]]);
  for (const c of data.classes.filter(chosen)) found.set(c.class, found.has(c.class) ? `${found.get(c.class)} / ${c.name}` : c.name);
  return found;
}

function addTo(parent, kind, name) {
  const part = document.createElement(kind);
  part.className = name;
  parent.append(part);
  return part;
}

function paintTag(part, id, name) {
  const [r, g, b] = colours.get(id) ?? [90, 90, 90];
  part.textContent = name ?? `class ${id}`;
  part.style.background = `rgb(${r}, ${g}, ${b})`;
  part.style.color = 0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#111" : "#fff";
}

function tag(id, name, left, top) {
  const part = document.createElement("span");
  part.className = "name";
  paintTag(part, id, name);
  part.style.left = `${left}px`;
  part.style.top = `${top}px`;
  return part;
}

const clamp = (value, most) => Math.min(most, Math.max(0, value));

function point(x, y) {
  const inside = x !== null && x >= 0 && y >= 0 && x < data.width && y < data.height;
  state.pointer = inside ? [Math.floor(x), Math.floor(y)] : null;
  schedule();
}

function moveTo(x, y) {
  const seen = [data.width, data.height].map((size) => size / state.zoom / 2);
  state.x = Math.min(data.width - seen[0], Math.max(seen[0], x));
  state.y = Math.min(data.height - seen[1], Math.max(seen[1], y));
  schedule(true);
}

function zoomBy(factor, [x, y] = state.pointer ?? [state.x, state.y]) {
  const most = Math.max(1, PIXEL / panes[0].unit), before = state.zoom;
  state.zoom = Math.min(most, Math.max(1, state.zoom * factor));
  moveTo(x + (state.x - x) * before / state.zoom, y + (state.y - y) * before / state.zoom);
}

function outline(id) {
  state.outline = state.outline === id ? null : id;
  schedule(true);
}

function underPointer(pane = panes[0]) {
  return state.pointer && pane.mask ? pane.mask.at(...state.pointer) : 0;
}

function key(event, pane) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (event.key in steps) {
    const [x, y] = state.pointer ?? [state.x, state.y], far = event.shiftKey ? 10 : 1;
    const [dx, dy] = steps[event.key];
    point(clamp(x + dx * far, data.width - 1), clamp(y + dy * far, data.height - 1));
    keepInSight();
  } else if (event.key === "+" || event.key === "=") zoomBy(1.5);
  else if (event.key === "-") zoomBy(1 / 1.5);
  else if (event.key === "0") zoomBy(0);
  else if (event.key.toLowerCase() === "o") { if (underPointer(pane)) outline(underPointer(pane)); }
  else if (event.key.toLowerCase() === "n") { state.held = true; schedule(); }
  else if (event.key === "Enter") explain();
  else if (event.key === "Escape") { state.outline = null; schedule(true); }
  else return;
  event.preventDefault();
}

function keepInSight() {
  const [x, y] = state.pointer, half = [data.width, data.height].map((size) => size / state.zoom / 2 * 0.9);
  moveTo(Math.min(x + half[0], Math.max(x - half[0], state.x)), Math.min(y + half[1], Math.max(y - half[1], state.y)));
}

let scheduled = false, remembered = null;

function schedule(remember = false) {
  if (remember) { clearTimeout(remembered); remembered = setTimeout(writeAddress, 200); }
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => { scheduled = false; draw(); });
}

function draw() {
  for (const pane of panes) pane.draw();
  $("opacity").value = state.opacity;
  $("outline").setAttribute("aria-pressed", String(state.outline !== null));
  $("outline").textContent = state.outline === null ? "Outline" : `Outline: ${names.get(state.outline)}`;
  $("names").setAttribute("aria-pressed", String(state.names));
  $("scale").textContent = state.zoom === 1 ? "fit" : `${Math.round(100 * state.zoom * panes[0].unit)} %`;
  const here = underPointer();
  for (const row of document.querySelectorAll("tr[data-class]")) {
    row.classList.toggle("here", Number(row.dataset.class) === here);
    row.classList.toggle("outlined", Number(row.dataset.class) === state.outline);
  }
  if (!state.pointer) return;
  const [x, y] = state.pointer;
  const parts = panes.filter((pane) => pane.mask).map((pane) => `${panes.length > 1 ? `${pane.title}: ` : ""}${pane.called.get(pane.mask.at(x, y))}`);
  $("under").textContent = `x ${x}, y ${y} · ${parts.join(" · ")}`;
}

function writeAddress() {
  const address = new URL(location.href), zoomed = state.zoom > 1;
  const values = {
    zoom: zoomed ? state.zoom.toFixed(2) : null,
    x: zoomed ? state.x.toFixed(1) : null,
    y: zoomed ? state.y.toFixed(1) : null,
    opacity: state.opacity === 55 ? null : state.opacity,
    outline: state.outline === null ? null : names.get(state.outline),
    names: state.names ? "1" : null,
  };
  for (const [name, value] of Object.entries(values)) {
    if (value === null) address.searchParams.delete(name); else address.searchParams.set(name, value);
  }
  history.replaceState(null, "", address);
}

const line = (text, className = "") => Object.assign(document.createElement("p"), { className, textContent: text });

let asked = 0; // how many pixels were asked about; only the last answer is shown

async function explain() {
  const part = $("why");
  if (!part || !state.pointer) return;
  const [x, y] = state.pointer, number = ++asked;
  part.replaceChildren(line(`Reading the annotations of x ${x}, y ${y} …`, "none"));
  const answer = await explanation(x, y).catch(() => [line(`x ${x}, y ${y}: the explorer did not answer; it has ended or failed.`)]);
  if (number === asked) part.replaceChildren(...answer);
}

async function explanation(x, y) {
  const response = await fetch(`/picture/${data.split}/${data.id}/why.json?x=${x}&y=${y}`);
  const found = await response.json();
  if (!response.ok) return [line(found.error)];
  const list = document.createElement("ol");
  for (const layer of found.layers) {
    const item = document.createElement("li");
    item.className = layer.shows ? "shows" : "hidden-below";
    const id = layer.annotation_id === null ? "" : ` ${layer.annotation_id}`;
    item.textContent = `${layer.class_name || "no class"} · ${layer.source} annotation${id}, category ${layer.category_id} ${layer.category}, ${layer.area.toLocaleString("en")} pixels${layer.shows ? "" : ", hidden"}`;
    list.append(item);
  }
  return [line(`x ${x}, y ${y}: ${found.stored_name}${found.layers.length ? "" : "; no annotation covers it"}`), list, ...(found.fault ? [line(found.fault)] : [])];
}

const panes = [...document.querySelectorAll(".stage")].map((stage, number) => new Pane(stage, number));

if (panes.length) {
  document.querySelector(".tools").hidden = false;
  $("opacity").addEventListener("input", () => { state.opacity = Number($("opacity").value); schedule(true); });
  $("names").addEventListener("click", () => { state.names = !state.names; schedule(true); });
  $("outline").addEventListener("click", () => {
    const first = data.classes[0]?.class;
    outline(state.outline ?? (underPointer() || first || 0));
  });
  $("in").addEventListener("click", () => zoomBy(1.5, [state.x, state.y]));
  $("out").addEventListener("click", () => zoomBy(1 / 1.5, [state.x, state.y]));
  $("fit").addEventListener("click", () => zoomBy(0));
  document.addEventListener("keyup", (event) => { if (event.key.toLowerCase() === "n") { state.held = false; schedule(); } });
  for (const row of document.querySelectorAll("tr[data-class]")) {
    const id = Number(row.dataset.class), show = (value) => () => { state.preview = value; schedule(); };
    row.addEventListener("pointerenter", show(id));
    row.addEventListener("pointerleave", show(null));
    row.addEventListener("focusin", show(id));
    row.addEventListener("focusout", show(null));
  }
  new ResizeObserver(() => schedule()).observe(panes[0].stage);
  Promise.allSettled(panes.map((pane) => pane.load())).then((done) => {
    for (const [number, one] of done.entries()) {
      if (one.status === "rejected") addTo(panes[number].stage, "p", "failed").textContent = `The mask cannot be shown: ${one.reason.message}`;
    }
    schedule();
  });
  schedule();
}
