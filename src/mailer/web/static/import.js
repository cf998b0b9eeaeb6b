// Sends a file of clients, tells how far it is, and shows what became of it.
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
  const say = form.dataset;
  const UNITS = ["byte", "kilobyte", "megabyte", "gigabyte"];

  const size = (bytes) => {
    const step = Math.min(3, Math.floor(Math.log10(Math.max(1, bytes)) / 3));
    const options = { style: "unit", unit: UNITS[step], maximumFractionDigits: step > 1 ? 1 : 0 };
    return new Intl.NumberFormat(document.documentElement.lang, options).format(bytes / 1000 ** step);
  };
  const showAmount = (sent, total) => {
    progress.max = total || 1;
    progress.value = sent;
    amount.textContent = say.amount.replace("{sent}", size(sent)).replace("{total}", size(total));
  };
  const warn = (event) => event.preventDefault();

  function begin(chosen) {
    report.replaceChildren();
    status.classList.remove("visually-hidden");
    status.textContent = say.sending;
    find("going-name").textContent = chosen.name;
    showAmount(0, chosen.size);
    form.hidden = true;
    going.hidden = false;
    cancel.hidden = false;
    cancel.focus();
    addEventListener("beforeunload", warn);
  }

  function end(words) {
    removeEventListener("beforeunload", warn);
    form.hidden = false;
    going.hidden = true;
    status.textContent = words;
    const title = find("report-title");
    status.classList.toggle("visually-hidden", title !== null); // which says more
    (title || file).focus();
  }

  function send(chosen) {
    const request = new XMLHttpRequest();
    request.open("POST", location.pathname);
    request.setRequestHeader("Content-Type", "text/csv");
    request.setRequestHeader("Accept", "text/html");
    request.upload.onprogress = (event) => showAmount(event.loaded, event.total);
    request.upload.onload = () => {
      cancel.hidden = true; // what has been sent whole is stored, whoever waits for it
      progress.removeAttribute("value");
      amount.textContent = size(chosen.size);
      status.textContent = say.storing;
    };
    request.onload = () => {
      if (request.status === 401) {
        removeEventListener("beforeunload", warn);
        return location.reload(); // which leads to where one signs in
      }
      report.innerHTML = request.response;
      form.reset(); // browsers do not send a file that has changed since it was chosen
      end(say.done);
    };
    request.onerror = () => {
      const isThere = chosen.slice(0, 1).arrayBuffer();
      isThere.then(() => end(say.lost), () => end(say.changed));
    };
    request.onabort = () => end(say.cancelled);
    cancel.onclick = () => request.abort();
    begin(chosen);
    request.send(chosen);
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const [chosen] = file.files;
    if (chosen.size > Number(say.limit)) {
      report.replaceChildren();
      end(say.large);
    } else send(chosen);
  });
  find("needs-script").hidden = true;
  form.hidden = false;
})();
