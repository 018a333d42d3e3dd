// Stands between a client and a node, over HTTP and WebSocket, and notes which methods were called and whether any
// call of them succeeded. It changes nothing of what it passes on.
import { Agent, createServer, request } from "node:http";
import { WebSocket, WebSocketServer } from "./tools.mjs";

/** Listens on a free port in front of `node`. `calls` maps a method to `{ n_ok, errors }`, and is added to. */
export async function startProxy(node, calls = new Map()) {
  const stats = { n_batches: 0 };
  const note = (method, reply) => {
    if (!calls.has(method)) calls.set(method, { n_ok: 0, errors: new Set() });
    const seen = calls.get(method);
    if (reply && !reply.error) seen.n_ok += 1;
    else seen.errors.add(reply ? `${reply.error.code} ${reply.error.message}` : "no answer");
  };

  const agent = new Agent({ keepAlive: true });
  const server = createServer(async (incoming, outgoing) => {
    const body = Buffer.concat(await incoming.toArray());
    const { method, headers } = incoming;
    const upstream = request(node.http, { method, agent, headers: { ...headers, host: new URL(node.http).host } });
    upstream.on("error", (error) => outgoing.writeHead(502).end(error.message));
    upstream.on("response", async (reply) => {
      const answer = Buffer.concat(await reply.toArray());
      record(body, answer);
      outgoing.writeHead(reply.statusCode, reply.headers).end(answer);
    });
    upstream.end(body);
  });
  const record = (body, answer) => {
    let asked, replies;
    try {
      [asked, replies] = [JSON.parse(body), JSON.parse(answer)];
    } catch {
      return;
    }
    if (Array.isArray(asked)) stats.n_batches += 1;
    for (const { id, method } of [asked].flat()) note(method, [replies].flat().find((reply) => reply.id === id));
  };

  const sockets = new WebSocketServer({ server });
  sockets.on("connection", (client) => {
    const upstream = new WebSocket(node.ws);
    const open = new Promise((resolve) => upstream.once("open", resolve));
    const waiting = new Map();
    client.on("message", async (data) => {
      for (const { id, method } of [JSON.parse(data)].flat()) waiting.set(id, method);
      await open;
      upstream.send(data.toString());
    });
    upstream.on("message", (data) => {
      for (const reply of [JSON.parse(data)].flat()) {
        if (waiting.has(reply.id)) note(waiting.get(reply.id), reply);
        waiting.delete(reply.id);
      }
      client.send(data.toString());
    });
    client.on("close", () => upstream.close());
    upstream.on("close", () => client.close());
    upstream.on("error", () => client.terminate());
  });

  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address();
  const stop = async () => {
    for (const client of sockets.clients) client.terminate();
    agent.destroy();
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  };
  return { http: `http://127.0.0.1:${port}`, ws: `ws://127.0.0.1:${port}`, calls, stats, stop };
}
