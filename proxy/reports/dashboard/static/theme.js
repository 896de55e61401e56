"use strict";
// Before anything is drawn: light or dark, as chosen here or else as the system says.
(() => {
  const root = document.documentElement;
  const kept = () => { try { return localStorage.getItem("breakeven-theme"); } catch { return null; } };
  const keep = name => { try { localStorage.setItem("breakeven-theme", name); } catch { /* only for this page, then */ } };
  const show = name => name === "light" || name === "dark" ? root.dataset.theme = name : delete root.dataset.theme;
  show(kept());
  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme"), word = button.querySelector("span"), names = ["auto", "light", "dark"];
    word.textContent = root.dataset.theme || "auto";
    button.hidden = false;
    button.addEventListener("click", () => {
      const next = names[(names.indexOf(word.textContent) + 1) % names.length];
      word.textContent = next;
      keep(next);
      show(next);
      dispatchEvent(new Event("theme"));
    });
  });
})();
