setTheme(systemDark.matches ? "dark" : "light");
const sheets = [...document.querySelectorAll("img.sheet")];
if (sheets.length) {
  const player = new Player(sheets, Number(document.getElementById("videos").dataset.fps));
  player.setPlaying(!matchMedia("(prefers-reduced-motion: reduce)").matches);
}
/* What unfolds by a click is unfolded on paper. */
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const one of folded) one.open = true;
});
addEventListener("afterprint", () => folded.forEach((one) => (one.open = false)));
