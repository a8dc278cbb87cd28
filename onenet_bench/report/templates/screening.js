"use strict";
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const BUTTONS = { displaylogo: false, responsive: true, showSendToCloud: false, showEditInChartStudio: false,
    modeBarButtonsToRemove: ["sendDataToCloud", "editInChartStudio", "select2d", "lasso2d", "autoScale2d"] };
  const drawn = new Map(); // the figure of every chart, for a change of theme

  function themed(layout) {
    const style = getComputedStyle(document.documentElement), family = getComputedStyle(document.body).fontFamily;
    const colour = (name) => style.getPropertyValue(name).trim();
    return { ...layout,
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--soft"), activecolor: colour("--accent") },
      font: { ...layout.font, color: colour("--ink"), family },
      hoverlabel: { ...layout.hoverlabel, bgcolor: colour("--panel"), bordercolor: colour("--soft"),
        font: { ...layout.hoverlabel.font, color: colour("--ink"), family } } };
  }

  function draw(where, figure, buttons = BUTTONS) {
    drawn.set(where, [figure, buttons]);
    return Plotly.react(where, figure.data, themed(figure.layout), buttons);
  }

  function begin(panel) {
    const chart = panel.querySelector(".chart"), chosen = {};
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
        redraw();
      });
    }
    redraw().then(() => chart.on("plotly_click", (event) => show(event.points[0].customdata)));
  }

  /** Show a net's row of the table, where it has one. */
  function show(net) {
    const row = document.querySelector(`tr[data-net="${net}"]`);
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
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
    drawn.forEach(([figure, buttons], where) => draw(where, figure, buttons)));
})();
