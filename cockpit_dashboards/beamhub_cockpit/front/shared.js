// Where members put files into an experiment's shared/: a zone that takes them, and a line for each that is on its way.
// Needs tus.js before it. Everything shown is text.

const AT_ONCE = 2; // files
const STAYS = 8000; // ms that an arrived file keeps its line
const NARROW = "\u202f";

function bytes(count) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (count < 999.5) return `${unit === "B" || count >= 99.5 ? count.toFixed(0) : count.toFixed(1)}${NARROW}${unit}`;
    count /= 1000;
  }
  return `${count.toFixed(1)}${NARROW}TB`;
}

function span(seconds) {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))}${NARROW}s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)}${NARROW}min`;
  return `${Math.floor(seconds / 3600)}${NARROW}h ${Math.round((seconds % 3600) / 60)}${NARROW}min`;
}

function make(tag, css, ...children) {
  const node = document.createElement(tag);
  if (css) node.className = css;
  node.append(...children);
  return node;
}

function press(label, css, action, title = "") {
  const node = make("button", css, label);
  node.type = "button";
  if (title) node.title = title;
  if (title) node.setAttribute("aria-label", title);
  node.addEventListener("click", action);
  return node;
}

function describe(transfer) {
  const of = `${bytes(transfer.sent)} of ${bytes(transfer.size)}`;
  switch (transfer.state) {
    case "waiting": return `${bytes(transfer.size)} · waits for its turn`;
    case "sending": {
      const rate = transfer.rate;
      return rate ? `${of} · ${bytes(rate)}/s · ${span((transfer.size - transfer.sent) / rate)} left` : of;
    }
    case "interrupted": return `${transfer.said || "No connection."} It goes on by itself, at ${of}.`;
    case "checking": return `${bytes(transfer.size)} sent · is being checked`;
    case "paused": return `Paused at ${of}`;
    case "done": return `${bytes(transfer.size)} arrived and checked. ${transfer.said}`.trim();
    default: return transfer.said;
  }
}

// Files of a drop, those in folders with the folders in their names.
async function dropped(data) {
  const entries = [...data.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...data.files].map((file) => [file.name, file]);
  const found = [];
  const walk = async (entry) => {
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      found.push([entry.fullPath.replace(/^\//, ""), file]);
    } else {
      const reader = entry.createReader();
      for (let some; (some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject))).length; ) {
        for (const inner of some) await walk(inner);
      }
    }
  };
  for (const entry of entries) await walk(entry);
  return found;
}

export default {
  render({ model, el, signal }) {
    el.classList.add("bh-shared-uploads");
    const service = model.get("service"), user = model.get("user");
    const lines = new Map(); // mark -> {transfer, node, ...}: files on their way
    const input = make("input");
    Object.assign(input, { type: "file", multiple: true, hidden: true });
    const zone = make("div", "bh-drop", make("span", "", "Drop files here, or "), press("choose files …", "bh-text-button bh-choose", () => input.click()), input);
    const trouble = make("p", "bh-error");
    trouble.setAttribute("role", "alert");
    trouble.hidden = true;
    const list = make("ul", "bh-sends");
    el.append(zone, trouble, list);

    const going = () => [...lines.values()].map((line) => line.transfer);
    const busy = () => going().some((t) => ["waiting", "sending", "interrupted", "checking"].includes(t.state));

    function next() {
      const free = AT_ONCE - going().filter((t) => ["sending", "interrupted", "checking"].includes(t.state)).length;
      for (const transfer of going().filter((t) => t.state === "waiting").slice(0, Math.max(0, free))) {
        transfer.state = "sending";
        transfer.run();
      }
      if (busy()) el.dataset.busy = "uploads"; // the page is not loaded anew by itself meanwhile
      else delete el.dataset.busy;
    }

    function add(files) {
      trouble.hidden = true;
      for (const [name, file] of files) {
        const experiment = model.get("experiment");
        const mark = fingerprint(user, experiment, name, file);
        const here = lines.get(mark);
        if (here && !["done", "failed"].includes(here.transfer.state)) {
          if (here.transfer.state === "paused") here.transfer.set("waiting");
          continue;
        }
        here?.node.remove();
        lines.delete(mark);
        const transfer = new Transfer({ service, user, experiment, file, name, changed: draw });
        lines.set(mark, line(transfer));
        draw(transfer);
      }
      leftovers();
      next();
    }

    function line(transfer) {
      const name = make("span", "bh-send-name", transfer.name);
      name.title = transfer.name;
      const where = make("span", "bh-send-where"), tools = make("span", "bh-send-tools");
      const done = make("div", "bh-progress-done"), bar = make("div", "bh-progress", done);
      bar.setAttribute("role", "progressbar");
      bar.setAttribute("aria-label", transfer.name);
      const said = make("span", "bh-send-said");
      const node = make("li", "bh-send", name, tools, bar, said, where);
      node.dataset.name = transfer.name;
      list.append(node);
      return { transfer, node, where, tools, done, bar, said, shown: "" };
    }

    function drop(line) {
      line.node.remove();
      lines.delete(line.transfer.mark);
      next();
    }

    function draw(transfer) {
      const line = lines.get(transfer.mark);
      if (!line) return;
      const part = transfer.state === "done" ? 1 : transfer.size ? transfer.sent / transfer.size : 0;
      line.done.style.setProperty("--done", `${(part * 100).toFixed(1)}%`);
      line.bar.setAttribute("aria-valuenow", (part * 100).toFixed(0));
      line.said.textContent = describe(transfer);
      const elsewhere = transfer.experiment !== model.get("experiment");
      line.where.textContent = elsewhere ? `goes to ${transfer.experiment}` : "";
      if (line.shown === transfer.state) return;
      line.shown = line.node.dataset.state = transfer.state;
      line.said.className = transfer.state === "failed" ? "bh-send-said bh-error" : transfer.state === "interrupted" ? "bh-send-said bh-warn" : "bh-send-said";
      line.done.className = `bh-progress-done bh-tone-${{ done: "good", failed: "bad", paused: "off", interrupted: "warn" }[transfer.state] ?? "live"}`;
      if (!line.asking || ["done", "failed"].includes(transfer.state)) offer(line);
      if (transfer.state === "done" && !transfer.said) setTimeout(() => drop(line), STAYS);
      if (["paused", "done", "failed"].includes(transfer.state)) next();
    }

    function offer(line) {
      line.asking = false;
      const { transfer } = line, css = "bh-button bh-small";
      const restart = () => { transfer.set("waiting"); next(); };
      const tools = {
        paused: [press("Resume", `${css} bh-send-resume`, restart)],
        failed: [press("Retry", `${css} bh-send-retry`, restart)],
        done: [],
      }[transfer.state] ?? [press("Pause", `${css} bh-send-pause`, () => transfer.pause())];
      const off = transfer.state === "done" ? () => drop(line) : () => ask(line);
      line.tools.replaceChildren(...tools, press("×", "bh-icon-button bh-send-cancel", off, transfer.state === "done" ? "Dismiss" : `Stop sending ${transfer.name}`));
    }

    // Once more, before what has arrived is thrown away.
    function ask(line) {
      line.asking = true;
      const yes = press("Stop and forget it", "bh-button bh-small bh-button-danger bh-send-yes", async () => {
        drop(line);
        await line.transfer.cancel();
      });
      line.tools.replaceChildren(yes, press("Go on", "bh-button bh-small", () => offer(line)));
      yes.focus();
    }

    // What an earlier page has begun: the person has to choose the file again, a page can't open it by itself.
    function leftovers() {
      for (const node of list.querySelectorAll(".bh-left")) node.remove();
      if (!model.get("takes")) return;
      for (const { mark, name, size, sent, url } of unfinished(user, model.get("experiment"))) {
        if (lines.has(mark)) continue;
        const shown = make("span", "bh-send-name", name);
        shown.title = name;
        const node = make("li", "bh-send bh-left", shown,
          make("span", "bh-send-tools",
            press("Choose …", "bh-button bh-small", () => input.click()),
            press("×", "bh-icon-button", async () => { remember(mark, null); leftovers(); await forget(service, url); }, `Forget ${name}`)),
          make("span", "bh-send-said bh-warn", `${bytes(sent)} of ${bytes(size)} arrived before this page was loaded. Choose the same file again to go on.`));
        node.dataset.name = name;
        list.append(node);
      }
    }

    function show() {
      zone.hidden = !model.get("takes");
      for (const transfer of going()) draw(transfer);
      leftovers();
    }

    input.addEventListener("change", () => {
      add([...input.files].map((file) => [file.name, file]));
      input.value = "";
    });
    const over = (e) => {
      if (![...(e.dataTransfer?.types ?? [])].includes("Files")) return;
      e.preventDefault(); // a file that misses the zone would be opened in place of the page
      const here = !zone.hidden && zone.contains(e.target);
      zone.classList.toggle("bh-drop-near", !zone.hidden);
      zone.classList.toggle("bh-drop-here", here);
      e.dataTransfer.dropEffect = here ? "copy" : "none";
    };
    const away = () => zone.classList.remove("bh-drop-near", "bh-drop-here");
    const left = (e) => e.relatedTarget ?? away();
    const land = async (e) => {
      if (![...(e.dataTransfer?.types ?? [])].includes("Files")) return;
      e.preventDefault();
      away();
      if (zone.hidden || !zone.contains(e.target)) return;
      try {
        add(await dropped(e.dataTransfer));
      } catch {
        trouble.textContent = "Your browser can't read what was dropped. Use “choose files …”.";
        trouble.hidden = false;
      }
    };
    const leave = (e) => busy() && e.preventDefault();
    window.addEventListener("dragover", over);
    window.addEventListener("dragleave", left);
    window.addEventListener("drop", land);
    window.addEventListener("beforeunload", leave);
    model.on("change:experiment", show);
    model.on("change:takes", show);
    show();
    signal.addEventListener("abort", () => {
      window.removeEventListener("dragover", over);
      window.removeEventListener("dragleave", left);
      window.removeEventListener("drop", land);
      window.removeEventListener("beforeunload", leave);
    });
  },
};
