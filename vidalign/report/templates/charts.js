/* Charts: drawn when they come into view, again when theme, rows or axis change. */
const drawnCharts = new Set();
const axisSelect = document.getElementById("axis");
const redrawCharts = () => drawnCharts.forEach(drawChart);
const isShown = (row) => row < 0 || !hiddenRows.has(data.rows[row].name);
const rowColor = (row) => color(data.rows[row].colour);
const words = (text) => text.replaceAll("_", " ");
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting || drawnCharts.has(entry.target)) continue;
    drawnCharts.add(entry.target);
    drawChart(entry.target);
  }
}, { rootMargin: "200px" });

function drawChart(plot) {
  const chart = data.charts[Number(plot.dataset.chart)];
  const figure = chart.kind === "hacking" ? hackingFigure(chart) : linesFigure(chart);
  const axis = { gridcolor: color("--grid"), zeroline: false, automargin: true, tickcolor: color("--line"), fixedrange: true };
  Plotly.react(plot, figure.traces, {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "inherit", size: 12, color: color("--soft") },
    margin: { l: 44, r: 12, t: 8, b: 36 }, dragmode: false,
    hoverlabel: { bgcolor: color("--card"), bordercolor: color("--line"), font: { color: color("--ink") } },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 11.5 } },
    ...figure.layout,
    xaxis: { ...axis, ...figure.layout.xaxis },
    yaxis: { ...axis, ...figure.layout.yaxis },
  }, { displayModeBar: false, responsive: true });
}

/* Lines over an axis. Those of a row have its colour, which the boxes at the top explain; others get a legend. */
function linesFigure(chart) {
  const chosen = chart.kind === "drift" ? "chunk" : axisSelect ? axisSelect.value : "step";
  const axis = chart.traces.every((trace) => chosen in trace.x) ? chosen : Object.keys(chart.traces[0].x)[0];
  const named = chart.traces.filter((trace) => trace.row < 0);
  const traces = chart.traces.filter((trace) => isShown(trace.row)).map((trace) => {
    const own = named.indexOf(trace);
    const shade = own < 0 ? rowColor(trace.row) : color("--s" + (own % 8));
    const reference = own < 0 && data.rows[trace.row].kind === "reference";
    const mode = trace.y.length <= 30 ? "lines+markers" : "lines";
    return {
      x: trace.x[axis], y: trace.y, name: words(trace.label), type: "scatter", mode, showlegend: own >= 0 && named.length > 1,
      line: { color: shade, width: own < 0 ? 1.5 : 2, dash: reference ? "dash" : own >= 8 ? "dot" : "solid" }, marker: { color: shade, size: 5 },
    };
  });
  const ticks = axis === "chunk" ? { dtick: 1 } : {};
  return { traces, layout: { hovermode: "x unified", xaxis: { title: { text: data.axes[axis], standoff: 4 }, ...ticks } } };
}

/* Trained against held-out score: the hacking plot. */
function hackingFigure(chart) {
  const points = chart.points.filter((point) => isShown(point.row) && point.x.mean !== null && point.y.mean !== null);
  const paths = chart.paths.filter((path) => isShown(path.row)).map((path) => ({
    x: path.x, y: path.y, type: "scatter", mode: "lines", hoverinfo: "skip", opacity: 0.55,
    line: { color: rowColor(path.row), width: 1.2 },
  }));
  points.sort((a, b) => b.y.mean - a.y.mean); /* labels of neighbours stand above and below */
  const named = points.flatMap((point, index) => pointTraces(point, index % 2 ? "bottom center" : "top center"));
  const traces = [...paths, frontTrace(points), ...named];
  const middle = points.find((point) => point.row === chart.baseline);
  return {
    traces,
    layout: {
      hovermode: "closest", showlegend: false, margin: { l: 44, r: 36, t: 16, b: 36 }, shapes: middle ? crossHairs(middle) : [],
      xaxis: { title: { text: chart.x_title, standoff: 6 } }, yaxis: { title: { text: chart.y_title, standoff: 6 } },
    },
  };
}

function pointTraces(point, textposition) {
  const row = data.rows[point.row];
  const shade = rowColor(point.row);
  const symbol = row.kind === "reference" ? "diamond-open" : "circle";
  const bars = ({ mean, low, high }) => ({
    type: "data", array: [high === null ? 0 : high - mean], arrayminus: [low === null ? 0 : mean - low],
    color: shade, thickness: 1.3, width: 0,
  });
  const seeds = {
    x: point.x.seeds, y: point.y.seeds, type: "scatter", mode: "markers", opacity: 0.6, hoverinfo: "skip",
    marker: { color: shade, size: 5, symbol },
  };
  const mean = {
    x: [point.x.mean], y: [point.y.mean], name: words(row.name), text: [words(row.name)], type: "scatter",
    mode: "markers+text", cliponaxis: false, textposition, textfont: { color: color("--ink"), size: 12 },
    error_x: bars(point.x), error_y: bars(point.y), marker: { color: shade, size: 11, symbol, line: { width: row.kind === "reference" ? 2 : 0 } },
    hovertemplate: "%{text}<br>trained %{x:.3f}<br>held out %{y:.3f}<extra></extra>",
  };
  return point.x.seeds.length > 1 ? [seeds, mean] : [mean];
}

/* The objectives that no other one beats in both scores. */
function frontTrace(points) {
  const own = points.filter((point) => data.rows[point.row].kind === "objective").sort((a, b) => b.x.mean - a.x.mean);
  let best = -Infinity;
  const front = own.filter((point) => point.y.mean > best && ((best = point.y.mean), true));
  return {
    x: front.map((point) => point.x.mean), y: front.map((point) => point.y.mean), type: "scatter", mode: "lines",
    hoverinfo: "skip", line: { color: color("--soft"), width: 1.2, dash: "dot" },
  };
}

function crossHairs(point) {
  const line = { color: color("--line"), width: 1.5, dash: "dash" };
  return [
    { type: "line", layer: "below", xref: "x", yref: "paper", x0: point.x.mean, x1: point.x.mean, y0: 0, y1: 1, line },
    { type: "line", layer: "below", xref: "paper", yref: "y", x0: 0, x1: 1, y0: point.y.mean, y1: point.y.mean, line },
  ];
}

if (axisSelect) axisSelect.addEventListener("change", redrawCharts);
