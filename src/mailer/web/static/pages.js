// Scripts of all pages: the viewer's time zone, dialogs, unsaved input, and live sections.
"use strict";

// Moments are shown in the browser's time zone until the viewer chooses another one.
(() => {
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const isChosen = document.cookie.split("; ").some((cookie) => cookie.startsWith("time_zone="));
  if (zone && !isChosen) {
    document.cookie = `time_zone=${zone}; path=/; max-age=31536000; samesite=lax`;
    const isStored = document.cookie.includes(`time_zone=${zone}`);
    if (isStored && zone !== document.documentElement.dataset.zone) location.reload();
  }
})();

// The list of time zones is filled when its field gets the focus for the first time.
document.addEventListener("focusin", (event) => {
  const list = document.getElementById(event.target.getAttribute("list"));
  if (list && list.id === "zones" && !list.options.length && Intl.supportedValuesOf) {
    list.append(...["UTC", ...Intl.supportedValuesOf("timeZone")].map((zone) => new Option(zone)));
  }
});

// In a field of several values, separated by commas, the suggestions are for the last one.
document.addEventListener("input", ({ target }) => {
  if (!target.list || !target.hasAttribute("data-several")) return;
  const before = target.value.match(/^.*,\s*/)?.[0] ?? "";
  for (const option of target.list.options) {
    option.dataset.name ??= option.value;
    option.value = before + option.dataset.name;
  }
});

// A button that prints the page is hidden without scripts.
document.addEventListener("DOMContentLoaded", () => document.querySelectorAll("[data-print]").forEach((button) => {
  button.hidden = false;
  button.addEventListener("click", () => print());
}));

// A text with `data-insert-into` becomes a button that inserts it into a field, at the cursor.
document.addEventListener("DOMContentLoaded", () => document.querySelectorAll("[data-insert-into]").forEach((shown) => {
  const button = document.createElement("button");
  const field = document.getElementById(shown.dataset.insertInto);
  button.type = "button";
  button.className = "insert";
  button.textContent = shown.textContent;
  button.addEventListener("click", () => {
    field.setRangeText(shown.textContent, field.selectionStart, field.selectionEnd, "end");
    field.focus();
    field.dispatchEvent(new Event("input", { bubbles: true })); // updates the preview
  });
  shown.replaceWith(button);
}));

// A confirmation that htmx has fetched opens as a dialog; without scripts it is a separate page.
document.addEventListener("htmx:afterSettle", (event) => {
  const dialog = document.getElementById("dialog");
  if (event.detail.target === dialog && !dialog.open) dialog.showModal();
});

// Shows that a request failed. `why` selects the text of the notice ("lost" or "failed"); null hides it.
function showRequestError(why) {
  const notice = document.getElementById("request-error");
  const page = document.documentElement;
  const isAtEnd = page.scrollTop + page.clientHeight >= page.scrollHeight - 1;
  notice.textContent = why ? notice.dataset[why] : "";
  notice.hidden = !why;
  if (isAtEnd) page.scrollTop = page.scrollHeight; // so that the notice does not cover the footer
}

// Shows or hides the notice that the page is out of date, with the time of the last update.
let lastUpdate = new Date();
function showOffline(isLost) {
  const offline = document.getElementById("offline");
  if (!isLost) lastUpdate = new Date();
  else if (offline.hidden) {
    const { lang, dataset } = document.documentElement;
    const options = { timeZone: dataset.zone, hourCycle: "h23", hour: "2-digit", minute: "2-digit", second: "2-digit" };
    const time = offline.querySelector("time");
    time.dateTime = lastUpdate.toISOString();
    time.textContent = new Intl.DateTimeFormat(lang, options).format(lastUpdate);
  }
  offline.hidden = !isLost;
}

// htmx fetches confirmations into the dialog, and the preview of a form while the user types. If a
// confirmation is refused, the browser opens its page, which says why. If a preview cannot be fetched
// because the connection is lost, the page is out of date.
const FAILURES = { sendError: "lost", timeout: "lost", responseError: "failed" }; // events of htmx
for (const [eventName, why] of Object.entries(FAILURES)) {
  document.addEventListener(`htmx:${eventName}`, ({ detail }) => {
    const isConfirmation = detail.target?.id === "dialog";
    const isRefused = eventName === "responseError" && detail.xhr.status < 500;
    if (isConfirmation && isRefused) location.assign(detail.pathInfo.requestPath);
    else if (!isConfirmation && why === "lost") showOffline(true);
    else showRequestError(why);
  });
}
document.addEventListener("htmx:beforeRequest", () => showRequestError(null));
document.addEventListener("htmx:afterSwap", ({ detail }) => detail.target?.id !== "dialog" && showOffline(false));
document.addEventListener("click", (event) => {
  if (event.target.closest("[data-close]")) {
    event.preventDefault();
    document.getElementById("dialog").close();
  }
});

