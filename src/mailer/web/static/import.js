// Uploads a file of clients, and shows the progress and the result.
"use strict";

(() => {
  const find = (id) => document.getElementById(id);
  const form = find("import");
  const file = find("file");
  const going = find("going");
  const progress = find("progress");
  const cancel = find("cancel");
  const amount = find("going-amount");
  const status = find("import-status");
  const report = find("report");
  const texts = form.dataset;
  const UNITS = ["byte", "kilobyte", "megabyte", "gigabyte"];

  const size = (bytes) => {
    const step = Math.min(3, Math.floor(Math.log10(Math.max(1, bytes)) / 3));
    const options = { style: "unit", unit: UNITS[step], maximumFractionDigits: step > 1 ? 1 : 0 };
    return new Intl.NumberFormat(document.documentElement.lang, options).format(bytes / 1000 ** step);
  };
  const showAmount = (sent, total) => {
    progress.max = total || 1;
    progress.value = sent;
    amount.textContent = texts.amount.replace("{sent}", size(sent)).replace("{total}", size(total));
  };
  const confirmLeaving = (event) => event.preventDefault();

  function showProgress(chosen) {
    report.replaceChildren();
    status.classList.remove("visually-hidden");
    status.textContent = texts.sending;
    find("going-name").textContent = chosen.name;
    showAmount(0, chosen.size);
    form.hidden = true;
    going.hidden = false;
    cancel.hidden = false;
    cancel.focus();
    addEventListener("beforeunload", confirmLeaving);
  }

  function showResult(text) {
    removeEventListener("beforeunload", confirmLeaving);
    form.hidden = false;
    going.hidden = true;
    status.textContent = text;
    const title = find("report-title");
    status.classList.toggle("visually-hidden", title !== null); // the report says more
    (title || file).focus();
  }

  function send(chosen) {
    const request = new XMLHttpRequest();
    request.open("POST", location.pathname);
    request.setRequestHeader("Content-Type", "text/csv");
    request.setRequestHeader("Accept", "text/html");
    request.upload.onprogress = (event) => showAmount(event.loaded, event.total);
    request.upload.onload = () => {
      cancel.hidden = true; // a complete file is stored, even if the page is closed
      progress.removeAttribute("value");
      amount.textContent = size(chosen.size);
      status.textContent = texts.storing;
    };
    request.onload = () => {
      if (request.status === 401) {
        removeEventListener("beforeunload", confirmLeaving);
        return location.reload(); // redirects to the sign-in page
      }
      report.innerHTML = request.response;
      form.reset(); // browsers do not send a file that has changed since it was chosen
      showResult(texts.done);
    };
    request.onerror = () => {
      const firstByte = chosen.slice(0, 1).arrayBuffer(); // fails if the file has changed
      firstByte.then(() => showResult(texts.lost), () => showResult(texts.changed));
    };
    request.onabort = () => showResult(texts.cancelled);
    cancel.onclick = () => request.abort();
    showProgress(chosen);
    request.send(chosen);
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const [chosen] = file.files;
    if (chosen.size > Number(texts.limit)) {
      report.replaceChildren();
      showResult(texts.large);
    } else send(chosen);
  });
  find("needs-script").hidden = true;
  form.hidden = false;
})();
