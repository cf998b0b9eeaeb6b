// ReDoc at /redoc, with system fonts: its own fonts would come from another host.
const container = document.getElementById("redoc");
const font = "system-ui, sans-serif";
const theme = { typography: { fontFamily: font, headings: { fontFamily: font } } };
Redoc.init(container.dataset.schema, { theme, expandResponses: "200,201" }, container);
