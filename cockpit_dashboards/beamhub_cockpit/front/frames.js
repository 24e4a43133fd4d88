// Detector frames: any frame of a dataset, at any zoom, down to single pixels with their counts.
//
// The kernel sends counts, never pictures: a max-binned overview that fits the canvas (a spot of one pixel stays visible),
// and, once zoomed in, the visible region at full resolution. Range, scale and colours are applied here, at once.
// Coordinates: detector pixels, origin at the top left corner of the first pixel; x fast, y slow.

// ---- colours ---------------------------------------------------------------------------------------------------

const STOPS = {
  "Inverted grey": [[255, 255, 255], [0, 0, 0]],
  "Grey": [[0, 0, 0], [255, 255, 255]],
  "Heat": [[0, 0, 0], [120, 0, 0], [220, 60, 0], [255, 170, 0], [255, 240, 120], [255, 255, 255]],
  "Viridis": [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129], [92, 200, 99], [170, 220, 50], [253, 231, 37]],
};
const MASKED = { "Inverted grey": [176, 196, 222], "Grey": [52, 74, 110], "Heat": [40, 70, 120], "Viridis": [150, 150, 158] };
const PATIENCE = 250; // milliseconds until a frame that is on its way is spoken of
const WORDS = { littleEndian: new Uint8Array(new Uint32Array([1]).buffer)[0] === 1 };

const pack = ([r, g, b]) => WORDS.littleEndian ? (255 << 24 | b << 16 | g << 8 | r) >>> 0 : (r << 24 | g << 16 | b << 8 | 255) >>> 0;

function ramp(name) {
  const stops = STOPS[name], colours = new Uint32Array(256);
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * (stops.length - 1), k = Math.min(Math.floor(at), stops.length - 2), f = at - k;
    colours[i] = pack(stops[k].map((c, j) => Math.round(c + (stops[k + 1][j] - c) * f)));
  }
  return colours;
}

const SCALES = { "Linear": (t) => t, "Square root": Math.sqrt, "Logarithmic": (t, span) => Math.log1p(t * span) / Math.log1p(span) };

// A colour for each count from 0 on, and one for all above: what a pixel needs is then one look-up.
export function table(low, high, scale, map) {
  const colours = ramp(map), span = Math.max(high - low, 1e-9), f = SCALES[scale];
  const length = Math.min(Math.max(Math.ceil(high) + 1, 2), 1 << 20), step = Math.max(1, (Math.ceil(high) + 1) / length);
  const found = new Uint32Array(length);
  for (let i = 0; i < length; i++) {
    const t = Math.min(Math.max((i * step - low) / span, 0), 1);
    found[i] = colours[Math.round(Math.min(Math.max(f(t, span), 0), 1) * 255)];
  }
  return { found, step, above: colours[255], masked: pack(MASKED[map]) };
}

export function automaticRange(values, masked) {
  const counts = new Uint32Array(65537);
  let total = 0;
  const stride = Math.max(1, Math.floor(values.length / 400000));
  for (let i = 0; i < values.length; i += stride) {
    const v = values[i];
    if (v === masked) continue;
    counts[v > 65536 ? 65536 : v]++;
    total++;
  }
  const at = (fraction) => {
    let seen = 0;
    for (let v = 0; v < counts.length; v++) if ((seen += counts[v]) >= fraction * total) return v;
    return 65536;
  };
  // the background as light grey, and all that stands well above it dark
  return total ? [0, Math.max(4 * at(0.97), 5)] : [0, 10];
}

// ---- geometry --------------------------------------------------------------------------------------------------

const RINGS = [50, 30, 20, 15, 10, 8, 6, 5, 4, 3.5, 3, 2.5, 2.2, 2, 1.8, 1.6, 1.5, 1.4, 1.3, 1.2, 1.1, 1, 0.9, 0.8, 0.7, 0.6];
const ICE = [3.897, 3.669, 3.441, 2.671, 2.249, 2.072, 1.948, 1.918, 1.883, 1.721];

