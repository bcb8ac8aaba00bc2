"use strict";
(() => {
  const all = (query, root = document) => [...root.querySelectorAll(query)];
  const one = (query, root = document) => root.querySelector(query);
  const press = (buttons, pressed) => buttons.forEach((b) => b.setAttribute("aria-pressed", String(b === pressed)));

  // Slide map: one density layer at a time.
  const layerButtons = all(".layers [data-layer]");
  layerButtons.forEach((button) => button.addEventListener("click", () => {
    press(layerButtons, button);
    all(".map .layer").forEach((image) => { image.hidden = image.dataset.layer !== button.dataset.layer; });
  }));

  const dotted = one(".dotted");
  if (dotted) dotted.addEventListener("click", () => {
    const hidden = one(".map .dots").toggleAttribute("hidden");
    dotted.setAttribute("aria-pressed", String(!hidden));
  });

  const gallery = one(".gallery");
  if (!gallery) return;
  const cells = all(".cell", gallery);
  const dots = all(".map .dots a").reverse();
  const dialog = one("dialog.large");
  const toast = one(".toast");
  const visible = () => cells.filter((cell) => !cell.parentElement.hidden);
  let current = cells[0];

  function choose(cell) {
    current.tabIndex = -1;
    current = cell;
    cell.tabIndex = 0;
  }

  function mark(cell, on) {
    cell.classList.toggle("on", on);
    dots[cell.dataset.rank - 1].classList.toggle("on", on);
  }

  // Both filters hold at once: one class or all, and a least score.
  const least = one(".least");
  let wanted = "";
  function filter() {
    cells.forEach((cell) => {
      const hide = (wanted !== "" && cell.dataset.class !== wanted) || Number(cell.dataset.score) < Number(least.value);
      cell.parentElement.hidden = hide;
      dots[cell.dataset.rank - 1].hidden = hide;
    });
    const shown = visible();
    one(".least").previousElementSibling.textContent = Number(least.value).toFixed(2);
    one(".shown").textContent = `${shown.length} shown`;
    one(".none").hidden = shown.length > 0;
    if (!shown.includes(current)) choose(shown[0] || cells[0]);
  }

  function toggleOutlines() {
    const bare = document.body.classList.toggle("bare");
    one(".outline").setAttribute("aria-pressed", String(!bare));
  }

  function say(text) {
    toast.textContent = text;
    toast.classList.add("on");
    if (dialog.open) dialog.append(toast); // what is not inside an open modal dialog lies below it
    clearTimeout(say.timer);
    say.timer = setTimeout(() => toast.classList.remove("on"), 1800);
  }

  function copy(text) {
    const fallback = () => { // some browsers give no clipboard to pages that are opened from a file
      const field = document.createElement("textarea");
      const focused = document.activeElement;
      field.value = text;
      (dialog.open ? dialog : document.body).append(field);
      field.select();
      const done = document.execCommand("copy");
      field.remove();
      focused.focus();
      say(done ? `Copied ${text}` : text);
    };
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(() => say(`Copied ${text}`), fallback);
    else fallback();
  }

  const copyPlace = () => copy(`${current.dataset.x}, ${current.dataset.y}`);
  const copyQuPath = () => copy(current.dataset.qupath);

  function row(list, name, value) {
    if (!value) return;
    const term = document.createElement("dt");
    const detail = document.createElement("dd");
    term.textContent = name;
    detail.textContent = value;
    list.append(term, detail);
  }

  function show(cell) {
    choose(cell);
    const d = cell.dataset;
    const picture = one(".picture", dialog);
    picture.replaceChildren(one(".crop", cell).cloneNode(true));
    one("img", picture).loading = "eager";
    one(".rank", dialog).textContent = `${visible().indexOf(cell) + 1} of ${visible().length}`;
    const swatch = document.createElement("i");
    swatch.style.background = d.colour;
    one("h3", dialog).replaceChildren(swatch, d.class);
    const list = one("dl", dialog);
    list.replaceChildren();
    row(list, "Suspicion", d.suspicion);
    row(list, "Score", d.score);
    row(list, "Level-0 px", `${d.x}, ${d.y}`);
    row(list, "QuPath px", d.qupath || "the same");
    row(list, "Size", d.size);
    row(list, "Picture", d.picture);
    row(list, "Flags", d.flags);
    row(list, "Id", d.id);
    one(".copy-qupath", dialog).hidden = !d.qupath;
    const bars = one(".bars", dialog);
    bars.replaceChildren();
    (d.scores ? d.scores.split("|") : []).forEach((pair) => {
      const cut = pair.lastIndexOf("=");
      const name = document.createElement("div");
      const bar = document.createElement("span");
      const value = document.createElement("div");
      name.textContent = pair.slice(0, cut);
      value.textContent = Number(pair.slice(cut + 1)).toFixed(2);
      bar.style.setProperty("--share", `${100 * Number(pair.slice(cut + 1))}%`);
      bars.append(name, bar, value);
    });
    if (!dialog.open) dialog.showModal();
  }

  function open(cell) {
    show(cell);
    copyPlace();
  }

  function go(index) {
    const shown = visible();
    const next = shown[Math.max(0, Math.min(shown.length - 1, index))];
    if (!next) return;
    if (dialog.open) show(next);
    else { choose(next); next.focus(); }
  }

  const step = (by) => go(visible().indexOf(current) + by);

  cells.forEach((cell) => {
    cell.addEventListener("click", () => open(cell));
    ["mouseenter", "focus"].forEach((kind) => cell.addEventListener(kind, () => mark(cell, true)));
    ["mouseleave", "blur"].forEach((kind) => cell.addEventListener(kind, () => mark(cell, false)));
  });
  dots.forEach((dot) => {
    const cell = cells[dot.dataset.rank - 1];
    dot.title = `${cell.dataset.class} ${cell.dataset.suspicion}`;
    dot.addEventListener("click", (event) => { event.preventDefault(); open(cell); });
  });
  const filters = all("[data-filter]");
  filters.forEach((button) => button.addEventListener("click", () => {
    press(filters, button);
    wanted = button.dataset.filter;
    filter();
  }));
  least.addEventListener("input", filter);
  one(".outline").addEventListener("click", toggleOutlines);
  one(".close", dialog).addEventListener("click", () => dialog.close());
  one(".copy", dialog).addEventListener("click", copyPlace);
  one(".copy-qupath", dialog).addEventListener("click", copyQuPath);
  one(".previous", dialog).addEventListener("click", () => step(-1));
  one(".next", dialog).addEventListener("click", () => step(1));
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => { document.body.append(toast); current.focus(); });

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const inGallery = dialog.open || gallery.contains(document.activeElement);
    const columns = getComputedStyle(gallery).gridTemplateColumns.split(" ").length;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
    const ends = { Home: 0, End: cells.length };
    if (event.key in steps && inGallery) {
      event.preventDefault();
      step(dialog.open ? Math.sign(steps[event.key]) : steps[event.key]);
    } else if (event.key in ends && inGallery) {
      event.preventDefault();
      go(ends[event.key]);
    } else if (event.key.toLowerCase() === "o") toggleOutlines();
    else if (event.key.toLowerCase() === "c" && inGallery) copyPlace();
  });
})();
