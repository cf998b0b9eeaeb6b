// What pages do beyond the server's HTML: questions in a dialog, live sections, the viewer's clock.
"use strict";

// The clock that moments are shown on: the browser's, until another one is chosen.
(() => {
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const isChosen = document.cookie.split("; ").some((each) => each.startsWith("time_zone="));
  if (zone && !isChosen) {
    document.cookie = `time_zone=${zone}; path=/; max-age=31536000; samesite=lax`;
    const isKept = document.cookie.includes(`time_zone=${zone}`);
    if (isKept && zone !== document.documentElement.dataset.zone) location.reload();
  }
})();

document.addEventListener("focusin", (event) => {
  const list = document.getElementById(event.target.getAttribute("list"));
  if (list && list.id === "zones" && !list.options.length && Intl.supportedValuesOf) {
    list.append(...["UTC", ...Intl.supportedValuesOf("timeZone")].map((zone) => new Option(zone)));
  }
});

// A question that htmx has fetched opens as a dialog; without scripts it is a page of its own.
document.addEventListener("htmx:afterSettle", (event) => {
  const dialog = document.getElementById("dialog");
  if (event.detail.target === dialog && !dialog.open) dialog.showModal();
});
// What could not be done for want of an answer says so, wherever the page is scrolled to.
function sayUnanswered(why) {
  const said = document.getElementById("unanswered");
  const page = document.documentElement;
  const isAtEnd = page.scrollTop + page.clientHeight >= page.scrollHeight - 1;
  said.textContent = why ? said.dataset[why] : "";
  said.hidden = !why;
  if (isAtEnd) page.scrollTop = page.scrollHeight; // below the footer, not over it
}
// What is shown is out of date from a moment on, which the viewer is told.
let lastNews = new Date();
function sayOffline(isLost) {
  const offline = document.getElementById("offline");
  if (!isLost) lastNews = new Date();
  else if (offline.hidden) {
    const { lang, dataset } = document.documentElement;
    const options = { timeZone: dataset.zone, hourCycle: "h23", hour: "2-digit", minute: "2-digit", second: "2-digit" };
    const shown = offline.querySelector("time");
    shown.dateTime = lastNews.toISOString();
    shown.textContent = new Intl.DateTimeFormat(lang, options).format(lastNews);
  }
  offline.hidden = !isLost;
}
// A question that cannot be asked any more is a page that says why. A part that is fetched while
// one types, and cannot be, leaves what is shown out of date.
const FAILURES = { sendError: "lost", timeout: "lost", responseError: "failed" };
for (const [name, why] of Object.entries(FAILURES)) {
  document.addEventListener(`htmx:${name}`, ({ detail }) => {
    if (detail.target?.id !== "dialog") return why === "lost" ? sayOffline(true) : sayUnanswered(why);
    if (name === "responseError" && detail.xhr.status < 500) return location.assign(detail.pathInfo.requestPath);
    sayUnanswered(why);
  });
}
document.addEventListener("htmx:beforeRequest", () => sayUnanswered(null));
document.addEventListener("htmx:afterSwap", ({ detail }) => detail.target?.id !== "dialog" && sayOffline(false));
document.addEventListener("click", (event) => {
  if (event.target.closest("[data-close]")) {
    event.preventDefault();
    document.getElementById("dialog").close();
  }
});

// A second click soon after the first does not send a form again. A later one does: the first answer
// may never come, and to send a form twice is safe.
const SECOND_CLICK = 5000; // milliseconds
let sent = new WeakMap(); // forms, and when they were sent
document.addEventListener("submit", (event) => {
  if (event.target.method !== "post") return;
  if (performance.now() - sent.get(event.target) < SECOND_CLICK) return event.preventDefault();
  if (!navigator.onLine) {
    event.preventDefault(); // a browser would show a page of its own, and what was typed would be gone
    document.getElementById("dialog").close();
    return sayUnanswered("lost");
  }
  sayUnanswered(null);
  sent.set(event.target, performance.now());
});
// Back on a page, its filters are those of its address again.
addEventListener("pageshow", () => {
  sent = new WeakMap();
  document.querySelectorAll("form.filters").forEach((form) => form.reset());
});

document.addEventListener("DOMContentLoaded", () => document.querySelector("[autofocus]")?.focus());

// What was typed is kept while one signs in again: in this tab alone, for the same account and page,
// and for half an hour. Passwords and files are not; who signs out takes everything along.
const KEPT = "kept", KEPT_FOR = 1_800_000; // milliseconds
const forms = () => [...document.querySelectorAll("main form[method=post]")];
const fields = (form) =>
  [...form.elements].filter((field) => field.name && !["password", "file", "submit", "button", "fieldset"].includes(field.type));
const isTicked = (field) => ["checkbox", "radio"].includes(field.type);
const isTouched = (field) =>
  field.options ? [...field.options].some((each) => each.selected !== each.defaultSelected)
    : isTicked(field) ? field.checked !== field.defaultChecked
      : field.type !== "hidden" && field.value !== field.defaultValue;
