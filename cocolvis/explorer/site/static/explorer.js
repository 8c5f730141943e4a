// What several pages share: menus that act when they change, "/" for the search field, and names that complete themselves.
for (const menu of document.querySelectorAll("select[data-submit]")) {
  menu.addEventListener("change", () => menu.form.requestSubmit());
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches?.("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey;
  if (event.key !== "/" || typing) return;
  const field = document.querySelector("#q, [data-names]");
  if (field) { event.preventDefault(); field.focus(); field.select(); }
});

let names = null; // [name, synset, colour, images] of every class, loaded on first use

async function allNames() {
  names ??= fetch("/names.json").then((response) => response.json())
    .then((found) => found.names.map((one) => [...one, fold(`${one[0]} ${one[1] ?? ""}`)]))
    .catch(() => { names = null; return []; }); // none until the server answers
  return names;
}

function fold(text) {
  return text.normalize("NFC").toLowerCase();
}

const MOST = 12; // suggestions

class Combobox {
  constructor(field) {
    this.field = field;
    this.list = document.createElement("ul");
    Object.assign(this.list, { id: `${field.id}-list`, className: "suggestions", hidden: true });
    this.list.setAttribute("role", "listbox");
    this.list.setAttribute("aria-label", "Classes");
    field.after(this.list);
    for (const [name, value] of Object.entries({ role: "combobox", "aria-expanded": "false", "aria-controls": this.list.id, "aria-autocomplete": "list" })) field.setAttribute(name, value);
    field.addEventListener("focus", () => allNames());
    field.addEventListener("input", () => this.suggest());
    field.addEventListener("keydown", (event) => this.key(event));
    field.addEventListener("blur", () => setTimeout(() => this.close(), 150));
    this.list.addEventListener("pointerdown", (event) => {
      const item = event.target.closest("li");
      if (item) { event.preventDefault(); this.take(item.dataset.name); }
    });
  }

  async suggest() {
    const wanted = fold(this.field.value.trim());
    const all = await allNames();
    if (wanted !== fold(this.field.value.trim())) return; // typed on while the names were loading
    const rank = (one) => (fold(one[0]) === wanted ? 0 : fold(one[0]).startsWith(wanted) ? 1 : 2);
    const found = wanted ? all.filter((one) => one[4].includes(wanted)).sort((a, b) => rank(a) - rank(b) || b[3] - a[3]).slice(0, MOST) : [];
    this.list.replaceChildren(...found.map((one, number) => suggestion(one, `${this.list.id}-${number}`)));
    this.active = -1;
    this.list.hidden = !found.length;
    this.field.setAttribute("aria-expanded", String(found.length > 0));
    this.field.removeAttribute("aria-activedescendant");
  }

  key(event) {
    const items = [...this.list.children];
    if (event.key === "Escape") return this.close();
    if (event.key === "Enter" && this.active >= 0) {
      event.preventDefault();
      return this.take(items[this.active].dataset.name);
    }
    if (!["ArrowDown", "ArrowUp"].includes(event.key) || !items.length) return;
    event.preventDefault();
    const step = event.key === "ArrowDown" ? 1 : -1;
    this.active = this.active < 0 && step < 0 ? items.length - 1 : (this.active + step + items.length) % items.length;
    items.forEach((item, number) => item.setAttribute("aria-selected", String(number === this.active)));
    items[this.active].scrollIntoView({ block: "nearest" });
    this.field.setAttribute("aria-activedescendant", items[this.active].id);
  }

  take(name) {
    this.field.value = name;
    this.close();
    this.field.form.requestSubmit();
  }

  close() {
    this.list.hidden = true;
    this.list.replaceChildren(); // the arrow keys must not reach what is not seen
    this.active = -1;
    this.field.setAttribute("aria-expanded", "false");
    this.field.removeAttribute("aria-activedescendant");
  }
}

function suggestion([name, synset, colour, images], id) {
  const item = document.createElement("li");
  item.id = id;
  item.dataset.name = name;
  item.setAttribute("role", "option");
  item.setAttribute("aria-selected", "false");
  const swatch = document.createElement("i");
  swatch.className = "swatch";
  swatch.style.background = colour;
  const text = document.createElement("span"), detail = document.createElement("small"), count = document.createElement("small");
  text.textContent = name;
  detail.textContent = synset ?? "";
  count.textContent = images.toLocaleString("en");
  count.className = "n";
  item.append(swatch, text, detail, count);
  return item;
}

for (const field of document.querySelectorAll("input[data-names]")) new Combobox(field);
