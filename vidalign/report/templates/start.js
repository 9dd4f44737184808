setTheme(systemDark.matches ? "dark" : "light");
document.querySelectorAll(".plot").forEach((plot) => seen.observe(plot));
const canvases = [...document.querySelectorAll("canvas[data-sprite]")];
if (canvases.length) {
  const player = new Player(canvases, data.sprites, data.fps);
  player.setPlaying(!matchMedia("(prefers-reduced-motion: reduce)").matches);
}