const { account } = document.body.dataset;
let isLeaving = false;

function keep() {
  if (!account || isLeaving) return;
  const isRefused = document.querySelector("main .error-summary");
  const place = forms().findIndex((form) =>
    fields(form).some((field) => field.type !== "hidden" && (sent.has(form) || isRefused || isTouched(field))));
  if (place < 0) return;
  const form = forms()[place];
  const values = fields(form).map((field) => [field.name, isTicked(field) ? field.checked : field.value]);
  const wasSentTo = sent.has(form) ? form.getAttribute("action") : null;
  sessionStorage.setItem(KEPT, JSON.stringify({ account, path: location.pathname, place, values, wasSentTo, at: Date.now() }));
}

// It waits on the page where one signs in, and on one that says why nothing was done. The next page
// of the account brings it back, there or by the browser's Back, or drops it. What was sent and never
// answered is brought back by a reload too, and goes where it went: sent again, it makes no second one.
function bringBack() {
  const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "null");
  const age = kept ? Date.now() - kept.at : 0;
  if (kept && !account && age < KEPT_FOR) {
    sessionStorage.setItem(KEPT, JSON.stringify({ ...kept, isSignedOut: true }));
    return setTimeout(() => sessionStorage.removeItem(KEPT), KEPT_FOR - age);
  }
  const isHere = kept && age < KEPT_FOR && kept.account === account && kept.path === location.pathname;
  const [visit] = performance.getEntriesByType("navigation");
  const isRefusal = !(visit?.responseStatus < 400);
  if (isHere && isRefusal && !forms().length) return;
  sessionStorage.removeItem(KEPT);
  const isBack = visit?.type === "back_forward" || (kept?.wasSentTo && visit?.type === "reload");
  const form = isHere && (kept.isSignedOut || isBack) && forms()[kept.place];
  const shown = form ? fields(form) : [];
  if (!form || shown.map((field) => field.name).join() !== kept.values.map(([name]) => name).join()) return;
  kept.values.forEach(([, value], place) => {
    if (isTicked(shown[place])) shown[place].checked = value;
    else shown[place].value = value;
  });
  if (kept.wasSentTo) form.setAttribute("action", kept.wasSentTo);
  document.getElementById("brought-back").hidden = false;
  form.dispatchEvent(new Event("input", { bubbles: true })); // for what is fetched while one types
}
addEventListener("pagehide", keep);
document.addEventListener("DOMContentLoaded", bringBack);
document.addEventListener("submit", (event) => {
  if (event.target.getAttribute("action") === "/logout") isLeaving = true;
});

// Live sections: each event brings those that changed. A page that nobody sees asks for nothing:
// browsers open only a few connections to one host.
const SILENCE = 90_000; // milliseconds: a stream that lasts longer than its minute is lost
const address = document.body?.dataset.live;
if (address) {
  let source = null;
  let retry = 0;
  // what scripts have drawn, and what was opened by hand, stays
  const callbacks = {
    beforeNodeMorphed: (shown) => !shown.classList?.contains("canvas"),
    beforeAttributeUpdated: (name) => name !== "open",
  };
  const close = () => {
    clearTimeout(retry);
    source?.close();
    source = null;
  };
  // Why a stream is refused no browser tells: who is signed out is led to where one signs in.
  const refused = async () => {
    const asking = new AbortController();
    const answer = await fetch(address, { signal: asking.signal }).catch(() => null);
    asking.abort();
    if (answer?.status === 401) return location.reload();
    sayOffline(true);
    clearTimeout(retry);
    if (source) retry = setTimeout(open, 5000);
  };
  const open = () => {
    close();
    source = new EventSource(address);
    source.onopen = () => sayOffline(false);
    source.onmessage = (event) => {
      lastNews = new Date();
      const template = document.createElement("template");
      template.innerHTML = event.data;
      for (const section of [...template.content.children]) {
        const shown = document.getElementById(section.id);
        if (!shown) continue;
        Idiomorph.morph(shown, section, { callbacks });
        htmx.process(document.getElementById(section.id));
        document.dispatchEvent(new CustomEvent("live", { detail: section.id }));
      }
    };
    // what is shown is out of date while the server cannot look
    source.addEventListener("stale", () => sayOffline(true));
    source.addEventListener("fresh", () => sayOffline(false));
    // a stream lasts a minute, so that who is signed out meanwhile is told
    source.addEventListener("again", open);
    source.onerror = () => {
      if (source.readyState !== EventSource.CLOSED) sayOffline(true);
      else refused();
    };
    // one that was cut without a word brings no error, and never ends
    retry = setTimeout(() => {
      sayOffline(true);
      open();
    }, SILENCE);
  };
  addEventListener("offline", () => sayOffline(true));
  addEventListener("online", () => document.hidden || open());
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  addEventListener("pagehide", close);
  addEventListener("pageshow", (event) => event.persisted && open());
  if (!document.hidden) open();
}
