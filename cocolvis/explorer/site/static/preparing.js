// Shows how far the preparation has come, and loads the page itself once it is done.
const text = document.getElementById("doing"), bar = document.getElementById("bar"), amount = document.getElementById("amount");

async function ask() {
  try {
    const state = await (await fetch(text.dataset.source, { cache: "no-store" })).json();
    if (state.ready || state.failed) return location.reload();
    if (text.textContent !== state.text) text.textContent = state.text;
    if (state.total) {
      bar.max = state.total;
      bar.value = state.done;
      amount.textContent = `${state.done.toLocaleString("en")} of ${state.total.toLocaleString("en")}`;
    }
  } catch { /* the server may be busy; the next question will be answered */ }
  setTimeout(ask, 300);
}
ask();
