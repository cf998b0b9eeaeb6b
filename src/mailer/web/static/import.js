// Uploads a file from an import page, and shows the progress and the result. The texts are in data
// attributes of the form. Parts of the page: the form, the upload (name, progress bar, button to cancel),
// a line of status, and the report, whose HTML is the server's response.
//
// If the form has a text for it, the file is checked first: the report is a preview then. Its buttons
// send the same file again, with the chosen columns, for one of these actions.
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
  const path = location.pathname.replace(/\/$/, "");
  const ACTIONS = {
    preview: { path: `${path}/preview`, uploaded: texts.checking, done: texts.checked },
    import: { path, uploaded: texts.storing, done: texts.done },
    rejected: { path: `${path}/rejected`, uploaded: texts.checking, done: texts.downloaded },
  };
  const XLSX_TYPE = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet";
  let currentFile = null; // the file of the report
  let currentQuery = ""; // the columns that were chosen for it

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
    status.classList.remove("visually-hidden");
    status.textContent = texts.sending;
    find("upload-name").textContent = file.name;
    showAmount(0, file.size);
    form.hidden = true;
    report.hidden = true;
    uploadSection.hidden = false;
    cancel.hidden = false;
    cancel.focus();
    addEventListener("beforeunload", confirmLeaving);
  }

  // Shows the form again, and below it the report, or `text` if there is none.
  function showResult(text) {
    removeEventListener("beforeunload", confirmLeaving);
    form.hidden = false;
    report.hidden = false;
    uploadSection.hidden = true;
    status.textContent = text;
    const reportTitle = find("report-title");
    // the report says more; the status is only for screen readers, which do not read out the report
    status.classList.toggle("visually-hidden", reportTitle !== null);
    (reportTitle || fileField).focus();
  }

  function download(blob) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = "rejected.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000); // milliseconds: the download has begun
  }

  // Shows the response to an action: the report, or the file of rejected lines.
  async function showResponse(name, response, isOk) {
    if (name === "rejected" && isOk) download(response);
    else {
      report.innerHTML = await response.text();
      // the file must be chosen again: browsers do not send one that was corrected since
      if (name === "import" || !isOk) form.reset();
    }
    showResult(ACTIONS[name].done);
  }

  function send(name, file, query) {
    const action = ACTIONS[name];
    const request = new XMLHttpRequest();
    request.open("POST", action.path + (name === "import" ? withList(query) : query));
    request.responseType = "blob";
    request.setRequestHeader("Content-Type", file.name.toLowerCase().endsWith(".xlsx") ? XLSX_TYPE : "text/csv");
    request.setRequestHeader("Accept", "text/html");
    request.upload.onprogress = (event) => showAmount(event.loaded, event.total);
    request.upload.onload = () => {
      if (name === "import") cancel.hidden = true; // too late: the server stores the file, even if the page is closed
      progress.removeAttribute("value"); // the rest takes an unknown time
      amount.textContent = formatBytes(file.size);
      status.textContent = action.uploaded;
    };
    request.onload = () => {
      if (request.status === 401) {
        removeEventListener("beforeunload", confirmLeaving);
        return location.reload(); // redirects to the sign-in page
      }
      showResponse(name, request.response, request.status === 200);
    };
    request.onerror = () => {
      report.replaceChildren();
      const firstByte = file.slice(0, 1).arrayBuffer(); // fails if the file has changed
      firstByte.then(() => showResult(texts.lost), () => showResult(texts.changed));
    };
    request.onabort = () => {
      if (name === "rejected") return showResult(""); // the report is still right
      report.replaceChildren();
      showResult(texts.cancelled);
    };
    cancel.onclick = () => request.abort();
    [currentFile, currentQuery] = [file, query];
    showProgress(file);
    request.send(file);
  }

  // Returns the query with the name of the list to put the clients on, if the form has one.
  function withList(query) {
    const list = find("list");
    if (!list || !list.value.trim()) return query;
    return `${query}${query ? "&" : "?"}list=${encodeURIComponent(list.value.trim())}`;
  }
  // Whether a column is imported as a field, whose name is beside it.
  const isField = (select) => select.value === "fields.";
  const nameOf = (select) => select.parentElement.querySelector("input[name=field_name]");

  // Returns the query with the columns that are chosen in the preview, or those of the report.
  function readColumns() {
    const columns = [...report.querySelectorAll("select[name=column]")].map((select) => {
      // commas separate the columns, and are in no name
      const name = isField(select) ? nameOf(select).value.trim().replaceAll(",", " ") : "";
      return encodeURIComponent(select.value + name);
    });
    return columns.length ? `?columns=${columns.join(",")}` : currentQuery;
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const [file] = fileField.files;
    report.replaceChildren();
    if (file.size > Number(texts.limit)) showResult(texts.large);
    else send(texts.checking ? "preview" : "import", file, "");
  });
  report.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-action]");
    if (button) send(button.dataset.action, currentFile, readColumns());
  });
  // what the preview says does not hold for other columns, so they must be checked first
  report.addEventListener("input", (event) => {
    if (event.target.name === "column" && nameOf(event.target)) nameOf(event.target).hidden = !isField(event.target);
    for (const button of report.querySelectorAll("[data-action=import], [data-action=rejected]")) button.disabled = true;
  });
  find("needs-script").hidden = true;
  form.hidden = false;
})();
