/* Charts are SVG in the page; the script only chooses the axis that is shown. */
const axisSelect = document.getElementById("axis");
function showAxis() {
  for (const figure of document.querySelectorAll("#curves .chart")) {
    const plots = [...figure.querySelectorAll("svg.plot")];
    const chosen = plots.find((plot) => plot.dataset.axis === axisSelect.value) || plots[0];
    for (const plot of plots) plot.toggleAttribute("hidden", plot !== chosen);
  }
}
if (axisSelect) {
  axisSelect.addEventListener("change", showAxis);
  showAxis(); /* as the browser kept the choice over a reload */
}
