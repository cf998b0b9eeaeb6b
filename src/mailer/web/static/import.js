// Uploads a file of clients from the import page, and shows the progress and the result. The texts are
// in data attributes of the form. Parts of the page: the form, the upload (name, progress bar, button to
// cancel), a line of status, and the report, whose HTML is the server's response.
"use strict";

(() => {
  const find = (id) => document.getElementById(id);
  const form = find("import");
  const fileField = find("file");
  const uploadSection = find("upload");
  const progress = find("progress");
  const cancel = find("cancel");
  const amount = find("upload-amount");
  const status = find("import-status");
  const report = find("report");
  const texts = form.dataset;
  const UNITS = ["byte", "kilobyte", "megabyte", "gigabyte"];

  // Returns a number of bytes in the largest unit in which it is at least 1, such as 1.6 MB.
  const formatBytes = (bytes) => {
    const power = Math.min(3, Math.floor(Math.log10(Math.max(1, bytes)) / 3)); // of 1000
    const options = { style: "unit", unit: UNITS[power], maximumFractionDigits: power > 1 ? 1 : 0 };
    return new Intl.NumberFormat(document.documentElement.lang, options).format(bytes / 1000 ** power);
  };
  const showAmount = (sent, total) => {
    progress.max = total || 1;
    progress.value = sent;
    amount.textContent = texts.amount.replace("{sent}", formatBytes(sent)).replace("{total}", formatBytes(total));
  };
  // The browser asks before it leaves the page during an upload.
  const confirmLeaving = (event) => event.preventDefault();

  function showProgress(file) {
    report.replaceChildren();
    status.classList.remove("visually-hidden");
    status.textContent = texts.sending;
    find("upload-name").textContent = file.name;
    showAmount(0, file.size);
    form.hidden = true;
    uploadSection.hidden = false;
    cancel.hidden = false;
    cancel.focus();
    addEventListener("beforeunload", confirmLeaving);
  }

  // Shows the form again, and below it the report, or `text` if there is none.
  function showResult(text) {
    removeEventListener("beforeunload", confirmLeaving);
    form.hidden = false;
    uploadSection.hidden = true;
    status.textContent = text;
    const reportTitle = find("report-title");
    // the report says more; the status is only for screen readers, which do not read out the report
    status.classList.toggle("visually-hidden", reportTitle !== null);
    (reportTitle || fileField).focus();
  }

  function upload(file) {
    const request = new XMLHttpRequest();
    request.open("POST", location.pathname);
    request.setRequestHeader("Content-Type", "text/csv");
    request.setRequestHeader("Accept", "text/html");
    request.upload.onprogress = (event) => showAmount(event.loaded, event.total);
    request.upload.onload = () => {
      cancel.hidden = true; // too late: the server stores the file, even if the page is closed
      progress.removeAttribute("value"); // storing takes an unknown time
      amount.textContent = formatBytes(file.size);
      status.textContent = texts.storing;
    };
    request.onload = () => {
      if (request.status === 401) {
        removeEventListener("beforeunload", confirmLeaving);
        return location.reload(); // redirects to the sign-in page
      }
      report.innerHTML = request.response;
      form.reset(); // the file must be chosen again: browsers do not send one that was corrected since
      showResult(texts.done);
    };
    request.onerror = () => {
      const firstByte = file.slice(0, 1).arrayBuffer(); // fails if the file has changed
      firstByte.then(() => showResult(texts.lost), () => showResult(texts.changed));
    };
    request.onabort = () => showResult(texts.cancelled);
    cancel.onclick = () => request.abort();
    showProgress(file);
    request.send(file);
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const [file] = fileField.files;
    if (file.size > Number(texts.limit)) {
      report.replaceChildren();
      showResult(texts.large);
    } else upload(file);
  });
  find("needs-script").hidden = true;
  form.hidden = false;
})();
