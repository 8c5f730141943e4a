// Filters the classes as the user types; the address follows, so that it can be shared. If the page has not all classes, the
// server searches when the form is submitted.
const field = document.getElementById("q"), table = document.getElementById("classes");
const complete = "complete" in table.dataset, searched = field.defaultValue;
const rows = [...table.querySelectorAll("tbody tr")].map((row) => [row, fold(row.cells[0].textContent)]);
const found = document.getElementById("found"), empty = document.getElementById("empty");

function fold(text) {
  return text.normalize("NFC").toLowerCase();
}

function filter() {
  const wanted = fold(field.value.trim());
  table.classList.toggle("filtered", wanted !== "");
  let count = 0;
  for (const [row, text] of rows) {
    const matches = text.includes(wanted);
    count += matches;
    if (row.hidden === matches) row.hidden = !matches;
  }
  found.textContent = found.textContent.replace(/^[\d,]+/, count.toLocaleString("en"));
  empty.hidden = count > 0;
  document.getElementById("empty-text").textContent = field.value;
  remember(field.value.trim());
}

// Puts what was typed into the address, and into the links and menus that lead to other states of this page.
function remember(text) {
  const changed = (address) => {
    if (text) address.searchParams.set("q", text); else address.searchParams.delete("q");
    return address;
  };
  history.replaceState(null, "", changed(new URL(location.href)));
  for (const link of document.querySelectorAll(".bar-of-choices a")) link.href = changed(new URL(link.href));
  for (const form of document.querySelectorAll(".bar-of-choices form")) {
    form.querySelector("input[name=q]")?.remove();
    if (text) form.append(Object.assign(document.createElement("input"), { type: "hidden", name: "q", value: text }));
  }
}

if (complete) field.addEventListener("input", filter);
field.form.addEventListener("submit", (event) => {
  const first = rows.find(([row]) => !row.hidden);
  if (!first || !(complete || (searched && field.value === searched))) return;
  event.preventDefault();
  location.href = first[0].querySelector("a").href;
});
document.addEventListener("keydown", (event) => {
  const visible = rows.filter(([row]) => !row.hidden).map(([row]) => row.querySelector("a"));
  const place = visible.indexOf(document.activeElement);
  if (event.key === "ArrowDown" && (place >= 0 || document.activeElement === field)) visible[place + 1]?.focus();
  else if (event.key === "ArrowUp" && place >= 0) (visible[place - 1] ?? field).focus();
  else return;
  event.preventDefault();
});
