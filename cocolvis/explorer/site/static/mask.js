// A mask in the browser: decoded from the run lengths as the shard stores them, painted, and searched for places of names.

const BORDER = 0.4; // brightness of the pixels at the border of a region, as a share of its colour
const GRID = 256; // cells along the longer side of the grid on which places for names are searched

export class Mask {
  // buffer: the uint16 classes of all runs, then their uint16 lengths, row by row from the top left
  constructor(buffer, width, height) {
    const runs = buffer.byteLength / 4;
    if (!Number.isInteger(runs)) throw new Error("the run lengths are cut off");
    const classes = new Uint16Array(buffer, 0, runs), lengths = new Uint16Array(buffer, 2 * runs, runs);
    this.width = width;
    this.height = height;
    this.pixels = new Uint16Array(width * height);
    let end = 0;
    for (let run = 0; run < runs; run++) {
      const start = end;
      end += lengths[run];
      if (end > this.pixels.length) break;
      this.pixels.fill(classes[run], start, end);
    }
    if (end !== this.pixels.length) throw new Error("the run lengths do not cover the picture");
  }

  at(x, y) {
    return this.pixels[y * this.width + x];
  }

  // Paint every region in its colour with a darker border; or, with `only`, that class alone with everything else darkened.
  // colours: class -> [red, green, blue]
  paint(context, colours, only) {
    const { width, height, pixels } = this;
    const image = context.createImageData(width, height), out = new Uint32Array(image.data.buffer);
    const inside = new Uint32Array(65536), border = new Uint32Array(65536);
    for (const [id, [r, g, b]] of colours) {
      inside[id] = rgba(r, g, b, 255);
      border[id] = rgba(r * BORDER, g * BORDER, b * BORDER, 255);
    }
    if (only !== null) {
      const [r, g, b] = colours.get(only) ?? [255, 255, 255];
      inside.fill(rgba(0, 0, 0, 165));
      border.fill(rgba(0, 0, 0, 165));
      inside[only] = 0;
      border[only] = rgba(r, g, b, 255);
    }
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        const id = pixels[i];
        const edge = (x + 1 < width && pixels[i + 1] !== id) || (y + 1 < height && pixels[i + width] !== id)
          || (only !== null && ((x > 0 && pixels[i - 1] !== id) || (y > 0 && pixels[i - width] !== id)));
        out[i] = edge ? border[id] : inside[id];
      }
    }
    context.putImageData(image, 0, 0);
  }

  // Where each class is widest: [class, x, y, width there in pixels], widest first.
  places() {
    if (this.found) return this.found;
    const step = Math.max(1, Math.ceil(Math.max(this.width, this.height) / GRID));
    const columns = Math.floor((this.width - 1) / step) + 1, rows = Math.floor((this.height - 1) / step) + 1;
    const cell = (row, column) => this.pixels[Math.min(row * step + (step >> 1), this.height - 1) * this.width + Math.min(column * step + (step >> 1), this.width - 1)];
    const ids = new Uint16Array(rows * columns), depth = new Uint16Array(rows * columns);
    for (let row = 0, i = 0; row < rows; row++) for (let column = 0; column < columns; column++, i++) ids[i] = cell(row, column);
    const from = (i, j, there) => (there && ids[i] === ids[j] ? depth[j] : 0);
    for (let row = 0, i = 0; row < rows; row++) for (let column = 0; column < columns; column++, i++) {
      depth[i] = 1 + Math.min(from(i, i - 1, column > 0), from(i, i - columns, row > 0));
    }
    const best = new Map();
    for (let row = rows - 1, i = rows * columns - 1; row >= 0; row--) for (let column = columns - 1; column >= 0; column--, i--) {
      depth[i] = Math.min(depth[i], 1 + Math.min(from(i, i + 1, column + 1 < columns), from(i, i + columns, row + 1 < rows)));
      if (ids[i] && depth[i] > (best.get(ids[i])?.[3] ?? 0)) best.set(ids[i], [ids[i], column * step + step / 2, row * step + step / 2, depth[i]]);
    }
    for (let i = 0; i < this.pixels.length; i++) { // classes between the cells of the grid
      const id = this.pixels[i];
      if (id && !best.has(id)) best.set(id, [id, (i % this.width) + 0.5, Math.floor(i / this.width) + 0.5, 0]);
    }
    this.found = [...best.values()].sort((a, b) => b[3] - a[3]);
    return this.found;
  }
}

function rgba(r, g, b, a) {
  return ((a << 24) | (b << 16) | (g << 8) | r) >>> 0;
}
