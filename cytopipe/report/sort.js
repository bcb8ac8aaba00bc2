"use strict";
(() => {
  // Tables that sort by a click on a column's name; what has no value stays at the end either way.
  const text = new Intl.Collator(undefined, { numeric: true });
  document.querySelectorAll("table.sortable").forEach((table) => {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = head.querySelector("button");
      if (!button) return;
      const numeric = button.dataset.kind === "number";
      button.addEventListener("click", () => {
        const first = numeric ? "descending" : "ascending"; // numbers: the largest are what one looks for
        const other = numeric ? "ascending" : "descending";
        const order = head.getAttribute("aria-sort") === first ? other : first;
        heads.forEach((h) => { if (h.hasAttribute("aria-sort")) h.setAttribute("aria-sort", h === head ? order : "none"); });
        const sign = order === "ascending" ? 1 : -1;
        const rows = [...body.rows].map((row) => [row, row.cells[column].dataset.value]);
        rows.sort(([, a], [, b]) => {
          if (a === "" || b === "") return (a === "") - (b === "");
          return sign * (numeric ? Number(a) - Number(b) : text.compare(a, b));
        });
        body.append(...rows.map(([row]) => row));
      });
    });
  });
})();
