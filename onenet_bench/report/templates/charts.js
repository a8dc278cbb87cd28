"use strict";
// Charts in the page's colours, drawn anew when its theme changes.

const BUTTONS = { displaylogo: false, responsive: true, showSendToCloud: false, showEditInChartStudio: false,
  modeBarButtonsToRemove: ["sendDataToCloud", "editInChartStudio", "select2d", "lasso2d", "autoScale2d"] };
const drawn = new Map(); // where -> figure and buttons

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

function erase(where) {
  if (drawn.delete(where)) Plotly.purge(where);
}

// On paper charts have the width that is left there: a page is laid out for it before it is drawn.
const PAPER = "680px"; // A4 and Letter, within their margins

addEventListener("beforeprint", () => {
  document.body.style.width = PAPER;
  drawn.forEach((_, where) => Plotly.relayout(where, { width: where.clientWidth, height: where.clientHeight }));
});
addEventListener("afterprint", () => {
  document.body.style.width = "";
  drawn.forEach((_, where) => Plotly.relayout(where, { width: null, height: null, autosize: true }));
});

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
  drawn.forEach(([figure, buttons], where) => draw(where, figure, buttons)));

