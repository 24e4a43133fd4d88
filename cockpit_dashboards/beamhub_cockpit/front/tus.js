// Sends files by tus 1.0: in parts, each with its checksum, again where it broke off, also after the page was loaded anew.
//
// All is sent in the browser's own identity; no token comes near this page. The service knows a browser by a cookie that
// goes to the service's addresses only, and believes a script that repeats the service's `_xsrf` cookie, which only its
// own addresses can read. So a hidden frame opens one of them, as a link would: the hub lets it in, and the cookie is there.

const PART = 8 * 2 ** 20; // bytes of one PATCH
const STALLED = 45_000; // ms without a byte taken after which a connection is given up
const ANSWER = 900_000; // ms that a whole large file may take to be checked
const LONGEST_PAUSE = 30_000; // ms between attempts
const REFUSALS = 6; // of the same part, one after another
const KEPT = 24 * 3600_000; // ms that the service keeps an unfinished upload
const ELSEWHERE = 60_000; // ms after which another tab does not send a file any more
const PREFIX = "beamhub-upload:";

class Unreachable extends Error {} // no answer
class Stopped extends Error {} // by the person

class Refused extends Error {
  constructor(status, detail, remedy = "") {
    super([detail, remedy].filter(Boolean).join(" "));
    this.status = status;
  }
}

// ---- the service, in the browser's own identity -----------------------------------------------------------------

let entrance = null; // promise of what the service's scripts have to repeat

function enter(service) {
  entrance ??= open(service).catch((error) => {
    entrance = null;
    throw error;
  });
  return entrance;
}

function open(service) {
  return new Promise((resolve, reject) => {
    const frame = document.createElement("iframe");
    frame.hidden = true;
    frame.title = "Sign-in of uploads";
    const late = setTimeout(() => end(() => reject(new Unreachable())), STALLED);
    const end = (settle) => {
      clearTimeout(late);
      frame.remove();
      settle();
    };
    frame.addEventListener("load", () => {
      let cookie = null, there = "";
      try {
        there = frame.contentWindow.location.pathname;
        if (there.startsWith(service)) cookie = /(?:^|; )_xsrf=([^;]+)/.exec(frame.contentDocument.cookie)?.[1] ?? null;
      } catch {
        // the hub's own pages do not show themselves in a frame: nobody is signed in
      }
      end(() => {
        if (cookie) resolve(cookie);
        else if (there.startsWith(service) || there === "blank") reject(new Unreachable());
        else reject(new Refused(401, "Your sign-in has ended.", "Reload this page to sign in again, then choose the file again: what has arrived is kept."));
      });
    });
    frame.src = `${service}signed-in`;
    document.body.append(frame);
  });
}

function exchange(method, url, headers, body, signal, progress) {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(new Stopped());
    const request = new XMLHttpRequest(); // fetch() does not tell how much has been sent
    const abort = () => request.abort();
    let late;
    const patience = (ms) => {
      clearTimeout(late);
      late = setTimeout(abort, ms);
    };
    const end = (settle, value) => {
      clearTimeout(late);
      signal?.removeEventListener("abort", abort);
      settle(value);
    };
    request.open(method, url);
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    if (progress) request.upload.onprogress = (e) => {
      patience(e.loaded < e.total ? STALLED : ANSWER);
      progress(e.loaded);
    };
    request.onload = () => end(resolve, request);
    request.onerror = request.onabort = () => end(reject, signal?.aborted ? new Stopped() : new Unreachable());
    signal?.addEventListener("abort", abort);
    patience(STALLED);
    request.send(body);
  });
}

function problem(answer) {
  let said = {};
  try {
    said = JSON.parse(answer.responseText);
  } catch {
    // a proxy's page, or the answer to a HEAD
  }
  return new Refused(answer.status, said.detail || said.title || `The service answered ${answer.status} ${answer.statusText}.`, said.remedy);
}

async function call(service, method, url, { headers = {}, body = null, signal, progress } = {}) {
  for (let again = false; ; again = true) {
    const own = { "X-XSRFToken": await enter(service), "Tus-Resumable": "1.0.0", Accept: "application/json" };
    const answer = await exchange(method, url, { ...own, ...headers }, body, signal, progress);
    if (answer.status < 400) return answer;
    if (answer.status !== 401 || again) throw problem(answer);
    entrance = null; // signed in anew since
  }
}

