/* What all parts share: the theme, the rows that are shown. */
const root = document.documentElement;
root.classList.add("js"); /* shows what needs a script */

/* Theme: follows the system until the button is used. */
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const themeButton = document.getElementById("theme");
function setTheme(theme) {
  root.dataset.theme = theme;
  themeButton.textContent = theme === "dark" ? "Light" : "Dark";
}
themeButton.addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));
systemDark.addEventListener("change", () => setTheme(systemDark.matches ? "dark" : "light"));

/* Rows: a box unticked hides its row in tables, charts and videos. */
const rowBoxes = [...document.querySelectorAll("#rows input")];
function applyRows() {
  const hidden = new Set(rowBoxes.filter((box) => !box.checked).map((box) => box.value));
  for (const place of document.querySelectorAll("[data-row]")) place.toggleAttribute("hidden", hidden.has(place.dataset.row));
}
function showRows(wanted) {
  for (const box of rowBoxes) box.checked = wanted(box);
  applyRows();
}
for (const box of rowBoxes) box.addEventListener("change", applyRows);
for (const button of document.querySelectorAll("[data-show]")) {
  const { show } = button.dataset;
  button.addEventListener("click", () => showRows((box) => show === "all" || box.dataset.group === show));
}
const onlySelect = document.getElementById("only");
onlySelect?.addEventListener("change", () => showRows((box) => !onlySelect.value || box.value === onlySelect.value));
if (rowBoxes.some((box) => !box.checked)) applyRows(); /* as the browser kept it over a reload */
