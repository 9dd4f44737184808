/* Videos: one clock for all clips. A canvas takes the place of each sheet of frames, which moves by CSS without script. */
class Player {
  constructor(sheets, fps) {
    this.fps = fps;
    this.speed = 1;
    this.frame = 0;
    this.playing = false;
    this.panes = sheets.map((sheet) => this.makePane(sheet));
    this.count = Math.max(...this.panes.map((pane) => pane.sprite.frames));
    this.play = document.getElementById("play");
    this.scrub = document.getElementById("scrub");
    this.output = document.getElementById("frame");
    this.scrub.max = this.count - 1;
    this.listen();
    this.show(0);
  }

  makePane(image) {
    const canvas = document.createElement("canvas");
    const [frames, columns, width, height] = image.dataset.sheet.split(" ").map(Number);
    Object.assign(canvas, { width, height, role: "img", ariaLabel: image.alt });
    const pane = { canvas, image, sprite: { frames, columns, width, height }, context: canvas.getContext("2d") };
    image.parentElement.replaceWith(canvas);
    image.addEventListener("load", () => this.draw(pane));
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
    if (event.target.closest("select, pre, .scroll")) return;
    if (event.key === " " && event.target.closest("button, summary, [type=checkbox]")) return; /* presses it */
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
