// A region of a page: draws a tree of elements (beamhub_cockpit/html.py) and keeps it up to date.
//
// Nothing here parses markup: elements come from createElement (known tags only), text from createTextNode. A new tree
// is compared with the one shown and only differences touch the document, so focus, selection, scroll positions,
// opened details and half-typed input survive an update.
//
// Attributes beyond the ordinary ones:
//   key     identity among siblings, so that a row keeps its nodes when rows above it come and go
//   on      {event: [action, ...arguments]}: what to tell the kernel; forms add their fields, inputs their value
//   ago     ISO time, shown as "12 s ago" and kept current;  since  ISO time, shown as a running duration
//   blob    name in the region's blobs: the bytes of an image
//   widget  another widget of this kernel, drawn inside
//   modal   a <dialog> that opens as modal; closing it with Esc sends its "cancel" action
//   tail    a scrolling element that follows its end while the reader is at the end
//   focus   takes the focus when it appears
//   data-twin  a name: what has the same one takes the focus when this goes that had it
//   vars    CSS custom properties, {"--done": "34%"}

const TAGS = new Set(("a article aside b button caption code dd details dialog div dl dt em fieldset figcaption figure " +
  "footer form h1 h2 h3 h4 header hr img input label legend li main meter nav ol optgroup option output p pre progress " +
  "section select small span strong sub summary sup table tbody td textarea th thead time tr ul").split(" "));
const PLAIN = new Set(("alt autocomplete class colspan disabled download for hidden href id inputmode label max maxlength method " +
  "min name open pattern placeholder readonly rel required role rows scope selected spellcheck step tabindex target title " +
  "type width height datetime").split(" "));