// A second click soon after the first does not send a form again. A later one does: the first
// response may never come, and sending a form twice is safe.
const DOUBLE_CLICK_TIME = 5000; // milliseconds
let sentAt = new WeakMap(); // by form: when it was sent, in milliseconds since the page was opened
document.addEventListener("submit", (event) => {
  if (event.target.method !== "post") return;
  if (performance.now() - sentAt.get(event.target) < DOUBLE_CLICK_TIME) return event.preventDefault();
  if (!navigator.onLine) {
    event.preventDefault(); // the browser would show its own error page and lose the input
    document.getElementById("dialog").close();
    return showRequestError("lost");
  }
  showRequestError(null);
  sentAt.set(event.target, performance.now());
});
// A form with `data-next` has no input and only carries out an action, such as to pause a mailing. A
// script sends it, so that the page stays as it is when there is no connection. After the action the
// page at `data-next` opens, or this page again; it confirms the action. If the action is refused, the
// response says why.
document.addEventListener("submit", async (event) => {
  const form = event.target, { next } = form.dataset;
  if (next === undefined || event.defaultPrevented) return;
  event.preventDefault();
  try {
    const body = new URLSearchParams(new FormData(form));
    const response = await fetch(form.action, { method: "POST", body, redirect: "manual" });
    if (response.type === "opaqueredirect") return location.replace(next || location.pathname + location.search);
    if (response.status === 401) return location.reload(); // signed out: redirects to the sign-in page
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const main = page.querySelector("main");
    document.getElementById("dialog").close();
    if (!main) return showRequestError("failed");
    document.querySelector("main").replaceWith(main);
    document.title = page.title;
    main.focus();
  } catch {
    sentAt.delete(form);
    document.getElementById("dialog").close();
    showRequestError("lost");
  }
});
// After going back to a page, its forms can be sent again, and its filters match its URL.
addEventListener("pageshow", () => {
  sentAt = new WeakMap();
  document.querySelectorAll("form.filters").forEach((form) => form.reset());
});

document.addEventListener("DOMContentLoaded", () => document.querySelector("[autofocus]")?.focus());

// When a page is left, unsaved input is stored, so that it is not lost if the session has ended and the
// user must sign in again. It is stored in this tab only, for the same user and page, and for half an
// hour. Passwords and files are not stored. Signing out deletes the input.
const INPUT_KEY = "unsaved-input", INPUT_LIFETIME = 1_800_000; // milliseconds
const forms = () => [...document.querySelectorAll("main form[method=post]")];
const fields = (form) =>
  [...form.elements].filter((field) => field.name && !["password", "file", "submit", "button", "fieldset"].includes(field.type));
const isCheckable = (field) => ["checkbox", "radio"].includes(field.type);
const isChangedByUser = (field) => {
  if (field.options) return [...field.options].some((option) => option.selected !== option.defaultSelected);
  if (isCheckable(field)) return field.checked !== field.defaultChecked;
  return field.type !== "hidden" && field.value !== field.defaultValue;
};
const { userId } = document.body.dataset;
let isSigningOut = false;

// Stores the input of the first form whose input may be unsaved. A page that asks for confirmation has the
// form in hidden fields, and the attribute `data-keep-input`.
function saveInput() {
  if (!userId || isSigningOut) return;
  const isRefused = document.querySelector("main .error-summary");
  const hasUnsavedInput = (form) => "keepInput" in form.dataset || fields(form).some((field) =>
    field.type !== "hidden" && (sentAt.has(form) || isRefused || isChangedByUser(field)));
  const formIndex = forms().findIndex(hasUnsavedInput);
  if (formIndex < 0) return;
  const form = forms()[formIndex];
  const values = fields(form).map((field) => [field.name, isCheckable(field) ? field.checked : field.value]);
  const isHidden = "keepInput" in form.dataset;
  const wasSentTo = sentAt.has(form) ? form.getAttribute("action") : null;
  const input = { userId, path: location.pathname, formIndex, values, isHidden, wasSentTo, savedAt: Date.now() };
  sessionStorage.setItem(INPUT_KEY, JSON.stringify(input));
}

