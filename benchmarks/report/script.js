"use strict";
(() => {
  const all = (root, selector) => [...root.querySelectorAll(selector)];

  // Theme: the system's until somebody chooses.
  const root = document.documentElement;
  const theme = document.getElementById("theme");
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const label = () => { theme.textContent = dark() ? "Light" : "Dark"; };
  theme.hidden = false;
  theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; label(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
  label();

  // Tables: a click on a title sorts by it, what is empty goes last.
  const value = (row, index) => {
    const text = row.cells[index].dataset.key;
    return text === undefined || text === "" ? null : Number.isNaN(Number(text)) ? text : Number(text);
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  for (const table of all(document, "table.sortable")) {
    const titles = all(table, "thead th");
    titles.forEach((title, index) => title.querySelector("button")?.addEventListener("click", () => {
      const down = title.getAttribute("aria-sort") === "ascending";
      titles.forEach((other) => other.removeAttribute("aria-sort"));
      title.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = all(table.tBodies[0], "tr").map((row) => [value(row, index), row]);
      rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : down ? compare(b, a) : compare(a, b)));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    }));
  }
  for (const tools of all(document, ".table-tools")) {
    const table = document.getElementById(tools.dataset.table);
    const [search, more, count] = ["input[type=search]", "input[type=checkbox]", "output"].map((s) => tools.querySelector(s));
    tools.hidden = false;
    search.addEventListener("input", () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const rows = all(table.tBodies[0], "tr");
      for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
      count.textContent = words.length ? `${rows.filter((row) => !row.hidden).length} of ${rows.length}` : "";
    });
    more?.addEventListener("change", () => table.classList.toggle("all", more.checked));
  }

  // Plots: the legend hides curves, and the pointer on a name or a curve brings it out.
  const tip = document.getElementById("tip");
  for (const mark of all(document, ".plot use:has(title), .plot path:has(title)")) {
    mark.dataset.tip = mark.querySelector("title").textContent;
    mark.querySelector("title").remove();
  }
  for (const charts of all(document, ".charts")) {
    const chips = all(charts, ".chip");
    const parts = (key) => all(charts, `.plot g.${CSS.escape(key)}`);
    const show = (chip, on) => {
      chip.setAttribute("aria-pressed", on);
      for (const part of parts(chip.dataset.curve)) part.style.visibility = on ? "" : "hidden";
    };
    const shown = (chip) => chip.getAttribute("aria-pressed") === "true";
    const bringOut = (keys) => {
      all(charts, ".hot").forEach((part) => part.classList.remove("hot"));
      keys.flatMap(parts).forEach((part) => part.classList.add("hot"));
      charts.classList.toggle("dim", keys.length > 0);
    };
    all(charts, ".legend button").forEach((button) => { button.disabled = false; });
    chips.forEach((chip) => chip.addEventListener("click", () => show(chip, !shown(chip))));
    all(charts, ".runner").forEach((runner) => {
      const own = all(runner.parentElement, ".chip");
      runner.addEventListener("click", () => { const on = !own.some(shown); own.forEach((chip) => show(chip, on)); });
    });
    all(charts, "[data-show]").forEach((button) => button.addEventListener("click", () => {
      const wanted = button.dataset.show.split(" ");
      chips.forEach((chip) => show(chip, button.dataset.show === "all" || wanted.includes(chip.dataset.curve)));
    }));
    const keysOf = (target) => {
      const button = target.closest(".chip, .runner");
      if (button) return all(button.parentElement, ".chip").filter((chip) => button.matches(".runner") || chip === button).map((chip) => chip.dataset.curve);
      const curve = target.closest(".plot g[class]");
      return curve ? [curve.classList[0]] : [];
    };
    for (const event of ["pointerover", "focusin"]) charts.addEventListener(event, ({ target }) => bringOut(keysOf(target)));
    for (const event of ["pointerleave", "focusout"]) charts.addEventListener(event, () => bringOut([]));
  }
  document.addEventListener("pointerover", ({ target, clientX, clientY }) => {
    const text = target.dataset?.tip;
    tip.hidden = !text;
    if (!text) return;
    tip.textContent = text;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(clientX + 12, innerWidth - box.width - 8))}px`;
    tip.style.top = `${clientY > box.height + 20 ? clientY - box.height - 12 : clientY + 18}px`;
  });
})();
