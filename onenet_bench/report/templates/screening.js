(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);

  function begin(panel) {
    const chart = panel.querySelector(".chart"), unlisted = panel.querySelector(".unlisted"), chosen = {};
    const redraw = () => draw(chart, DATA.pairs[chosen.x + "/" + chosen.y]);
    for (const [axis, other] of [["x", "y"], ["y", "x"]]) {
      const menu = panel.querySelector("select." + axis);
      chosen[axis] = menu.value; // a reloading browser keeps what was chosen
      menu.addEventListener("change", () => {
        if (menu.value === chosen[other]) { // two axes show two costs: they change places
          chosen[other] = chosen[axis];
          panel.querySelector("select." + other).value = chosen[other];
        }
        chosen[axis] = menu.value;
        unlisted.textContent = "";
        redraw();
      });
    }
    redraw().then(() => chart.on("plotly_click", (event) => {
      const net = event.points[0].customdata;
      if (typeof net === "number") show(net, unlisted); // and no cell of a map
    }));
  }

  /** Show a net's row of the table; where it has none, say so. */
  function show(net, unlisted) {
    const row = document.querySelector(`tr[data-net="${net}"]`);
    unlisted.textContent = row ? "" : "This net is not in the table, which lists the fronts that the charts show first.";
    if (!row) return;
    document.querySelectorAll("tr.shown").forEach((other) => other.classList.remove("shown"));
    row.classList.add("shown");
    row.scrollIntoView({ block: "center" });
  }

  function sortable(table) {
    const headers = [...table.tHead.rows[0].cells];
    headers.forEach((header, column) => header.querySelector("button")?.addEventListener("click", () => {
      const up = header.getAttribute("aria-sort") !== "ascending", number = header.classList.contains("n");
      const compare = (a, b) => number ? Number(a.cells[column].dataset.value) - Number(b.cells[column].dataset.value)
        : a.cells[column].textContent.localeCompare(b.cells[column].textContent);
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort((a, b) => (up ? 1 : -1) * compare(a, b)));
      for (const other of headers) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
      header.setAttribute("aria-sort", up ? "ascending" : "descending");
    }));
  }

  document.querySelectorAll(".panel").forEach(begin);
  document.querySelectorAll("[data-histogram]").forEach((chart) =>
    draw(chart, DATA.histograms[chart.dataset.histogram], { ...BUTTONS, displayModeBar: false }));
  document.querySelectorAll(".sortable").forEach(sortable);
})();
