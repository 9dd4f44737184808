/* Leaderboard: sorted by a click on a heading, filtered by judge and metric. */
const board = document.getElementById("board");
const judgeSelect = document.getElementById("judge");
const metricSelect = document.getElementById("metric");

function sortBoard(heading) {
  const column = heading.cellIndex;
  const first = column === 0 || "lower" in heading.dataset ? "ascending" : "descending"; /* best on top */
  const other = first === "ascending" ? "descending" : "ascending";
  const order = heading.ariaSort === first ? other : first;
  for (const each of heading.parentElement.cells) each.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const value = (row) => parseFloat(row.cells[column].dataset.value);
  const compare = (a, b) => {
    if (column === 0) return sign * a.dataset.row.localeCompare(b.dataset.row);
    const [x, y] = [value(a), value(b)];
    if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y); /* what was not measured stays at the end */
    return sign * (x - y);
  };
  board.tBodies[0].append(...[...board.tBodies[0].rows].sort(compare));
}

function filterBoard() {
  const wanted = ({ judge, metric }) =>
    (!judgeSelect.value || judge === judgeSelect.value) && (!metricSelect.value || metric === metricSelect.value);
  const shown = [...board.tHead.rows[0].cells].map((cell, index) => index === 0 || wanted(cell.dataset));
  for (const row of board.rows) [...row.cells].forEach((cell, index) => (cell.hidden = !shown[index]));
  board.classList.toggle("one-judge", judgeSelect.value !== "");
}

/* Only metrics that the chosen judge gives can be chosen. */
function offerMetrics() {
  const given = new Set();
  for (const cell of board.tHead.rows[0].cells)
    if (!judgeSelect.value || cell.dataset.judge === judgeSelect.value) given.add(cell.dataset.metric);
  for (const option of metricSelect.options) option.hidden = option.disabled = option.value !== "" && !given.has(option.value);
  if (metricSelect.selectedOptions[0].disabled) metricSelect.value = "";
}

if (board) {
  for (const heading of board.tHead.rows[0].cells)
    heading.querySelector("button").addEventListener("click", () => sortBoard(heading));
  judgeSelect.addEventListener("change", () => { offerMetrics(); filterBoard(); });
  metricSelect.addEventListener("change", filterBoard);
  offerMetrics();
  filterBoard();
}

const pairSelect = document.getElementById("pair");
function showPair() {
  for (const pair of document.querySelectorAll(".pair")) pair.hidden = pair.dataset.pair !== pairSelect.value;
}
if (pairSelect) {
  pairSelect.addEventListener("change", showPair);
  showPair();
}
