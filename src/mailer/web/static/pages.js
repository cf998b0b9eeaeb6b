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
// One that cannot be asked any more is a page that says why.
document.addEventListener("htmx:responseError", (event) => {
  if (event.detail.target?.id === "dialog") location.assign(event.detail.pathInfo.requestPath);
});
// A part that is fetched while one types, and cannot be, leaves what is shown out of date.
for (const [name, isLost] of [["responseError", true], ["sendError", true], ["afterSwap", false]]) {
  document.addEventListener(`htmx:${name}`, (event) => {
    if (event.detail.target?.id !== "dialog") document.getElementById("offline").hidden = !isLost;
  });
}
document.addEventListener("click", (event) => {
  if (event.target.closest("[data-close]")) {
    event.preventDefault();
    document.getElementById("dialog").close();
  }
});

// A second click while a form's answer is awaited does not send it again.
let sent = new WeakSet();
document.addEventListener("submit", (event) => {
  if (event.target.method !== "post") return;
  if (sent.has(event.target)) event.preventDefault();
  sent.add(event.target);
});
// Back on a page, its filters are those of its address again.
addEventListener("pageshow", () => {
  sent = new WeakSet();
  document.querySelectorAll("form.filters").forEach((form) => form.reset());
});

document.addEventListener("DOMContentLoaded", () => document.querySelector("[autofocus]")?.focus());

// Live sections: each event brings those that changed. A page that nobody sees asks for nothing:
// browsers open only a few connections to one host.
const address = document.body?.dataset.live;
if (address) {
  const offline = document.getElementById("offline");
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
    offline.hidden = false;
    if (source) retry = setTimeout(open, 5000);
  };
  const open = () => {
    close();
    source = new EventSource(address);
    source.onopen = () => (offline.hidden = true);
    source.onmessage = (event) => {
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
    source.addEventListener("stale", () => (offline.hidden = false));
    source.addEventListener("fresh", () => (offline.hidden = true));
    // a stream lasts a minute, so that who is signed out meanwhile is told
    source.addEventListener("again", open);
    source.onerror = () => {
      if (source.readyState !== EventSource.CLOSED) offline.hidden = false;
      else refused();
    };
  };
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  addEventListener("pagehide", close);
  addEventListener("pageshow", (event) => event.persisted && open());
  if (!document.hidden) open();
}
