// A row for every value of the metrics: the newest of each pane, and a line over the chunks.

const SVG = "http://www.w3.org/2000/svg";

export class Scores {
  constructor(table, panes) {
    this.head = table.tHead;
    this.body = table.tBodies[0];
    const row = this.head.insertRow();
    for (const name of ["value", ...panes, "over the chunks"]) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = name;
      row.append(cell);
    }
    this.panes = panes;
    this.reset();
  }

  reset() {
    this.values = new Map();   // name -> one list a pane, a number or null for every chunk
    this.body.replaceChildren();
  }

  add(index, values) {
    for (const [name, newest] of Object.entries(values)) {
      if (!this.values.has(name)) this.values.set(name, this.panes.map(() => []));
      this.values.get(name).forEach((list, pane) => { list[index] = newest[pane]; });
    }
    this.body.replaceChildren(...[...this.values].map(([name, lists]) => this.row(name, lists)));
  }

  row(name, lists) {
    const row = document.createElement("tr");
    const head = document.createElement("th");
    head.scope = "row";
    head.textContent = name;
    row.append(head);
    for (const list of lists) {
      const value = list[list.length - 1];
      row.insertCell().textContent = value == null ? "–" : value.toFixed(3);
    }
    const cell = row.insertCell();
    cell.className = "line";
    cell.append(lines(lists));
    return row;
  }
}

function lines(lists) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 100 34");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const known = lists.flat().filter(value => value != null);
  const low = Math.min(...known, 0), high = Math.max(...known, low + 1e-9, 1);
  const count = Math.max(...lists.map(list => list.length), 2);
  lists.forEach((list, pane) => {
    const points = list.map((value, chunk) => [chunk, value]).filter(([, value]) => value != null);
    const line = document.createElementNS(SVG, "polyline");
    const place = ([chunk, value]) => `${100 * chunk / (count - 1)},${31 - 28 * (value - low) / (high - low)}`;
    line.setAttribute("points", points.map(place).join(" "));
    line.style.setProperty("--c", `var(--s${pane})`);
    svg.append(line);
  });
  return svg;
}
