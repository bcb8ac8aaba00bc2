"use strict";
(() => {
  const field = document.getElementById("slide-filter");
  if (!field) return;
  const rows = [...document.querySelectorAll("#slides tbody tr")];
  const words = rows.map((row) => row.textContent.toLowerCase());
  field.addEventListener("input", () => {
    const wanted = field.value.trim().toLowerCase();
    rows.forEach((row, k) => { row.hidden = !words[k].includes(wanted); });
  });
})();