// The input stays stored on the sign-in page and on error pages. The next page of the user restores it
// (after sign-in, or by the browser's Back) or deletes it. A form that was sent without a response is
// restored by a reload, too, with the URL that it was sent to, so that it creates only one object.
function restoreInput() {
  const input = JSON.parse(sessionStorage.getItem(INPUT_KEY) ?? "null");
  const age = input ? Date.now() - input.savedAt : 0;
  if (input && !userId && age < INPUT_LIFETIME) { // the sign-in page
    sessionStorage.setItem(INPUT_KEY, JSON.stringify({ ...input, hasSignedOut: true }));
    return setTimeout(() => sessionStorage.removeItem(INPUT_KEY), INPUT_LIFETIME - age);
  }
  const isOfPage = input && age < INPUT_LIFETIME && input.userId === userId && input.path === location.pathname;
  const [navigation] = performance.getEntriesByType("navigation");
  const isSuccessful = navigation?.responseStatus < 400;
  if (isOfPage && !isSuccessful && !forms().length) return; // an error page in place of the form
  sessionStorage.removeItem(INPUT_KEY);
  const isBack = navigation?.type === "back_forward";
  const isReloadWithoutResponse = input?.wasSentTo && navigation?.type === "reload";
  const mustRestore = isOfPage && (input.hasSignedOut || isBack || isReloadWithoutResponse);
  const form = mustRestore && forms()[input.formIndex];
  if (!form) return;
  const restorable = fields(form);
  const isSameForm = restorable.map((field) => field.name).join() === input.values.map(([name]) => name).join();
  if (isSameForm) {
    input.values.forEach(([, value], index) => {
      if (isCheckable(restorable[index])) restorable[index].checked = value;
      else restorable[index].value = value;
    });
  } else if (input.isHidden) { // the form itself instead of the page that asks for confirmation
    const byName = new Map(input.values);
    for (const field of restorable.filter((field) => byName.has(field.name))) {
      if (isCheckable(field)) field.checked = field.value === byName.get(field.name);
      else field.value = byName.get(field.name);
    }
  } else return;
  if (input.wasSentTo) form.setAttribute("action", input.wasSentTo);
  document.getElementById("restored-input").hidden = false;
  form.dispatchEvent(new Event("input", { bubbles: true })); // updates the preview
}
addEventListener("pagehide", saveInput);
document.addEventListener("DOMContentLoaded", restoreInput);
document.addEventListener("submit", (event) => {
  if (event.target.getAttribute("action") === "/logout") isSigningOut = true;
});

// Live sections (`admin/live.py`): each event of the page's stream contains the sections that changed. A
// hidden page closes its stream, because browsers open only a few connections to one host.
const STREAM_TIMEOUT = 90_000; // milliseconds: the server ends each stream after a minute
const RETRY_INTERVAL = 5_000; // milliseconds until a refused stream is requested again
const address = document.body?.dataset.live;
if (address) {
  let source = null; // the open stream
  let timer = 0; // of the next attempt to open a stream
  // for Idiomorph: keep what scripts have drawn, and details that the user opened
  const callbacks = {
    beforeNodeMorphed: (shown) => !shown.classList?.contains("canvas"),
    beforeAttributeUpdated: (name) => name !== "open",
  };
  const closeStream = () => {
    clearTimeout(timer);
    source?.close();
    source = null;
  };
  // EventSource does not say why a stream was refused, so fetch its URL to find out. If the user is
  // signed out, a reload redirects to the sign-in page.
  const checkRefusal = async () => {
    const aborter = new AbortController();
    const response = await fetch(address, { signal: aborter.signal }).catch(() => null);
    aborter.abort(); // only the status matters
    if (response?.status === 401) return location.reload();
    showOffline(true);
    clearTimeout(timer);
    if (source) timer = setTimeout(openStream, RETRY_INTERVAL);
  };
  const openStream = () => {
    closeStream();
    source = new EventSource(address);
    source.onopen = () => showOffline(false);
    source.onmessage = (event) => {
      lastUpdate = new Date();
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
    // the server could not refresh the page, or can do it again
    source.addEventListener("stale", () => showOffline(true));
    source.addEventListener("fresh", () => showOffline(false));
    // once a minute, so that the request is authorized again
    source.addEventListener("reconnect", openStream);
    source.onerror = () => {
      if (source.readyState !== EventSource.CLOSED) showOffline(true);
      else checkRefusal();
    };
    // a connection that is lost without a TCP reset causes no error event
    timer = setTimeout(() => {
      showOffline(true);
      openStream();
    }, STREAM_TIMEOUT);
  };
  addEventListener("offline", () => showOffline(true));
  addEventListener("online", () => document.hidden || openStream());
  document.addEventListener("visibilitychange", () => (document.hidden ? closeStream() : openStream()));
  addEventListener("pagehide", closeStream);
  addEventListener("pageshow", (event) => event.persisted && openStream());
  if (!document.hidden) openStream();
}
