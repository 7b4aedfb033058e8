// The grids: pointing at a cell (or reaching it with the arrow keys) shows its line, a click or Enter keeps it.
"use strict";
for (const group of document.querySelectorAll(".grids")) {
  const lines = JSON.parse(group.querySelector(".cells").textContent);
  const body = group.querySelector(".kept tbody");
  const live = body.querySelector(".live");
  const kept = new Map();
  const everywhere = (at) => group.querySelectorAll(`[data-at="${at}"]`);

  const fill = (row, at) => lines[at].forEach((text, i) => { row.cells[i].textContent = text; });

  const show = (at) => {
    if (!lines[at]) return;
    for (const cell of group.querySelectorAll(".cell.here")) cell.classList.remove("here");
    for (const cell of everywhere(at)) cell.classList.add("here");
    live.dataset.at = at;
    fill(live, at);
  };

  const drop = (at) => {
    kept.get(at).remove();
    kept.delete(at);
    for (const cell of everywhere(at)) cell.classList.remove("keep");
  };

  const keep = (at) => {
    if (!lines[at]) return;
    if (kept.has(at)) { drop(at); return; }
    const row = live.cloneNode(true);
    row.className = "keeping";
    row.dataset.at = at;
    fill(row, at);
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "drop";
    button.setAttribute("aria-label", `drop position ${lines[at][0]}, layer ${lines[at][1]}`);
    button.addEventListener("click", () => drop(at));
    row.cells[row.cells.length - 1].replaceChildren(button);
    kept.set(at, body.appendChild(row));
    for (const cell of everywhere(at)) cell.classList.add("keep");
  };

  // On a narrow screen, begin where the chosen candidate is.
  for (const cell of everywhere(group.dataset.start)) {
    const box = cell.closest(".scroll"), at = cell.getBoundingClientRect(), frame = box.getBoundingClientRect();
    box.scrollLeft += at.left - frame.left - frame.width / 2;
  }

  const of = (event) => event.target.closest(".cell");
  group.addEventListener("pointerover", (event) => { if (of(event)) show(of(event).dataset.at); });
  group.addEventListener("pointerleave", () => show(group.dataset.start));
  group.addEventListener("focusin", (event) => { if (of(event)) show(of(event).dataset.at); });
  group.addEventListener("click", (event) => { if (of(event)) keep(of(event).dataset.at); });
  group.addEventListener("keydown", (event) => {
    const cell = of(event);
    if (!cell) return;
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (step) {
      const [i, j] = cell.dataset.at.split(",").map(Number);
      const next = cell.closest("svg").querySelector(`[data-at="${i + step[0]},${j + step[1]}"]`);
      event.preventDefault();
      if (!next) return;
      cell.setAttribute("tabindex", "-1");
      next.setAttribute("tabindex", "0");
      next.focus();
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      keep(cell.dataset.at);
    }
  });
}
