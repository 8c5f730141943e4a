// Light, dark or the system's choice: applied before anything is drawn, so that no page flashes.
(() => {
  const themes = ["auto", "light", "dark"];
  const root = document.documentElement;
  const stored = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const apply = (theme) => { if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme; };
  let theme = themes.includes(stored()) ? stored() : "auto";
  apply(theme);
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const show = () => {
      button.textContent = { auto: "Auto", light: "Light", dark: "Dark" }[theme];
      button.setAttribute("aria-label", `Theme: ${theme}. Change it`);
    };
    button.hidden = false;
    show();
    button.addEventListener("click", () => {
      theme = themes[(themes.indexOf(theme) + 1) % themes.length];
      apply(theme);
      try { localStorage.setItem("theme", theme); } catch { /* the choice lasts for this page */ }
      show();
    });
  });
})();