// d-spacing (Å) at a distance r (m) from the beam centre, and back, for a flat detector square to the beam
export const spacing = (g, r) => g.wavelength / (2 * Math.sin(Math.atan2(r, g.distance) / 2));
export const radius = (g, d) => g.wavelength >= 2 * d ? NaN : g.distance * Math.tan(2 * Math.asin(g.wavelength / (2 * d)));

// ---- the widget ------------------------------------------------------------------------------------------------

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") node.textContent = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value !== undefined) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

async function inflate(view) {
  const stream = new Blob([view]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

export default {
  render({ model, el, signal }) {
    el.classList.add("bh-frames");
    const info = () => model.get("info");
    const geometry = () => {
      const { wavelength, distance, center_x, center_y, pixel_x, pixel_y } = info();
      return [wavelength, distance, center_x, center_y, pixel_x, pixel_y].every((v) => typeof v === "number" && v > 0 || v === 0)
        && wavelength > 0 && distance > 0 ? { wavelength, distance, cx: center_x, cy: center_y, px: pixel_x, py: pixel_y } : null;
    };
    const remembered = JSON.parse(localStorage.getItem("bh-frames") ?? "{}");
    const look = { map: "Inverted grey", scale: "Linear", auto: true, low: 0, high: 20, rings: true, ice: false, ...remembered };
    if (!(look.map in STOPS)) look.map = "Inverted grey";
    if (!(look.scale in SCALES)) look.scale = "Linear";
    let live = model.get("live"), playing = false;
    // more may have come since the widget was made
    let frame = live ? Math.max(1, info().frames) : Math.min(Math.max(1, model.get("frame")), Math.max(1, info().frames));
    let shown = 0; // frame on the canvas
    let view = null; // {x, y: detector position of the canvas centre; scale: canvas pixels per detector pixel}
    let layers = []; // overview, then detail
    let cursor = null;

    // -- controls
    const button = (text, title, action, cls = "") => make("button", { type: "button", class: `bh-button ${cls}`, title, "aria-label": title, text, onclick: action });
    const number = make("input", { type: "text", inputmode: "numeric", class: "bh-number bh-frame-number", "aria-label": "Frame", onchange: () => go(parseInt(number.value, 10) || frame, true) });
    const of = make("span", { class: "bh-quiet bh-frame-count" });
    const slider = make("input", { type: "range", min: 1, class: "bh-frame-slider", "aria-label": "Frame", oninput: () => go(slider.valueAsNumber, true) });
    const play = button("Play", "Play (space)", () => setPlaying(!playing), "bh-frame-play");
    const follow = make("button", { type: "button", class: "bh-button bh-frame-live", title: "Follow the newest frame (L)", text: "Live", onclick: () => setLive(!live) });
    const choose = (label, cls, options, key) => {
      const select = make("select", { class: cls, onchange: () => { look[key] = select.value; restyle(); } }, ...options.map((o) => make("option", { text: o })));
      select.value = look[key];
      return make("label", { class: "bh-control" }, make("span", { text: label }), select);
    };
    const low = make("input", { type: "text", inputmode: "numeric", class: "bh-number bh-frame-low", onchange: () => range() });
    const high = make("input", { type: "text", inputmode: "numeric", class: "bh-number bh-frame-high", onchange: () => range() });
    const bright = make("input", { type: "range", min: 0, max: 100, class: "bh-frame-range", "aria-label": "Upper limit", title: "Upper limit", oninput: () => {
      look.high = Math.round(Math.expm1((bright.valueAsNumber / 100) * Math.log1p(65535))); look.auto = false; restyle();
    } });
    const tick = (label, cls, key, title) => {
      const box = make("input", { type: "checkbox", class: cls, onchange: () => { look[key] = box.checked; restyle(); } });
      box.checked = look[key];
      return make("label", { class: "bh-control bh-check", title }, box, make("span", { text: label }));
    };
    const auto = tick("Auto", "bh-frame-auto", "auto", "Range from the frame itself: up to four times its brightest background");
    const rings = tick("Rings", "bh-frame-rings", "rings", "Resolution rings (R)"), ice = tick("Ice", "bh-frame-ice", "ice", "Where rings of hexagonal ice lie");
    const canvas = make("canvas", { class: "bh-frame-canvas", tabindex: 0, "aria-label": "Detector frame", role: "img" });
    const readout = make("output", { class: "bh-frame-readout" });
    const problem = make("p", { class: "bh-frame-problem", role: "alert" });
    problem.hidden = true;
    const loading = make("p", { class: "bh-frame-loading", role: "status" });
    loading.hidden = true;
    const zoomed = make("span", { class: "bh-quiet bh-frame-zoom" });
    el.append(
      make("div", { class: "bh-frame-tools", role: "toolbar", "aria-label": "Frames" },
        make("div", { class: "bh-group" },
          button("«", "First frame (Home)", () => go(1, true)), button("‹", "Previous frame (←)", () => go(frame - 1, true), "bh-frame-previous"),
          play, button("›", "Next frame (→)", () => go(frame + 1, true), "bh-frame-next"), button("»", "Last frame (End)", () => go(info().frames, true))),
        make("div", { class: "bh-group" }, number, of), slider, follow),
      make("div", { class: "bh-frame-tools", role: "toolbar", "aria-label": "Display" },
        choose("Colours", "bh-frame-map", Object.keys(STOPS), "map"), choose("Scale", "bh-frame-scale", Object.keys(SCALES), "scale"),
        make("label", { class: "bh-control" }, make("span", { text: "Min" }), low), make("label", { class: "bh-control" }, make("span", { text: "Max" }), high), bright,
        auto, rings, ice,
        make("div", { class: "bh-group" }, button("Fit", "Whole detector (0)", fit), button("1:1", "One screen pixel for each detector pixel (1)", () => zoomTo(1 / dpr())),
          button("−", "Zoom out (−)", () => zoomBy(1 / 1.6)), button("+", "Zoom in (+)", () => zoomBy(1.6))), zoomed),
      make("div", { class: "bh-frame-stage" }, canvas, problem, loading), readout);

    const dpr = () => window.devicePixelRatio || 1;

    // -- fetching: one request at a time, and always for what is wanted now
    let asked = null, serial = 0, again = false;
    const wanted = () => {
      const { rows, columns } = info();
      const bin = Math.max(1, Math.floor(Math.max(columns / Math.max(canvas.width, 200), rows / Math.max(canvas.height, 200)) + 0.2));
      if (shown !== frame || !layers[0] || layers[0].frame !== frame) return { frame, x0: 0, y0: 0, x1: columns, y1: rows, bin };
      const fine = Math.max(1, Math.floor(1 / view.scale + 0.2));
      if (fine >= layers[0].bin) return null;
      const b = visible(), margin = 0.15;
      const mx = (b.x1 - b.x0) * margin, my = (b.y1 - b.y0) * margin;
      const box = { x0: Math.max(0, Math.floor(b.x0 - mx)), y0: Math.max(0, Math.floor(b.y0 - my)), x1: Math.min(columns, Math.ceil(b.x1 + mx)), y1: Math.min(rows, Math.ceil(b.y1 + my)) };
      const d = layers[1];
      if (d && d.frame === frame && d.bin <= fine && d.x0 <= Math.max(0, b.x0) && d.y0 <= Math.max(0, b.y0) && d.x1 >= Math.min(columns, b.x1) && d.y1 >= Math.min(rows, b.y1)) return null;
      return box.x1 > box.x0 && box.y1 > box.y0 ? { frame, ...box, bin: fine } : null;
    };
    const request = () => {
      if (info().frames < 1) return say("No frame of this dataset has arrived yet.");
      if (asked) { again = true; return; }
      const want = wanted();
      if (!want) return;
      asked = { id: ++serial, at: Date.now() };
      if (want.frame !== shown) setTimeout(wait, PATIENCE);
      model.send({ action: "get", id: serial, ...want });
    };
    // on a slow network: what is coming, so that nobody takes the frame before it for this one
    const wait = () => {
      loading.hidden = !asked || frame === shown || playing;
      loading.textContent = `Loading frame ${frame} …`;
    };
    const receive = async (message, buffers) => {
      if (!asked || message.id !== asked.id) return;
      try {
        if (message.error !== undefined) { say(message.error); loading.hidden = true; if (message.frame === frame) shown = frame; return; }
        const raw = await inflate(buffers[0]);
        const values = message.bytes === 1 ? new Uint8Array(raw) : message.bytes === 2 ? new Uint16Array(raw) : new Uint32Array(raw);
        const layer = { ...message, values, masked: 2 ** (8 * message.bytes) - 1, image: null };
        const { rows, columns } = info();
        const whole = message.x0 === 0 && message.y0 === 0 && message.x1 === columns && message.y1 === rows;
        if (whole && (message.frame !== shown || !layers[0] || layers[0].bin >= message.bin)) {
          layers = [layer, ...(layers[1] && layers[1].frame === message.frame ? [layers[1]] : [])];
          shown = message.frame;
          if (look.auto) automatic();
        } else if (message.frame === shown) layers[1] = layer;
        say("");
        loading.hidden = frame === shown || loading.hidden;
        canvas.dataset.frame = shown;
        model.set("frame", shown); model.save_changes();
        const address = new URL(location.href);
        address.searchParams.set("frame", shown);
        history.replaceState(null, "", address);
        draw();
      } finally {
        asked = null;
        if (again || frame !== shown) { again = false; request(); }
        else if (playing) setTimeout(step, 120);
        else request();
      }
    };
    model.on("msg:custom", receive);
    const late = setInterval(() => { if (asked && Date.now() - asked.at > 20000) { asked = null; request(); } }, 5000);

    // -- frames
    function go(n, byHand) {
      const last = Math.max(1, info().frames);
      if (byHand) { setLive(false); }
      frame = Math.min(Math.max(1, Math.round(n)), last);
      label();
      request();
    }
    function step() {
      if (!playing) return;
      if (frame < info().frames) { frame++; label(); request(); }
      else if (live) setTimeout(step, 300);
      else setPlaying(false);
    }
    function setPlaying(on) {
      playing = on;
      play.textContent = on ? "Pause" : "Play";
      play.title = on ? "Pause (space)" : "Play (space)";
      if (on) { setLive(false); if (frame >= info().frames) frame = 0; step(); }
    }
    function setLive(on) {
      if (live === on) return label();
      live = on;
      model.set("live", on); model.save_changes();
      if (on) { playing && setPlaying(false); frame = Math.max(1, info().frames); request(); }
      label();
    }
    function label() {
      const { frames, announced } = info();
      number.value = frame;
      of.textContent = frames < announced ? `of ${frames} (${announced} announced)` : `of ${frames}`;
      slider.max = Math.max(1, frames);
      slider.value = frame;
      follow.setAttribute("aria-pressed", live);
    }

    // -- looks
    function automatic() {
      if (!layers[0]) return;
      [look.low, look.high] = automaticRange(layers[0].values, layers[0].masked);
    }
    function range() {
      look.auto = false;
      look.low = Math.max(0, parseFloat(low.value) || 0);
      look.high = Math.max(look.low + 1, parseFloat(high.value) || 0);
      restyle();
    }
    function restyle() {
      auto.firstChild.checked = look.auto;
      if (look.auto) automatic();
      for (const layer of layers) layer.image = null;
      const { map, scale, auto: a, low: l, high: h, rings: r, ice: i } = look;
      localStorage.setItem("bh-frames", JSON.stringify({ map, scale, auto: a, low: l, high: h, rings: r, ice: i }));
      draw();
    }

    // -- the way between detector and canvas
    const toCanvas = (x, y) => [(x - view.x) * view.scale + canvas.width / 2, (y - view.y) * view.scale + canvas.height / 2];
    const toDetector = (u, v) => [(u - canvas.width / 2) / view.scale + view.x, (v - canvas.height / 2) / view.scale + view.y];
    const visible = () => {
      const [x0, y0] = toDetector(0, 0), [x1, y1] = toDetector(canvas.width, canvas.height);
      return { x0, y0, x1, y1 };
    };
    const whole = () => Math.min(canvas.width / info().columns, canvas.height / info().rows) * 0.98;
    function fit() { view = { x: info().columns / 2, y: info().rows / 2, scale: whole(), fitted: true }; draw(); request(); }
    function zoomTo(scale, u = canvas.width / 2, v = canvas.height / 2) {
      const [x, y] = toDetector(u, v), s = Math.min(Math.max(scale, whole() * 0.6), 64 * dpr());
      view = { x: x - (u - canvas.width / 2) / s, y: y - (v - canvas.height / 2) / s, scale: s };
      draw();
      request();
    }
    const zoomBy = (factor, u, v) => zoomTo(view.scale * factor, u, v);
    const pan = (u, v) => { view = { ...view, x: view.x - u / view.scale, y: view.y - v / view.scale, fitted: false }; draw(); request(); };

    const valueAt = (x, y) => {
      const layer = [...layers].reverse().find((l) => l.frame === shown && x >= l.x0 && x < l.x1 && y >= l.y0 && y < l.y1);
      if (!layer) return null;
      const i = Math.floor((x - layer.x0) / layer.bin), j = Math.floor((y - layer.y0) / layer.bin);
      if (i >= layer.width || j >= layer.height) return null;
      const v = layer.values[j * layer.width + i];
      return { value: v, masked: v === layer.masked, bin: layer.bin };
    };

    // -- drawing
    function paint(layer) {
      if (layer.image) return layer.image;
      const image = document.createElement("canvas");
      image.width = layer.width;
      image.height = layer.height;
      const pixels = new ImageData(layer.width, layer.height), out = new Uint32Array(pixels.data.buffer);
      const { found, step, above, masked } = table(look.low, look.high, look.scale, look.map);
      const { values } = layer, none = layer.masked, length = found.length;
      if (step === 1) for (let i = 0; i < out.length; i++) { const v = values[i]; out[i] = v === none ? masked : v < length ? found[v] : above; }
      else for (let i = 0; i < out.length; i++) { const v = values[i], k = Math.floor(v / step); out[i] = v === none ? masked : k < length ? found[k] : above; }
      image.getContext("2d").putImageData(pixels, 0, 0);
      return (layer.image = image);
    }

    let due = 0;
    function draw() { due ||= requestAnimationFrame(() => { due = 0; drawNow(); }); }
    function drawNow() {
      if (!view || !canvas.width) return;
      low.value = look.low;
      high.value = look.high;
      bright.value = (Math.log1p(look.high) / Math.log1p(65535)) * 100;
      zoomed.textContent = `${((view.scale / dpr()) * 100).toPrecision(2) * 1} %`;
      const ctx = canvas.getContext("2d");
      ctx.setTransform(1, 0, 0, 1, 0, 0);
      ctx.fillStyle = getComputedStyle(canvas).getPropertyValue("--bh-stage").trim() || "#20262c";
      ctx.fillRect(0, 0, canvas.width, canvas.height);
      ctx.imageSmoothingEnabled = false;
      for (const layer of layers) {
        if (layer.frame !== shown) continue;
        const [u, v] = toCanvas(layer.x0, layer.y0);
        ctx.drawImage(paint(layer), u, v, layer.width * layer.bin * view.scale, layer.height * layer.bin * view.scale);
      }
      if (view.scale >= 24 * dpr()) counts(ctx);
      const g = geometry();
      if (g) {
        const [u0, v0] = toCanvas(0, 0), [u1, v1] = toCanvas(info().columns, info().rows);
        ctx.save();
        ctx.beginPath();
        ctx.rect(u0, v0, u1 - u0, v1 - v0);
        ctx.clip();
        if (look.rings) circles(ctx, g, spread(g), getComputedStyle(canvas).getPropertyValue("--bh-ring").trim(), []);
        if (look.ice) circles(ctx, g, ICE, getComputedStyle(canvas).getPropertyValue("--bh-ice-ring").trim(), [5 * dpr(), 4 * dpr()]);
        cross(ctx, g);
        ctx.restore();
      }
      read();
    }
    // rings at round numbers, not closer to each other than a tenth of the canvas
    function spread(g) {
      const found = [];
      let last = -Infinity;
      for (const d of RINGS) {
        const r = (radius(g, d) / g.px) * view.scale;
        if (Number.isNaN(r)) break;
        if (r - last >= Math.min(canvas.width, canvas.height) * 0.1 && r > 20) { found.push(d); last = r; }
      }
      return found;
    }
    function circles(ctx, g, list, colour, dash) {
      const [u, v] = toCanvas(g.cx, g.cy), k = dpr();
      const [left, top] = toCanvas(0, 0), [right, bottom] = toCanvas(info().columns, info().rows);
      const room = { left: Math.max(0, left), top: Math.max(0, top), right: Math.min(canvas.width, right), bottom: Math.min(canvas.height, bottom) };
      ctx.save();
      ctx.strokeStyle = ctx.fillStyle = colour;
      ctx.lineWidth = 1.2 * k;
      ctx.setLineDash(dash);
      ctx.font = `600 ${11.5 * k}px system-ui, sans-serif`;
      ctx.textAlign = "center";
      ctx.textBaseline = "middle";
      for (const d of list) {
        const rx = (radius(g, d) / g.px) * view.scale, ry = (radius(g, d) / g.py) * view.scale;
        if (Number.isNaN(rx) || rx > 40 * Math.max(canvas.width, canvas.height)) continue;
        ctx.beginPath();
        ctx.ellipse(u, v, rx, ry, 0, 0, 2 * Math.PI);
        ctx.stroke();
        for (const angle of [-1, 3, 1, -3, -2, 2, 0, 4].map((n) => (n * Math.PI) / 4)) {
          const x = u + rx * Math.cos(angle), y = v + ry * Math.sin(angle);
          if (x < room.left + 24 * k || y < room.top + 12 * k || x > room.right - 24 * k || y > room.bottom - 12 * k) continue;
          const text = `${d >= 10 ? d.toFixed(0) : d.toFixed(d < 4 && dash.length ? 2 : 1)} Å`, w = ctx.measureText(text).width + 6 * k;
          ctx.save();
          ctx.fillStyle = "rgba(255,255,255,.82)";
          ctx.fillRect(x - w / 2, y - 8 * k, w, 16 * k);
          ctx.restore();
          ctx.fillText(text, x, y);
          break;
        }
      }
      ctx.restore();
    }
    function cross(ctx, g) {
      const [u, v] = toCanvas(g.cx, g.cy), s = 8 * dpr();
      ctx.save();
      ctx.strokeStyle = getComputedStyle(canvas).getPropertyValue("--bh-ring").trim();
      ctx.lineWidth = 1.5 * dpr();
      ctx.beginPath();
      ctx.moveTo(u - s, v); ctx.lineTo(u + s, v); ctx.moveTo(u, v - s); ctx.lineTo(u, v + s);
      ctx.stroke();
      ctx.restore();
    }
    function counts(ctx) {
      const b = visible(), { rows, columns } = info();
      ctx.save();
      ctx.textAlign = "center";
      ctx.textBaseline = "middle";
      for (let y = Math.max(0, Math.floor(b.y0)); y < Math.min(rows, b.y1); y++) {
        for (let x = Math.max(0, Math.floor(b.x0)); x < Math.min(columns, b.x1); x++) {
          const p = valueAt(x, y);
          if (!p || p.bin !== 1) continue;
          const text = p.masked ? "×" : String(p.value);
          const t = Math.min(Math.max((p.value - look.low) / Math.max(1, look.high - look.low), 0), 1);
          const dark = p.masked ? false : look.map === "Inverted grey" ? SCALES[look.scale](t, look.high - look.low) > 0.5 : SCALES[look.scale](t, look.high - look.low) < 0.55;
          ctx.fillStyle = dark ? "#fff" : "#111";
          ctx.font = `${Math.min(14 * dpr(), (view.scale / Math.max(2, text.length)) * 1.35)}px ui-monospace, monospace`;
          ctx.fillText(text, ...toCanvas(x + 0.5, y + 0.5));
        }
      }
      ctx.restore();
    }
    function read() {
      const { rows, columns } = info();
      if (!cursor || !view) { readout.textContent = "Move over the frame to read pixels. Wheel zooms, drag pans; ← → frames, space plays, 0 fits."; return; }
      const [x, y] = toDetector(...cursor).map(Math.floor);
      if (x < 0 || y < 0 || x >= columns || y >= rows) { readout.textContent = "outside of the detector"; return; }
      const p = valueAt(x, y), g = geometry();
      const parts = [`x ${x}`, `y ${y}`];
      parts.push(!p ? "counts –" : p.masked ? "masked" : `counts ${p.value.toLocaleString("en-GB").replaceAll(",", "\u202f")}${p.bin > 1 ? ` (largest of ${p.bin} × ${p.bin})` : ""}`);
      if (g) {
        const r = Math.hypot((x + 0.5 - g.cx) * g.px, (y + 0.5 - g.cy) * g.py), d = spacing(g, r);
        parts.push(`d ${d >= 100 ? d.toFixed(0) : d.toFixed(2)} Å`);
      }
      readout.textContent = parts.join("   ");
    }
    function say(text) { problem.textContent = text; problem.hidden = !text; }

    // -- pointer and keys
    const at = (e) => { const box = canvas.getBoundingClientRect(); return [(e.clientX - box.left) * dpr(), (e.clientY - box.top) * dpr()]; };
    let held = null;
    canvas.addEventListener("wheel", (e) => { e.preventDefault(); zoomBy(Math.exp(-e.deltaY * (e.ctrlKey ? 0.01 : 0.0018)), ...at(e)); }, { passive: false });
    canvas.addEventListener("pointerdown", (e) => { canvas.setPointerCapture(e.pointerId); held = at(e); canvas.focus({ preventScroll: true }); });
    canvas.addEventListener("pointermove", (e) => {
      cursor = at(e);
      if (held) { pan(cursor[0] - held[0], cursor[1] - held[1]); held = cursor; }
      else read();
    });
    canvas.addEventListener("pointerup", () => { held = null; });
    canvas.addEventListener("pointerleave", () => { cursor = null; read(); });
    canvas.addEventListener("dblclick", (e) => zoomBy(4, ...at(e)));
    const keys = {
      ArrowRight: (e) => go(frame + (e.shiftKey ? 10 : 1), true), ArrowLeft: (e) => go(frame - (e.shiftKey ? 10 : 1), true), Home: () => go(1, true), End: () => go(info().frames, true),
      " ": () => setPlaying(!playing), l: () => setLive(!live), "+": () => zoomBy(1.6), "=": () => zoomBy(1.6), "-": () => zoomBy(1 / 1.6), 0: fit, 1: () => zoomTo(1 / dpr()),
      r: () => rings.firstChild.click(),
    };
    const onKey = (e) => {
      if (e.ctrlKey || e.metaKey || e.altKey || e.target.matches?.("input:not([type=range]):not([type=checkbox]), select, textarea")) return;
      if (e.target.matches?.("button, a, summary") && e.key === " ") return;
      const act = keys[e.key] ?? keys[e.key.toLowerCase()];
      if (!act || e.target.matches?.("input[type=range]")) return;
      e.preventDefault();
      act(e);
    };
    document.addEventListener("keydown", onKey);

    // -- growing datasets and windows
    let known = info().id;
    model.on("change:info", () => {
      if (info().id !== known) { known = info().id; layers = []; shown = 0; frame = model.get("frame"); view = null; resize(); }
      if (live && info().frames > frame) { frame = info().frames; request(); }
      else if (shown === 0) request();
      label();
      draw();
    });
    const stage = canvas.parentElement;
    function resize() {
      const width = Math.round(stage.clientWidth * dpr()), height = Math.round(stage.clientHeight * dpr());
      if (!width || !height) return;
      if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
      if (!view || view.fitted) fit();
      else { draw(); request(); }
    }
    const watch = new ResizeObserver(resize);
    watch.observe(stage);
    label();
    read();
    resize();
    canvas.focus({ preventScroll: true });
    signal.addEventListener("abort", () => { watch.disconnect(); clearInterval(late); document.removeEventListener("keydown", onKey); playing = false; });
  },
};
