(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const panels = [];

  /** An element with attributes and children; text is only ever set as text. */
  function el(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
    made.append(...children.filter((child) => child !== null));
    return made;
  }

  function bar(share) {
    const space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg"), rect = document.createElementNS(space, "rect");
    for (const [name, value] of [["width", 78], ["height", 6], ["aria-hidden", "true"]]) svg.setAttribute(name, value);
    for (const [name, value] of [["width", Math.max(1, 78 * share)], ["height", 6], ["rx", 2]]) rect.setAttribute(name, value);
    svg.append(rect);
    return svg;
  }

  /** Three significant digits with a decimal prefix: 1.92 M. */
  function si(value) {
    if (value < 1000) return String(value);
    const rounded = Number(value.toPrecision(3));
    const group = Math.min(5, Math.floor(Math.log10(rounded) / 3));
    return (rounded / 1000 ** group).toPrecision(3) + "\u00a0" + "kMGTP"[group - 1];
  }

  // Charts ---------------------------------------------------------------------------------------------------

  /** The figure of a panel for any score and cost: the roles of its traces, filled anew. */
  function figureOf(panel) {
    const { score, cost, figure } = panel;
    const found = DATA.fronts[score + "/" + cost];
    const trials = Object.values(DATA.nets).filter((net) => net.status === "complete"
      && net.values[score] !== undefined && net.values[cost] > 0).map((net) => net.trial);
    const front = new Set(found.trials);
    const elsewhere = DATA.front.filter((t) => !front.has(t) && trials.includes(t));
    const roles = {
      front: found.trials,
      elsewhere,
      dominated: trials.filter((t) => !front.has(t) && !elsewhere.includes(t)),
      knee: found.knee === null ? [] : [found.knee],
      selected: trials.includes(panel.selected) ? [panel.selected] : [],
    };
    const data = figure.data.map((trace) => {
      if (trace.meta === "line") return { ...trace, x: found.line.map((p) => p[0]), y: found.line.map((p) => p[1]) };
      const chosen = roles[trace.meta];
      return { ...trace, customdata: chosen, text: chosen.map((t) => DATA.nets[t].hover),
        x: chosen.map((t) => DATA.nets[t].values[cost]), y: chosen.map((t) => DATA.nets[t].values[score]) };
    });
    return { data, layout: { ...figure.layout, xaxis: DATA.axes[cost], yaxis: DATA.axes[score],
      margin: { ...figure.layout.margin, t: 26 }, showlegend: false, uirevision: score + cost } };
  }

  function begin(figure) {
    const panel = { ...DATA.panels[figure.dataset.panel], where: figure.querySelector(".chart"), selected: null };
    panels.push(panel);
    for (const kind of ["score", "cost"]) {
      figure.querySelector("select." + kind).addEventListener("change", (event) => {
        panel[kind] = event.target.value;
        draw(panel.where, figureOf(panel));
      });
      panel[kind] = figure.querySelector("select." + kind).value; // a reloading browser keeps what was chosen
    }
    draw(panel.where, figureOf(panel)).then(() =>
      panel.where.on("plotly_click", (event) => open(event.points[0].customdata, panel.where)));
  }

  // One net in detail ----------------------------------------------------------------------------------------

  const details = document.getElementById("details");
  let opener = null;

  const list = (pairs, kind) => el("dl", kind ? { class: kind } : {}, ...pairs.map(([name, text]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, text))));

  function levels(net) {
    const titles = ["Parameters", "MACs", "Activations"];
    const most = titles.map((_, i) => Math.max(1, ...net.levels.map(([, , ...costs]) => costs[i])));
    return el("table", {},
      el("thead", {}, el("tr", {}, ...["Level", ...titles].map((title) => el("th", { scope: "col" }, title)))),
      el("tbody", {}, ...net.levels.map(([name, words, ...costs]) => el("tr", {},
        el("td", { class: "level" }, name, el("small", {}, words)),
        ...costs.map((cost, i) => el("td", { class: "bar" }, si(cost) + (i === 2 ? "B" : ""), bar(cost / most[i])))))));
  }

  function classes(net) {
    const names = Object.keys(net.per_class);
    if (!names.length) return null;
    const titles = { iou: "IoU", dice: "Dice", ap50: "AP50", ce: "Cross-entropy" };
    return el("table", {},
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Class"),
        ...names.map((name) => el("th", { scope: "col", class: "n" }, titles[name] || name)))),
      el("tbody", {}, ...DATA.classes.map((title, i) => el("tr", {}, el("td", {}, title),
        ...names.map((name) => el("td", { class: "n" }, net.per_class[name][i] ?? "absent"))))));
  }

  function views(net) {
    const samples = [...document.querySelectorAll("img.sample")], truths = [...document.querySelectorAll("img.truth")];
    if (!net.predictions || !samples.length)
      return el("p", { class: "note" }, "Not shown: " + (net.without_predictions || "there are no predictions of this net") + ".");
    return el("div", { class: "views" }, ...["image", "truth", "prediction"].map((what) => el("span", {}, what)),
      ...net.predictions.flatMap((uri, i) => [samples[i].src, truths[i].src, uri].map((src, j) =>
        el("img", { src, alt: ["image", "truth", "prediction"][j] + " " + (i + 1) }))));
  }

  function curves(where, net) {
    const line = (key, axis) => ({ x: net.curve.epoch, y: net.curve[key], mode: "lines+markers", marker: { size: 4 },
      line: { width: 1.5, color: "#1f78b4" }, xaxis: "x" + axis, yaxis: "y" + axis, hovertemplate: "epoch %{x}: %{y}<extra></extra>" });
    const base = { showgrid: true, gridcolor: "rgba(128,138,148,0.22)", zeroline: false, nticks: 5, automargin: true };
    const whole = net.curve.epoch.at(-1) - net.curve.epoch[0] < 6 ? { dtick: 1 } : {}; // there is no half epoch
    const under = { ...base, ...whole, title: { text: "epoch", font: { size: 12 } } };
    draw(where, { data: [line("loss", ""), line("score", "2")], layout: {
      font: { size: 11 }, hoverlabel: { font: { size: 12 } }, showlegend: false, margin: { l: 34, r: 8, t: 24, b: 36 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      xaxis: { ...under, domain: [0, 0.44] }, yaxis: { ...base },
      xaxis2: { ...under, domain: [0.56, 1], anchor: "y2" }, yaxis2: { ...base, anchor: "x2" },
      annotations: [["loss", 0], [DATA.curve_title, 0.56]].map(([text, x]) => ({ text, x, y: 1, xref: "paper", yref: "paper",
        xanchor: "left", yanchor: "bottom", showarrow: false, font: { size: 12 } })) } });
  }

  const STATUS = { complete: "trained", stopped: "stopped early", failed: "failed" };

  /** Change the layout by ``change`` while ``anchor`` stays where the reader sees it. */
  function inPlace(anchor, change) {
    const before = anchor && anchor.getBoundingClientRect().top;
    change();
    if (anchor) scrollBy({ top: anchor.getBoundingClientRect().top - before, behavior: "instant" });
  }

  function open(trial, from) {
    const net = DATA.nets[trial];
    if (!net) return;
    opener = from;
    const close = el("button", { type: "button", class: "close" }, "Close");
    close.addEventListener("click", shut);
    const place = net.status !== "complete" ? STATUS[net.status] : trial === DATA.knee ? "knee of the front"
      : DATA.front.includes(trial) ? "on the front"
      : DATA.objectives.some((name) => net.values[name] === undefined) ? "not ranked" : "dominated";
    const parts = [el("h2", {}, net.label), close,
      el("p", { class: "note" }, `trial ${trial} · ${net.digest} · ${place} · ${net.seconds}`)];
    if (net.reason) parts.push(el("p", {}, net.reason));
    const add = (title, ...made) => parts.push(el("h3", {}, title), ...made);
    if (net.scores.length) add(net.status === "complete" ? "Scores" : "Scores so far", list(net.scores));
    const table = classes(net);
    if (table) add("Per class", table);
    add("Costs", list(net.costs, "one"));
    add("Levels", levels(net));
    const curve = el("div", { class: "curve", role: "img", "aria-label": "learning curve" });
    if (net.curve.epoch.length) add("Learning curve", curve);
    if (net.status === "complete") add("Predictions", views(net));
    if (net.choices.length) add("Choices", list(net.choices, "one"));
    document.querySelectorAll("#details .curve").forEach(erase);
    details.replaceChildren(...parts);
    inPlace(from, () => {
      details.hidden = false;
      document.body.classList.add("with-details");
    });
    details.scrollTop = 0;
    details.focus({ preventScroll: true });
    if (net.curve.epoch.length) curves(curve, net);
    select(trial);
    history.replaceState(null, "", "#trial-" + trial);
  }

  function shut() {
    inPlace(opener, () => {
      details.hidden = true;
      document.body.classList.remove("with-details");
    });
    select(null);
    history.replaceState(null, "", location.pathname + location.search);
    if (opener) opener.focus({ preventScroll: true });
  }

  function select(trial) {
    for (const panel of panels) {
      panel.selected = trial;
      draw(panel.where, figureOf(panel)).then(() => Plotly.Plots.resize(panel.where));
    }
    for (const row of document.querySelectorAll(".candidates tbody tr"))
      row.classList.toggle("shown", Number(row.dataset.trial) === trial);
  }

  // The table ------------------------------------------------------------------------------------------------

  function sortable(table) {
    const body = table.tBodies[0], headers = [...table.querySelectorAll(".columns th")];
    headers.forEach((header, column) => header.querySelector("button").addEventListener("click", () => {
      const up = header.getAttribute("aria-sort") !== "ascending";
      const text = !header.classList.contains("n");
      const key = (row) => text ? row.cells[column].textContent : row.cells[column].dataset.value;
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (!text && (x === "" || y === "")) return (x === "") - (y === ""); // unknown comes last, either way
        return (up ? 1 : -1) * (text ? x.localeCompare(y) : Number(x) - Number(y));
      });
      body.append(...rows);
      for (const other of headers) other.setAttribute("aria-sort", "none");
      header.setAttribute("aria-sort", up ? "ascending" : "descending");
      document.getElementById("sorted").textContent =
        `sorted by ${header.querySelector("button").textContent}, ${up ? "ascending" : "descending"}`;
    }));
    document.getElementById("front-only").addEventListener("change", (event) =>
      table.classList.toggle("front-only", event.target.checked));
    document.getElementById("all-scores").addEventListener("change", (event) => {
      table.classList.toggle("all-scores", event.target.checked);
      for (const group of table.querySelectorAll(".groups th"))
        [group.colSpan, group.dataset.all] = [Number(group.dataset.all), group.colSpan];
    });
    document.getElementById("csv").addEventListener("click", () => {
      const url = URL.createObjectURL(new Blob([DATA.csv], { type: "text/csv;charset=utf-8" }));
      el("a", { href: url, download: DATA.name.replace(/[^\w.-]+/g, "_") + ".csv" }).click();
      setTimeout(() => URL.revokeObjectURL(url), 1000);
    });
  }

  // Begin ----------------------------------------------------------------------------------------------------

  document.querySelectorAll(".panel").forEach(begin);
  if (DATA.final) draw(document.getElementById("final-chart"), DATA.final);
  if (DATA.hypervolume) draw(document.getElementById("hypervolume"), DATA.hypervolume);
  document.querySelectorAll(".candidates").forEach(sortable);
  document.addEventListener("click", (event) => {
    const net = event.target.closest("button.net");
    if (net) open(Number(net.dataset.trial), net);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !details.hidden) shut();
  });
  const linked = location.hash.match(/^#trial-(\d+)$/);
  if (linked) open(Number(linked[1]), null);
})();
