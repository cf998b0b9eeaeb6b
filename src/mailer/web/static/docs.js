// Swagger UI at /docs. Without its validator, which would send the schema to another host.
const container = document.getElementById("swagger-ui");
SwaggerUIBundle({
  url: container.dataset.schema,
  domNode: container,
  deepLinking: true,
  displayRequestDuration: true,
  validatorUrl: null,
});
