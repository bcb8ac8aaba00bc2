"use strict";
(() => {
  const NS = "http://www.w3.org/2000/svg";
  document.querySelectorAll(".plot").forEach((plot) => {
    const lines = JSON.parse(plot.dataset.lines);
    const svg = plot.querySelector("svg");
    const readout = plot.querySelector(".readout");
    const values = [...plot.querySelectorAll(".legend b")];
    const final = values.map((value) => value.textContent);
    const title = plot.querySelector("h3");
    const name = title.textContent;

    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      readout.replaceChildren();
      lines.forEach((points, k) => {
        if (!points.length) return;
        const near = points.reduce((best, p) => (Math.abs(p[1] - x) < Math.abs(best[1] - x) ? p : best));
        values[k].textContent = near[3];
        const dot = document.createElementNS(NS, "circle");
        dot.setAttribute("cx", near[1]);
        dot.setAttribute("cy", near[2]);
        dot.setAttribute("r", 3.2);
        readout.append(dot);
        title.textContent = `${name} · ${plot.dataset.unit} ${near[0]}`;
      });
    });
    svg.addEventListener("pointerleave", () => {
      readout.replaceChildren();
      title.textContent = name;
      values.forEach((value, k) => { value.textContent = final[k]; });
    });
  });

  document.querySelectorAll("[data-toggle]").forEach((button) => button.addEventListener("click", () => {
    const hidden = document.body.classList.toggle(`without-${button.dataset.toggle}`);
    button.setAttribute("aria-pressed", String(!hidden));
  }));
})();
