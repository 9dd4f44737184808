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

/* Paired differences: the table in the page is that of the first pair, here it is filled with another. */
const pairData = document.getElementById("pair-data");
const pairSelects = ["pair-after", "pair-before"].map((id) => document.getElementById(id));
const VERDICTS = { better: ["▲", "worse"], worse: ["▼", "better"] }; /* its mark, and what it is the other way round */
const turned = (text) => (text.startsWith("+") ? `-${text.slice(1)}` : text.startsWith("-") ? `+${text.slice(1)}` : text);

/* The other way round, with intervals and readings turned. */
function mirrored([before, after, limit, lines]) {
  const turn = ([difference, low, high, detectable, verdict]) =>
    [turned(difference), turned(high), turned(low), detectable, VERDICTS[verdict]?.[1] || verdict, ""];
  return [after, before, limit, lines.map((line) => line && turn(line))];
}

function findPair(pairs, after, before) {
  const found = pairs.find((pair) => pair[0] === before && pair[1] === after);
  const other = pairs.find((pair) => pair[0] === after && pair[1] === before);
  return found || (other && mirrored(other));
}

function fillMetric(row, before, after, limit, line) {
  row.hidden = !line;
  if (!line) return;
  const [difference, low, high, detectable, verdict, goal] = line;
  const [name, first, second, change, drawing, reading] = row.cells;
  name.querySelector(".goal").textContent = goal;
  [first.textContent, second.textContent] = [before, after];
  const texts = [difference, `${low} .. ${high}`, detectable && `detectable ${detectable}`];
  [...change.children].forEach((part, index) => (part.textContent = texts[index]));
  change.className = verdict;
  reading.className = `verdict ${verdict}`;
  [...reading.children].forEach((part, index) => (part.textContent = index ? verdict : VERDICTS[verdict]?.[0] || "•"));
  const number = (text) => Number(text.replaceAll(",", ""));
  const place = (text) => 50 + 48 * Math.max(-1, Math.min(1, number(text) / limit));
  const line12 = (kind, from, to) => {
    if (isNaN(number(from) + number(to))) return "";
    const [y1, y2] = kind === "point" ? [2, 10] : [6, 6];
    return `<line class="${kind}" x1="${place(from)}" x2="${place(to)}" y1="${y1}" y2="${y2}"/>`;
  };
  const svg = drawing.querySelector("svg");
  svg.setAttribute("class", `forest ${verdict}`);
  svg.innerHTML = '<line class="zero" x1="50" x2="50" y1="0" y2="12"/>' + line12("span", low, high) + line12("point", difference, difference);
}

function showPair({ rows, pairs }) {
  const [after, before] = pairSelects.map((select) => select.value);
  for (const option of pairSelects[1].options)
    option.disabled = option.value !== before && !findPair(pairs, after, option.value);
  const pair = findPair(pairs, after, before);
  if (!pair) return;
  const table = document.querySelector(".compared");
  table.parentElement.ariaLabel = `${after} against ${before}`.replaceAll("_", " ");
  const heads = table.tHead.rows[0].cells;
  [heads[1].textContent, heads[2].textContent] = [before, after].map((name) => name.replaceAll("_", " "));
  table.querySelectorAll("tr.metric").forEach((row, index) =>
    fillMetric(row, rows[before][index], rows[after][index], pair[2], pair[3][index]));
  for (const body of table.tBodies) body.hidden = ![...body.querySelectorAll("tr.metric")].some((row) => !row.hidden);
}

if (pairData) {
  const data = JSON.parse(pairData.textContent);
  for (const select of pairSelects) select.addEventListener("change", () => showPair(data));
  showPair(data);
}
