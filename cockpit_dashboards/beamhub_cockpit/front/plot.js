// Series of a job, drawn as they grow: small plots one above the other, sharing their horizontal axis.
// uPlot stands in front of this text (plot.py puts both into one module).
//
// The kernel holds all rows. This view asks for those it has not got ("want": how many it has), and afterwards gets the
// new ones only ("from": where they belong); one that does not fit is asked for again, so none is ever lost.

const css = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();
const digits = (v) => {
  if (v === null || v === undefined) return "–";
  if (v === true) return "yes";
  if (v === false) return "no";
  const size = Math.abs(v);
  if (Number.isInteger(v) && size < 1e6) return v.toLocaleString("en-GB").replaceAll(",", "\u202f");
  return size >= 1e5 || (size && size < 1e-3) ? v.toExponential(2) : v.toPrecision(size >= 1000 ? 4 : 3).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
};

export default {
  render({ model, el, signal }) {
    el.classList.add("bh-plot");
    const panels = model.get("panels"), x = model.get("x"), names = model.get("columns");
    const link = /^\/(?![\/\\])/.test(model.get("link")) ? model.get("link") : "";
    const column = (name) => names.indexOf(name);
    const data = names.map(() => []);
    const sync = uPlot.sync(`bh-${Math.random()}`);
    const plots = [], readouts = [];
    const legend = document.createElement("span");
    legend.className = "bh-plot-legend";
    legend.textContent = "ice rings";
    const empty = document.createElement("p");
    empty.className = "bh-plot-empty";
    empty.textContent = model.get("empty");
    el.append(empty);

    const flagged = (u, flag) => {
      const rows = data[column(flag)];
      if (!rows) return;
      const { ctx, bbox } = u;
      ctx.save();
      ctx.fillStyle = css("--bh-ice");
      const width = Math.max(2, (bbox.width / Math.max(1, u.scales.x.max - u.scales.x.min)) * 0.9);
      for (let i = 0; i < rows.length; i++) {
        if (rows[i]) ctx.fillRect(u.valToPos(data[0][i], "x", true) - width / 2, bbox.top, width, bbox.height);
      }
      ctx.restore();
    };

    const size = () => Math.max(160, el.clientWidth);
    panels.forEach((panel, index) => {
      const box = document.createElement("div");
      box.className = "bh-plot-panel";
      const head = document.createElement("div");
      head.className = "bh-plot-head";
      const title = document.createElement("span");
      title.className = "bh-plot-title";
      title.textContent = panel.unit ? `${panel.title} (${panel.unit})` : panel.title;
      const value = document.createElement("output");
      value.className = "bh-plot-value";
      head.append(title, value);
      if (index === 0 && panel.flag) title.append(" ", legend);
      box.append(head);
      el.append(box);
      readouts.push(value);
      const last = index === panels.length - 1;
      const ink = css("--bh-plot-" + ((index % 4) + 1)), quiet = css("--bh-quiet"), grid = css("--bh-line");
      const font = `11px ${css("--bh-font") || "system-ui"}`;
      const plot = new uPlot({
        width: size(),
        height: panel.height + (last ? 20 : 0),
        padding: [5, 10, last ? 0 : 7, 0],
        legend: { show: false },
        cursor: { sync: { key: sync.key, setSeries: false }, points: { size: 5 }, drag: { x: true, y: false } },
        scales: {
          x: { time: false, range: (u, min, max) => [x.min ?? min ?? 0, Math.max(x.max ?? -Infinity, max ?? 1)] },
          y: { dir: panel.reverse ? -1 : 1,
               range: (u, min, max) => {
                 if (min === null) return [0, 1];
                 const low = panel.zero ? Math.min(0, min) : min, room = (max - low || Math.abs(max) || 1) * 0.08;
                 return [panel.zero && low === 0 ? 0 : low - room, max + room];
               } },
        },
        axes: [
          { show: true, size: last ? 22 : 0, stroke: quiet, font, grid: { stroke: grid, width: 1 }, ticks: { show: false }, gap: 4,
            values: last ? (u, ticks) => ticks.map((t) => (Number.isInteger(t) ? digits(t) : "")) : () => [] },
          { size: 46, stroke: quiet, font, grid: { stroke: grid, width: 1 }, ticks: { show: false }, gap: 4, space: 22,
            values: (u, ticks) => ticks.map(digits) },
        ],
        series: [{}, {
          stroke: ink, width: 1.5,
          points: { show: (u) => u.data[0].length < 60, size: 4, fill: ink },
          spanGaps: false,
        }],
        hooks: {
          drawClear: panel.flag ? [(u) => flagged(u, panel.flag)] : [],
          setCursor: [(u) => readOut(u.cursor.idx)],
        },
      }, [[], []], box);
      plot.over.title = link ? "Click: open this frame in the viewer" : "";
      if (link) plot.over.addEventListener("click", () => {
        const at = plot.cursor.idx;
        if (at !== null && at !== undefined && data[0][at] !== undefined) window.open(link + encodeURIComponent(data[0][at]), "_blank", "noopener");
      });
      sync.sub(plot);
      plots.push(plot);
    });
    const foot = document.createElement("div");
    foot.className = "bh-plot-foot";
    foot.textContent = x.title;
    el.append(foot);

    function readOut(at) {
      const i = at === null || at === undefined ? data[0].length - 1 : at;
      panels.forEach((panel, index) => {
        const v = data[column(panel.column)]?.[i];
        const flag = panel.flag && data[column(panel.flag)]?.[i];
        readouts[index].textContent = i < 0 ? "" : `${digits(v)}${flag ? " · ice" : ""}`;
      });
      foot.textContent = i < 0 ? x.title : `${x.title} ${digits(data[0][i])}`;
    }

    let wanted = null;
    const draw = () => {
      wanted = null;
      el.dataset.rows = data[0].length;
      legend.hidden = !(data[column(panels[0]?.flag)] ?? []).some(Boolean);
      el.dataset.rows = data[0].length;
      legend.hidden = !(data[column(panels[0]?.flag)] ?? []).some(Boolean);
      empty.hidden = data[0].length > 0;
      for (const node of el.querySelectorAll(".bh-plot-panel, .bh-plot-foot")) node.hidden = data[0].length === 0;
      plots.forEach((plot, index) => {
        const values = (data[column(panels[index].column)] ?? []).map((v) => (typeof v === "number" ? v : null));
        plot.setData([data[0], values]);
      });
      readOut(plots[0]?.cursor.idx);
    };

    const take = (message) => {
      if (message?.rows === undefined) return;
      const have = data[0].length;
      if (message.from > have) return ask();
      const fresh = message.rows.slice(have - message.from);
      for (const row of fresh) row.forEach((v, i) => data[i].push(v));
      if (fresh.length || message.from === 0) wanted ??= requestAnimationFrame(draw);
    };
    const ask = () => model.send({ action: "want", have: data[0].length });
    model.on("msg:custom", take);
    draw();
    ask();
    window.addEventListener("bh-resync", ask);

    const fit = new ResizeObserver(() => {
      plots.forEach((plot, index) => {
        const width = size();
        if (Math.abs(plot.width - width) > 1) plot.setSize({ width, height: panels[index].height + (index === panels.length - 1 ? 20 : 0) });
      });
    });
    fit.observe(el);
    signal.addEventListener("abort", () => {
      fit.disconnect();
      window.removeEventListener("bh-resync", ask);
      plots.forEach((plot) => plot.destroy());
    });
  },
};
