// ReDoc at /redoc, in the fonts that the reader has: its own would come from an outside host.
const place = document.getElementById("redoc");
const font = "system-ui, sans-serif";
const theme = { typography: { fontFamily: font, headings: { fontFamily: font } } };
Redoc.init(place.dataset.schema, { theme, expandResponses: "200,201" }, place);
