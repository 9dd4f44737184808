setTheme(systemDark.matches ? "dark" : "light");
const sheets = [...document.querySelectorAll("img.sheet")];
if (sheets.length) {
  const player = new Player(sheets, Number(document.getElementById("videos").dataset.fps));
  player.setPlaying(!matchMedia("(prefers-reduced-motion: reduce)").matches);
}
/* What unfolds by a click is unfolded on paper. */
addEventListener("beforeprint", () => {
  for (const one of document.querySelectorAll("details:not([open])")) one.open = one.dataset.folded = true;
});
addEventListener("afterprint", () => {
  for (const one of document.querySelectorAll("[data-folded]")) one.toggleAttribute("data-folded", (one.open = false));
});
