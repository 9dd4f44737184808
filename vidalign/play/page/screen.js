// Shows the frames of all panes in step, at the rate of the student, and waits where a frame is not there yet.

export class Screen {
  // canvases: one a pane; onFrame(screen): called when the frame that is shown, or the waiting, changes.
  constructor(canvases, fps, onFrame) {
    this.contexts = canvases.map(canvas => canvas.getContext("2d"));
    this.step = 1000 / fps;
    this.onFrame = onFrame;
    this.reset(0);
    const tick = now => { this.tick(now); requestAnimationFrame(tick); };
    requestAnimationFrame(tick);
  }

  reset(total) {
    this.frames = [];      // for each frame, a picture (Blob) of every pane
    this.total = total;    // frames of the whole clip
    this.at = -1;          // the frame that is shown
    this.playing = total > 0;
    this.waiting = false;
    this.waited = 0;       // milliseconds without a frame, after the first one
    this.due = 0;
    this.shown = [];       // when the last frames were shown
    for (const context of this.contexts) context.clearRect(0, 0, context.canvas.width, context.canvas.height);
  }

  get ended() { return this.total > 0 && this.frames.length >= this.total && this.at >= this.total - 1; }
  get ahead() { return this.frames.length - 1 - this.at; }

  // Frames a second that were really shown lately; 0 before there are enough.
  get rate() {
    const count = this.shown.length;
    return count < 4 ? 0 : 1000 * (count - 1) / (this.shown[count - 1] - this.shown[0]);
  }

  tick(now) {
    if (!this.playing || now < this.due) return;
    if (this.at + 1 < this.frames.length) {
      if (this.waiting && this.at >= 0) this.waited += now - this.since;
      this.waiting = false;
      this.due = now - this.due > this.step ? now + this.step : this.due + this.step;
      this.shown = [...this.shown.slice(-24), now];
      this.show(this.at + 1);
    } else if (this.ended) {
      this.playing = false;
      this.onFrame(this);
    } else if (!this.waiting) {
      this.waiting = true;
      this.since = now;
      this.onFrame(this);
    }
  }

  show(index) {
    this.at = index;
    this.frames[index].forEach(async (picture, pane) => {
      const bitmap = await createImageBitmap(picture);
      if (this.at === index) this.contexts[pane].drawImage(bitmap, 0, 0);
      bitmap.close();
    });
    this.onFrame(this);
  }

  toggle() {
    if (this.ended && !this.playing) this.at = -1;
    this.playing = !this.playing;
    this.waiting = false;
    this.shown = [];
    this.due = performance.now();
    this.onFrame(this);
  }

  pause() {
    if (this.playing) this.toggle();
  }

  seek(index) {
    if (index >= this.frames.length || index < 0) return;
    this.shown = [];
    this.due = performance.now() + this.step;
    this.show(index);
  }
}
