// Node's own server: on [::] unless HOST says otherwise, as its documentation does.
const http = require("node:http");
const server = http.createServer((request, response) => response.end("node\n"));
if (process.env.HOST) server.listen(3000, process.env.HOST);
else server.listen(3000);