const LINK = /^(https?:\/\/|\/(?![\/\\])|#|\?)/;
const RESYNC = "bh-resync"; // on the window: the connection is back after a silence
const GONE = 1000; // ms until what is left is gone
const ASKED = "bh-asked"; // on the window: the kernel was told what the reader has done
const PROPERTIES = new Set(["value", "checked", "selected", "disabled", "readonly", "required", "hidden"]);

// ---- times that keep themselves current ------------------------------------------------------------------------

// the kernel's clock minus the browser's, in ms: each region is a module of its own, one of them finds it out for all
const kernelNow = () => Date.now() + (globalThis.bhSkew ?? 0);

export function ago(iso, now = kernelNow()) {
  const then = Date.parse(iso);
  if (Number.isNaN(then)) return "";
  const s = Math.max(0, Math.round((now - then) / 1000));
  if (s < 2) return "just now";
  if (s < 60) return `${s} s ago`;
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ago`;
  const year = now - then > 300 * 86400e3 ? { year: "numeric" } : {};
  return new Date(then).toLocaleString("en-GB", { day: "numeric", month: "short", ...year, hour: "2-digit", minute: "2-digit", timeZoneName: "short" });
}

// A moment in full, with its zone: people of one beamtime sit in several.
export function moment(iso) {
  return new Date(iso).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "long" });
}

export function elapsed(iso, now = kernelNow()) {
  const s = Math.max(0, Math.round((now - Date.parse(iso)) / 1000));
  const two = (n) => String(n).padStart(2, "0");
  return s < 3600 ? `${Math.floor(s / 60)}:${two(s % 60)}` : `${Math.floor(s / 3600)}:${two(Math.floor(s / 60) % 60)}:${two(s % 60)}`;
}

function tick(root) {
  for (const node of root.querySelectorAll("[data-ago]")) setText(node, ago(node.dataset.ago));
  for (const node of root.querySelectorAll("[data-since]")) setText(node, elapsed(node.dataset.since));
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// ---- one element -----------------------------------------------------------------------------------------------

function same(a, b) {
  return a === b || JSON.stringify(a) === JSON.stringify(b);
}

function create(tree, context) {
  if (typeof tree === "string") return document.createTextNode(tree);
  const [tag, attributes, ...children] = tree;
  if (!TAGS.has(tag)) throw new Error(`unexpected tag ${tag}`);
  const node = document.createElement(tag);
  node._tree = [tag, {}];
  update(node, tree, context);
  if (attributes.modal) queueMicrotask(() => open(node)); // as soon as it is in its place: Esc is for it then
  if (attributes.focus) {
    node.autofocus = true; // for a dialog that opens around it
    requestAnimationFrame(() => node.focus());
  }
  return node;
}

function open(dialog) {
  if (!dialog.isConnected) return requestAnimationFrame(() => dialog.isConnected && open(dialog)); // its region is still to be shown
  dialog._from = place(document.activeElement);
  dialog.showModal();
}

// ---- the keyboard ----------------------------------------------------------------------------------------------

const FOCUSABLE = "a[href], button:not(:disabled), input:not(:disabled), select:not(:disabled), textarea:not(:disabled), summary, [tabindex='0']";

// Where an element is: what it is in, from the inside out, and where in it.
function place(element) {
  const around = [];
  for (let node = element, parent; (parent = node?.parentElement); node = parent) around.push([parent, [...parent.children].indexOf(node)]);
  return { element, twin: element?.dataset?.twin, around };
}

// Whoever works by keyboard and has made go what they were on, goes on from its twin or else from what is nearest.
function returnTo({ element, twin, around }) {
  if (!element || element.isConnected || !around.length) return;
  const usable = (node) => node.matches(FOCUSABLE) && node.tabIndex >= 0 && node.getClientRects().length > 0;
  const twins = twin ? [...document.querySelectorAll("[data-twin]")].filter((node) => node.dataset.twin === twin) : [];
  const near = function* () {
    yield* twins;
    for (const [parent, index] of around) {
      if (!parent.isConnected) continue;
      const children = [...parent.children];
      for (const child of [...children.slice(index), ...children.slice(0, index).reverse()]) yield* [child, ...child.querySelectorAll(FOCUSABLE)];
    }
  };
  for (const node of near()) if (usable(node)) return node.focus({ preventScroll: true });
}

// Tabs: one of them is in the order of the Tab key, and the arrows, Home and End lead to the others.
function onKey(event) {
  const tab = event.target.closest("[role=tab]"), list = tab?.closest("[role=tablist]");
  if (!list || event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  const tabs = [...list.querySelectorAll("[role=tab]")], at = tabs.indexOf(tab), last = tabs.length - 1;
  const to = { ArrowLeft: at > 0 ? at - 1 : last, ArrowRight: at < last ? at + 1 : 0, Home: 0, End: last }[event.key];
  if (to === undefined) return;
  event.preventDefault(); // regions lie within each other: the outer one has nothing to do any more
  tabs[to].focus();
  tabs[to].click();
}

function update(node, tree, context) {
  if (typeof tree === "string") {
    if (node.nodeValue !== tree) node.nodeValue = tree;
    return;
  }
  const [, before] = node._tree;
  const [, after, ...children] = tree;
  const atEnd = after.tail && node.scrollHeight - node.scrollTop - node.clientHeight < 24;
  for (const name of Object.keys(before)) if (!(name in after)) setAttribute(node, name, null, context);
  // children first: a <select>'s value only takes when its options are there
  node._tree = tree;
  if (!after.widget && !("ago" in after) && !("since" in after)) updateChildren(node, children, context);
  for (const [name, value] of Object.entries(after)) {
    if (!same(before[name], value)) setAttribute(node, name, value, context);
    else if (name === "blob") setAttribute(node, name, value, context);
  }
  if (atEnd || (after.tail && !before.tail)) requestAnimationFrame(() => { node.scrollTop = node.scrollHeight; });
}

function setAttribute(node, name, value, context) {
  if (name === "key" || name === "modal" || name === "tail" || name === "focus") return;
  if (name === "on") return listen(node, value ?? {}, context);
  if (name === "ago" || name === "since") {
    if (value === null) delete node.dataset[name];
    else {
      node.dataset[name] = value;
      if (name === "ago") [node.title, node.dateTime] = [moment(value), value];
      setText(node, name === "ago" ? ago(value) : elapsed(value));
    }
  } else if (name === "vars") {
    for (const [property, v] of Object.entries(value ?? {})) if (property.startsWith("--")) node.style.setProperty(property, v);
  } else if (name === "blob") {
    const url = value === null ? null : context.blob(value);
    if (url && node.src !== url) node.src = url;
  } else if (name === "widget") {
    context.embed(node, value);
  } else if (PROPERTIES.has(name)) {
    if (name === "value") node.value = value ?? "";
    else node[name === "readonly" ? "readOnly" : name] = value === null ? false : Boolean(value);
  } else if (name === "open" && node.tagName === "DIALOG") {
    return;
  } else if (PLAIN.has(name) || /^(aria|data)-[a-z-]+$/.test(name)) {
    if (name === "href" && value !== null && !LINK.test(value)) throw new Error("unexpected link");
    if (value === null) node.removeAttribute(name);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
}

function listen(node, wanted, context) {
  node._on = wanted;
  node._listening ??= new Set();
  for (const event of Object.keys(wanted)) {
    if (node._listening.has(event)) continue;
    node._listening.add(event);
    node.addEventListener(event, (e) => {
      const action = node._on[event];
      if (!action) return;
      // a link within a row is a link, a box is a box
      if (event === "click" && !node.matches("a, label") && e.target.closest("a[href], label, input")) return;
      if (event === "submit" || event === "cancel" || node.tagName === "A") e.preventDefault();
      if (event === "click") e.stopPropagation();
      const [name, ...args] = action;
      const message = { action: name, args };
      if (event === "submit") message.fields = fields(node);
      else if (event === "change" || event === "input") {
        const form = node.tagName === "FORM" ? node : node.form; // a form hears of the changes of all its inputs
        if (node !== form) message.value = node.type === "checkbox" ? node.checked : node.value;
        if (form) message.fields = fields(form);
      } else if (event === "toggle") message.value = node.open;
      context.send(message);
    });
  }
}

function fields(form) {
  const found = {};
  for (const input of form.elements) {
    if (!input.name) continue;
    if (input.type === "checkbox") found[input.name] = input.checked ? "true" : "false";
    else if (input.type !== "radio" || input.checked) found[input.name] = input.value;
  }
  return found;
}

// ---- many elements ---------------------------------------------------------------------------------------------

function fits(node, tree) {
  if (typeof tree === "string") return node.nodeType === Node.TEXT_NODE;
  return node.nodeType === Node.ELEMENT_NODE && node._tree && node._tree[0] === tree[0] && node._tree[1].key === tree[1].key &&
    node._tree[1].widget === tree[1].widget;
}

function updateChildren(parent, trees, context) {
  const keyed = new Map();
  for (const node of parent.childNodes) if (node._tree?.[1].key !== undefined) keyed.set(node._tree[1].key, node);
  let here = parent.firstChild;
  for (const tree of trees) {
    const key = typeof tree === "string" ? undefined : tree[1].key;
    const known = key === undefined ? null : keyed.get(key);
    if (here && fits(here, tree)) {
      update(here, tree, context);
      here = here.nextSibling;
    } else if (known && fits(known, tree)) {
      parent.insertBefore(known, here);
      update(known, tree, context);
    } else {
      parent.insertBefore(create(tree, context), here);
    }
  }
  while (here) {
    const next = here.nextSibling;
    if (here.tagName === "DIALOG" && here.open) here.close(); // gives the focus back to what had it before
    here.remove();
    if (here._from) returnTo(here._from);
    here = next;
  }
}

// A tree (list of nodes) with one place in it replaced, as html.py's `changes` has it.
function replaced(tree, [path, node]) {
  if (path.length === 0) return node;
  const [first, ...rest] = path;
  const copy = [...tree];
  if (rest.length === 0) copy[first] = node;
  else {
    const [tag, attributes, ...children] = copy[first];
    copy[first] = [tag, attributes, ...replaced(children, [rest, node])];
  }
  return copy;
}

// What covers the page until it has something to show (the template's index.html.j2).
function opened() {
  document.getElementById("loading")?.remove();
}

// ---- the widget ------------------------------------------------------------------------------------------------

export default {
  render({ model, el, host, signal }) {
    el.classList.add("bh-region");
    const urls = new Map(); // name -> [bytes, object URL]
    const context = {
      send: (message) => {
        window.dispatchEvent(new Event(ASKED));
        model.send(message);
      },
      blob(name) {
        const bytes = model.get("blobs")[name];
        if (!bytes) return null;
        const old = urls.get(name);
        if (old && old[0] === bytes) return old[1];
        if (old) URL.revokeObjectURL(old[1]);
        const url = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
        urls.set(name, [bytes, url]);
        return url;
      },
      async embed(node, ref) {
        if (!ref) return;
        const wanted = () => !signal.aborted && node._tree[1].widget === ref;
        let child = await host.getWidget(ref).catch(() => null);
        if (!child) {
          // closed while it was fetched, as when the page is left: then nobody wants it any more in a moment
          await new Promise((done) => setTimeout(done, GONE));
          if (wanted() && node.isConnected) child = await host.getWidget(ref);
        }
        if (child && wanted()) await child.render({ el: node, signal });
      },
    };
    let tree = [], version = 0;
    const draw = () => {
      const at = document.activeElement, from = el.contains(at) ? place(at) : {};
      updateChildren(el, tree, context);
      if (at !== document.activeElement && el.contains(at)) at.focus({ preventScroll: true }); // its row has moved
      else if (document.activeElement === document.body && !at?.closest("dialog")) returnTo(from);
      tick(el);
      if (tree.length && !model.get("pulse")) opened();
    };
    const ask = () => model.send({ action: "want", args: [version] });
    model.on("msg:custom", (message) => {
      if (message?.tree) tree = message.tree;
      else if (!message?.changes || message.version <= version) return;
      else if (message.version === version + 1) tree = message.changes.reduce(replaced, tree);
      else return ask();
      version = message.version;
      draw();
    });
    model.on("change:blobs", draw);
    el.addEventListener("keydown", onKey);
    ask();
    window.addEventListener(RESYNC, ask);
    const clock = setInterval(() => tick(el), 1000);
    const stopWatching = model.get("pulse") ? watch(model) : () => {};
    signal.addEventListener("abort", () => {
      clearInterval(clock);
      el.removeEventListener("keydown", onKey);
      window.removeEventListener(RESYNC, ask);
      stopWatching();
      for (const [, url] of urls.values()) URL.revokeObjectURL(url);
    });
  },
};

// A download can't pass the hub's authorisation, a frame can: once a page shows something, its links to the service's
// files are made to work by opening the service in a hidden one.
function signIn(service) {
  const frame = document.createElement("iframe");
  frame.hidden = true;
  frame.title = "Sign-in of downloads";
  frame.addEventListener("load", () => frame.remove());
  frame.src = `${service}signed-in`;
  document.body.append(frame);
}

// The outermost region watches the way to its kernel: without an answer for a while a banner says so; when the server
// answers again but this kernel does not, the page is loaded anew (what it shows is all in its address).
function watch(model) {
  const EVERY = 4000, LATE = 11000, GIVEN_UP = 25000, SLOW = 500;
  let heard = Date.now(), sent = Date.now();
  const banner = document.createElement("div");
  banner.className = "bh-banner bh-banner-lost";
  banner.setAttribute("role", "alert");
  banner.hidden = true;
  document.body.prepend(banner);

  // Whoever has clicked sees that it is being done, where that takes longer than a moment.
  let slow = 0, asked = 0;
  const onAsked = () => {
    asked += 1;
    slow ||= setTimeout(() => document.documentElement.classList.add("bh-waiting"), SLOW);
  };
  const onDid = () => {
    asked = Math.max(0, asked - 1);
    if (asked) return;
    clearTimeout(slow);
    slow = 0;
    document.documentElement.classList.remove("bh-waiting");
  };
  window.addEventListener(ASKED, onAsked);

  const onMessage = (message) => {
    if (message?.did !== undefined) return onDid();
    if (message?.pong === undefined) return;
    const silent = Date.now() - heard;
    heard = Date.now();
    const lag = (heard - sent) / 2;
    globalThis.bhSkew = message.pong * 1000 + lag - heard;
    banner.hidden = true;
    setTimeout(opened, 3000); // whatever is slow then can be seen to be slow
    if (silent > LATE) window.dispatchEvent(new Event(RESYNC)); // whatever was said meanwhile may be lost
  };
  model.on("msg:custom", onMessage);

  let asking = false;
  const beat = async () => {
    sent = Date.now();
    try {
      model.send({ action: "ping", args: [] });
    } catch { // there is no connection at all: silence, as counted below
    }
    const silent = Date.now() - heard;
    if (silent < LATE && navigator.onLine) return;
    const since = silent < LATE ? "" : ` for ${Math.round(silent / 1000)} s`;
    banner.textContent = `No connection${since}. What you see may be out of date; it resumes by itself.`;
    banner.hidden = false;
    if (silent < GIVEN_UP || asking) return;
    asking = true;
    try {
      const answer = await fetch(location.href, { method: "HEAD", cache: "no-store" }).catch(() => null);
      // HEAD is refused (405) by a living server; 5xx comes from the proxy when the service behind it is down
      if (answer && answer.status < 500) {
        const typing = document.querySelector("dialog[open]"), busy = document.querySelector("[data-busy]");
        if (!typing && !busy) location.reload();
        else if (typing) banner.textContent = "The connection was lost. Reload the page to go on; what is typed in the open form will be lost.";
        else banner.textContent = "What you see may be out of date. Your files are still being sent: reload the page when they have arrived.";
      }
    } finally {
      asking = false;
    }
  };
  const timer = setInterval(beat, EVERY);
  beat();
  const signing = setTimeout(signIn, EVERY / 2, model.get("service"));
  const comeBack = () => document.visibilityState === "visible" && beat();
  document.addEventListener("visibilitychange", comeBack);
  window.addEventListener("offline", beat); // says so at once
  window.addEventListener("online", beat);
  const restored = (e) => e.persisted && location.reload();
  window.addEventListener("pageshow", restored);
  return () => {
    clearInterval(timer);
    clearTimeout(slow);
    clearTimeout(signing);
    window.removeEventListener(ASKED, onAsked);
    document.removeEventListener("visibilitychange", comeBack);
    window.removeEventListener("offline", beat);
    window.removeEventListener("online", beat);
    window.removeEventListener("pageshow", restored);
    banner.remove();
  };
}
