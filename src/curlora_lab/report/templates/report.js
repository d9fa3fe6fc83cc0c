"use strict";
(() => {
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];

  // -- theme: the reader's choice, else the system's -------------------------------------------------------------------
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const store = {
    get() { try { return localStorage.getItem("curlora-lab-theme"); } catch { return null; } },
    set(value) { try { localStorage.setItem("curlora-lab-theme", value); } catch { /* a page without storage forgets */ } },
  };
  const shown = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  const button = byId("theme");
  const name = () => {
    button.textContent = shown() === "dark" ? "☀ light" : "☾ dark";
    button.setAttribute("aria-label", shown() === "dark" ? "switch to light colours" : "switch to dark colours");
  };
  const kept = store.get();
  if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  button.hidden = false;
  name();
  button.addEventListener("click", () => {
    root.dataset.theme = shown() === "dark" ? "light" : "dark";
    store.set(root.dataset.theme);
    name();
    draw();
  });
  dark.addEventListener("change", () => { name(); draw(); });

  // -- copy buttons ----------------------------------------------------------------------------------------------------
  const select = (element) => {
    const range = document.createRange();
    range.selectNodeContents(element);
    const selection = getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
  };
  for (const one of all("button[data-copy]")) {
    one.hidden = false;
    one.addEventListener("click", async () => {
      const source = byId(one.dataset.copy);
      let done = true;
      try {
        await navigator.clipboard.writeText(source.textContent);
      } catch { // no clipboard in this context: the selection is one keystroke away from it
        select(source);
        done = document.execCommand("copy");
      }
      one.textContent = done ? "copied" : "press Ctrl+C";
      byId("said").textContent = done ? "copied to the clipboard" : "selected; press Ctrl+C to copy";
      setTimeout(() => { one.textContent = "copy"; }, 1600);
    });
  }

  // -- tables that sort ------------------------------------------------------------------------------------------------
  const value = (row, column) => {
    const cell = row.cells[column];
    const number = cell.dataset.value === undefined ? NaN : parseFloat(cell.dataset.value);
    return Number.isNaN(number) ? cell.textContent.trim() : number;
  };
  const order = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a === "number") return -1; // what has no value stands last
    if (typeof b === "number") return 1;
    return a.localeCompare(b);
  };
  for (const table of all("table.sortable")) {
    all("thead th", table).forEach((head, column) => {
      const press = document.createElement("button");
      press.type = "button";
      press.append(...head.childNodes);
      head.append(press);
      press.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        all("thead th", table).forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const body = table.tBodies[0];
        const rows = [...body.rows].sort((a, b) => order(value(a, column), value(b, column)) * (down ? -1 : 1));
        body.append(...rows);
      });
    });
  }

  // -- charts ----------------------------------------------------------------------------------------------------------
  const figures = JSON.parse(byId("figures").textContent);
  const tokens = () => {
    const style = getComputedStyle(root);
    const found = { "@clear": "rgba(0,0,0,0)" };
    for (const key of ["ink", "muted", "line", "surface", "good", "bad", "seq0", "seq1", "seq2", "c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7"]) {
      found[`@${key}`] = style.getPropertyValue(`--${key}`).trim();
    }
    return found;
  };
  // Only below keys that hold colours: a task may be called "@ink".
  const coloured = (node, colours, key = "") => {
    if (typeof node === "string") return /color$/.test(key) && node in colours ? colours[node] : node;
    if (Array.isArray(node)) {
      if (key === "colorscale") return node.map(([at, colour]) => [at, colours[colour] ?? colour]);
      return node.some((item) => item !== null && typeof item === "object") ? node.map((item) => coloured(item, colours)) : node;
    }
    if (node === null || typeof node !== "object") return node;
    return Object.fromEntries(Object.entries(node).map(([inner, item]) => [inner, coloured(item, colours, inner)]));
  };
  const config = {
    responsive: true,
    displaylogo: false,
    doubleClick: "reset",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d", "pan2d"],
  };
  const PAPER = 660; // CSS pixels between the margins of an A4 page
  let paper = false;
  const drawOne = (id, figure, colours) => {
    const place = byId(id);
    const layout = coloured(figure.layout, colours);
    const narrow = !paper && place.clientWidth < 460;
    layout.dragmode = narrow || matchMedia("(pointer: coarse)").matches ? false : "zoom";
    layout.autosize = !paper;
    if (paper) layout.width = place.closest(".grid, .wide-grid") ? PAPER / 2 - 20 : PAPER;
    if (narrow) layout.font.size = 11;
    const data = coloured(figure.data, colours);
    if (narrow) data.forEach((trace) => { if (trace.type === "heatmap") trace.showscale = false; });
    window.Plotly.react(place, data, layout, { ...config, displayModeBar: paper || narrow ? false : "hover" });
    place.dataset.drawn = "true";
  };
  let turn = 0; // a newer drawing ends an older one that is still under way
  const draw = async () => {
    if (!window.Plotly) return;
    const mine = ++turn, colours = tokens();
    for (const [id, figure] of Object.entries(figures)) {
      drawOne(id, figure, colours);
      if (paper) continue; // a printer does not wait
      await new Promise((go) => setTimeout(go));
      if (mine !== turn) return;
    }
  };
  const fail = (reason) => {
    for (const id of Object.keys(figures)) byId(id).remove();
    all("details.numbers").forEach((one) => { one.open = true; });
    byId("no-charts").hidden = false;
    byId("no-charts").textContent = `The charts could not be drawn (${reason}); the tables hold the same numbers.`;
  };
  const unpack = async () => {
    if (!window.DecompressionStream) throw new Error("this browser cannot unpack gzip; any of 2023 or later can");
    const packed = Uint8Array.from(atob(byId("plotly").textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text(); // its hash stands in the page's security policy
    document.head.append(script);
    if (!window.Plotly) throw new Error("its library did not start");
  };
  if (Object.keys(figures).length) unpack().then(draw).catch((error) => fail(error.message));

  // Paper is white and has its own width.
  addEventListener("beforeprint", () => { paper = true; root.classList.add("paper"); draw(); });
  addEventListener("afterprint", () => { paper = false; root.classList.remove("paper"); draw(); });
})();