// Is nobody there for the time being? A proxy answers so while what is behind it starts again.
function away(error) {
  return error instanceof Unreachable || [502, 503, 504].includes(error.status);
}

// Will it perhaps go when it is simply tried again?
function passing(error) {
  return away(error) || [408, 409, 423, 425, 429, 460, 500].includes(error.status);
}

// ---- what is remembered of unfinished files ---------------------------------------------------------------------

function hex(count) {
  return [...crypto.getRandomValues(new Uint8Array(count))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function tab() { // the same after the page is loaded anew
  try {
    const known = sessionStorage.getItem(PREFIX) ?? hex(8);
    sessionStorage.setItem(PREFIX, known);
    return known;
  } catch {
    return "";
  }
}

function fingerprint(user, experiment, name, file) {
  return PREFIX + JSON.stringify([user, experiment, name, file.size, file.lastModified]);
}

function remembered(mark) {
  try {
    return JSON.parse(localStorage.getItem(mark));
  } catch {
    return null;
  }
}

function remember(mark, what) {
  try {
    if (what) localStorage.setItem(mark, JSON.stringify(what));
    else localStorage.removeItem(mark);
  } catch {
    // without a store a file goes on after a break, but not after a reload
  }
}

// This person's unfinished files of an experiment: [{mark, name, size, sent}], those of other living tabs left out.
function unfinished(user, experiment) {
  const found = [], here = tab();
  let marks = [];
  try {
    marks = Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
  } catch {
    return found;
  }
  for (const mark of marks) {
    const kept = remembered(mark), age = Date.now() - (kept?.when ?? 0);
    if (!kept || age > KEPT) {
      remember(mark, null);
      continue;
    }
    const [whose, where, name, size] = JSON.parse(mark.slice(PREFIX.length));
    if (whose === user && where === experiment && (kept.tab === here || age > ELSEWHERE)) found.push({ mark, name, size, sent: kept.sent, url: kept.url });
  }
  return found;
}

// ---- one file ---------------------------------------------------------------------------------------------------

const base64 = (text) => btoa(String.fromCharCode(...new TextEncoder().encode(text)));

async function checksum(bytes) {
  if (!crypto.subtle) return {}; // a page without TLS has none
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return { "Upload-Checksum": `sha256 ${btoa(String.fromCharCode(...digest))}` };
}

function sleep(ms, signal) {
  return new Promise((resolve, reject) => {
    const end = (settle, value) => {
      clearTimeout(timer);
      window.removeEventListener("online", wake);
      signal.removeEventListener("abort", stop);
      settle(value);
    };
    const wake = () => end(resolve), stop = () => end(reject, new Stopped());
    const timer = setTimeout(wake, ms);
    window.addEventListener("online", wake);
    signal.addEventListener("abort", stop);
  });
}

// A file on its way. `state` is waiting, sending, interrupted, checking, paused, done or failed; `changed` is called
// whenever something of it has changed.
class Transfer {
  constructor({ service, user, experiment, file, name, changed }) {
    Object.assign(this, { service, experiment, file, name, changed, size: file.size });
    this.mark = fingerprint(user, experiment, name, file);
    const kept = remembered(this.mark);
    this.key = kept?.key ?? hex(16);
    this.url = kept?.url ?? null;
    this.sent = kept?.sent ?? 0;
    this.state = "waiting";
    this.said = ""; // why it is interrupted or has failed; of what is done, what to know
    this.pace = []; // [ms, bytes] of the last seconds
  }

  set(state, said = "") {
    this.state = state;
    this.said = said;
    if (state !== "sending") this.pace = [];
    this.changed(this);
  }

  get rate() {
    const [first, last] = [this.pace[0], this.pace.at(-1)];
    return !first || last[0] - first[0] < 300 ? null : ((last[1] - first[1]) * 1000) / (last[0] - first[0]);
  }

  at(sent) {
    this.sent = sent;
    const now = performance.now();
    if (sent < (this.pace.at(-1)?.[1] ?? 0)) this.pace = []; // a part is sent again
    this.pace.push([now, sent]);
    while (this.pace.length > 2 && now - this.pace[1][0] > 4000) this.pace.shift();
    this.changed(this);
  }

  keep() {
    remember(this.mark, { key: this.key, url: this.url, sent: this.sent, when: Date.now(), tab: tab() });
  }

  anew() {
    remember(this.mark, null);
    Object.assign(this, { key: hex(16), url: null, sent: 0 });
  }

  async run() {
    const { signal } = (this.stop = new AbortController());
    let known = false, breaks = 0, refusals = 0, lost = 0;
    while (true) {
      try {
        if (!known) await this.find(signal);
        known = true;
        while (this.sent < this.size) {
          this.set("sending");
          await this.part(signal);
          breaks = refusals = 0;
        }
        return await this.settle(signal);
      } catch (error) {
        known = false;
        if (error instanceof Stopped) return;
        if ([404, 410].includes(error.status) && this.url && !lost++) { // it has expired, or failed
          this.anew();
        } else if (passing(error) && (away(error) || ++refusals < REFUSALS)) {
          this.set("interrupted", error instanceof Unreachable ? "" : error.message);
          try {
            await sleep(Math.min(LONGEST_PAUSE, 1000 * 2 ** breaks++), signal);
          } catch {
            return;
          }
        } else {
          return this.set("failed", error.message);
        }
      }
    }
  }

  // How far it is; announces it where it is new.
  async find(signal) {
    if (this.url) {
      const answer = await call(this.service, "HEAD", this.url, { signal });
      this.sent = Number(answer.getResponseHeader("Upload-Offset"));
      return;
    }
    this.keep(); // the key first: an announcement whose answer is lost is found again by it
    const headers = {
      "Upload-Length": String(this.size),
      "Upload-Metadata": `filename ${base64(this.name)},experiment ${base64(this.experiment)}`,
      "Idempotency-Key": this.key,
    };
    const answer = await call(this.service, "POST", `${this.service}uploads`, { headers, signal });
    this.url = answer.getResponseHeader("Location");
    this.sent = Number(answer.getResponseHeader("Upload-Offset"));
    this.keep();
  }

  async part(signal) {
    const from = this.sent, piece = this.file.slice(from, from + PART);
    let bytes;
    try {
      bytes = await piece.arrayBuffer();
    } catch {
      throw new Refused(0, `${this.name} can't be read any more: it was changed, moved or deleted.`, "Choose it again.");
    }
    const headers = {
      "Content-Type": "application/offset+octet-stream",
      "Upload-Offset": String(from),
      ...(await checksum(bytes)),
    };
    const last = from + bytes.byteLength >= this.size;
    const progress = (loaded) => {
      this.at(from + loaded);
      if (last && this.sent >= this.size) this.set("checking");
    };
    const answer = await call(this.service, "PATCH", this.url, { headers, body: bytes, signal, progress });
    this.at(Number(answer.getResponseHeader("Upload-Offset")));
    this.keep();
  }

  // All has been sent: has it been checked and published?
  async settle(signal) {
    this.set("checking");
    while (true) {
      const upload = JSON.parse((await call(this.service, "GET", this.url, { signal })).responseText);
      if (upload.state === "failed") throw new Refused(410, `${this.name} has failed: ${upload.error}.`, "Send it again.");
      if (upload.state !== "receiving") {
        remember(this.mark, null);
        const name = upload.path.replace(/^shared\//, "");
        return this.set("done", name === this.name ? "" : `Another file of this name was there: this one is ${name}.`);
      }
      await sleep(1000, signal);
    }
  }

  pause() {
    this.stop?.abort();
    this.keep();
    this.set("paused");
  }

  // Forgets it, here and at the service.
  async cancel() {
    this.stop?.abort();
    remember(this.mark, null);
    await forget(this.service, this.url);
  }
}

async function forget(service, url) {
  if (!url) return;
  for (let pause = 250; ; pause *= 2) {
    try {
      return await call(service, "DELETE", url);
    } catch (error) {
      if (!(error instanceof Refused) || !passing(error) || pause > 4000) return; // what is not continued expires
      await new Promise((done) => setTimeout(done, pause)); // the part that was under way is let go first
    }
  }
}
