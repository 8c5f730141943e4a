// Sorts and filters the table of classes, and enlarges figures. Without it, the page shows everything in the order of the numbers.
const table = document.getElementById("table"), body = table.tBodies[0];
const rows = [...body.rows], headers = [...table.tHead.rows[0].cells];
const names = new Map(rows.map((row) => [row, fold(row.cells[0].textContent)]));
const field = document.getElementById("q"), group = document.getElementById("group");

function fold(text) {
  return text.normalize("NFC").toLowerCase();
}

function number(cell) {
  return Number.parseFloat(cell.dataset.value ?? cell.textContent.replaceAll(",", ""));
}

function sort(column) {
  const header = headers[column], type = header.querySelector("button").dataset.type;
  const first = type === "text" ? "ascending" : "descending";
  const other = first === "ascending" ? "descending" : "ascending";
  const order = header.getAttribute("aria-sort") === first ? other : first;
  const sign = order === "ascending" ? 1 : -1;
  const value = new Map(rows.map((row) => [row, type === "text" ? fold(row.cells[column].textContent) : number(row.cells[column])]));
  rows.sort((one, two) => {
    const [a, b] = [value.get(one), value.get(two)];
    if (type === "text") return sign * a.localeCompare(b, "en");
    return Number.isNaN(a) - Number.isNaN(b) || sign * (a - b) || 0; // undefined values are last in both orders
  });
  for (const one of headers) one.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", order);
  body.append(...rows);
}

function filter() {
  const wanted = fold(field.value.trim());
  let count = 0;
  for (const row of rows) {
    const matches = names.get(row).includes(wanted) && (!group?.value || row.dataset.group === group.value);
    row.hidden = !matches;
    count += matches;
  }
  const [shown, all] = [count, rows.length].map((n) => n.toLocaleString("en"));
  document.getElementById("found").textContent = `${shown} of ${all} classes`;
  document.getElementById("empty").hidden = count > 0;
}

headers.forEach((header, column) => header.querySelector("button").addEventListener("click", () => sort(column)));
field.addEventListener("input", filter);
group?.addEventListener("change", filter);
filter(); // a browser may have kept the texts of an earlier visit

const dialog = document.getElementById("large"), sheet = dialog.querySelector(".sheet");
for (const button of document.querySelectorAll(".enlarge")) {
  button.addEventListener("click", () => {
    sheet.replaceChildren(button.querySelector("img").cloneNode());
    dialog.showModal();
  });
}
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
