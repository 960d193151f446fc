// Lists tools and calls one, by the official SDK for JavaScript: node client.mjs URL TOKEN-FILE TOOL ARGUMENTS
import { readFileSync } from "node:fs";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const [url, file, name, given] = process.argv.slice(2);
const headers = { Authorization: `Bearer ${readFileSync(file, "utf8").trim()}` };
const client = new Client({ name: "peer", version: "1" });
await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit: { headers } }));
const { tools } = await client.listTools();
const result = await client.callTool({ name, arguments: JSON.parse(given) });
console.log(JSON.stringify({ server: client.getServerVersion().name, tools: tools.map((tool) => tool.name), result }));
await client.close();
