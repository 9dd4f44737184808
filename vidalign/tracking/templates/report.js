"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;

/* Theme: follows the system until the button is used. */
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const themeButton = document.getElementById("theme");
function setTheme(theme) {
  root.dataset.theme = theme;
  themeButton.textContent = theme === "dark" ? "Light" : "Dark";
  drawnCharts.forEach(drawChart);
}
themeButton.addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));
systemDark.addEventListener("change", () => setTheme(systemDark.matches ? "dark" : "light"));

/* Curves: drawn when they come into view, again when the theme changes. */
const drawnCharts = new Set();
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting || drawnCharts.has(entry.target)) continue;
    drawnCharts.add(entry.target);
    drawChart(entry.target);
  }
}, { rootMargin: "200px" });

function drawChart(plot) {
  const color = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const chart = data.charts[Number(plot.dataset.chart)];
  const traces = chart.traces.map((trace, index) => ({
    x: trace.x, y: trace.y, name: trace.label.replaceAll("_", " "), type: "scatter",
    mode: trace.x.length < 3 ? "markers" : "lines",
    line: { color: color("--s" + (index % 6)), width: 2, dash: index < 6 ? "solid" : "dot" },
    marker: { color: color("--s" + (index % 6)), size: 7 },
  }));
  const axis = { gridcolor: color("--grid"), zeroline: false, automargin: true, tickcolor: color("--line") };
  Plotly.react(plot, traces, {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "inherit", size: 12, color: color("--soft") },
    margin: { l: 44, r: 8, t: 6, b: 36 }, hovermode: "x unified", dragmode: false,
    hoverlabel: { bgcolor: color("--card"), bordercolor: color("--line"), font: { color: color("--ink") } },
    xaxis: { ...axis, title: { text: "step", standoff: 4 }, fixedrange: true },
    yaxis: { ...axis, fixedrange: true },
    showlegend: traces.length > 1,
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 11.5 } },
  }, { displayModeBar: false, responsive: true });
}

/* Videos: one clock for all clips. */
class Player {
  constructor(canvases, sprites, fps) {
    this.fps = fps;
    this.speed = 1;
    this.frame = 0;
    this.playing = false;
    this.panes = canvases.map((canvas) => this.makePane(canvas, sprites[Number(canvas.dataset.sprite)]));
    this.count = Math.max(...this.panes.map((pane) => pane.sprite.frames));
    this.play = document.getElementById("play");
    this.scrub = document.getElementById("scrub");
    this.output = document.getElementById("frame");
    this.scrub.max = this.count - 1;
    this.listen();
    this.show(0);
  }

  makePane(canvas, sprite) {
    const image = new Image();
    const pane = { canvas, sprite, image, context: canvas.getContext("2d") };
    image.addEventListener("load", () => this.draw(pane));
    image.src = sprite.src;
    canvas.addEventListener("pointerdown", (event) => this.drag(event, canvas));
    return pane;
  }

  draw({ canvas, sprite, image, context }) {
    if (!image.complete) return;
    const index = Math.min(this.frame, sprite.frames - 1);
    const left = (index % sprite.columns) * sprite.width;
    const top = Math.floor(index / sprite.columns) * sprite.height;
    context.drawImage(image, left, top, sprite.width, sprite.height, 0, 0, canvas.width, canvas.height);
  }

  show(frame) {
    this.frame = Math.max(0, Math.min(this.count - 1, frame));
    this.scrub.value = this.frame;
    this.output.value = `${this.frame + 1} / ${this.count}`;
    this.panes.forEach((pane) => this.draw(pane));
  }

  setPlaying(playing) {
    this.playing = playing;
    this.play.textContent = playing ? "Pause" : "Play";
    this.due = performance.now() + this.period();
    if (playing) requestAnimationFrame((now) => this.tick(now));
  }

  period() {
    return 1000 / (this.fps * this.speed);
  }

  tick(now) {
    if (!this.playing) return;
    if (now >= this.due) {
      this.show((this.frame + 1) % this.count);
      this.due = Math.max(this.due + this.period(), now);
    }
    requestAnimationFrame((later) => this.tick(later));
  }

  step(change) {
    this.setPlaying(false);
    this.show((this.frame + change + this.count) % this.count);
  }

  drag(event, canvas) {
    const start = event.clientX, from = this.frame;
    let moved = false;
    canvas.setPointerCapture(event.pointerId);
    canvas.onpointermove = (move) => {
      const change = Math.round(((move.clientX - start) / canvas.clientWidth) * this.count);
      if (change === 0 && !moved) return;
      moved = true;
      this.setPlaying(false);
      this.show(from + change);
    };
    canvas.onpointercancel = () => (canvas.onpointermove = canvas.onpointerup = null);
    canvas.onpointerup = () => {
      canvas.onpointermove = canvas.onpointerup = null;
      if (!moved) this.setPlaying(!this.playing);
    };
  }

  listen() {
    this.play.addEventListener("click", () => this.setPlaying(!this.playing));
    this.scrub.addEventListener("input", () => {
      this.setPlaying(false);
      this.show(Number(this.scrub.value));
    });
    document.getElementById("speed").addEventListener("change", (event) => {
      this.speed = Number(event.target.value);
    });
    document.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    if (event.target.closest("select, pre")) return;
    if (event.key === " " && event.target.closest("button, summary")) return; /* presses the button itself */
    const place = document.getElementById("videos").getBoundingClientRect();
    if (place.bottom < 0 || place.top > innerHeight) return; /* out of sight: leave the keys to the page */
    const actions = {
      " ": () => this.setPlaying(!this.playing),
      ArrowLeft: () => this.step(-1),
      ArrowRight: () => this.step(1),
      Home: () => (this.setPlaying(false), this.show(0)),
      End: () => (this.setPlaying(false), this.show(this.count - 1)),
    };
    if (!(event.key in actions)) return;
    event.preventDefault();
    actions[event.key]();
  }
}

setTheme(systemDark.matches ? "dark" : "light");
document.querySelectorAll(".plot").forEach((plot) => seen.observe(plot));
const canvases = [...document.querySelectorAll("canvas[data-sprite]")];
if (canvases.length) {
  const player = new Player(canvases, data.sprites, data.fps);
  player.setPlaying(!matchMedia("(prefers-reduced-motion: reduce)").matches);
}
