/* What all parts share: the data, the theme, the rows that are shown. */
const data = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const hiddenRows = new Set();
const color = (name) => getComputedStyle(root).getPropertyValue(name).trim();

/* Theme: follows the system until the button is used. */
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const themeButton = document.getElementById("theme");
function setTheme(theme) {
  root.dataset.theme = theme;
  themeButton.textContent = theme === "dark" ? "Light" : "Dark";
  redrawCharts();
}
themeButton.addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));
systemDark.addEventListener("change", () => setTheme(systemDark.matches ? "dark" : "light"));

/* Rows: a box unticked hides its row in tables, charts and videos. */
for (const box of document.querySelectorAll("#rows input")) {
  const apply = () => {
    if (box.checked) hiddenRows.delete(box.value); else hiddenRows.add(box.value);
    for (const place of document.querySelectorAll("[data-row]"))
      if (place.dataset.row === box.value) place.hidden = !box.checked;
  };
  if (!box.checked) apply(); /* as the browser kept it over a reload */
  box.addEventListener("change", () => { apply(); redrawCharts(); });
}
