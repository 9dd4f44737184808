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
for (const box of document.querySelectorAll("#rows input")) {
  const apply = () => {
    for (const place of document.querySelectorAll("[data-row]"))
      if (place.dataset.row === box.value) place.toggleAttribute("hidden", !box.checked);
  };
  if (!box.checked) apply(); /* as the browser kept it over a reload */
  box.addEventListener("change", apply);
}
